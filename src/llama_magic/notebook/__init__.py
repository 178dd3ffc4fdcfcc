"""The notebook's side: magics, views and their parts. Importing it loads none of them."""

from __future__ import annotations

from typing import Any

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

#: Seconds after which a worker is started for what may come: cells that are run in a row have begun by then.
_IDLE_S = 1.0


def load_ipython_extension(shell: Any) -> None:
    """Register `%llama` and `%%llama`; what ``%load_ext llama_magic`` calls."""
    from llama_magic.api.workers import keep_spare, prepare_soon
    from llama_magic.notebook.complete import install
    from llama_magic.notebook.magics import LlamaMagic

    unload_ipython_extension(shell)
    shell.register_magics(LlamaMagic)
    install(shell)
    keep_spare(True)
    if getattr(shell, "kernel", None) is not None:  # who reads and types there leaves the machine idle
        prepare_soon(_IDLE_S)


def unload_ipython_extension(shell: Any) -> None:
    """Take the magics away again; what ``%unload_ext llama_magic`` calls."""
    from llama_magic.api.workers import keep_spare
    from llama_magic.notebook.complete import uninstall

    keep_spare(False)
    uninstall(shell)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("llama", None)
    shell.magics_manager.registry.pop("LlamaMagic", None)
    shell.configurables[:] = [c for c in shell.configurables if type(c).__name__ != "LlamaMagic"]
