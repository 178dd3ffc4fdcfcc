// Quantizing: pick a type and see at once what it gives; mix types by kind of tensor; make the file.

import { active, button, copyButton, debounce, field, fill, h, jobView, lasting, magicLine, quoted, uid } from "./dom.js";

const COMMON = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"];

export function quantizeSection(store) {
  const model = store.get("model");
  const choice = { source: model.current?.ref ?? model.chosen?.ref ?? "smollm2", ftype: "Q4_K_M", mix: {}, imatrix: "", pure: false, requantize: null, place: "", force: false };
  const line = magicLine();
  const sourceList = uid("sources");
  const source = h("input", { class: "lm-input", value: choice.source, spellcheck: false, list: sourceList });
  source.setAttribute("list", sourceList);
  const known = h("datalist", { id: sourceList });
  const imatrix = h("input", { class: "lm-input", placeholder: "none", spellcheck: false });
  const place = h("input", { class: "lm-input", placeholder: "beside the model, or this folder", spellcheck: false });
  const pure = h("input", { type: "checkbox" });
  const again = h("input", { type: "checkbox" });
  const force = h("input", { type: "checkbox" });
  const types = h("div", { class: "lm-types", role: "radiogroup", "aria-label": "Quantization type" });
  const all = h("select", { class: "lm-input", onchange: () => pick(all.value) });
  const about = h("div", { class: "lm-muted" });
  const outcome = h("div", { class: "lm-stack" });
  const run = button("Quantize", () => {
    store.act("quantize.run", { ...choice, requantize: requantizes() });
  }, { kind: "primary" });

  const why = h("div", { class: "lm-note", role: "status" });

  const plan = () => {
    store.act("quantize.plan", { source: choice.source, ftype: choice.ftype, mix: choice.mix, imatrix: choice.imatrix, pure: choice.pure });
    draw();
  };
  const soon = debounce(plan, 150);
  const requantizes = () => (choice.requantize === null ? Boolean(store.get("quantize").plan?.requantizes) && again.checked : again.checked);

  function pick(name) {
    choice.ftype = name;
    plan();
  }
  source.addEventListener("change", () => {
    choice.source = source.value.trim() || "smollm2";
    plan();
  });
  imatrix.addEventListener("change", () => {
    choice.imatrix = imatrix.value.trim();
    plan();
  });
  place.addEventListener("input", () => {
    choice.place = place.value.trim();
    draw();
  });
  pure.addEventListener("change", () => {
    choice.pure = pure.checked;
    plan();
  });
  for (const box of [again, force]) {
    box.addEventListener("change", () => {
      choice.force = force.checked;
      draw();
    });
  }

  const mixer = mixerView(store, choice, soon);

  const outcomeNodes = lasting(outcomeView);
  const typeNodes = lasting((list, chosen) => COMMON.map((name) => {
    const type = list.find((each) => each.name === name);
    if (!type) return null;
    const mine = chosen === name;
    return h("button", { type: "button", role: "radio", class: "lm-type", "aria-checked": mine ? "true" : "false", tabIndex: mine || (!COMMON.includes(chosen) && name === COMMON[0]) ? 0 : -1, onclick: () => pick(name) }, h("b", {}, name), h("span", {}, `${Number(type.bits.toFixed(2))} bits`));
  }));

  function drawTypes() {
    const list = (store.get("quantize").types ?? []).filter((type) => type.writable);
    if (!all.children.length && list.length) fill(all, list.map((type) => h("option", { value: type.name }, `${type.name} · ${Number(type.bits.toFixed(2))} bits${type.imatrix === "needed" ? " · needs a matrix" : ""}`)));
    fill(types, typeNodes(list, choice.ftype));
    all.value = choice.ftype;
    about.textContent = list.find((type) => type.name === choice.ftype)?.use ?? "";
  }
  types.addEventListener("keydown", (event) => {
    const at = COMMON.indexOf(choice.ftype);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pick(COMMON[(to + COMMON.length) % COMMON.length]);
    types.querySelector('[aria-checked="true"]')?.focus();
  });

  function draw() {
    drawTypes();
    const state = store.get("quantize");
    const jobs = store.get("jobs");
    const found = state.plan && state.plan.ftype === choice.ftype && state.plan.source === choice.source ? state.plan : null;
    fill(outcome, outcomeNodes(found, active(jobs.plan)));
    mixer.show(found);
    const missing = found?.needs_imatrix && !choice.imatrix ? `${choice.ftype} needs an importance matrix: %llama imatrix makes one.` : "";
    const twice = found?.requantizes && !again.checked ? "The model is quantized already: tick “quantize what is quantized already”, or take its F16 file." : "";
    const reason = active(jobs.quantize) ? "A file is being made." : jobs.plan?.state === "failed" ? "It can not be planned, see above." : missing || twice;
    run.can(reason);
    why.textContent = active(jobs.quantize) ? "" : reason;
    again.closest("label").classList.toggle("lm-attention", Boolean(twice));
    line.show(lineOf(choice, requantizes()));
  }

  const made = madeView(store);
  const node = h(
    "div",
    { class: "lm-columns" },
    h(
      "div",
      { class: "lm-col wide" },
      h("div", { class: "lm-card" }, field("Model", source), known, h("div", { class: "lm-field" }, h("span", { class: "lm-flabel" }, "Type"), types), field("All types", all), about, outcome, jobView(store, "plan")),
      h(
        "div",
        { class: "lm-card" },
        h("div", { class: "lm-grid2" }, field("Importance matrix", imatrix), field("Write to", place)),
        h("div", { class: "lm-row" }, h("label", { class: "lm-check" }, pure, "all tensors in one type"), h("label", { class: "lm-check" }, again, "quantize what is quantized already"), h("label", { class: "lm-check" }, force, "overwrite")),
        h("div", { class: "lm-row" }, why, h("span", { class: "lm-grow" }), run),
        jobView(store, "quantize", { quietEnd: false }),
        line,
      ),
      made,
    ),
    h("div", { class: "lm-col" }, mixer.node),
  );
  store.on("quantize", draw);
  store.on("jobs", draw);
  store.on("model", (state) => fill(known, [...(state.local ?? []), ...(state.catalogue ?? [])].map((row) => h("option", { value: row.ref }))));
  let begun = false;
  return {
    node,
    visible: (on) => {
      if (!on || begun) return;
      begun = true;
      plan();
    },
  };
}

