// Serving: start and stop, address and key, and the requests as they come.

import { active, button, copyButton, copyText, field, fill, h, jobView, magicLine, quoted } from "./dom.js";

const EVERYWHERE = "0.0.0.0";

export function serveSection(store) {
  const model = store.get("model");
  const source = h("input", { class: "lm-input", value: model.current?.ref ?? "smollm2", spellcheck: false });
  const alias = h("input", { class: "lm-input", placeholder: "as the model is called", spellcheck: false });
  const host = h("select", { class: "lm-input" }, h("option", { value: "127.0.0.1" }, "this machine only"), h("option", { value: EVERYWHERE }, "every address of this machine"));
  const port = h("input", { class: "lm-input lm-number", type: "number", min: 0, max: 65535, step: 1, value: 8080, title: "0 picks one that is free" });
  const key = h("input", { type: "checkbox" });
  const keyHint = h("div", { class: "lm-hint" });
  const why = h("div", { class: "lm-note", role: "status" });
  const line = magicLine();
  const cards = h("div", { class: "lm-stack" });
  const start = button("Serve", () => store.act("serve.start", settings()), { kind: "primary" });
  start.setAttribute("aria-label", "Serve the model");
  const open = () => host.value === EVERYWHERE;
  const settings = () => ({ ref: source.value.trim(), host: host.value, port: Math.max(0, Math.round(Number(port.value) || 0)), alias: alias.value.trim(), key: key.checked });
  const shown = new Map(); // by port: the card of a server, which keeps its revealed key
  let touched = false;

  source.addEventListener("input", () => {
    touched = true;
  });
  for (const node of [source, alias, host, port, key]) node.addEventListener(node === host || node === key ? "change" : "input", () => draw());

  function draw() {
    const state = store.get("serve");
    const servers = state.servers ?? [];
    const job = store.get("jobs").serve;
    const starting = active(job) && !servers.length;
    if (!touched) source.value = store.get("model").current?.ref ?? "smollm2";
    if (open()) key.checked = true;
    key.disabled = open();
    key.title = open() ? "Where others reach the server there is always a key." : "";
    keyHint.textContent = open() ? "Where others reach the server there is always a key. Nothing is encrypted: prefer this machine only, and an SSH tunnel." : key.checked ? "Only who has the key can ask." : "Every user and program of this machine can ask.";
    const reason = servers.length ? "A model is served already: stop it first." : starting ? "The server is starting." : job?.state === "stopping" ? "The server is being stopped." : Number(port.value) > 65535 ? "A port is a number from 0 to 65535." : "";
    start.can(reason);
    why.textContent = servers.length || starting ? "" : reason;
    starter.hidden = servers.length > 0;
    progress.hidden = servers.length > 0;
    const wanted = settings();
    line.show(servers.length ? `%llama stop ${servers[0].port}` : ["%llama serve", quoted(wanted.ref || "smollm2"), wanted.port === 8080 ? "" : `--port ${wanted.port}`, open() ? `--host ${EVERYWHERE}` : key.checked ? "--api-key auto" : "", wanted.alias ? `--alias ${quoted(wanted.alias)}` : ""].filter(Boolean).join(" "));
    for (const each of shown.keys()) if (!servers.some((server) => server.port === each)) shown.delete(each);
    for (const server of servers) {
      if (!shown.has(server.port)) shown.set(server.port, card(store, server));
      shown.get(server.port).draw(server);
    }
    const nodes = servers.map((server) => shown.get(server.port).node);
    if (cards.children.length !== nodes.length || nodes.some((node, at) => cards.children[at] !== node)) fill(cards, nodes);
  }

  store.when("key", (told) => shown.get(told.port)?.tell(told.value));
  const progress = jobView(store, "serve");
  const starter = h(
    "div",
    { class: "lm-card" },
    h("div", { class: "lm-grid2" }, field("Model", source), field("Name in requests", alias)),
    h("div", { class: "lm-row bottom" }, field("Reachable from", host), field("Port", port), h("label", { class: "lm-check lm-serve-check" }, key, "ask for an API key"), h("span", { class: "lm-grow" }), start),
    keyHint,
    why,
  );
  const about = h("div", { class: "lm-hint" }, "Other programs use the model through OpenAI's interface. Requests take turns with cells and with this panel. A server that is started here ends with this panel, or with the kernel.");
  const node = h("div", { class: "lm-stack" }, about, starter, progress, jobView(store, "unserve"), cards, line);
  store.on("serve", draw);
  store.on("jobs", draw);
  store.on("model", draw);
  return { node };
}

