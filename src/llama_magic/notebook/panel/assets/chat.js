// The conversation: turns, the answer that is being written, the box to ask in.

import { active, button, copyText, field, fill, h, iconButton, jobView, magicLine, quoted, uid } from "./dom.js";
import { insertCell } from "./insert.js";
import { theatre, visible } from "./theatre.js";

export function chatSection(store) {
  const log = h("div", { class: "lm-log", role: "log", "aria-label": "Conversation", tabIndex: 0 });
  const turns = h("div", {});
  const live = liveTurn(store);
  const empty = h("div", { class: "lm-empty tall" });
  const box = composer(store);
  log.append(empty, turns, live.node);
  const stage = theatre(store, () => box.text());
  box.onInput(stage.check);

  function draw({ from = 0 } = {}) {
    const list = store.get("chat").turns ?? [];
    while (turns.children.length > from) turns.lastChild.remove();
    for (let at = from; at < list.length; at += 1) turns.append(turnView(store, list[at], at, box));
    marks();
    scroll(true);
  }

  function marks() {
    const chat = store.get("chat");
    const answering = Boolean(chat.streaming);
    const count = turns.children.length;
    empty.hidden = count > 0 || answering;
    [...turns.children].forEach((node, at) => {
      node.classList.toggle("last", at === count - 1);
      // What is being answered again makes way for the new answer.
      node.hidden = answering && chat.streaming.at <= at;
      for (const each of node.querySelectorAll("[data-line]")) each.can?.(answering ? "An answer is being written." : "");
    });
    stage.check();
  }

  const near = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  let pinned = true;
  log.addEventListener("scroll", () => {
    pinned = near();
  });
  function scroll(always = false) {
    if (always || pinned) log.scrollTop = log.scrollHeight;
  }

  store.when("turns", draw);
  store.when("stream", () => scroll());
  store.on("chat", (chat) => {
    marks();
    fill(empty, h("div", { class: "lm-empty-mark", "aria-hidden": "true" }, "🦙"), h("div", {}, "Ask something below. "), h("div", { class: "lm-muted" }, `Cells with %%llama -cnv continue the same conversation, “${chat.name ?? "chat"}”.`));
  });
  draw();
  const node = h(
    "div",
    { class: "lm-columns chat" },
    h("div", { class: "lm-col wide lm-talk" }, head(store), log, jobView(store, "chat", { withStop: false }), jobView(store, "ask"), box.node),
    h("div", { class: "lm-col lm-side" }, stage.node),
  );
  return { node, visible: (on) => on && scroll(true) };
}

function head(store) {
  const pick = h("select", { class: "lm-input", "aria-label": "Conversation or branch", onchange: () => store.act("chat.switch", { name: pick.value }) });
  const name = h("input", { class: "lm-input", placeholder: "name", "aria-label": "Name of a new conversation", size: 10 });
  const make = button("New", () => {
    const wanted = name.value.trim().replaceAll("/", "-");
    store.act("chat.switch", { name: wanted || unused() });
    name.value = "";
  }, { small: true, title: "Another conversation; this one stays" });
  const over = button("Start over", () => store.act("chat.new"), { small: true, kind: "quiet", title: "The turns are kept as a branch: %llama new" });
  const unused = () => {
    const taken = new Set((store.get("chat").conversations ?? []).map((each) => each.name));
    let number = 2;
    while (taken.has(`chat-${number}`)) number += 1;
    return `chat-${number}`;
  };
  const draw = () => {
    const chat = store.get("chat");
    const busy = active(store.get("jobs").chat) ? "An answer is being written." : "";
    const talks = chat.conversations ?? [];
    const listed = talks.some((talk) => talk.name === chat.name) ? talks : [{ name: chat.name, turns: 0, branches: [] }, ...talks];
    if (document.activeElement !== pick) {
      fill(pick, listed.map((talk) => [h("option", { value: talk.name }, `${talk.name} · ${count(talk.turns)}`), talk.branches.map(([branch, length]) => h("option", { value: `${talk.name}/${branch}` }, `⑂ ${talk.name}/${branch} · ${count(length)}`))]));
    }
    pick.value = chat.name;
    pick.disabled = Boolean(busy);
    pick.title = busy;
    make.can(busy);
    over.can(busy || (chat.turns?.length ? "" : "There is no turn yet."));
  };
  store.on("chat", draw);
  store.on("jobs", draw);
  store.when("turns", draw);
  return h("div", { class: "lm-row" }, pick, name, make, h("span", { class: "lm-grow" }), over);
}

