"""Inline styles: JupyterLab's variables with fallbacks, so that light, dark and saved pages all work.

Styles are inline because a saved notebook has no style sheet of ours, and short because they are
sent with every piece of a stream.
"""

from __future__ import annotations

__all__ = [
    "BAR",
    "BAR_FILL",
    "CELL",
    "CODE",
    "CODE_INNER",
    "CODE_JOINED",
    "FOOTER",
    "FRAME",
    "GRID",
    "LABEL",
    "NOTE",
    "PRE_WRAP",
    "ROOT_CLASS",
    "TABLE_BOX",
    "WRAP",
    "root",
]

#: MathJax 3 (JupyterLab) and MathJax 2 (nbconvert, nbviewer) leave these alone.
ROOT_CLASS = "llama-magic mathjax_ignore tex2jax_ignore"

WRAP = "overflow-wrap:anywhere"
_MUTED = "color:var(--jp-ui-font-color2,#6b6b6b)"
_LINE = "var(--jp-border-color2,#8884)"
FOOTER = f"{_MUTED};font-size:var(--jp-ui-font-size1,13px);line-height:1.5;margin:.6em 0 .1em"
NOTE = "color:var(--jp-warn-color0,#a35200)"
LABEL = f"{_MUTED};font-size:var(--jp-ui-font-size1,13px);margin:0 0 .3em"
GRID = "display:grid;gap:0 1.25em;grid-template-columns:repeat(auto-fit,minmax(min(100%,16em),1fr))"
CELL = f"min-width:0;border-top:1px solid {_LINE};padding:.35em 0 .5em"
CODE = (
    "background:var(--jp-cell-editor-background,#8881);padding:.55em .8em;margin:0 0 .8em;border-radius:4px;"
    "overflow-x:auto;white-space:pre;line-height:1.45"
)
#: For a piece of code that goes on below.
CODE_JOINED = CODE.replace("padding:.55em .8em;margin:0 0 .8em", "padding:.55em .8em 0;margin:0")
#: JupyterLab gives code inside of blocks a ground and a way to wrap of its own.
CODE_INNER = "background:none;padding:0;color:inherit;white-space:inherit"
PRE_WRAP = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0"
TABLE_BOX = "overflow-x:auto;max-width:100%"
FRAME = (
    f"width:100%;height:360px;resize:vertical;border:1px solid {_LINE};border-radius:4px;"
    "background:#fff;color-scheme:light;box-sizing:border-box"
)
BAR = "height:3px;max-width:28em;border-radius:2px;background:var(--jp-layout-color3,#8883);overflow:hidden"
BAR_FILL = "height:100%;border-radius:2px;background:var(--jp-brand-color1,#1976d2)"


def root(inner: str) -> str:
    """Wrap a piece of output: no LaTeX is typeset in it but what is marked for it, long words break."""
    return f'<div class="{ROOT_CLASS}" style="{WRAP}">{inner}</div>'
