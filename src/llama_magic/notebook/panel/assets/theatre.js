// The sampler theatre: sliders, and the next token's real distribution under them.

import { active, button, debounce, fill, h, jobView, magicLine, uid } from "./dom.js";
import { percent, stages } from "./sampling.js";

const SLIDERS = [
  ["temperature", "Temperature", "--temp", 0, 2, 0.05, "Below 1 the likely become likelier, above 1 the unlikely get a chance. 0 always takes the likeliest."],
  ["top_k", "Top-k", "--top-k", 0, 100, 1, "Keep the k likeliest tokens. 0 is off."],
  ["top_p", "Top-p", "--top-p", 0, 1, 0.01, "Keep the likeliest tokens that together make up this share. 1 is off."],
  ["min_p", "Min-p", "--min-p", 0, 1, 0.01, "Keep tokens at least this many times as likely as the likeliest. 0 is off."],
];
const SHOWN = 24;

export function theatre(store, draft) {
  const values = {};
  const line = magicLine("As a magic");
  const scene = h("div", { class: "lm-scene", tabIndex: 0, role: "group", "aria-label": "The next token" });
  const strip = h("ol", { class: "lm-funnel", "aria-label": "Candidates left after each stage" });
  const label = h("div", { class: "lm-muted small" });
  let rows = [];
  let place = null;

  const save = debounce((changes) => store.act("chat.sampling", changes), 200);
  const sliders = SLIDERS.map(([name, title, flag, least, most, step, hint]) => slider(name, title, flag, least, most, step, hint));

  function slider(name, title, flag, least, most, step, hint) {
    const id = uid(name);
    const range = h("input", { type: "range", id, min: least, max: most, step, class: "lm-range", "aria-describedby": `${id}-hint` });
    const number = h("input", { type: "number", min: least, step, class: "lm-number", "aria-label": `${title}, as a number` });
    const change = (value) => {
      if (!Number.isFinite(value)) return;
      const bounded = Math.max(least, name === "top_p" || name === "min_p" ? Math.min(most, value) : value);
      values[name] = name === "top_k" ? Math.round(bounded) : bounded;
      range.value = values[name];
      if (document.activeElement !== number) number.value = values[name];
      save({ [name]: values[name] });
      draw();
    };
    range.addEventListener("input", () => change(Number(range.value)));
    number.addEventListener("change", () => change(Number(number.value)));
    const node = h("div", { class: "lm-slider" }, h("label", { htmlFor: id }, title, h("code", {}, flag)), range, number, h("div", { class: "lm-hint", id: `${id}-hint` }, hint));
    return { name, node, set: (value) => { range.value = value; if (document.activeElement !== number) number.value = value; } };
  }

  store.on("chat", (chat) => {
    if (!chat.sampling) return;
    let news = false;
    for (const { name, set } of sliders) {
      const value = chat.sampling[name];
      if (values[name] !== value) {
        values[name] = value;
        set(value);
        news = true;
      }
    }
    if (news) draw();
    else showLine();
  });

  function showLine() {
    const { temperature, top_k, top_p, min_p } = values;
    line.show(`%llama config --temp ${temperature} --top-k ${top_k} --top-p ${top_p} --min-p ${min_p}`);
  }

  function build() {
    rows = Array.from({ length: Math.min(SHOWN, place.texts.length) }, (_, at) => {
      const raw = h("span", { class: "lm-raw" });
      const now = h("span", { class: "lm-now" });
      const share = h("span", { class: "lm-share" });
      const fate = h("span", { class: "lm-fate" });
      const node = h("li", { class: "lm-candidate" }, h("code", { class: "lm-token", dir: "auto" }, visible(place.texts[at])), h("span", { class: "lm-track" }, raw, now), share, fate);
      return { node, raw, now, share, fate };
    });
    fill(scene, h("ol", { class: "lm-candidates", "aria-label": "Candidates for the next token, the likeliest first" }, rows.map((row) => row.node)));
  }

  function draw() {
    showLine();
    if (!place) return;
    const found = stages(place.logits, values, SHOWN);
    fill(strip, found.steps.map(({ stage, left }) => h("li", {}, h("b", {}, left.toLocaleString("en")), h("span", {}, stage === "all" ? "tokens" : stage))));
    const top = Math.max(found.before[0], found.after[0], 1e-9);
    rows.forEach((row, at) => {
      const gone = found.takenBy[at];
      row.node.classList.toggle("gone", Boolean(gone));
      row.raw.style.width = `${(100 * found.before[at]) / top}%`;
      row.now.style.width = `${(100 * found.after[at]) / top}%`;
      row.share.textContent = percent(found.after[at]);
      row.share.title = `${percent(found.before[at])} before sampling`;
      row.fate.textContent = gone ? `✗ ${gone}` : "";
    });
  }

  store.when("theatre", (found) => {
    place = found;
    label.textContent = `${found.label} · after ${found.n_prompt.toLocaleString("en")} tokens`;
    build();
    draw();
  });

  const look = button("Look at the next token", () => store.act("theatre.look", { text: draft(), label: draft() ? `after “${clip(draft())}”` : "what comes next" }), { iconName: "look", kind: "primary", small: true });
  const reset = button("Defaults", () => store.act("chat.reset"), { kind: "quiet", small: true, title: "llama.cpp's own defaults" });
  const check = () => {
    const jobs = store.get("jobs");
    const chat = store.get("chat");
    look.can(active(jobs.theatre) ? "It is being looked at." : active(jobs.chat) ? "An answer is being written." : draft() || chat.turns?.length ? "" : "Write a question first: the next token is that of its answer.");
  };
  store.on("jobs", check);
  if (store.theatre) {
    place = store.theatre;
    label.textContent = `${place.label} · after ${place.n_prompt.toLocaleString("en")} tokens`;
    build();
    draw();
  } else {
    fill(scene, h("div", { class: "lm-empty tall" }, "Here the candidates for the next token appear, with the model's own probabilities. Drag a slider and watch them fall away."));
  }
  const node = h("div", { class: "lm-stack" }, h("div", { class: "lm-row" }, h("h4", {}, "Sampler theatre"), h("span", { class: "lm-grow" }), reset), h("div", { class: "lm-sliders" }, sliders.map((each) => each.node)), h("div", { class: "lm-row" }, look, label), jobView(store, "theatre"), strip, scene, line);
  return { node, check };
}

function clip(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > 40 ? `${line.slice(0, 39)}…` : line;
}

export function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";
}