const count = (turns) => `${turns} turn${turns === 1 ? "" : "s"}`;

function turnView(store, turn, at, box) {
  const answer = h("div", { class: "lm-answer" });
  const plain = () => {
    if (turn.html) answer.innerHTML = turn.html; // made by notebook/markdown.py, which escapes all that the model wrote
    else fill(answer, h("span", { class: "lm-muted" }, "(no text)"));
  };
  plain();
  let spread = false;
  const tokens = iconButton("tokens", "Tokens and their probabilities", () => {
    spread = !spread;
    tokens.setAttribute("aria-pressed", spread ? "true" : "false");
    if (spread) fill(answer, tokenView(store, turn, at));
    else plain();
  });
  if (!turn.tokens.length) tokens.can("This answer was made without probabilities. Switch them on below, and ask again.");
  const said = h("span", { class: "lm-muted small", role: "status" });
  const tell = (words) => {
    said.textContent = words;
    setTimeout(() => {
      said.textContent = "";
    }, 2500);
  };
  const copy = iconButton("copy", "Copy as a %%llama cell", async () => tell((await copyText(turn.cell)) ? "copied as a cell" : "Press Ctrl+C"));
  const insert = iconButton("insert", "Insert below as a %%llama cell", async () => {
    if (await insertCell(node, turn.cell)) tell("inserted below");
    else tell((await copyText(turn.cell)) ? "No notebook to insert into here: copied instead." : "There is no notebook to insert into here.");
  });
  const line = (made) => {
    made.dataset.line = "1";
    return made;
  };
  const edit = line(iconButton("edit", "Edit the question and ask again; this line is kept as a branch", () => box.edit(at, turn.user)));
  const branch = line(iconButton("branch", "Go back to here; what follows is kept as a branch", () => store.act("chat.rewind", { turns: at + 1 })));
  const retry = line(iconButton("retry", "Answer again with another seed (%llama retry)", () => store.act("chat.retry")));
  const undo = line(iconButton("undo", "Remove this turn (%llama undo)", () => store.act("chat.undo")));
  retry.classList.add("only-last");
  undo.classList.add("only-last");
  branch.classList.add("not-last");
  const node = h(
    "article",
    { class: "lm-turn", "aria-label": `Turn ${at + 1}` },
    h("div", { class: "lm-user" }, h("div", { class: "lm-bubble", dir: "auto" }, turn.user)),
    answer,
    h("div", { class: "lm-foot" }, h("span", { class: "lm-muted small" }, turn.footer, turn.from_cell ? " · from a cell" : ""), h("span", { class: "lm-grow" }), said, h("span", { class: "lm-tools", role: "toolbar", "aria-label": `Turn ${at + 1}` }, tokens, copy, insert, edit, branch, retry, undo)),
  );
  return node;
}

