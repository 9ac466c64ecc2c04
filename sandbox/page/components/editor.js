// Code editor over CodeMirror 5; its options are those of the Ace editor that the SDK describes.

const EDITOR_MODES = { json: { name: 'javascript', json: true }, yaml: 'yaml', python: 'python', html: 'xml' };
const LINE_HEIGHT_PX = 18;

Vue.component('sly-editor', {
  props: { value: { type: String, default: '' }, options: { type: Object, default: () => ({}) } },
  computed: {
    mode() {
      return EDITOR_MODES[(this.options.mode || '').replace('ace/mode/', '')] || null;
    },
    maxHeight() {
      return this.options.maxLines ? `${this.options.maxLines * LINE_HEIGHT_PX + 10}px` : null;
    },
  },
  watch: {
    value(text) {
      if (text !== this.editor.getValue()) this.show(text);
    },
    options: { handler: 'applyOptions', deep: true },
  },
  mounted() {
    this.editor = CodeMirror(this.$refs.editor, { value: this.formatted(this.value), tabSize: 2, viewportMargin: 40 });
    this.applyOptions();
    this.editor.on('change', (_, change) => {
      if (change.origin !== 'setValue') this.$emit('input', this.editor.getValue());
    });
    // What is made in a closed tab or card has no size until it is shown.
    this.resized = new ResizeObserver(() => this.editor.refresh());
    this.resized.observe(this.$refs.editor);
  },
  beforeDestroy() {
    this.resized.disconnect();
  },
  methods: {
    applyOptions() {
      this.editor.setOption('mode', this.mode);
      this.editor.setOption('readOnly', Boolean(this.options.readOnly));
      this.editor.setOption('lineNumbers', this.options.showGutter !== false);
      this.editor.setOption('styleActiveLine', Boolean(this.options.highlightActiveLine));
      this.editor.setSize(null, this.options.maxLines ? 'auto' : this.options.height || '200px');
      this.editor.getScrollerElement().style.maxHeight = this.maxHeight || '';
    },
    formatted(text) {
      if (!this.options.formatJsonOnInit || !(this.options.mode || '').endsWith('json')) return text || '';
      try {
        return JSON.stringify(JSON.parse(text), null, 2);
      } catch (error) {
        return text || '';
      }
    },
    show(text) {
      const cursor = this.editor.getCursor();
      const { left, top } = this.editor.getScrollInfo();
      this.editor.setValue(text || '');
      this.editor.setCursor(cursor, null, { scroll: false });
      this.editor.scrollTo(left, top);
    },
  },
  template: `
    <div class="editor" :class="{ 'editor-readonly': options.readOnly }">
      <div ref="editor"></div>
      <div v-if="$slots.controls" class="editor-controls"><slot name="controls"></slot></div>
    </div>`,
});
