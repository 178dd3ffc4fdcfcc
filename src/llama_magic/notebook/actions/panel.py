"""The subcommand that opens the panel."""

from __future__ import annotations

from llama_magic.notebook.commands import Context
from llama_magic.notebook.panel import panel as open_panel
from llama_magic.notebook.parsers import Arguments


def panel(context: Context, arguments: Arguments) -> object:
    """``%llama panel [SECTION] [--plain]``."""
    from llama_magic.notebook.panel.workbench import workbench

    workbench(context.session).defaults = context.defaults
    return open_panel(arguments.word or "model", plain=arguments.get("plain", False))