function tokenView(store, turn, at) {
  const about = h("div", { class: "lm-about", role: "status" }, "Point at a token, or move with the arrow keys. Enter shows the whole distribution there.");
  const box = h("div", { class: "lm-tokens", dir: "auto", tabIndex: 0, role: "listbox", "aria-label": "Tokens of the answer" });
  const nodes = turn.tokens.map(([text, share, logprob], place) => {
    const level = logprob > -0.105 ? 0 : logprob > -0.693 ? 1 : logprob > -1.609 ? 2 : logprob > -2.996 ? 3 : 4;
    const node = h("span", { class: `lm-tok l${level}`, role: "option", "aria-label": `${visible(text)}, ${share}`, onmouseenter: () => show(place), onclick: () => look(place) }, text);
    return node;
  });
  let current = -1;
  const show = (place) => {
    nodes[current]?.classList.remove("at");
    current = place;
    nodes[place].classList.add("at");
    const [text, share, , top] = turn.tokens[place];
    fill(about, h("code", {}, visible(text)), ` ${share}`, top.length ? h("span", { class: "lm-muted" }, " · ", top.map(([other, chance, mine]) => h("span", { class: mine ? "lm-mine" : "" }, h("code", {}, visible(other)), ` ${chance}  `))) : null);
  };
  const look = (place) => {
    show(place);
    store.act("theatre.look", { turn: at, tokens: place, label: `turn ${at + 1}, token ${place + 1}` });
  };
  box.addEventListener("keydown", (event) => {
    const to = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (event.key === "Enter" && current >= 0) look(current);
    if (to === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(nodes.length - 1, to)));
  });
  box.append(...nodes);
  return h("div", { class: "lm-tokenview" }, box, about, h("div", { class: "lm-legend" }, ["90 % and more", "50 to 90 %", "20 to 50 %", "5 to 20 %", "below 5 %"].map((words, level) => h("span", { class: `lm-tok l${level}` }, words))));
}

// The answer while it is written: pieces that are settled stay, only the end is drawn again.
function liveTurn(store) {
  const question = h("div", { class: "lm-bubble", dir: "auto" });
  const settled = h("div", {});
  const end = h("div", {});
  const wait = h("div", { class: "lm-thinking" }, h("span", { class: "lm-spinner", "aria-hidden": "true" }), h("span", {}, "thinking…"));
  const rate = h("span", { class: "lm-muted small" });
  const node = h("article", { class: "lm-turn live", "aria-label": "The answer being written" }, h("div", { class: "lm-user" }, question), h("div", { class: "lm-answer" }, settled, end, wait), h("div", { class: "lm-foot" }, rate));
  let drawn = 0;
  function draw() {
    const { stream } = store;
    if (stream.settled.length < drawn) {
      settled.replaceChildren();
      drawn = 0;
    }
    if (stream.settled.length > drawn) {
      settled.insertAdjacentHTML("beforeend", stream.settled.slice(drawn).join(""));
      drawn = stream.settled.length;
    }
    end.innerHTML = stream.live;
    wait.hidden = Boolean(stream.live || drawn);
    rate.textContent = stream.tokens ? `${stream.tokens} tokens${stream.rate ? ` · ${stream.rate.toFixed(0)} tok/s` : ""}` : "";
  }
  store.when("stream", draw);
  store.on("chat", (chat) => {
    node.hidden = !chat.streaming;
    if (chat.streaming) question.textContent = chat.streaming.user;
    draw();
  });
  return { node };
}

