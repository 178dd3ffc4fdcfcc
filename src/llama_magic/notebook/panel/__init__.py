"""The panel: everything by hand, over the same session that the magics use. Importing it loads no widgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_magic.errors import InvalidRequestError, MissingDependencyError
from llama_magic.suggest import did_you_mean

if TYPE_CHECKING:
    from llama_magic.notebook.panel.panel import Panel

__all__ = ["SECTION_NAMES", "panel"]

#: Parts of the panel that can be opened first.
SECTION_NAMES = ("model", "chat", "quantize", "hardware", "compare", "serve")


def panel(section: str = "model", *, plain: bool = False) -> Panel:
    """Open a workbench of widgets over the session that the magics use: what one changes the other shows.

    Parameters
    ----------
    section
        The part to open first: "model", "chat", "quantize", "hardware", "compare" or "serve".
    plain
        Use plain ipywidgets only: for front ends without anywidget.

    Raises
    ------
    InvalidRequestError
        There is no such section.
    MissingDependencyError
        ipywidgets or anywidget is not installed.
    """
    if section not in SECTION_NAMES:
        raise InvalidRequestError(
            f"the panel has no section {section!r}.{did_you_mean(section, SECTION_NAMES)} "
            f"There are {', '.join(SECTION_NAMES)}."
        )
    try:
        from llama_magic.notebook.panel.panel import Panel
        from llama_magic.notebook.panel.workbench import workbench

        bench = workbench()
        bench.defaults = bench.defaults or _defaults()
        return Panel(bench, section, plain=plain)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("anywidget", "ipywidgets", "psygnal"):
            raise
        hint = "" if error.name == "ipywidgets" else "; without it: %llama panel --plain"
        raise MissingDependencyError(f"the panel needs {error.name}: pip install {error.name}{hint}") from error


def _defaults() -> Any:
    """Return the magics' defaults, where they are loaded."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return None if shell is None else shell.magics_manager.registry.get("LlamaMagic")
