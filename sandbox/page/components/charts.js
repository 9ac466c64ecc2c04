// Charts by ApexCharts.

// Points come one by one and from several charts; drawing is what costs.
const REDRAW_MS = 500;

Vue.component('sly-apexchart', {
  props: {
    options: { type: Object, default: () => ({}) },
    series: { type: Array, default: () => [] },
    type: { type: String, default: 'line' },
    height: { type: [String, Number], default: 300 },
    slyOptions: { type: Object, default: () => ({}) },
  },
  watch: {
    series: { handler() { this.redraw(); }, deep: true },
    options: { handler() { this.rebuild(); }, deep: true },
  },
  created() {
    const { lodash } = window.sly.packages;
    this.redraw = lodash.throttle(() => this.chart?.updateSeries(lodash.cloneDeep(this.series), false), REDRAW_MS);
    this.rebuild = lodash.throttle(() => this.chart?.updateOptions(this.settings(), false, false), REDRAW_MS);
  },
  mounted() {
    this.chart = new ApexCharts(this.$refs.chart, this.settings());
    this.chart.render();
  },
  beforeDestroy() {
    this.redraw.cancel();
    this.rebuild.cancel();
    this.chart.destroy();
  },
  methods: {
    settings() {
      const { lodash } = window.sly.packages;
      const given = lodash.cloneDeep(this.options || {});
      const click = (event, chart, point) => {
        if (point && point.dataPointIndex >= 0) this.$emit('click', lodash.pick(point, ['seriesIndex', 'dataPointIndex']));
      };
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
      this.$emit('data-point-selection', { seriesIndex: point.seriesIndex, dataPointIndex: point.dataPointIndex });
    },
  },
  template: '<div class="chart"><div ref="chart"></div></div>',
});
