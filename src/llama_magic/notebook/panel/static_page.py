"""The panel as a page without a kernel: what a saved notebook shows."""

from __future__ import annotations

from typing import Any

from llama_magic.markup import Html, details, facts, heading, note, page

__all__ = ["static_page"]

#: Characters of HTML that the conversation may take: the page is sent anew whenever something changed.
_MOST = 60_000

_RUN = "This is the panel as it was when the notebook was saved. Run the cell to open it again."


def static_page(state: dict[str, dict[str, Any]]) -> str:
    """Return HTML of what the panel shows: model, conversation, quantized files.

    Parameters
    ----------
    state
        `Workbench.snapshot`.
    """
    parts: list[object] = [heading("llama_magic", "panel")]
    model, chat, quantize = (state.get(name, {}) for name in ("model", "chat", "quantize"))
    parts.append(facts(_model(model)))
    parts += _chat(chat)
    made = quantize.get("made") or []
    if made:
        parts.append(heading("Quantized"))
        parts.append(
            facts((row["ftype"], f"{row['size']}, {row['bits']} bits per weight, {row['name']}") for row in made)
        )
    parts.append(note(_RUN))
    return page(*parts)


def _model(model: dict[str, Any]) -> list[tuple[str, str]]:
    current = model.get("current")
    rows = [("model", "none is loaded" if current is None else f"{current['name']} · {current['ftype']}")]
    if current is not None:
        rows.append(("context", f"{current['n_ctx']:,} tokens"))
        rows.append(("on", f"{current['devices']}, about {current['memory']} of memory"))
    others = [each["name"] for each in model.get("loaded") or [] if current is None or each["path"] != current["path"]]
    if others:
        rows.append(("also loaded", ", ".join(others)))
    return rows


def _chat(chat: dict[str, Any]) -> list[object]:
    turns = chat.get("turns") or []
    if not turns:
        return []
    parts: list[object] = [heading("Conversation", chat.get("name", ""))]
    if chat.get("system"):
        parts.append(facts([("system", chat["system"])]))
    shown: list[Html] = []
    left = _MOST
    for turn in reversed(turns):
        made = _turn(turn)
        left -= len(made)
        if shown and left < 0:
            break
        shown.insert(0, made)
    if len(shown) < len(turns):
        parts.append(note(f"{len(turns) - len(shown)} earlier turns are not on this page; %llama save keeps them all."))
    if shown[:-6]:
        parts.append(details(f"{len(shown[:-6])} earlier turns", *shown[:-6]))
    parts += shown[-6:]
    return parts


def _turn(turn: dict[str, Any]) -> Html:
    from html import escape

    user = escape(turn["user"])
    # The answer's HTML is made by `notebook/markdown.py`, which escapes all that the model wrote.
    return Html(
        '<div style="border-left:3px solid var(--jp-border-color2,#8884);padding-left:.8em;margin:.6em 0">'
        f'<div style="white-space:pre-wrap;font-weight:600">{user}</div>{turn["html"]}</div>'
    )
