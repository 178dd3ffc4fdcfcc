// Models: find one, see what it is and whether it fits, load it; what is in memory.

import { active, button, copyButton, debounce, field, fill, h, icon, jobView, lasting, magicLine, quoted, uid } from "./dom.js";

const CONTEXTS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072];

export function modelSection(store) {
  let chosen = store.get("model").chosen?.ref ?? store.get("model").current?.ref ?? "smollm2";
  let options = {};
  const line = magicLine();
  const list = modelList(store, (ref) => choose(ref));
  const card = modelCard(store, {
    options: (values) => {
      options = { ...options, ...values };
      store.act("model.choose", { ref: chosen, options });
      show();
    },
    load: (force) => store.act("model.load", { ref: chosen, options, force }),
    unload: () => store.act("model.unload", { ref: chosen }),
    ref: () => chosen,
  });

  function choose(ref) {
    chosen = ref;
    delete options.n_gpu_layers;
    list.mark(ref);
    card.begin(ref);
    store.act("model.choose", { ref, options });
    show();
  }

  function show() {
    const context = options.n_ctx ? ` -c ${options.n_ctx}` : "";
    const layers = Number.isInteger(options.n_gpu_layers) ? ` -ngl ${options.n_gpu_layers}` : "";
    line.show(`%llama load ${quoted(chosen)}${context}${layers}`);
  }

  const node = h(
    "div",
    { class: "lm-columns" },
    h("div", { class: "lm-col" }, list.node),
    h("div", { class: "lm-col wide" }, card.node, jobView(store, "model"), line, residents(store)),
  );
  show();
  if (!store.get("model").chosen?.facts) store.act("model.choose", { ref: chosen, options });
  list.mark(chosen);
  store.on("model", (model) => {
    // Another panel chose another model.
    if (model.chosen && model.chosen.ref !== chosen) {
      chosen = model.chosen.ref;
      list.mark(chosen);
      show();
    }
  });
  return { node };
}

