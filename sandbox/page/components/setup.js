// What the page's own scripts and the SDK's widget scripts expect to find in the window.

window.sly = {
  packages: { lodash: window._, axios: window.axios, jsonpatch: window.jsonpatch, jwtDecode: window.jwt_decode },
};
ELEMENT.locale(ELEMENT.lang.en);
Vue.config.productionTip = false;