function lineOf(choice, requantize) {
  const mix = Object.entries(choice.mix).filter(([, type]) => type);
  const words = [
    "%llama quantize",
    quoted(choice.source),
    choice.ftype,
    ...mix.map(([key, type]) => (key === "output" ? `--output-tensor-type ${type}` : key === "token_embd" ? `--token-embedding-type ${type}` : `--tensor-type ${quoted(`${pattern(key)}=${type}`)}`)),
    choice.imatrix ? `--imatrix ${quoted(choice.imatrix)}` : "",
    choice.pure ? "--pure" : "",
    requantize ? "--allow-requantize" : "",
    choice.force ? "--force" : "",
    choice.place ? `--out ${quoted(choice.place)}` : "",
  ];
  return words.filter(Boolean).join(" ");
}

const pattern = (key) => (key.startsWith("ffn_") ? `${key}(_exps|_shexp)?[.]` : `${key}[.]`);

function outcomeView(plan, busy) {
  if (!plan) return busy ? h("div", { class: "lm-muted" }, h("span", { class: "lm-spinner", "aria-hidden": "true" }), " planning…") : null;
  const share = plan.source_size ? Math.min(1, plan.size / plan.source_size) : 1;
  return [
    h("div", { class: "lm-figures" }, figure(plan.words, `of ${plan.source_words}`), figure(plan.bits, "bits per weight, really"), figure(`${plan.fallbacks}`, `of ${plan.tensors} tensors fell back`, plan.fallbacks ? "warn" : "")),
    h("div", { class: "lm-bar tall", role: "img", "aria-label": `${plan.words} of ${plan.source_words}` }, h("div", { class: "lm-bar-fill", style: { width: `${100 * share}%` } })),
    h("div", { class: "lm-muted small" }, plan.types.map(([name, count]) => `${count} ${name}`).join(", ")),
    plan.reasons.length ? h("details", {}, h("summary", {}, "what fell back, and why"), h("ul", { class: "lm-ul" }, plan.reasons.map(([wanted, got, why, count]) => h("li", {}, `${count} tensors: ${wanted} → ${got} (${why})`)))) : null,
    plan.notes.map((text) => h("div", { class: "lm-note" }, text)),
    h("div", { class: "lm-muted small" }, "makes ", h("code", {}, plan.target.split(/[\\/]/).at(-1))),
  ];
}

