// The frame: head, tabs, banners, and the sections.

import { h, button, fill, iconButton, lasting } from "./dom.js";
import { Store } from "./store.js";
import { modelSection } from "./model.js";
import { chatSection } from "./chat.js";
import { quantizeSection } from "./quantize.js";
import { hardwareSection } from "./hardware.js";
import { compareSection } from "./compare.js";
import { serveSection } from "./serve.js";

export { Store };

const SECTIONS = [
  ["model", "Model", modelSection],
  ["chat", "Chat", chatSection],
  ["quantize", "Quantize", quantizeSection],
  ["hardware", "Hardware", hardwareSection],
  ["compare", "Compare", compareSection],
  ["serve", "Serve", serveSection],
];

export function mount(el, store) {
  const scope = [];
  store.scope = scope;
  const root = h("section", { class: "llama-panel", "aria-label": "llama_magic panel" });
  const tabs = h("div", { class: "lm-tabs", role: "tablist", "aria-label": "Sections" });
  const bodies = h("div", { class: "lm-bodies" });
  const shown = new Map();

  function open(name, focus = false) {
    for (const tab of tabs.children) {
      const mine = tab.dataset.section === name;
      tab.setAttribute("aria-selected", mine ? "true" : "false");
      tab.tabIndex = mine ? 0 : -1;
      if (mine && focus) tab.focus();
    }
    if (!shown.has(name)) {
      const [, label, make] = SECTIONS.find(([each]) => each === name);
      const body = h("div", { class: `lm-body lm-${name}`, role: "tabpanel", "aria-label": label, tabIndex: -1 });
      store.scope = scope;
      const made = make(store, { open });
      store.scope = null;
      body.append(made.node);
      bodies.append(body);
      shown.set(name, { body, made });
    }
    for (const [other, { body, made }] of shown) {
      const visible = other === name;
      if (body.hidden === visible) made.visible?.(visible);
      body.hidden = !visible;
    }
    shown.get(name).made.visible?.(true);
  }

  for (const [name, label] of SECTIONS) {
    const tab = h("button", { type: "button", role: "tab", class: "lm-tab", onclick: () => open(name) }, label);
    tab.dataset.section = name;
    tabs.append(tab);
  }
  tabs.addEventListener("keydown", (event) => {
    const list = [...tabs.children];
    const at = list.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: list.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    open(list[(to + list.length) % list.length].dataset.section, true);
  });

  root.append(head(store), tabs, banners(store), bodies);
  // Keys pressed in the panel are the panel's: JupyterLab's one-letter commands must not see them.
  root.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) && event.key !== "Escape") event.stopPropagation();
  });
  el.classList.add("llama-panel-host");
  el.append(root);
  const showPage = hidePage(el);
  store.scope = null;
  open(store.state.open ?? "model");
  const seen = watchVisibility(root, (visible) => {
    store.act("app.visible", { visible });
    for (const { body, made } of shown.values()) if (!body.hidden) made.visible?.(visible);
  });
  return () => {
    seen();
    for (const { made } of shown.values()) made.visible?.(false);
    for (const end of scope.splice(0)) end();
    showPage();
  };
}

function head(store) {
  const chip = h("div", { class: "lm-chip", role: "status" });
  store.on("model", (model) => {
    const current = model.current;
    fill(
      chip,
      h("span", { class: `lm-dot ${current ? "on" : ""}` }),
      current
        ? [h("b", {}, current.name), h("span", { class: "lm-muted" }, `${current.ftype} · ${current.devices} · ${current.memory}`)]
        : h("span", { class: "lm-muted" }, "no model loaded"),
    );
  });
  const close = iconButton("close", "Close this panel: what it started ends, models stay loaded", () => store.act("app.close"));
  return h("header", { class: "lm-head" }, h("div", { class: "lm-brand" }, h("span", { class: "lm-mark", "aria-hidden": "true" }, "🦙"), "llama_magic"), chip, close);
}

function banners(store) {
  const root = h("div", { class: "lm-banners", role: "status", "aria-live": "polite" });
  const bugNode = lasting((bug) => h("div", { class: "lm-banner warn" }, h("div", { class: "lm-grow" }, bug.text, h("details", {}, h("summary", {}, "details for a report"), h("pre", {}, bug.detail))), iconButton("close", "Dismiss", () => store.act("app.forgive"))));
  const draw = () => {
    const bug = store.get("app").bug;
    fill(
      root,
      store.live
        ? null
        : h("div", { class: "lm-banner warn" }, "The kernel was restarted or is gone. Run the cell again to open a new panel."),
      store.live && store.waiting > 0
        ? h("div", { class: "lm-banner busy" }, h("span", { class: "lm-spinner", "aria-hidden": "true" }), "A cell is running. What you do here is done when it ends; ■ in the notebook stops it.")
        : null,
      bug ? bugNode(bug) : null,
    );
  };
  store.on("app", draw);
  store.when("connection", draw);
  return root;
}

// The page for a saved notebook lies above the live view, in the same cell: one of them is enough.
function hidePage(el) {
  let area = null;
  const outputs = () => [...(area?.querySelectorAll(".llama-panel-page") ?? [])].map((page) => page.closest(".jp-OutputArea-child, .output_area") ?? page);
  const hide = () => {
    for (const output of outputs()) if (output.style.display !== "none") output.style.display = "none";
  };
  const observer = new MutationObserver(hide); // it is drawn again when it changes
  const find = (tries) => {
    area = el.closest(".jp-OutputArea, .output");
    if (area) {
      observer.observe(area, { childList: true });
      hide();
    } else if (tries > 0) setTimeout(() => find(tries - 1), 100);
  };
  find(20);
  return () => {
    observer.disconnect();
    for (const output of outputs()) output.style.display = "";
    area = null;
  };
}

function watchVisibility(node, tell) {
  let last = null;
  const say = (visible) => {
    if (visible !== last) {
      last = visible;
      tell(visible);
    }
  };
  let inView = true;
  const observer = new IntersectionObserver((entries) => {
    inView = entries.at(-1).isIntersecting;
    say(inView && !document.hidden);
  });
  const page = () => say(inView && !document.hidden);
  observer.observe(node);
  document.addEventListener("visibilitychange", page);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", page);
    say(false);
  };
}
