// anywidget loads this one module. It loads the others, which came with the widget, each under an address of its own:
// modules that are loaded from a string can not name each other by a path.

const urls = new Map();

async function addressOf(name, sources) {
  if (urls.has(name)) return urls.get(name).url;
  let source = sources[name];
  const needed = [...source.matchAll(/from "\.\/([\w-]+\.js)"/g)].map((found) => found[1]);
  for (const other of needed) {
    const url = await addressOf(other, sources);
    source = source.replaceAll(`from "./${other}"`, `from "${url}"`);
  }
  const url = URL.createObjectURL(new Blob([`${source}\n//# sourceURL=llama_magic/${name}`], { type: "text/javascript" }));
  urls.set(name, { url });
  return url;
}

// One store for each widget, not for each of its views: what comes while no view is open is kept.
const stores = new Map();

async function storeOf(model) {
  const id = model.get("panel_id");
  if (!stores.has(id)) {
    const made = addressOf("app.js", model.get("modules"))
      .then((url) => import(url))
      .then((app) => ({ app, store: new app.Store(model.get("state")) }));
    stores.set(id, made);
  }
  return stores.get(id);
}

export default {
  async initialize({ model }) {
    const { store } = await storeOf(model);
    const send = (message) => model.send(message);
    const take = (message, buffers) => store.take(message, buffers);
    const live = () => store.checkConnection();
    store.connect(send);
    model.on("msg:custom", take);
    model.on("comm_live_update", live);
    // What the kernel told while the modules were being loaded went by unheard.
    store.checkConnection();
    return () => {
      model.off("msg:custom", take);
      model.off("comm_live_update", live);
    };
  },
  async render({ model, el }) {
    const { app, store } = await storeOf(model);
    return app.mount(el, store);
  },
};
