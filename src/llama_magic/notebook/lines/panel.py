"""The subcommand that opens the panel."""

from __future__ import annotations

from llama_magic.notebook.flags import own_switch
from llama_magic.notebook.panel import SECTION_NAMES
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("panel", "panel [SECTION] [--plain]", "open the panel: everything by hand, on the same session",
           only=("out",), words=1, complete=SECTION_NAMES,
           own=(own_switch("--plain", "plain", "plain ipywidgets only, for front ends without anywidget"),),
           examples=("%llama panel", "%llama panel chat"),
           run="llama_magic.notebook.actions.panel:panel"),
)
# fmt: on
