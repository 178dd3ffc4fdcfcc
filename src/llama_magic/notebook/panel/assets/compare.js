// Comparing levels: choose them, watch the race, read the result.

import { active, button, field, h, jobView, magicLine, quoted } from "./dom.js";
import { scrubber } from "./scrubber.js";

const LEVELS = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_NL", "Q3_K_M", "Q2_K"];

export function compareSection(store) {
  const model = store.get("model");
  const chosen = new Set(["Q8_0", "Q4_K_M", "Q4_0"]);
  const source = h("input", { class: "lm-input", value: model.current?.ref ?? model.chosen?.ref ?? "smollm2", spellcheck: false });
  const prompt = h("textarea", { class: "lm-input", rows: 2, value: "Name three rivers and say where they are." });
  const reading = h("input", { class: "lm-input", placeholder: "the built-in text", title: "a text file", spellcheck: false });
  const number = (value, title) => h("input", { class: "lm-input lm-number", type: "number", min: 0, step: 1, value, title });
  const chunks = number(4, "512 tokens each; 0: neither perplexity nor KL divergence");
  const runs = number(1, "0: speed is not measured");
  const tokens = number(48, "of each answer");
  const chips = h("div", { class: "lm-types", role: "group", "aria-label": "Levels" });
  const line = magicLine();
  const live = h("div", { class: "lm-live" });
  const result = h("div", { class: "lm-result" });
  const why = h("div", { class: "lm-note", role: "status" });
  const drawn = { head: null, table: null, result: null };
  const heads = h("div", {});
  const tables = h("div", {});
  live.append(heads, tables);

  const whole = (node) => Math.max(0, Math.round(Number(node.value) || 0));
  const levels = () => LEVELS.filter((level) => chosen.has(level));
  const settings = () => ({ ref: source.value.trim() || "smollm2", levels: levels(), prompt: prompt.value, tokens: Math.max(1, whole(tokens)) });
  const run = button("Compare", () => {
    store.act("compare.run", { ...settings(), text: reading.value.trim(), chunks: whole(chunks), runs: whole(runs) });
  }, { kind: "primary" });

  for (const level of LEVELS) {
    const chip = h("button", { type: "button", class: "lm-type", "aria-pressed": chosen.has(level) ? "true" : "false" }, h("b", {}, level));
    chip.addEventListener("click", () => {
      if (chosen.has(level)) chosen.delete(level);
      else chosen.add(level);
      chip.setAttribute("aria-pressed", chosen.has(level) ? "true" : "false");
      draw();
    });
    chips.append(chip);
  }
  for (const node of [source, prompt, reading, chunks, runs, tokens]) node.addEventListener("input", () => draw());

  const closer = scrubber(store, settings);

  function draw() {
    closer.draw();
    const busy = active(store.get("jobs").compare);
    const reason = busy ? "A comparison is under way." : levels().length ? "" : "Choose a level first.";
    run.can(reason);
    why.textContent = busy ? "" : reason;
    const asked = prompt.value.trim();
    const file = reading.value.trim();
    line.show(
      [
        "%llama compare",
        quoted(source.value.trim() || "smollm2"),
        levels().join(" "),
        asked ? `-p ${quoted(asked.replaceAll("\n", " "))} -n ${Math.max(1, whole(tokens))}` : "",
        whole(chunks) ? `--chunks ${whole(chunks)}` : "--no-text",
        whole(chunks) && file ? `--text ${quoted(file)}` : "",
        `--runs ${whole(runs)}`,
      ]
        .filter(Boolean)
        .join(" "),
    );
    const state = store.get("compare");
    const put = (key, node, html) => {
      if (drawn[key] !== (html ?? null)) {
        drawn[key] = html ?? null;
        node.innerHTML = html ?? ""; // made by the package's own views, which escape what models wrote
      }
    };
    put("head", heads, state.live?.head);
    put("table", tables, state.live?.table);
    put("result", result, state.result);
  }

  store.on("compare", draw);
  store.on("jobs", draw);
  const node = h(
    "div",
    { class: "lm-stack" },
    h(
      "div",
      { class: "lm-card" },
      h("div", { class: "lm-grid2" }, field("Model", source), field("Prompt that all answer", prompt), field("Text that all read", reading)),
      h("div", { class: "lm-field" }, h("span", { class: "lm-flabel" }, "Levels"), chips),
      h("div", { class: "lm-row bottom" }, field("Chunks of text", chunks), field("Timed runs", runs), field("Tokens", tokens), h("span", { class: "lm-grow" }), why, run),
      jobView(store, "compare", { quietEnd: false }),
      line,
    ),
    live,
    result,
    closer.node,
  );
  return { node };
}