function modelList(store, choose) {
  const id = uid("models");
  const search = h("input", { type: "search", class: "lm-input", placeholder: "Search models, or name a file or owner/repo", "aria-label": "Search models", "aria-controls": id, spellcheck: false });
  const box = h("div", { class: "lm-list", role: "listbox", tabIndex: 0, id, "aria-label": "Models" });
  const hub = button("Search the Hub", () => {
    if (search.value.trim()) store.act("model.search", { words: search.value.trim() });
  }, { iconName: "search", small: true });
  const refresh = button("Refresh", () => store.act("model.refresh"), { kind: "quiet", iconName: "refresh", small: true });
  const free = h("span", { class: "lm-muted small" });
  let marked = "";
  let rows = [];
  let sure = []; // those that Enter may choose from

  function draw() {
    const model = store.get("model");
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (row) => words.every((word) => `${row.name ?? ""} ${row.ref} ${row.ftype} ${row.params}`.toLowerCase().includes(word));
    const here = new Set((model.local ?? []).map((row) => row.ref));
    const known = [...(model.local ?? []), ...(model.catalogue ?? []).filter((row) => !here.has(row.ref))];
    const local = (model.local ?? []).filter(fits);
    const catalogue = known.slice((model.local ?? []).length).filter(fits);
    const found = model.hub?.rows ?? [];
    const typed = search.value.trim();
    const named = /[/\\]|\.gguf$/i.test(typed) && ![...local, ...catalogue, ...found].some((row) => row.ref === typed);
    const near = local.length || catalogue.length || named ? [] : nearest(typed, known);
    const groups = [
      ["Did you mean", near],
      ["As you typed it", named ? [{ ref: typed, name: typed, place: "", size: "", ftype: "", params: "", note: "a file, or a repository of the Hub" }] : []],
      ["On this machine", local],
      ["Small models to begin with", catalogue],
      [model.hub ? `On the Hub: “${model.hub.words}”` : "", found],
    ];
    rows = groups.flatMap(([, each]) => each);
    sure = near.length ? [] : rows;
    const loaded = new Set((model.loaded ?? []).map((row) => row.ref));
    fill(
      box,
      model.local === undefined ? h("div", { class: "lm-empty" }, h("span", { class: "lm-spinner", "aria-hidden": "true" }), "reading the list of models…") : null,
      groups.filter(([, each]) => each.length).map(([title, each]) => [h("div", { class: "lm-group", role: "presentation" }, title), each.map((row) => item(row, loaded))]),
      model.local !== undefined && !rows.length ? h("div", { class: "lm-empty" }, "Nothing here has that name. “Search the Hub” looks further.") : null,
    );
    mark(marked);
    free.textContent = model.free ? `${model.free} free on the disk` : "";
    hub.can(active(store.get("jobs").hub) ? "A search is under way." : search.value.trim() ? "" : "Write what to search for first.");
  }

  function item(row, loaded) {
    const facts = [row.size, row.ftype, row.params].filter(Boolean).join(" · ");
    return h(
      "div",
      { class: "lm-item", role: "option", id: `${id}-${rows.indexOf(row)}`, "data-ref": row.ref, onclick: () => choose(row.ref) },
      h("div", { class: "lm-item-name" }, titleOf(row), loaded.has(row.ref) ? h("span", { class: "lm-badge good" }, "loaded") : null),
      h("div", { class: "lm-item-facts" }, facts || row.note, row.place && row.place !== "catalogue" && row.place !== "Hub" ? h("span", { class: "lm-badge" }, row.place) : null),
    );
  }

  function mark(ref) {
    marked = ref;
    for (const node of box.querySelectorAll(".lm-item")) {
      const mine = node.dataset.ref === ref;
      node.setAttribute("aria-selected", mine ? "true" : "false");
      if (mine) box.setAttribute("aria-activedescendant", node.id);
    }
  }

  box.addEventListener("keydown", (event) => {
    const at = rows.findIndex((row) => row.ref === marked);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows.length) return;
    event.preventDefault();
    const row = rows[Math.max(0, Math.min(rows.length - 1, to))];
    mark(row.ref);
    box.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
    soon(row.ref);
  });
  const soon = debounce((ref) => choose(ref), 250);
  search.addEventListener("input", draw);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && sure.length === 1) choose(sure[0].ref);
    else if (event.key === "Enter" && search.value.trim()) store.act("model.search", { words: search.value.trim() });
  });
  store.on("model", draw);
  store.on("jobs", () => hub.can(active(store.get("jobs").hub) ? "A search is under way." : search.value.trim() ? "" : "Write what to search for first."));
  const node = h("div", { class: "lm-stack" }, search, box, h("div", { class: "lm-row" }, hub, refresh, h("span", { class: "lm-grow" }), free), jobView(store, "hub"));
  return { node, mark };
}

// The rows whose names begin almost as what was typed, the nearest first.
function nearest(typed, rows) {
  const goal = typed.toLowerCase();
  if (goal.length < 3) return [];
  const apart = (row) => Math.min(...[row.name, row.ref.split(/[/\\:]/).at(-1)].filter(Boolean).map((name) => edits(goal, name.toLowerCase())));
  return rows.map((row) => [apart(row), row]).filter(([far]) => far <= goal.length / 3).sort(([one], [other]) => one - other).slice(0, 3).map(([, row]) => row);
}

// Letters to change, add or leave out (Levenshtein's distance) from a word to the beginning of another that is nearest.
function edits(word, other) {
  let row = [...Array(other.length + 1).keys()];
  for (let at = 1; at <= word.length; at += 1) {
    const next = [at];
    for (let to = 1; to <= other.length; to += 1) next.push(Math.min(row[to] + 1, next[to - 1] + 1, row[to - 1] + (word[at - 1] === other[to - 1] ? 0 : 1)));
    row = next;
  }
  return Math.min(...row);
}

// What a person types for it, where that is short; else its name.
function titleOf(row) {
  if (row.place === "catalogue") return row.name;
  if (/[/\\].*\.gguf$/i.test(row.ref) && !row.ref.startsWith("hf:")) return row.ref.split(/[/\\]/).at(-1);
  return row.ref.length < 60 ? row.ref : row.name || row.ref;
}

