"""The panel in plain ipywidgets: for front ends that have no part of anywidget. The same actions, fewer pictures."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

if TYPE_CHECKING:
    from llama_magic.notebook.panel.workbench import Workbench

__all__ = ["PlainPanel"]


class PlainPanel:
    """Model, chat and quantizing in plain widgets.

    Attributes
    ----------
    root
        The widget to display.
    """

    def __init__(self, bench: Workbench, panel_id: str) -> None:
        self._bench = bench
        self._id = panel_id
        self._filling = False
        self._live = ["", ""]
        self._state: dict[str, Any] = {}
        self._build()
        self._state = bench.open(panel_id, self._deliver)
        for section in ("model", "chat", "quantize", "jobs"):
            self._show(section)

    def close(self) -> None:
        """Close it, and stop what was started from it."""
        self._bench.close(self._id)

    # -- widgets ---------------------------------------------------------------------------

    def _build(self) -> None:
        wide = widgets.Layout(width="100%")
        self.model = widgets.Combobox(description="Model", placeholder="a name, a file, owner/repo", layout=wide)
        self.load, self.unload = self._button("Load", self._load), self._button("Unload", self._unload)
        self.loaded = widgets.HTML()
        self.turns = widgets.HTML(layout=widgets.Layout(max_height="28em", overflow="auto"))
        self.live = widgets.HTML()
        self.live.add_class("llama-panel-live")
        self.ask = widgets.Textarea(placeholder="Ask something", rows=3, layout=wide)
        self.send, self.stop = self._button("Send", self._send), self._button("Stop", self._stop("chat"))
        self.undo = self._button("Undo", lambda: self._do("chat.undo"))
        self.ftype = widgets.Dropdown(description="Type", options=["Q4_K_M"])
        self.again = widgets.Checkbox(description="quantize what is quantized already", indent=False)
        self.plan, self.make = self._button("Plan", self._plan), self._button("Quantize", self._make)
        self.planned = widgets.HTML()
        self.said = {lane: widgets.HTML() for lane in ("model", "chat", "ask", "plan", "quantize")}
        box, row = widgets.VBox, widgets.HBox
        tabs = widgets.Tab(
            [
                box([self.model, row([self.load, self.unload]), self.said["model"], self.loaded]),
                box([self.turns, self.live, self.ask, row([self.send, self.stop, self.undo]), self.said["chat"],
                     self.said["ask"]]),
                box([self.ftype, self.again, row([self.plan, self.make]), self.said["plan"], self.said["quantize"],
                     self.planned]),
            ],
            titles=("Model", "Chat", "Quantize"),
        )  # fmt: skip
        self.root = tabs

    @staticmethod
    def _button(name: str, work: Callable[[], None]) -> Any:
        button = widgets.Button(description=name, tooltip=name)
        button.on_click(lambda _button: work())
        return button

    # -- actions ---------------------------------------------------------------------------

    def _do(self, what: str, **values: Any) -> None:
        self._bench.receive(self._id, {"do": what, "with": values})

    def _ref(self) -> str:
        current = self._state.get("model", {}).get("current") or {}
        return self.model.value.strip() or current.get("ref") or "smollm2"

    def _load(self) -> None:
        self._do("model.load", ref=self._ref())

    def _unload(self) -> None:
        self._do("model.unload")

    def _send(self) -> None:
        if self.ask.value.strip():
            self._do("chat.ask", text=self.ask.value)
            self.ask.value = ""

    def _stop(self, lane: str) -> Callable[[], None]:
        return lambda: self._do("app.stop", lane=lane)

    def _plan(self) -> None:
        self._do("quantize.plan", source=self._ref(), ftype=self.ftype.value)

    def _make(self) -> None:
        self._do("quantize.run", source=self._ref(), ftype=self.ftype.value, requantize=self.again.value)

    # -- showing ---------------------------------------------------------------------------

    def _deliver(self, message: dict[str, Any], _buffers: list[bytes]) -> None:
        for section, values in message.get("set", {}).items():
            self._state.setdefault(section, {}).update(values)
            self._show(section)
        if "turns" in message:
            part = message["turns"]
            chat = self._state.setdefault("chat", {})
            chat["turns"] = [*chat.get("turns", [])[: part["from"]], *part["items"]]
            self._show("chat")
        stream = message.get("stream")
        if stream is not None:
            self._live[0] = "" if stream.get("begin") else self._live[0] + "".join(stream.get("settled", ()))
            self.live.value = self._live[0] + stream.get("live", "")

    def _show(self, section: str) -> None:
        state = self._state.get(section, {})
        if section == "model":
            known = [row["ref"] for row in [*(state.get("local") or ()), *(state.get("catalogue") or ())]]
            self.model.options = list(dict.fromkeys(known))
            names = [f"{row['name']} ({row['ftype']}, about {row['memory']})" for row in state.get("loaded") or ()]
            self.loaded.value = f"Loaded: {html.escape(', '.join(names) or 'nothing')}"
        elif section == "chat":
            self.turns.value = "".join(
                f"<p><b>{html.escape(turn['user'])}</b></p>{turn['html']}" for turn in state.get("turns") or ()
            )
            if state.get("streaming") is None:
                self.live.value = ""
        elif section == "quantize":
            self._show_quantize(state)
        elif section == "jobs":
            self._show_jobs(state)

    def _show_quantize(self, state: dict[str, Any]) -> None:
        types = [row["name"] for row in state.get("types") or () if row["writable"]]
        if types and list(self.ftype.options) != types:
            self.ftype.options = types
            self.ftype.value = "Q4_K_M"
        plan, made = state.get("plan"), state.get("made") or []
        lines = []
        if plan:
            lines.append(
                f"{plan['ftype']}: {plan['words']}, {plan['bits']} bits per weight, {plan['fallbacks']} of "
                f"{plan['tensors']} tensors fell back"
            )
        lines += [f"made {row['path']} in {row['seconds']}" for row in made]
        self.planned.value = "<br>".join(map(html.escape, lines))

    def _show_jobs(self, jobs: dict[str, Any]) -> None:
        for lane, view in self.said.items():
            job = jobs.get(lane) or {}
            state = job.get("state", "")
            share = f" {100 * job['fraction']:.0f} %" if job.get("fraction") is not None else ""
            words = {"running": f"{job.get('message') or job.get('title')}{share}", "stopping": "stopping",
                     "failed": f"✗ {job.get('error')}", "stopped": "stopped"}.get(state, "")  # fmt: skip
            view.value = html.escape(words)
        active = {lane for lane, job in jobs.items() if job and job.get("state") in ("running", "stopping")}
        self.send.disabled = "chat" in active
        self.stop.disabled = "chat" not in active
        self.load.disabled = self.unload.disabled = "model" in active
        self.make.disabled = "quantize" in active
