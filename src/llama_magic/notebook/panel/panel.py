"""A panel in a notebook: what is displayed, kept up to date for saving, and closed."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING, Any

from llama_magic.notebook.origin import cell_run
from llama_magic.notebook.panel.static_page import static_page

if TYPE_CHECKING:
    from llama_magic.notebook.panel.workbench import Workbench

__all__ = ["Panel"]

#: Seconds after a change until the page for a saved notebook is made again.
_CALM_S = 1.5
#: Parts of the state whose changes a saved notebook shows.
_SAVED = {"model", "chat", "quantize"}

#: In a notebook that is opened again, JupyterLab tells of a missing widget below the page, which says more. Above plain
#: widgets, which have no script to hide it, the page is not shown.
_STYLE = (
    "<style>.jp-OutputArea-child:has(.llama-panel-page) + .jp-OutputArea-child "
    "> .jupyter-widgets:not(:has(*)){display:none}"
    ".jp-OutputArea-child:has(.llama-panel-page):has(+ .jp-OutputArea-child .widget-tab){display:none}</style>"
)

_ELSEWHERE = (
    "<p>To use the panel, run this cell in JupyterLab 4 or Notebook 7 with ipywidgets and anywidget installed where "
    "Jupyter runs: <code>pip install ipywidgets anywidget</code>.</p>"
)


class Panel:
    """A workbench of widgets over the session that the magics use. `close` ends it, and what was started from it.

    Parameters
    ----------
    bench
        The state it shows.
    section
        The part to open.
    plain
        Use plain ipywidgets, without a script of its own.
    """

    def __init__(self, bench: Workbench, section: str = "model", *, plain: bool = False) -> None:
        self._bench = bench
        # Not a number: a front end remembers panels across restarts of the kernel.
        self._id = f"panel-{uuid.uuid4().hex[:12]}"
        self._page_id = uuid.uuid4().hex
        self._timer: threading.Timer | None = None
        self._shown = False
        self.widget: Any
        self._root: Any
        if plain:
            from llama_magic.notebook.panel.plain import PlainPanel

            self.widget = PlainPanel(bench, self._id)
            self._root = self.widget.root
        else:
            from llama_magic.notebook.panel.widget import PanelWidget, root_of

            self.widget = PanelWidget(bench, self._id, section)
            self.widget.on_close = self.close
            self._root = root_of(self.widget)
        bench.listeners.append(self._changed)

    def __repr__(self) -> str:
        return f"Panel({self._id!r})"

    def _ipython_display_(self) -> None:
        from IPython.core.display_functions import display

        self._take_place()
        # The first output is the page for a saved notebook, which the live view hides; the second is the view.
        display({"text/html": self._page(), "text/plain": "llama_magic panel"}, raw=True, display_id=self._page_id)
        self._shown = True
        view = self._root._repr_mimebundle_()
        data = dict(view[0] if isinstance(view, tuple) else view)
        display({**data, "text/html": _ELSEWHERE, "text/plain": "llama_magic panel"}, raw=True)

    def _take_place(self) -> None:
        """Follow the panel that an earlier run of this cell showed: nobody sees that one any more."""
        from IPython.core.getipython import get_ipython

        run = cell_run(get_ipython())
        if run is None:
            return
        before = self._bench.places.get(run.cell)
        self._bench.places[run.cell] = (run.run, self)
        if (
            before is None
            or before[0] == run.run
            or any(before[1] is panel for _, panel in self._bench.places.values())
        ):
            return
        old: Panel = before[1]
        old._shown = False
        self._bench.call(lambda: self._bench.runner.hand_over(old._id, self._id))
        old.close()

    def close(self) -> None:
        """Close the panel, and stop what was started from it; models stay loaded."""
        if self._changed not in self._bench.listeners:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._shown:
            self._update()
        self._bench.listeners.remove(self._changed)
        self.widget.close()
        self._root.close()

    def _page(self) -> str:
        page = static_page(self._bench.call(self._bench.snapshot))
        return f'<div class="llama-panel-page">{_STYLE}{page}</div>'

    def _changed(self, section: str) -> None:
        """Make the page again when changes have come to rest."""
        if section not in _SAVED or not self._shown or (self._timer is not None and self._timer.is_alive()):
            return
        self._timer = threading.Timer(_CALM_S, self._update)
        self._timer.daemon = True
        self._timer.start()

    def _update(self) -> None:
        from IPython.core.display_functions import update_display

        if self._changed in self._bench.listeners:
            update_display(
                {"text/html": self._page(), "text/plain": "llama_magic panel"}, display_id=self._page_id, raw=True
            )
