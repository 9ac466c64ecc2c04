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
        drawing.waiting.delete(chart);
        try {
          if (chart) chart.draw();
        } finally {
          // Whatever goes wrong with a chart, the others are drawn.
          drawing.scheduled = drawing.waiting.size > 0;
          if (drawing.scheduled) drawing.next();
        }
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
    this.chart = null;
    this.changed = this.drawing = false;
    this.draw();
    this.sight = new IntersectionObserver(() => {
      if (this.changed) this.change();
    });
    this.sight.observe(this.$refs.chart);
  },
  beforeDestroy() {
    this.sight.disconnect();
    drawing.waiting.delete(this);
    this.forget();
  },
  methods: {
    change() {
      this.changed = true;
      if (this.isInSight()) drawing.order(this);
    },
    // Asked each time: what an observer said once may be outdated.
    isInSight() {
      const { top, bottom, width } = this.$refs.chart.getBoundingClientRect();
      return width > 0 && bottom > 0 && top < window.innerHeight;
    },
    async draw() {
      this.changed = false;
      // What has not ended by now never will: ApexCharts leaves the promise of a failed update open.
      if (this.drawing) this.forget();
      this.drawing = true;
      try {
        if (this.chart) {
          await this.chart.updateOptions(this.settings(), false, false, false);
        } else {
          this.chart = new ApexCharts(this.$refs.chart, this.settings());
          await this.chart.render();
        }
        this.drawing = false;
      } catch (error) {
        console.warn(`A chart was not drawn: ${error}`);
        this.forget();
      }
    },
    // What is half drawn may never be drawn right again: the next change makes the chart anew.
    forget() {
      const { chart } = this;
      this.chart = null;
      this.drawing = false;
      if (chart) chart.destroy();
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