function modelCard(store, act) {
  const title = h("h3", { class: "lm-title" });
  const body = h("div", { class: "lm-stack" });
  const load = button("Load", () => act.load(false), { kind: "primary" });
  const anyway = button("Load anyway", () => act.load(true), { small: true, title: "--force: skip the memory check" });
  const unload = button("Unload", act.unload);
  const context = h("select", { class: "lm-input", onchange: () => act.options({ n_ctx: context.value ? Number(context.value) : null }) }, h("option", { value: "" }, "automatic"));
  const head = h("div", { class: "lm-row" }, title, h("span", { class: "lm-grow" }));
  const actions = h("div", { class: "lm-row bottom" }, field("Context (tokens)", context), h("span", { class: "lm-grow" }), anyway, unload, load);
  const layers = h("input", { type: "range", class: "lm-range", min: 0, step: 1 });
  const layersTold = h("output", { class: "lm-mix-out" });
  const layersWhy = h("div", { class: "lm-hint" });
  const layersRow = h("div", { class: "lm-slider" }, field("Layers on the accelerator", layers), layersTold, layersWhy);
  let picked = null;
  layers.addEventListener("input", () => {
    layersTold.textContent = layers.value;
  });
  layers.addEventListener("change", () => {
    picked = Number(layers.value);
    act.options({ n_gpu_layers: picked });
  });
  let trained = 0;
  const factNodes = lasting(factRows);
  const fitNodes = lasting(fitView);

  function draw() {
    const model = store.get("model");
    const jobs = store.get("jobs");
    const { facts, fit } = model.chosen ?? {};
    title.textContent = facts?.name || act.ref();
    if (facts && facts.n_ctx_train !== trained) {
      trained = facts.n_ctx_train;
      const was = context.value;
      const sizes = CONTEXTS.filter((size) => size < trained).concat(trained ? [trained] : []);
      fill(context, h("option", { value: "" }, "automatic"), sizes.map((size) => h("option", { value: String(size) }, size.toLocaleString("en"))));
      context.value = sizes.map(String).includes(was) ? was : "";
    }
    const looking = active(jobs.look);
    const failed = jobs.look?.state === "failed" ? jobs.look.error : "";
    fill(
      body,
      facts ? factNodes(facts) : null,
      !facts && looking ? h("div", { class: "lm-empty" }, h("span", { class: "lm-spinner", "aria-hidden": "true" }), jobs.look.message || "reading the file's header…") : null,
      failed ? h("div", { class: "lm-error", role: "alert" }, h("span", { class: "lm-sign" }, "✗"), failed) : null,
      fit ? fitNodes(fit) : facts && looking ? h("div", { class: "lm-muted" }, h("span", { class: "lm-spinner", "aria-hidden": "true" }), " reckoning what it takes…") : null,
    );
    if (fit || !looking) drawLayers(fit, facts); // while it is reckoned, the slider stays where it was put
    const loaded = (model.loaded ?? []).some((row) => row.ref === act.ref());
    const busy = active(jobs.model) ? "Another model is being loaded or unloaded." : "";
    load.can(busy);
    load.say(loaded ? "Load again" : "Load");
    unload.can(busy || (loaded ? "" : "It is not loaded."));
    anyway.can(busy);
    anyway.hidden = !(fit && fit.fits === false);
  }

  function drawLayers(fit, facts) {
    const none = !fit || fit.error || fit.n_gpu_layers === null || fit.n_gpu_layers === undefined;
    layers.disabled = none;
    layers.max = fit?.n_layer ?? facts?.n_layer ?? 0;
    layers.value = none ? 0 : (picked ?? fit.n_gpu_layers);
    layers.title = none ? "No accelerator is in use here: see Hardware." : "";
    layersTold.textContent = none ? "none" : `${layers.value} of ${layers.max}`;
    layersWhy.textContent = none ? "No accelerator is in use here: all layers are on the processor. See Hardware." : "What each device then holds is shown above.";
  }

  store.on("model", draw);
  store.on("jobs", draw);
  return {
    node: h("div", { class: "lm-card" }, head, body, layersRow, actions),
    begin: (ref) => {
      picked = null;
      title.textContent = ref;
    },
  };
}

