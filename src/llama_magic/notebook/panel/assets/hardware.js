// Hardware: what models can run on, with how many threads, and what is in use while somebody looks.

import { active, button, copyButton, field, fill, h, jobView, magicLine, quoted } from "./dom.js";

export function hardwareSection(store) {
  const cards = h("div", { class: "lm-stack" });
  const line = magicLine();
  const refresh = button("Ask again", () => store.act("hardware.list"), { kind: "quiet", iconName: "refresh", small: true });
  const threads = h("input", { type: "range", class: "lm-range", min: 0, step: 1, value: 0 });
  const told = h("output", { class: "lm-mix-out" });
  threads.addEventListener("input", () => words(Number(threads.value)));
  threads.addEventListener("change", () => {
    const count = Number(threads.value) || null;
    store.act("hardware.threads", { n: count });
    line.show(`%llama config -t ${count ?? -1}`);
  });
  function words(count) {
    told.textContent = count ? `${count} thread${count === 1 ? "" : "s"}` : `automatic (${store.get("hardware").threads})`;
    threads.setAttribute("aria-valuetext", told.textContent);
  }

  let drawn = "";
  function draw() {
    const state = store.get("hardware");
    const busy = active(store.get("jobs").backends) ? "The backends are being asked or switched." : active(store.get("jobs").chat) ? "An answer is being written." : "";
    refresh.can(busy);
    threads.max = state.cpus ?? 1;
    if (document.activeElement !== threads) threads.value = state.chosen_threads ?? 0;
    words(Number(threads.value));
    // The meters change every second; the cards are drawn again when there is something new on them.
    const key = JSON.stringify([state.cards, state.problems, busy, active(store.get("jobs").build)]);
    if (key === drawn) return;
    drawn = key;
    fill(
      cards,
      (state.problems ?? []).map((text) => h("div", { class: "lm-warn" }, h("span", { class: "lm-sign" }, "⚠"), text)),
      state.cards ? [state.cards.filter(near).map((card) => backend(card, state.cards, busy)), rest(state.cards.filter((card) => !near(card)), state.cards, busy)] : h("div", { class: "lm-empty" }, h("span", { class: "lm-spinner", "aria-hidden": "true" }), "asking the worker for its backends…"),
    );
  }

  const near = (card) => ["active", "built", "buildable", "broken"].includes(card.state);
  let opened = false;
  function rest(list, all, busy) {
    if (!list.length) return null;
    const node = h("details", { open: opened }, h("summary", {}, `${list.length} more backends of llama.cpp, not for this machine as it is`), h("div", { class: "lm-stack" }, list.map((card) => backend(card, all, busy))));
    node.addEventListener("toggle", () => {
      opened = node.open;
    });
    return node;
  }

  function build(card, busy) {
    const node = button("Build", () => {
      store.act("hardware.build", { name: card.name });
      line.show(`%llama build ${card.name}`);
    }, { small: true });
    node.setAttribute("aria-label", `Build ${card.title}`);
    node.can(active(store.get("jobs").build) ? "Another backend is being built." : busy);
    return node;
  }

  function backend(card, all, busy) {
    const on = card.state === "active";
    const others = all.filter((each) => each.state === "active" && each.name !== card.name && each.name !== "cpu").map((each) => each.name);
    const names = on ? others.join(",") || "cpu" : [...others, card.name].join(",");
    const flip = button(on ? "Switch off" : "Use", () => {
      store.act("hardware.use", { names });
      line.show(`%llama backend ${names}`);
    }, { small: true, kind: on ? "" : "primary" });
    flip.setAttribute("aria-label", `${on ? "Switch off" : "Use"} ${card.title}`);
    flip.can(card.name === "cpu" && on ? "The processor is always there." : on || card.state === "built" ? busy : card.detail || "It is not built here.");
    const state = { active: ["good", "✓ in use"], built: ["", "ready"], buildable: ["", "can be built"], missing: ["", "something is missing"], unsupported: ["", "not on this system"], broken: ["bad", "✗ broken"] }[card.state] ?? ["", card.state];
    const usable = on || card.state === "built";
    return h(
      "div",
      { class: `lm-backend ${card.state}` },
      h("div", { class: "lm-row" }, h("b", {}, card.title), h("span", { class: `lm-badge ${state[0]}` }, state[1]), h("span", { class: "lm-grow" }), card.state === "buildable" ? build(card, busy) : card.fix ? copyButton(clip(card.fix), card.fix) : null, usable && card.name !== "cpu" ? flip : null),
      card.devices.map((device) => h("div", { class: "lm-device-row" }, h("code", {}, device.name), h("span", {}, device.description), h("span", { class: "lm-muted small" }, `${device.type} · ${device.free} of ${device.total} free`))),
      card.detail ? h("div", { class: "lm-hint" }, card.detail) : null,
    );
  }

  const log = h("pre", { class: "lm-buildlog", tabIndex: 0, "aria-label": "What the build says" });
  const logBox = h("details", {}, h("summary", {}, "what the build says"), log);
  const tuned = h("div", {});
  let tunedHtml = null;
  const tune = button("Tune", () => store.act("hardware.tune", { ref: model() }), { small: true });
  const tuneLine = magicLine();
  const model = () => store.get("model").current?.ref ?? "smollm2";
  const side = () => {
    const state = store.get("hardware");
    const jobs = store.get("jobs");
    logBox.hidden = !state.log?.length;
    if (active(jobs.build)) logBox.open = true;
    if (state.log && log.textContent !== state.log.join("\n")) {
      log.textContent = state.log.join("\n");
      log.scrollTop = log.scrollHeight;
    }
    tune.can(active(jobs.tune) ? "It is being tuned." : active(jobs.chat) ? "An answer is being written: the figures would be wrong." : "");
    tuneLine.show(`%llama tune ${quoted(model())} --quick`);
    if (tunedHtml !== (state.tuned ?? null)) {
      tunedHtml = state.tuned ?? null;
      tuned.innerHTML = tunedHtml ?? ""; // made by markup.py, which escapes what comes from files
    }
  };
  store.on("hardware", side);
  store.on("jobs", side);
  store.on("model", side);
  store.on("hardware", draw);
  store.on("jobs", draw);
  line.show("%llama backends");
  const node = h(
    "div",
    { class: "lm-columns" },
    h("div", { class: "lm-col wide" }, h("div", { class: "lm-row" }, h("h4", {}, "Backends"), h("span", { class: "lm-grow" }), refresh), jobView(store, "backends"), jobView(store, "build"), logBox, cards, line),
    h("div", { class: "lm-col" }, meters(store), h("div", { class: "lm-card" }, h("h4", {}, "Threads"), h("div", { class: "lm-slider" }, field("Threads for models loaded from now on", threads), told)), h("div", { class: "lm-card" }, h("div", { class: "lm-row" }, h("h4", {}, "Fastest settings"), h("span", { class: "lm-grow" }), tune), h("div", { class: "lm-hint" }, "Tries threads, batches and attention in turns, about a minute. What is surely faster is kept for this model on this machine."), jobView(store, "tune", { quietEnd: false }), tuned, tuneLine)),
  );
  let begun = false;
  return {
    node,
    visible: (on) => {
      store.act("hardware.meter", { on });
      if (on && !begun) {
        begun = true;
        if (!store.get("hardware").cards) store.act("hardware.list");
      }
    },
  };
}

