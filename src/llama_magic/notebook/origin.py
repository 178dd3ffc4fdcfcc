"""Which cell runs."""

from __future__ import annotations

from typing import Any

from llama_magic.inference.conversation import CellRun

__all__ = ["cell_run"]


def cell_run(shell: Any) -> CellRun | None:
    """Return which cell runs, from the message that asked for it; None where nothing tells cells apart."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else None
    if not isinstance(parent, dict):
        return None
    cell = parent.get("metadata", {}).get("cellId")
    return CellRun(str(cell), str(parent.get("header", {}).get("msg_id", ""))) if cell else None
