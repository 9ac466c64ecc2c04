// Things to choose from: datasets in a tree, filters with checkboxes.

/** Closes a dropdown by a click elsewhere or Escape, and opens it by its head. */
const dropdown = {
  data: () => ({ open: false }),
  mounted() {
    this.away = (event) => {
      if (event.key ? event.key === 'Escape' : !this.$el.contains(event.target)) this.open = false;
    };
    document.addEventListener('mousedown', this.away);
    document.addEventListener('keydown', this.away);
  },
  beforeDestroy() {
    document.removeEventListener('mousedown', this.away);
    document.removeEventListener('keydown', this.away);
  },
};

Vue.component('sly-tree-node', {
  props: { item: Object, chosen: Array, multiple: Boolean, depth: { type: Number, default: 0 } },
  data: () => ({ folded: false }),
  computed: {
    children() {
      return this.item.children || [];
    },
  },
  template: `
    <li>
      <div class="tree-row" :class="{ 'tree-row-chosen': chosen.includes(item.id) }"
        :style="{ paddingLeft: 10 + 18 * depth + 'px' }" @click="$emit('toggle', item)">
        <i v-if="children.length" class="tree-arrow zmdi" :class="folded ? 'zmdi-chevron-right' : 'zmdi-chevron-down'"
          @click.stop="folded = !folded"></i>
        <span v-else class="tree-arrow"></span>
        <span v-if="multiple" class="tree-box"><i v-if="chosen.includes(item.id)" class="zmdi zmdi-check"></i></span>
        <span class="tree-label">{{ item.label || item.id }}</span>
      </div>
      <ul v-if="children.length && !folded">
        <sly-tree-node v-for="child in children" :key="child.id" :item="child" :chosen="chosen" :multiple="multiple"
          :depth="depth + 1" @toggle="$emit('toggle', $event)"></sly-tree-node>
      </ul>
    </li>`,
});

Vue.component('sly-tree-select', {
  mixins: [dropdown],
  props: {
    value: [Array, Object, String, Number],
    items: { type: Array, default: () => [] },
    options: { type: Object, default: () => ({}) },
    disabled: Boolean,
  },
  computed: {
    multiple() {
      return Boolean(this.options.multiple);
    },
    values() {
      if (this.value === null || this.value === undefined) return [];
      return Array.isArray(this.value) ? this.value : [this.value];
    },
    chosen() {
      return this.values.map(this.idOf);
    },
    expanded() {
      return this.open || this.options.alwaysOpen;
    },
  },
  methods: {
    idOf(value) {
      return value !== null && typeof value === 'object' ? value.id : value;
    },
    labelOf(value) {
      return (typeof value === 'object' && value.label) || this.idOf(value);
    },
    // Without `flat`, a parent stands for everything below it.
    branch(item) {
      return this.options.flat ? [item] : [item, ...(item.children || []).flatMap(this.branch)];
    },
    toggle(item) {
      const inForm = (one) => (this.options.valueFormat === 'id' ? one.id : one);
      if (!this.multiple) {
        this.open = false;
        this.$emit('input', inForm(item));
        return;
      }
      const branch = this.branch(item);
      const ids = branch.map((one) => one.id);
      const kept = this.values.filter((value) => !ids.includes(this.idOf(value)));
      this.$emit('input', this.chosen.includes(item.id) ? kept : [...kept, ...branch.map(inForm)]);
    },
    remove(value) {
      if (!this.disabled) this.$emit('input', this.multiple ? this.values.filter((one) => one !== value) : null);
    },
  },
  template: `
    <div class="tree-select" :class="{ 'tree-select-disabled': disabled }">
      <div class="tree-select-head" tabindex="0" @click="disabled || (open = !open)" @keydown.enter="disabled || (open = !open)">
        <span v-if="!values.length" class="text-muted">{{ options.placeholder || 'Select' }}</span>
        <template v-for="value in values">
          <el-tag v-if="multiple" :key="idOf(value)" type="primary" :closable="!disabled"
            @close="remove(value)">{{ labelOf(value) }}</el-tag>
          <span v-else :key="idOf(value)">{{ labelOf(value) }}</span>
        </template>
        <i class="tree-select-arrow el-icon-caret-bottom" :class="{ 'is-reverse': expanded }"></i>
      </div>
      <ul v-if="expanded && !disabled" class="tree-select-list" :class="{ 'tree-select-floating': !options.alwaysOpen }">
        <li v-if="!items.length" class="tree-row text-muted">Nothing to choose from</li>
        <sly-tree-node v-for="item in items" :key="item.id" :item="item" :chosen="chosen" :multiple="multiple"
          @toggle="toggle"></sly-tree-node>
      </ul>
    </div>`,
});

Vue.component('sly-dropdown-checkbox-selection', {
  mixins: [dropdown],
  props: { label: String, items: { type: Array, default: () => [] }, selected: { type: Array, default: () => [] } },
  computed: {
    // The app hands whole items over where it chose by itself, and reads identifiers.
    ids() {
      return this.selected.map((one) => (one !== null && typeof one === 'object' ? one.id : one));
    },
  },
  methods: {
    toggle(id) {
      this.$emit('update:selected', this.ids.includes(id) ? this.ids.filter((one) => one !== id) : [...this.ids, id]);
    },
  },
  template: `
    <div class="filter">
      <button type="button" class="filter-head" @click="open = !open">
        <i class="zmdi zmdi-filter-list"></i> {{ label }} <span v-if="ids.length" class="filter-count">{{ ids.length }}</span>
        <i class="el-icon-caret-bottom"></i>
      </button>
      <ul v-if="open" class="filter-list">
        <li v-if="!items.length" class="text-muted">Nothing to choose from</li>
        <li v-for="item in items" :key="item.id" @click="toggle(item.id)">
          <span class="tree-box"><i v-if="ids.includes(item.id)" class="zmdi zmdi-check"></i></span>
          <span>{{ item.name }} <small v-if="item.description" class="text-muted">{{ item.description }}</small></span>
        </li>
      </ul>
    </div>`,
});
