"""A whole conversation as one output."""

from __future__ import annotations

import html
from typing import Any

from llama_magic.inference.conversation import Conversation
from llama_magic.notebook.running import footer_of
from llama_magic.notebook.views import render_completion

__all__ = ["history_bundle"]

_ASKED = "white-space:pre-wrap;border-left:3px solid var(--jp-border-color1,#bdbdbd);padding:2px 8px;margin:8px 0"


def history_bundle(conversation: Conversation, shape: str, branch: str = "") -> dict[str, Any]:
    """Return the mimebundle of all turns, or those of a branch; what was asked is shown as plain text."""
    turns = conversation.branch(branch) if branch else conversation.turns
    name = f"{conversation.name}/{branch}" if branch else conversation.name
    head = f"{name}, {len(turns)} turn{'' if len(turns) == 1 else 's'}"
    if conversation.branches and not branch:
        head += f"; branches: {', '.join(conversation.branches)}"
    pages, plain = [f"<div><b>{html.escape(head)}</b></div>"], [head]
    if conversation.system:
        pages.append(_asked(f"System: {conversation.system}"))
        plain.append(f"System: {conversation.system}")
    for number, turn in enumerate(turns, 1):
        bundle = render_completion(turn.completion, shape, footer_of(turn.completion))
        pages += [_asked(f"{number}. {turn.user}"), str(bundle.get("text/html", ""))]
        plain += [f"{number}. {turn.user}", str(bundle.get("text/plain", turn.text))]
    return {"text/html": "\n".join(pages), "text/plain": "\n\n".join(plain)}


def _asked(text: str) -> str:
    return f'<div style="{_ASKED}">{html.escape(text)}</div>'
