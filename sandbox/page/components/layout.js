// Header, cards, steps, fields: what holds other widgets.

Vue.component('sly-app-header', {
  props: { session: Object, data: Object, state: Object },
  computed: {
    title: () => document.title,
  },
  template: `
    <header class="app-header">
      <span class="app-header-title">{{ title }}</span>
      <span v-if="session.TASK_ID" class="app-header-task">Task {{ session.TASK_ID }}</span>
    </header>`,
});

Vue.component('sly-card', {
  props: {
    title: String,
    subtitle: String,
    options: { type: Object, default: () => ({}) },
    disabled: { type: [Boolean, Object], default: false },
    collapsed: Boolean,
  },
  data() {
    return { closed: this.collapsed };
  },
  computed: {
    locked() {
      return Boolean(this.disabled && (this.disabled === true || this.disabled.disabled));
    },
    message() {
      return (this.disabled && this.disabled.message) || 'Locked';
    },
    collapsable() {
      return Boolean(this.options && this.options.collapsable);
    },
  },
  watch: {
    collapsed(value) {
      this.closed = value;
    },
  },
  template: `
    <section class="card" :class="{ 'card-locked': locked, 'card-closed': closed }"
      :style="{ marginBottom: options.marginBottom }">
      <div v-if="title || subtitle || $slots.header || collapsable" class="card-header"
        :class="{ 'card-header-clickable': collapsable }" @click="collapsable && (closed = !closed)">
        <div class="card-titles">
          <h3 v-if="title">{{ title }}</h3>
          <div v-if="subtitle" class="text-muted">{{ subtitle }}</div>
        </div>
        <div class="card-header-slot" @click.stop><slot name="header"></slot></div>
        <i v-if="collapsable" class="card-arrow zmdi" :class="closed ? 'zmdi-chevron-down' : 'zmdi-chevron-up'"></i>
      </div>
      <div v-show="!closed" class="content-wrapper" :style="{ overflow: options.contentOverflow }">
        <slot></slot>
      </div>
      <div v-if="locked && !closed" class="card-lock">
        <span class="card-lock-message"><i class="zmdi zmdi-lock"></i> {{ message }}</span>
      </div>
    </section>`,
});

Vue.component('sly-stepper', {
  props: { active: { type: Number, default: 1 } },
  data: () => ({ items: [] }),
  provide() {
    return { stepper: this };
  },
  template: '<div class="stepper"><slot></slot></div>',
});

Vue.component('sly-stepper-item', {
  inject: ['stepper'],
  props: { name: String },
  computed: {
    number() {
      return this.stepper.items.indexOf(this) + 1;
    },
    phase() {
      if (this.number < this.stepper.active) return 'done';
      return this.number === this.stepper.active ? 'active' : 'waiting';
    },
  },
  created() {
    this.stepper.items.push(this);
  },
  beforeDestroy() {
    this.stepper.items.splice(this.stepper.items.indexOf(this), 1);
  },
  template: `
    <div class="stepper-item" :class="'stepper-item-' + phase">
      <div class="stepper-rail"><span class="stepper-number">{{ number }}</span></div>
      <div class="stepper-content"><h3 v-if="name">{{ name }}</h3><slot></slot></div>
    </div>`,
});

Vue.component('sly-field', {
  props: { title: String, description: String },
  template: `
    <div class="input-label">
      <div v-if="$slots.icon" class="left-side"><slot name="icon"></slot></div>
      <div class="right-side">
        <div v-if="title || $slots.title" class="field-title"><slot name="title">{{ title }}</slot></div>
        <div v-if="description || $slots.description" class="field-description text-muted">
          <slot name="description">{{ description }}</slot>
        </div>
        <div v-if="$slots.default" class="field-content"><slot></slot></div>
      </div>
    </div>`,
});

Vue.component('sly-icon', {
  props: { options: { type: Object, default: () => ({}) } },
  computed: {
    image() {
      const url = this.options && this.options.imageUrl;
      return url && !['null', 'undefined', 'None'].includes(url) ? url : null;
    },
  },
  template: `
    <span class="field-icon" :class="{ 'field-icon-round': options && options.rounded }"
      :style="image ? {} : { color: options && options.color, background: options && options.bgColor }">
      <img v-if="image" :src="image" alt="">
      <i v-else :class="(options && options.className) || 'zmdi zmdi-collection-folder-image'"></i>
    </span>`,
});

Vue.component('sly-notification-2', {
  template: `
    <div class="notice">
      <i class="zmdi zmdi-alert-triangle"></i>
      <div><div class="notice-title"><slot name="title"></slot></div><slot></slot></div>
    </div>`,
});

// Shows a template that came as data, with the page's state and data at hand.
Vue.component('sly-html-compiler', {
  props: { template: [String, Number], state: Object, data: Object, context: Object, params: Object },
  computed: {
    compiled() {
      const text = String(this.template ?? '').trim();
      return text.startsWith('<') ? Vue.compile(`<span>${text}</span>`) : null;
    },
  },
  render(create) {
    if (!this.compiled) return create('span', String(this.template ?? ''));
    this.$options.staticRenderFns = this.compiled.staticRenderFns;
    this._staticTrees = [];
    return this.compiled.render.call(this, create);
  },
});