const clip = (text) => (text.length > 34 ? `${text.slice(0, 33)}…` : text);

function meters(store) {
  const root = h("div", { class: "lm-card" });
  const rows = [["cpu", "Processor"], ["memory", "Memory of this machine"], ["worker", "Worker (models)"], ["kernel", "Kernel (your variables)"], ["rate", "Answering"]].map(([key, label]) => {
    const value = h("b", {});
    const bar = h("div", { class: "lm-bar-fill" });
    return { key, value, bar, node: h("div", { class: "lm-meter" }, h("div", { class: "lm-row tight" }, h("span", {}, label), h("span", { class: "lm-grow" }), value), key === "kernel" || key === "rate" ? null : h("div", { class: "lm-bar" }, bar)) };
  });
  root.append(h("div", { class: "lm-row" }, h("h4", {}, "In use"), h("span", { class: "lm-grow" }), h("span", { class: "lm-muted small" }, "measured while you look")), ...rows.map((row) => row.node));
  const by = Object.fromEntries(rows.map((row) => [row.key, row]));
  store.on("hardware", ({ meter }) => {
    if (!meter) return;
    by.cpu.value.textContent = `${meter.cpu.toFixed(0)} %`;
    by.cpu.bar.style.width = `${meter.cpu}%`;
    by.memory.value.textContent = `${meter.free} free`;
    by.memory.bar.style.width = `${100 * meter.used_share}%`;
    by.worker.value.textContent = meter.worker || "not running";
    by.worker.bar.style.width = `${100 * meter.worker_share}%`;
    by.kernel.value.textContent = meter.kernel;
  });
  const rate = () => {
    const { rate: now } = store.stream;
    by.rate.value.textContent = active(store.get("jobs").chat) ? (now ? `${now.toFixed(0)} tok/s` : "…") : "idle";
  };
  store.when("stream", rate);
  store.on("jobs", rate);
  return root;
}
