"""The widget: one view of the workbench, drawn by the package's own ES modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets
import traitlets

if TYPE_CHECKING:
    from llama_magic.notebook.panel.workbench import Workbench

__all__ = ["PanelWidget", "root_of"]

#: Shown by a front end that has Jupyter's widgets but not anywidget's part: nothing hides it then.
_MISSING = (
    "<style>@keyframes llama-panel-appear{to{opacity:1}}</style>"
    '<div class="llama-panel-missing" style="opacity:0;animation:llama-panel-appear 0s 4s forwards">'
    "The panel needs anywidget where JupyterLab itself runs: <code>pip install anywidget</code> there, and reload the "
    "page. Until then: <code>%llama panel --plain</code></div>"
)


@cache
def _asset(name: str) -> str:
    return (resources.files("llama_magic.notebook.panel") / "assets" / name).read_text(encoding="utf-8")


@cache
def _modules() -> dict[str, str]:
    folder = resources.files("llama_magic.notebook.panel") / "assets"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".js") and item.name != "loader.js")
    return {name: _asset(name) for name in names}


class PanelWidget(anywidget.AnyWidget):
    """One panel. Its modules and the state it begins with are sent when it opens; then only what changes."""

    _esm = _asset("loader.js")
    _css = _asset("panel.css")
    modules = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    panel_id = traitlets.Unicode().tag(sync=True)

    def __init__(self, bench: Workbench, panel_id: str, section: str) -> None:
        self._bench = bench
        self.on_close: Callable[[], None] = self.close
        begin = {**bench.open(panel_id, self._deliver), "open": section}
        super().__init__(modules=_modules(), state=begin, panel_id=panel_id)
        self.on_msg(self._receive)
        # ipykernel 7.4 sends messages of a view to the shell that spoke to it last: that of the cells. They may go
        # where the front end wants them, a subshell, for all they do is posted. So Stop works while a cell runs.
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = lambda _data, wanted: wanted  # noqa: SLF001

    def get_state(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the state for a page that was loaded again: as it is now."""
        found = super().get_state(*arguments, **keywords)
        if "state" in found and self.comm is not None:
            found["state"] = {**self._bench.call(self._bench.snapshot), "open": self.state.get("open", "model")}
        return found

    def _receive(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        if "ack" in message:
            self.send({"ack": message["ack"]})
        if message.get("do") == "app.close":
            self.on_close()
        else:
            self._bench.receive(self.panel_id, message)

    def _deliver(self, message: dict[str, Any], buffers: list[bytes]) -> None:
        if self.comm is not None:
            self.send(message, buffers)

    def close(self) -> None:
        """Close the view, and stop what was started from it."""
        self._bench.close(self.panel_id)
        super().close()


def root_of(widget: PanelWidget) -> Any:
    """Return the widget below a sentence that only shows where the widget itself can not: its styles hide it."""
    return ipywidgets.VBox([ipywidgets.HTML(_MISSING), widget])