function composer(store) {
  let editing = null;
  let asked = null;
  const inputs = [];
  const text = h("textarea", { class: "lm-input lm-ask", rows: 2, placeholder: "Ask something. Enter sends, Shift+Enter makes a new line.", "aria-label": "Question" });
  const send = button("Send", () => submit(), { kind: "primary", iconName: "send" });
  const stop = button("Stop", () => store.act("app.stop", { lane: "chat" }), { kind: "danger", iconName: "stop" });
  const note = h("div", { class: "lm-note" });
  const system = h("textarea", { class: "lm-input", rows: 2, placeholder: "none", id: uid("system") });
  const length = h("input", { class: "lm-input lm-number", type: "number", min: -1, step: 1, title: "-1: no limit" });
  const seed = h("input", { class: "lm-input lm-number", type: "number", min: 0, placeholder: "drawn", title: "empty: a new one for each answer" });
  const penalty = h("input", { class: "lm-input lm-number", type: "number", min: 0.1, max: 3, step: 0.05, title: "1 is off" });
  const shares = h("input", { type: "checkbox", onchange: () => store.act("chat.probabilities", { on: shares.checked }) });
  const line = magicLine("As a cell");
  const settle = (name, node, read) => node.addEventListener("change", () => store.act("chat.sampling", { [name]: read(node.value) }));
  settle("max_tokens", length, (value) => (Number(value) > 0 ? Math.round(Number(value)) : -1));
  settle("seed", seed, (value) => (value === "" ? null : Math.max(0, Math.round(Number(value)))));
  settle("repeat_penalty", penalty, (value) => (Number(value) > 0 ? Number(value) : 1));

  function submit() {
    const question = text.value.trim();
    if (!question || active(store.get("jobs").chat)) return;
    const chat = store.get("chat");
    const values = { text: text.value };
    if (editing !== null) values.turn = editing;
    if (system.value !== (chat.system ?? "")) values.system = system.value;
    store.act("chat.ask", values);
    asked = { text: text.value, turn: editing, last: chat.turns?.at(-1) };
    text.value = "";
    stopEditing();
    show();
  }
  function stopEditing() {
    editing = null;
    fill(note);
  }
  function show() {
    const chat = store.get("chat");
    const busy = active(store.get("jobs").chat);
    send.can(busy ? "An answer is being written." : text.value.trim() ? "" : "Write a question first.");
    const focused = document.activeElement;
    send.hidden = busy;
    stop.hidden = !busy;
    // The focus goes on to what takes the place of the button that had it.
    if (focused === send && busy) stop.focus();
    else if (focused === stop && !busy) text.focus();
    stop.can(store.get("jobs").chat?.state === "stopping" ? "It is being stopped." : "");
    const name = !chat.name || chat.name === "chat" ? "-cnv" : `--chat ${quoted(chat.name)}`;
    const prompt = system.value.trim() && !system.value.includes("\n") ? ` -sys ${quoted(system.value.trim())}` : "";
    const flags = chat.flags ? ` ${chat.flags}` : "";
    line.show(`%%llama ${name}${prompt}${flags}\n${text.value || "…"}`);
  }
  text.addEventListener("input", () => {
    show();
    for (const work of inputs) work();
  });
  system.addEventListener("input", show);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    } else if (event.key === "Escape" && editing !== null) {
      stopEditing();
      text.value = "";
      show();
    }
  });
  let seen = null;
  store.on("chat", (chat) => {
    if (seen !== `${chat.name}|${chat.system}` && document.activeElement !== system) {
      seen = `${chat.name}|${chat.system}`;
      system.value = chat.system ?? "";
    }
    if (chat.sampling) {
      const put = (node, value) => {
        if (document.activeElement !== node) node.value = value ?? "";
      };
      put(length, chat.sampling.max_tokens);
      put(seed, chat.sampling.seed);
      put(penalty, chat.sampling.repeat_penalty);
    }
    shares.checked = chat.probabilities !== false;
    show();
  });
  store.on("jobs", (jobs) => {
    const state = jobs.chat?.state;
    if (asked && state === "running") asked.begun = true;
    else if (asked?.begun && state !== "stopping") {
      // Nothing came of the question: it is not lost.
      const unanswered = store.get("chat").turns?.at(-1) === asked.last;
      if (unanswered && !text.value && asked.turn !== null) edit(asked.turn, asked.text);
      else if (unanswered && !text.value) text.value = asked.text;
      asked = null;
    }
    show();
  });
  const more = h(
    "details",
    { class: "lm-more" },
    h("summary", {}, "System prompt, length, seed"),
    h("div", { class: "lm-stack" }, h("div", { class: "lm-field" }, h("label", { htmlFor: system.id }, "System prompt"), system), h("div", { class: "lm-row bottom" }, field("Most tokens", length), field("Seed", seed), field("Repeat penalty", penalty), h("label", { class: "lm-check" }, shares, "probabilities of tokens"))),
  );
  function edit(at, question) {
    editing = at;
    text.value = question;
    fill(note, `Editing turn ${at + 1}: sending asks again from there, the line so far is kept as a branch. `, button("Cancel", () => {
      stopEditing();
      text.value = "";
      show();
    }, { small: true, kind: "quiet" }));
    text.focus();
    show();
  }
  const node = h("div", { class: "lm-composer" }, note, h("div", { class: "lm-row bottom nowrap" }, text, send, stop), more, line);
  return {
    node,
    text: () => text.value.trim(),
    onInput: (work) => inputs.push(work),
    edit,
  };
}
