// The state that the kernel keeps, here: patches come in, actions go out.

export class Store {
  constructor(state) {
    this.state = structuredClone(state ?? {});
    this.live = true;
    this.waiting = 0;
    this.listeners = new Map();
    this.events = new Map();
    this.acks = new Map();
    this.number = 0;
    this.theatre = null;
    this.stream = { settled: [], live: "", tokens: 0, rate: 0 };
  }

  connect(send) {
    this.send = send;
    this.live = true;
  }

  get(section) {
    return this.state[section] ?? {};
  }

  // Calls `work` with a section's state now, and whenever it changes.
  on(section, work) {
    if (!this.listeners.has(section)) this.listeners.set(section, new Set());
    this.listeners.get(section).add(work);
    if (this.scope) this.scope.push(() => this.listeners.get(section).delete(work));
    work(this.get(section));
  }

  // Calls `work` when something happens that is no state: "stream", "turns", "theatre", "connection".
  when(event, work) {
    if (!this.events.has(event)) this.events.set(event, new Set());
    this.events.get(event).add(work);
    if (this.scope) this.scope.push(() => this.events.get(event).delete(work));
  }

  tell(event, value) {
    for (const work of this.events.get(event) ?? []) work(value);
  }

  changed(section) {
    for (const work of this.listeners.get(section) ?? []) work(this.get(section));
  }

  take(message, buffers) {
    if (message.all) {
      this.state = { ...message.all, open: this.state.open };
      for (const section of Object.keys(this.state)) this.changed(section);
      this.tell("turns", { from: 0 });
    }
    for (const [section, values] of Object.entries(message.set ?? {})) {
      this.state[section] = { ...this.state[section], ...values };
      this.changed(section);
    }
    if (message.turns) {
      const chat = this.get("chat");
      chat.turns = [...(chat.turns ?? []).slice(0, message.turns.from), ...message.turns.items];
      this.state.chat = chat;
      this.tell("turns", message.turns);
    }
    if (message.stream) this.takeStream(message.stream);
    if (message.theatre) {
      const view = buffers[0];
      const bytes = view.buffer ? view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) : view;
      this.theatre = { ...message.theatre, logits: new Float32Array(bytes) };
      this.tell("theatre", this.theatre);
    }
    if (message.key) this.tell("key", message.key); // not part of the state: it is shown where it was asked for
    if (message.ack !== undefined) this.acked(message.ack);
  }

  takeStream(stream) {
    if (stream.begin) this.stream = { settled: [], live: "", tokens: 0, rate: 0 };
    else {
      this.stream.settled.push(...stream.settled);
      Object.assign(this.stream, { live: stream.live, tokens: stream.tokens, rate: stream.rate });
    }
    this.tell("stream", stream);
  }

  // Asks the kernel to do something. An answer that does not come says that the kernel is busy with a cell.
  act(action, values = {}) {
    if (!this.send) return;
    this.number += 1;
    const number = this.number;
    const late = setTimeout(() => {
      this.waiting += 1;
      this.acks.set(number, null);
      this.tell("connection");
    }, 500);
    this.acks.set(number, late);
    try {
      this.send({ do: action, with: values, ack: number });
    } catch {
      clearTimeout(late);
      this.acks.delete(number);
      this.lost();
    }
  }

  acked(number) {
    const late = this.acks.get(number);
    if (late === undefined) return;
    if (late === null) this.waiting -= 1;
    else clearTimeout(late);
    this.acks.delete(number);
    this.live = true;
    this.tell("connection");
  }

  lost() {
    this.live = false;
    this.waiting = 0;
    this.acks.clear();
    this.tell("connection");
  }

  checkConnection() {
    // The front end lost the kernel, or found it again: only an answer tells which.
    this.act("app.hello");
  }
}
