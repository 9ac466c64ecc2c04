// The page's client: keeps `state` and `data` in step with the Python app and hands its requests on.
// Served as SlyApp.js, the ES module that the SDK's index.html loads last.

const { axios, jsonpatch, jwtDecode } = window.sly.packages;

const RECONNECT_MS = 2000;
// Loads in a row while patches keep coming in; the next patch that does not fit starts anew.
const LOAD_LIMIT = 5;

/** Address of a route relative to the page, which may lie behind a prefix such as /net/<token>/. */
export function address(route, base = document.baseURI) {
  return new URL(route.replace(/^\/+/, ''), base.replace(/[?#].*$/, ''));
}

/**
 * Apply RFC 6902 operations in place, so that Vue sees keys come and go.
 * Throws where a patch does not fit its document.
 */
export function applyPatch(document, operations) {
  for (const { op, path, value } of operations) {
    const keys = path.split('/').slice(1).map(jsonpatch.unescapePathComponent);
    const last = keys.pop();
    const parent = keys.reduce((node, key) => node[key], document);
    if (last === undefined || parent === null || typeof parent !== 'object') {
      throw new Error(`A patch does not fit: ${op} ${path}`);
    }
    if (Array.isArray(parent)) {
      const index = last === '-' ? parent.length : Number(last);
      if (!(index <= parent.length)) throw new Error(`A patch does not fit: ${op} ${path}`);
      if (op === 'add') parent.splice(index, 0, value);
      else if (op === 'replace') parent.splice(index, 1, value);
      else if (op === 'remove') parent.splice(index, 1);
      else throw new Error(`Unknown operation: ${op}`);
    } else if (op === 'add' || op === 'replace') {
      Vue.set(parent, last, value);
    } else if (op === 'remove') {
      Vue.delete(parent, last);
    } else {
      throw new Error(`Unknown operation: ${op}`);
    }
  }
}

function userToken() {
  const stored = window.localStorage.getItem('token');
  return stored ? jwtDecode(stored).apiToken : null;
}

Vue.component('sly-app', {
  template: `
    <div>
      <div v-if="lost" class="connection-lost"><i class="zmdi zmdi-cloud-off"></i> The app does not answer. Trying again…</div>
      <slot v-if="ready" :post="post" :state="state" :data="data" :session="session"
        :is-static-version="false" :public-api-instance="publicApiInstance"></slot>
    </div>`,

  data: () => ({ state: {}, data: {}, session: null, ready: false, lost: false }),

  created() {
    // Not reactive: nothing on the page shows them.
    this.context = {};
    this.publicApiInstance = axios.create();
    this.loading = false;
    this.outdated = false;
    this.connect();
  },

  beforeDestroy() {
    this.socket.onclose = null;
    this.socket.close();
  },

  methods: {
    connect() {
      const url = address('sly/ws');
      url.protocol = url.protocol.replace('http', 'ws');
      this.socket = new WebSocket(url);
      this.socket.onopen = () => this.load();
      this.socket.onmessage = (event) => this.receive(JSON.parse(event.data));
      this.socket.onclose = () => {
        this.lost = true;
        setTimeout(() => this.connect(), RECONNECT_MS);
      };
    },

    /** Fetch everything; again if a patch came in meanwhile, which may or may not be in what was fetched. */
    async load() {
      if (this.loading) {
        this.outdated = true;
        return;
      }
      this.loading = true;
      try {
        let state, data;
        for (let times = 0; times === 0 || (this.outdated && times < LOAD_LIMIT); times += 1) {
          this.outdated = false;
          [state, data] = await Promise.all(['sly/state', 'sly/data'].map((route) => this.request(route)));
        }
        if (!this.session) await this.startSession();
        this.state = state;
        this.data = data;
        this.lost = false;
        this.ready = true;
        document.getElementById('app-global-loading-icon')?.remove();
      } catch (error) {
        this.lost = true;
        setTimeout(() => this.load(), RECONNECT_MS);
      } finally {
        this.loading = false;
      }
    },

    async startSession() {
      const session = await this.request('sly/session-info');
      const token = userToken() || session.API_TOKEN;
      if (token) {
        this.context.apiToken = token;
        this.publicApiInstance.defaults.headers.common['x-api-key'] = token;
      }
      if (session.SERVER_ADDRESS) {
        this.publicApiInstance.defaults.baseURL = `${session.SERVER_ADDRESS.replace(/\/$/, '')}/public/api/v3`;
      }
      this.session = session;
    },

    async request(route, body) {
      return (await axios.post(address(route).href, body)).data;
    },

    receive(message) {
      if (this.loading) {
        this.outdated = true;
        return;
      }
      try {
        if (message.state) applyPatch(this.state, message.state);
        if (message.data) applyPatch(this.data, message.data);
      } catch (error) {
        this.load();
      }
    },

    /** Call a route of the app with the whole state, as its handlers expect. */
    async post(route, payload = {}) {
      // Some controls tell of a change before they change the state.
      await this.$nextTick();
      try {
        return await this.request(route, { state: this.state, context: this.context, payload });
      } catch (error) {
        const details = error.response?.data?.detail ?? error.response?.data?.details;
        const text = details?.message ?? (typeof details === 'string' ? details : error.message);
        this.$alert(text, details?.title ?? 'Something went wrong', { type: 'error', confirmButtonText: 'Ok' }).catch(() => {});
        return null;
      }
    },
  },
});

window.slyApp = { app: new Vue({ el: '#sly-app' }) };