function figure(value, words, tone = "") {
  return h("div", { class: `lm-figure ${tone}` }, h("b", {}, value), h("span", {}, words));
}

function mixerView(store, choice, changed) {
  const rows = new Map();
  const list = h("div", { class: "lm-mixer" });
  const clear = button("Clear", () => {
    choice.mix = {};
    for (const { range, out } of rows.values()) {
      range.value = 0;
      out.textContent = "as planned";
    }
    changed();
  }, { kind: "quiet", small: true });
  const build = () => {
    const { kinds, mixer } = store.get("quantize");
    if (!kinds || rows.size) return;
    for (const [label, key] of kinds) {
      const id = uid("mix");
      const out = h("output", { class: "lm-mix-out", htmlFor: id }, "as planned");
      const now = h("span", { class: "lm-muted small" });
      const range = h("input", { type: "range", id, class: "lm-range", min: 0, max: mixer.length, step: 1, value: 0 });
      range.addEventListener("input", () => {
        const type = mixer[Number(range.value) - 1] ?? "";
        choice.mix = { ...choice.mix, [key]: type };
        out.textContent = type || "as planned";
        range.setAttribute("aria-valuetext", type || "as planned");
        changed();
      });
      range.setAttribute("aria-valuetext", "as planned");
      rows.set(key, { range, out, now });
      list.append(h("div", { class: "lm-slider" }, h("label", { htmlFor: id }, label, now), range, out));
    }
  };
  store.on("quantize", build);
  return {
    node: h("div", { class: "lm-card" }, h("div", { class: "lm-row" }, h("h4", {}, "Layer mixer"), h("span", { class: "lm-grow" }), clear), h("div", { class: "lm-hint" }, "A type for each kind of tensor, over what the type above would choose. The size follows."), list),
    show: (plan) => {
      for (const [key, { now, range }] of rows) {
        now.textContent = plan ? (plan.kinds[key] ?? "not in this model") : "";
        range.disabled = Boolean(plan) && plan.kinds[key] === undefined;
        range.title = range.disabled ? "This model has no such tensor." : "";
      }
    },
  };
}

function madeView(store) {
  const root = h("div", { class: "lm-stack" });
  store.on("quantize", (state) => {
    const made = state.made ?? [];
    fill(root, made.length ? h("h4", {}, "Made") : null, made.map((row) => {
      const load = button("Load", () => store.act("model.load", { ref: row.path, options: {} }), { small: true });
      return h("div", { class: "lm-resident" }, h("span", { class: "lm-badge good" }, row.ftype), h("div", { class: "lm-grow" }, h("b", {}, row.name), h("div", { class: "lm-muted small" }, `${row.size} · ${row.bits} bits per weight · ${row.seconds}`)), copyButton("%llama load", `%llama load ${quoted(row.path)}`), load);
    }));
  });
  return root;
}