function factRows(facts) {
  const main = new Set(["parameters", "file", "quantization", "context", "licence", "architecture"]);
  const rows = (list) => h("dl", { class: "lm-facts" }, list.map(([label, value]) => [h("dt", {}, label), h("dd", {}, value)]));
  return [
    facts.warnings.map((text) => h("div", { class: "lm-warn" }, h("span", { class: "lm-sign" }, "⚠"), text)),
    rows(facts.rows.filter(([label]) => main.has(label))),
    mixBar(facts.mix),
    h("details", {}, h("summary", {}, "more about it"), rows(facts.rows.filter(([label]) => !main.has(label)))),
  ];
}

function mixBar(mix) {
  if (!mix?.length) return null;
  const words = mix.map((part) => `${part.type}: ${part.count} tensors, ${part.size}`).join("; ");
  return h(
    "div",
    { class: "lm-mix" },
    h("div", { class: "lm-stackbar", role: "img", "aria-label": `Types of the tensors: ${words}` }, mix.map((part, at) => h("span", { class: `lm-part p${at % 5}`, style: { width: `${100 * part.share}%` }, title: `${part.type}: ${part.count} tensors, ${part.size}` }))),
    h("div", { class: "lm-legend" }, mix.map((part, at) => h("span", {}, h("i", { class: `lm-key p${at % 5}` }), `${part.type} ${part.size}`))),
  );
}

function fitView(fit) {
  if (fit.error) return h("div", { class: "lm-warn" }, h("span", { class: "lm-sign" }, "⚠"), fit.error);
  return h(
    "div",
    { class: "lm-fit" },
    h("div", { class: fit.fits ? "lm-good" : "lm-error" }, h("span", { class: "lm-sign" }, fit.fits ? "✓" : "✗"), fit.verdict),
    fit.devices.map((device) => {
      const whole = Math.max(device.free, device.need, 1);
      return h(
        "div",
        { class: "lm-device" },
        h("div", { class: "lm-row tight" }, h("b", {}, device.name), h("span", { class: "lm-muted" }, device.words)),
        h("div", { class: "lm-stackbar tall", role: "img", "aria-label": `${device.name}: ${device.words}` }, device.parts.map(([label, size, words], at) => h("span", { class: `lm-part p${at}`, style: { width: `${(100 * size) / whole}%` }, title: `${label}: ${words}` })), device.need > device.free ? h("span", { class: "lm-limit", style: { left: `${(100 * device.free) / whole}%` }, title: "free memory" }) : null),
        h("div", { class: "lm-legend" }, device.parts.map(([label, , words], at) => h("span", {}, h("i", { class: `lm-key p${at}` }), `${label} ${words}`))),
      );
    }),
    h("details", { open: !fit.fits }, h("summary", {}, "speed to expect, and advice"), h("ul", { class: "lm-ul" }, h("li", {}, fit.speed), fit.advice.map((text) => h("li", {}, text)))),
  );
}

function residents(store) {
  const root = h("div", { class: "lm-stack" });
  const nodes = lasting((loaded, path, busy) => [
    h("h4", {}, "In memory"),
    loaded.length ? null : h("div", { class: "lm-muted" }, "No model is loaded. The first question loads one by itself."),
    loaded.map((row) => {
      const unload = button("Unload", () => store.act("model.unload", { ref: row.ref }), { small: true });
      unload.can(busy);
      unload.setAttribute("aria-label", `Unload ${row.name}`);
      return h(
        "div",
        { class: "lm-resident" },
        h("span", { class: `lm-dot ${row.path === path ? "on" : ""}` }),
        h("div", { class: "lm-grow" }, h("b", {}, row.name), row.path === path ? h("span", { class: "lm-badge good" }, "current") : null, h("div", { class: "lm-muted small" }, `${row.ftype} · context ${row.n_ctx.toLocaleString("en")} · ${row.devices} · ${row.threads} threads · about ${row.memory}`)),
        copyButton("%llama unload", `%llama unload ${quoted(row.ref)}`),
        unload,
      );
    }),
  ]);
  const draw = () => {
    const model = store.get("model");
    const busy = active(store.get("jobs").model) ? "Another model is being loaded or unloaded." : "";
    fill(root, nodes(model.loaded ?? [], model.current?.path, busy));
  };
  store.on("model", draw);
  store.on("jobs", draw);
  return root;
}
