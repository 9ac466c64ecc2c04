// The plain table of the SDK: sorting, search, pages, clicks on cells.

Vue.component('sly-table', {
  props: {
    content: { type: Object, default: () => ({ columns: [], data: [] }) },
    options: { type: Object, default: () => ({}) },
    sort: { type: Object, default: () => ({}) },
    value: Object,
  },
  data() {
    return { page: 1, perPage: this.options.perPage || 10, search: '', order: { ...this.sort } };
  },
  watch: {
    sort: { handler(value) { this.order = { ...value }; }, deep: true },
    search() { this.page = 1; },
  },
  computed: {
    rows() {
      const { lodash } = window.sly.packages;
      const wanted = this.search.toLowerCase();
      const rows = this.content.data
        .map((cells, index) => ({ cells, index }))
        .filter(({ cells }) => cells.some((cell) => String(cell).toLowerCase().includes(wanted)));
      const { columnIdx, direction } = this.order;
      if (columnIdx === null || columnIdx === undefined) return rows;
      return lodash.orderBy(rows, [({ cells }) => cells[columnIdx]], [direction || 'asc']);
    },
    shown() {
      return this.rows.slice((this.page - 1) * this.perPage, this.page * this.perPage);
    },
    pageSizes() {
      return this.options.pageSizes || [10, 15, 30, 50, 100];
    },
  },
  methods: {
    sortBy(columnIdx) {
      const again = this.order.columnIdx === columnIdx && this.order.direction === 'asc';
      this.order = { columnIdx, direction: again ? 'desc' : 'asc' };
      this.$emit('update:sort', this.order);
    },
    choose(row, selectedColumn) {
      const { lodash } = window.sly.packages;
      this.$emit('input', {
        selectedRow: row.index, selectedColumn, selectedColumnName: this.content.columns[selectedColumn],
        selectedRowData: lodash.zipObject(this.content.columns, row.cells),
      });
    },
  },
  template: `
    <div class="plain-table">
      <el-input v-if="content.data.length > perPage" v-model="search" size="small" icon="search" placeholder="Search"
        class="plain-table-search"></el-input>
      <div class="plain-table-scroll">
        <table class="beautiful-table">
          <thead><tr>
            <th v-for="(column, index) in content.columns" :key="index" @click="sortBy(index)">
              {{ column }}
              <i v-if="order.columnIdx === index" class="zmdi"
                :class="order.direction === 'desc' ? 'zmdi-long-arrow-down' : 'zmdi-long-arrow-up'"></i>
            </th>
          </tr></thead>
          <tbody>
            <tr v-for="row in shown" :key="row.index" :class="{ 'row-chosen': value && value.selectedRow === row.index }">
              <td v-for="(cell, index) in row.cells" :key="index" @click="choose(row, index)"><span v-html="cell"></span></td>
            </tr>
          </tbody>
          <tfoot v-if="content.summaryRow"><tr>
            <td v-for="(cell, index) in content.summaryRow" :key="index"><b v-html="cell"></b></td>
          </tr></tfoot>
        </table>
      </div>
      <el-pagination v-if="rows.length > pageSizes[0]" small layout="prev, pager, next, sizes" :total="rows.length"
        :current-page.sync="page" :page-size="perPage" :page-sizes="pageSizes" @size-change="perPage = $event"></el-pagination>
    </div>`,
});
