"""The notebook's side: magics, views and their parts. Importing it loads none of them."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from typing import Any

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

#: Seconds after a cell at which a worker is started for what may come: cells that are run in a row have begun by then.
_IDLE_S = 1.0

#: What most first commands need. Imported while nobody waits for it: that halves the time of a first `%llama quantize`.
_EARLY = tuple(
    f"llama_magic.{name}"
    for name in (
        "notebook.stream_view", "notebook.markdown", "notebook.segments", "notebook.tokens", "api.locate",
        "api.backends", "quantization.results", "notebook.actions.quantize", "api.inspect", "notebook.actions.models",
        "models.facts", "models.kv", "notebook.jinja_lexer",
    )
)  # fmt: skip
_idle = threading.Event()


def load_ipython_extension(shell: Any) -> None:
    """Register `%llama` and `%%llama`; what ``%load_ext llama_magic`` calls."""
    from llama_magic.api.workers import keep_spare
    from llama_magic.notebook.complete import install
    from llama_magic.notebook.magics import LlamaMagic

    unload_ipython_extension(shell)
    shell.register_magics(LlamaMagic)
    install(shell)
    keep_spare(True)
    if getattr(shell, "kernel", None) is not None:  # who reads and types there leaves the machine idle
        for event, work in _EVENTS:
            shell.events.register(event, work)


def _cell_begins(_info: object) -> None:
    from llama_magic.api.workers import not_now

    _idle.clear()
    not_now()


def _cell_ended(_result: object) -> None:
    from llama_magic.api.workers import prepare_soon

    _idle.set()
    prepare_soon(_IDLE_S, None if all(name in sys.modules for name in _EARLY) else _import_early)


def _import_early() -> None:
    """Import one module after the other, until a cell begins; what is left comes after that."""
    with contextlib.suppress(Exception):  # the command that needs what can not be imported says so
        for name in _EARLY:
            if not _idle.is_set():
                return
            importlib.import_module(name)


_EVENTS = (("pre_run_cell", _cell_begins), ("post_run_cell", _cell_ended))


def unload_ipython_extension(shell: Any) -> None:
    """Take the magics away again; what ``%unload_ext llama_magic`` calls."""
    from llama_magic.api.workers import keep_spare
    from llama_magic.notebook.complete import uninstall

    keep_spare(False)
    for event, work in _EVENTS:
        if work in shell.events.callbacks[event]:
            shell.events.unregister(event, work)
    uninstall(shell)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("llama", None)
    shell.magics_manager.registry.pop("LlamaMagic", None)
    shell.configurables[:] = [c for c in shell.configurables if type(c).__name__ != "LlamaMagic"]
