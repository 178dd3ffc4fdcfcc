// Small helpers: elements, buttons, progress, copying. Text always goes in as text.

export function h(tag, props = {}, ...children) {
  const svg = tag === "svg" || tag === "path" || tag === "circle" || tag === "rect";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.setAttribute("class", value);
    else if (key === "style" && typeof value === "object") Object.assign(node.style, value);
    else if (key in node && !svg && key !== "list" && key !== "form") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

const ICONS = {
  copy: "M4 4V2.5A1.5 1.5 0 0 1 5.500 1h7A1.5 1.5 0 0 1 14 2.500v7A1.500 1.500 0 0 1 12.500 11H11M2.500 5h7A1.500 1.500 0 0 1 11 6.500v7A1.500 1.500 0 0 1 9.500 15h-7A1.500 1.500 0 0 1 1 13.500v-7A1.500 1.500 0 0 1 2.500 5Z",
  stop: "M4 4h8v8H4z",
  send: "M8 14V3M3.500 7.500 8 3l4.500 4.500",
  retry: "M13.500 8a5.500 5.500 0 1 1-1.700-4M13.500 1.500V5H10",
  edit: "M11.500 2 14 4.500 5.500 13l-3.500 1 1-3.500z",
  undo: "M6 3 2.500 6.500 6 10M2.500 6.500H10a3.500 3.500 0 0 1 0 7H7",
  branch: "M4 1.500v13M4 9c5 0 8-1 8-4.500M12 4.500a1.700 1.700 0 1 0 0-3.400 1.700 1.700 0 0 0 0 3.400Z",
  insert: "M2 3h12M2 13h12M8 5.500v5M5.500 8h5",
  tokens: "M1.500 5.500h4v5h-4zM6.500 5.500h3v5h-3zM10.500 5.500h4v5h-4z",
  close: "M4 4l8 8M12 4l-8 8",
  search: "M7 12A5 5 0 1 0 7 2a5 5 0 0 0 0 10ZM10.700 10.700 14.500 14.500",
  look: "M1 8s2.500-4.500 7-4.500S15 8 15 8s-2.500 4.500-7 4.500S1 8 1 8ZM8 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4Z",
  refresh: "M2.500 8a5.500 5.500 0 0 1 9.600-3.700M13.500 8a5.500 5.500 0 0 1-9.600 3.700M12.500 1.500v3h-3M3.500 14.500v-3h3",
};

export function icon(name) {
  return h("svg", { viewBox: "0 0 16 16", class: "lm-icon", "aria-hidden": "true" }, h("path", { d: ICONS[name] }));
}

// A button that says why it can not be pressed. It stays focusable then, so that everybody can learn the reason.
export function button(label, onclick, { kind = "", iconName = "", title = "", small = false } = {}) {
  const node = h(
    "button",
    { type: "button", class: `lm-button ${kind} ${small ? "small" : ""}`, title: title || null },
    iconName ? icon(iconName) : null,
    h("span", { class: "lm-label" }, label),
  );
  node.addEventListener("click", (event) => {
    if (node.getAttribute("aria-disabled") === "true") return;
    onclick(event);
  });
  node.can = (reason) => {
    node.setAttribute("aria-disabled", reason ? "true" : "false");
    node.title = reason || title || "";
    if (reason) node.setAttribute("aria-description", reason);
    else node.removeAttribute("aria-description");
  };
  node.say = (text) => {
    node.querySelector(".lm-label").textContent = text;
  };
  return node;
}

export function iconButton(name, label, onclick) {
  const node = button(label, onclick, { kind: "quiet", iconName: name, small: true, title: label });
  node.classList.add("only-icon");
  node.setAttribute("aria-label", label);
  return node;
}

// Puts other children in. What has the focus keeps it: the new element of the same kind and name gets it. A fold that
// was opened stays open, if the new children have one of that name.
export function fill(node, ...children) {
  const wanted = children.flat(3).filter((child) => child !== null && child !== undefined && child !== false && child !== "");
  if (wanted.length === node.childNodes.length && wanted.every((child, at) => child === node.childNodes[at])) return node;
  const focused = node.contains(document.activeElement) && document.activeElement !== node ? document.activeElement : null;
  const title = (fold) => fold.querySelector("summary")?.textContent;
  const opened = new Set([...node.querySelectorAll("details[open]")].map(title));
  node.replaceChildren(...wanted);
  if (opened.size) for (const fold of node.querySelectorAll("details")) if (opened.has(title(fold))) fold.open = true;
  if (focused && document.activeElement !== focused) {
    const name = (each) => each.getAttribute("aria-label") || each.textContent;
    const next = node.contains(focused) ? focused : [...node.querySelectorAll(focused.tagName)].find((each) => name(each) === name(focused));
    next?.focus({ preventScroll: true });
  }
  return node;
}

// A function that gives the nodes it made last time, as long as the values are the same.
export function lasting(make) {
  let key;
  let nodes;
  return (...values) => {
    const now = JSON.stringify(values);
    if (now !== key) {
      key = now;
      nodes = make(...values);
    }
    return nodes;
  };
}

export function active(job) {
  return Boolean(job) && (job.state === "running" || job.state === "stopping");
}

// What a lane of work is doing, with Stop; how it ended, until it is dismissed.
export function jobView(store, lane, { quietEnd = true, withStop = true } = {}) {
  const root = h("div", { class: "lm-job", role: "status", "aria-live": "polite", tabIndex: -1 });
  const stop = button("Stop", () => store.act("app.stop", { lane }), { kind: "danger", iconName: "stop", small: true });
  const words = h("span", { class: "lm-job-words" });
  const fillBar = h("div", { class: "lm-bar-fill" });
  const bar = h("div", { class: "lm-bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "progress" }, fillBar);
  const running = h("div", { class: "lm-job-running" }, h("div", { class: "lm-job-line" }, words, withStop ? stop : null), bar);
  const failedNodes = lasting((error, detail) => {
    const close = iconButton("close", "Dismiss", () => store.act("app.dismiss", { lane }));
    const more = detail ? h("details", {}, h("summary", {}, "details for a report"), h("pre", {}, detail)) : null;
    return h("div", { class: "lm-error", role: "alert" }, h("span", { class: "lm-sign" }, "✗"), h("div", { class: "lm-grow" }, error, more), close);
  });
  let shown = "";
  store.on("jobs", (jobs) => {
    const focused = root.contains(document.activeElement);
    show(jobs[lane]);
    // A Stop that had the focus is gone: what became of the work has it then.
    if (focused && !root.contains(document.activeElement)) (root.firstChild ? root : root.closest("[role=tabpanel]"))?.focus();
  });
  function show(job) {
    const state = !job ? "" : active(job) ? "active" : job.state;
    if (state === "active") {
      const share = typeof job.fraction === "number" ? ` · ${Math.round(100 * job.fraction)} %` : "";
      words.textContent = (job.state === "stopping" ? "stopping…" : job.message || `${job.title}…`) + share;
      stop.can(job.state === "stopping" ? "It is being stopped." : "");
      bar.classList.toggle("unknown", typeof job.fraction !== "number");
      fillBar.style.width = typeof job.fraction === "number" ? `${100 * job.fraction}%` : "";
      if (typeof job.fraction === "number") bar.setAttribute("aria-valuenow", Math.round(100 * job.fraction));
      else bar.removeAttribute("aria-valuenow");
      if (shown !== "active") fill(root, running);
    } else if (state === "failed") fill(root, failedNodes(job.error, job.detail));
    else if (state === "stopped" && (!quietEnd || job.error)) {
      fill(root, h("div", { class: "lm-note" }, job.error || "stopped"));
    } else fill(root);
    shown = state;
  }
  return root;
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { value: text, class: "lm-offscreen" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

export function copyButton(label, text) {
  const node = button(label, async () => {
    const done = await copyText(typeof text === "function" ? text() : text);
    node.say(done ? "Copied" : "Press Ctrl+C");
    setTimeout(() => node.say(label), 1400);
  }, { kind: "quiet", iconName: "copy", small: true });
  return node;
}

// The equivalent line of the magics, to be copied.
export function magicLine(label = "As a magic") {
  const code = h("code", { class: "lm-line-code", tabIndex: 0, role: "textbox", "aria-readonly": "true", "aria-label": `${label}: the equivalent line` });
  const copy = copyButton("Copy", () => code.textContent);
  const root = h("div", { class: "lm-line" }, h("span", { class: "lm-line-label" }, label), code, copy);
  root.show = (text) => {
    if (code.textContent !== text) code.textContent = text;
  };
  return root;
}

export function quoted(word) {
  if (word && !/[\s'"\\{]/.test(word)) return word;
  return word.includes("'") ? `"${word.replaceAll('"', '\\"')}"` : `'${word}'`;
}

let serial = 0;
export function uid(prefix) {
  serial += 1;
  return `lm-${prefix}-${serial}`;
}

export function field(label, control, hint = "") {
  const id = control.id || uid("field");
  control.id = id;
  return h("div", { class: "lm-field" }, h("label", { for: id, htmlFor: id }, label), control, hint ? h("div", { class: "lm-hint" }, hint) : null);
}

export function debounce(work, wait) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), wait);
  };
}