// One server: its address, its key when asked for, lines to copy, and its requests.
function card(store, first) {
  const port = first.port;
  const stop = button("Stop serving", () => store.act("serve.stop", { port }), { kind: "danger", iconName: "stop", small: true });
  const address = h("code", { class: "lm-address", tabIndex: 0 });
  const secret = h("code", { class: "lm-secret" });
  let value = null;
  let wish = "";
  let server = first;
  const reveal = button("Show", () => {
    if (value === null) ask("show");
    else {
      value = null;
      keyWords();
    }
  }, { kind: "quiet", iconName: "look", small: true });
  const copy = button("Copy key", () => ask("copy"), { kind: "quiet", iconName: "copy", small: true });
  function ask(what) {
    wish = what;
    store.act("serve.key", { port });
  }
  function keyWords() {
    secret.textContent = value ?? server.mask;
    secret.setAttribute("aria-label", value === null ? "API key, hidden" : "API key");
    reveal.say(value === null ? "Show" : "Hide");
  }
  const keyRow = h("div", { class: "lm-row" }, h("span", { class: "lm-muted" }, "API key"), secret, reveal, copy);
  const warning = h("div", { class: "lm-warn" }, h("span", { class: "lm-sign" }, "⚠"), "Others can reach this address. The key protects it, but nothing encrypts what is sent.");
  const curl = h("pre", { tabIndex: 0, "aria-label": "Line for a shell" });
  const python = h("pre", { tabIndex: 0, "aria-label": "Program for the openai package" });
  const snippets = h(
    "div",
    { class: "lm-grid2" },
    h("div", { class: "lm-snippet" }, h("div", { class: "lm-row tight" }, h("b", {}, "In a shell"), h("span", { class: "lm-grow" }), copyButton("Copy", () => server.curl)), curl),
    h("div", { class: "lm-snippet" }, h("div", { class: "lm-row tight" }, h("b", {}, "In Python"), h("span", { class: "lm-grow" }), copyButton("Copy", () => server.python)), python),
  );
  const count = h("span", { class: "lm-muted small" });
  const rows = h("tbody", {});
  const table = h("table", { class: "lm-requests" }, h("thead", {}, h("tr", {}, ["Time", "Endpoint", "Status", "Prompt", "Tokens", "tok/s", "Took"].map((text) => h("th", { scope: "col" }, text)))), rows);
  const empty = h("div", { class: "lm-empty" }, "No request yet. Try the line for a shell.");
  const scroll = h("div", { class: "lm-requests-box", tabIndex: 0, role: "region", "aria-label": "Requests" }, table);
  const title = h("b", {});
  const node = h(
    "div",
    { class: "lm-card lm-server" },
    h("div", { class: "lm-row" }, h("span", { class: "lm-dot on" }), title, h("span", { class: "lm-badge good" }, "✓ serving"), h("span", { class: "lm-grow" }), stop),
    h("div", { class: "lm-row" }, h("span", { class: "lm-muted" }, "Address"), address, copyButton("Copy address", () => server.base)),
    keyRow,
    warning,
    snippets,
    h("div", { class: "lm-row tight" }, h("h4", {}, "Requests"), h("span", { class: "lm-grow" }), count),
    empty,
    scroll,
  );
  let drawn = "";
  return {
    node,
    tell: async (told) => {
      if (wish === "copy") {
        const done = await copyText(told);
        copy.say(done ? "Copied" : "Press Ctrl+C");
        setTimeout(() => copy.say("Copy key"), 1400);
      } else value = told;
      keyWords();
    },
    draw: (now) => {
      server = now;
      title.textContent = now.model;
      address.textContent = now.base;
      keyRow.hidden = !now.mask;
      warning.hidden = now.local;
      keyWords();
      curl.textContent = now.curl;
      python.textContent = now.python;
      stop.can(active(store.get("jobs").unserve) ? "It is being stopped." : "");
      const running = now.requests.filter((row) => row.state === "running").length;
      count.textContent = running ? `${running} under way` : "without what was said";
      empty.hidden = now.requests.length > 0;
      scroll.hidden = !now.requests.length;
      const text = JSON.stringify(now.requests);
      if (text === drawn) return;
      drawn = text;
      fill(rows, now.requests.map(request));
    },
  };
}

const TONES = { done: ["good", "✓"], running: ["", "…"], gone: ["warn", "⚠"], refused: ["warn", "⚠"], failed: ["bad", "✗"] };

function request(row) {
  const [tone, sign] = TONES[row.state] ?? ["", ""];
  const words = { gone: "client gone", done: "" }[row.state] ?? row.state;
  return h(
    "tr",
    { title: row.error || null },
    h("td", {}, row.time),
    h("td", {}, h("code", {}, row.endpoint)),
    h("td", {}, h("span", { class: `lm-badge ${tone}` }, [sign, row.status || "", words].filter(Boolean).join(" ")), row.error ? h("div", { class: "lm-hint" }, row.error) : null),
    [row.prompt, row.tokens, row.rate, row.took].map((text) => h("td", { class: "lm-figure-cell" }, text)),
  );
}
