// A comparison token by token: every level reads the reference's own answer, and at each place its likeliest tokens
// stand beside the reference's.

import { active, button, fill, h, jobView, magicLine, quoted, uid } from "./dom.js";
import { visible } from "./theatre.js";

// `chosen` gives what the section is set to: { ref, levels, prompt, tokens }.
export function scrubber(store, chosen) {
  const pick = h("select", { class: "lm-input", "aria-label": "Level to look at", onchange: () => show(true) });
  const slider = h("input", { type: "range", class: "lm-range", min: 1, max: 1, step: 1, value: 1, id: uid("token") });
  const told = h("output", { class: "lm-mix-out", htmlFor: slider.id });
  const summary = h("div", { class: "lm-muted", role: "status" });
  const strip = h("div", { class: "lm-strip", "aria-hidden": "true" });
  const said = h("div", { class: "lm-said", dir: "auto", tabIndex: 0, role: "group", "aria-label": "The reference's answer" });
  const duel = h("div", { class: "lm-duel", role: "group", "aria-label": "The likeliest tokens of both", "aria-live": "polite" });
  const line = magicLine();
  const back = button("Disagreement before", () => jump(-1), { small: true });
  const next = button("Next disagreement", () => jump(1), { small: true });
  const run = button("Look token by token", () => {
    const { ref, levels, prompt, tokens } = chosen();
    store.act("compare.diverge", { ref, levels, prompt, tokens });
  }, { iconName: "look", small: true });
  let data = null;
  let apart = [];
  let bars = [];
  let words = [];

  const model = () => data.models[Number(pick.value) || 0];
  const at = () => Number(slider.value) - 1;

  function jump(step) {
    const ahead = apart.filter((place) => (step > 0 ? place > at() : place < at()));
    if (ahead.length) go(step > 0 ? ahead[0] : ahead.at(-1));
  }

  function go(place) {
    slider.value = place + 1;
    mark(true);
  }

  // Another level: the strip and the text are drawn again, and the first disagreement is looked at.
  function show(first = false) {
    apart = model().apart;
    const full = Math.max(0.2, ...data.models.flatMap((each) => each.kld));
    slider.max = data.texts.length;
    const differs = new Set(apart);
    bars = model().kld.map((kld, place) => h("i", { class: differs.has(place) ? "apart" : "", style: { height: `${Math.max(2, 100 * Math.sqrt(Math.max(kld, 0) / full))}%` } }));
    words = data.texts.map((text, place) => h("span", { class: differs.has(place) ? "apart" : "", onclick: () => go(place) }, text || "⋯"));
    fill(strip, bars);
    fill(said, words);
    summary.textContent = model().summary;
    if (first) slider.value = (apart[0] ?? 0) + 1;
    mark();
  }

  function mark(follow = false) {
    const place = at();
    bars.forEach((node, each) => node.classList.toggle("at", each === place));
    words.forEach((node, each) => node.classList.toggle("at", each === place));
    if (follow) said.scrollTop = words[place].offsetTop - said.offsetTop - said.clientHeight / 2;
    told.textContent = `${place + 1} of ${data.texts.length}`;
    slider.setAttribute("aria-valuetext", `token ${place + 1}: ${visible(data.texts[place])}`);
    const { name, kld, rank, top } = model();
    fill(duel, list(data.base.name, "the reference", data.base.top[place]), list(name, `KL divergence ${kld[place].toFixed(3)} nats, the text's token is its ${rank[place].toLocaleString("en")}.`, top[place]));
    back.can(apart.some((each) => each < place) ? "" : "There is no disagreement before this token.");
    next.can(apart.some((each) => each > place) ? "" : "There is no disagreement after this token.");
  }

  function list(name, about, top) {
    return h("div", {}, h("div", { class: "lm-row tight" }, h("b", {}, name), h("span", { class: "lm-muted small" }, about)), h("ol", { class: "lm-candidates", "aria-label": `Likeliest tokens of ${name}` }, top.map(([text, chance, share, mine]) => h("li", { class: `lm-candidate ${mine ? "mine" : ""}` }, h("code", { class: "lm-token", dir: "auto" }, visible(text)), h("span", { class: "lm-track" }, h("span", { class: "lm-now", style: { width: `${100 * share}%` } })), h("span", { class: "lm-share" }, chance)))));
  }

  slider.addEventListener("input", () => mark(true));
  const shown = h(
    "div",
    { class: "lm-scrubber" },
    h("div", { class: "lm-row" }, pick, back, next, summary),
    strip,
    h("div", { class: "lm-slider" }, h("label", { htmlFor: slider.id }, "Token"), slider, told),
    said,
    duel,
  );
  const draw = () => {
    const { ref, levels, prompt, tokens } = chosen();
    const jobs = store.get("jobs");
    run.can(active(jobs.diverge) ? "It is being looked at." : active(jobs.compare) ? "A comparison is under way." : !levels.length ? "Choose a level first." : prompt.trim() ? "" : "Write a prompt first.");
    line.show(`%llama diverge ${quoted(ref)} ${levels.join(" ")} --prompt ${quoted(prompt.trim().replaceAll("\n", " "))} -n ${tokens} --live`);
    const found = store.get("compare").diverged ?? null;
    if (found === data) return;
    data = found;
    shown.hidden = !data;
    if (!data) return;
    fill(pick, data.models.map((each, place) => h("option", { value: String(place) }, each.name)));
    show(true);
  };
  shown.hidden = true;
  store.on("compare", draw);
  store.on("jobs", draw);
  const node = h("div", { class: "lm-card" }, h("div", { class: "lm-row" }, h("h4", {}, "Token by token"), h("span", { class: "lm-grow" }), run), h("div", { class: "lm-hint" }, "All levels read the reference's answer to the prompt. At each token: what would each of them have said there?"), jobView(store, "diverge", { quietEnd: false }), shown, line);
  return { node, draw };
}
