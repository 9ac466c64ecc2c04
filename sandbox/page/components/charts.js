// Charts by ApexCharts. Drawing is what costs: points come every second to several charts at once, and a click must not
// wait for all of them. So charts are drawn one by one in idle moments, and only those that are in sight.

const DRAW_PAUSE_MS = 1000;
const DRAW_LIMIT_MS = 3000;

const drawing = {
  waiting: new Set(),
  scheduled: false,

  order(chart) {
    drawing.waiting.add(chart);
    if (drawing.scheduled) return;
    drawing.scheduled = true;
    setTimeout(drawing.next, DRAW_PAUSE_MS);
  },

  next() {
    window.requestIdleCallback(
      () => {
        const [chart] = drawing.waiting;
        if (chart) {
          drawing.waiting.delete(chart);
          chart.draw();
        }
        drawing.scheduled = drawing.waiting.size > 0;
        if (drawing.scheduled) drawing.next();
      },
      { timeout: DRAW_LIMIT_MS },
    );
  },
};

Vue.component('sly-apexchart', {
  props: {
    options: { type: Object, default: () => ({}) },
    series: { type: Array, default: () => [] },
    type: { type: String, default: 'line' },
    height: { type: [String, Number], default: 300 },
    slyOptions: { type: Object, default: () => ({}) },
  },
  watch: {
    series: { handler() { this.change(); }, deep: true },
    options: { handler() { this.change(); }, deep: true },
  },
  mounted() {
    this.chart = new ApexCharts(this.$refs.chart, this.settings());
    this.chart.render();
    this.changed = false;
    this.inSight = true;
    this.sight = new IntersectionObserver((entries) => {
      this.inSight = entries[entries.length - 1].isIntersecting;
      if (this.changed) this.change();
    });
    this.sight.observe(this.$refs.chart);
  },
  beforeDestroy() {
    this.sight.disconnect();
    drawing.waiting.delete(this);
    this.chart.destroy();
  },
  methods: {
    change() {
      this.changed = true;
      if (this.inSight) drawing.order(this);
    },
    draw() {
      this.changed = false;
      this.chart.updateOptions(this.settings(), false, false, false);
    },
    settings() {
      const { lodash } = window.sly.packages;
      const given = lodash.cloneDeep(this.options || {});
      const click = (event, chart, point) => this.tell('click', point);
      const own = {
        chart: {
          type: this.type, height: Number(this.height) || this.height, fontFamily: 'inherit',
          animations: { enabled: false }, events: { click, dataPointSelection: this.select },
        },
        series: lodash.cloneDeep(this.series),
      };
      return lodash.merge({ noData: { text: 'No points yet' } }, given, own);
    },
    select(event, chart, point) {
      this.tell('data-point-selection', point);
    },
    tell(event, point) {
      const { seriesIndex, dataPointIndex } = point || {};
      if (dataPointIndex >= 0) this.$emit(event, { seriesIndex, dataPointIndex });
    },
  },
  template: '<div class="chart"><div ref="chart"></div></div>',
});
