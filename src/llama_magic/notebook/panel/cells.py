"""What a control does, as a person would type it: cells and lines of the magics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_magic.inference.conversation import Conversation, Turn
from llama_magic.notebook.flags import FLAGS, Flag
from llama_magic.notebook.parsers import split

__all__ = ["cell_of", "flags_of", "quoted"]

#: The flag that sets each field, the one people know best first.
_SPELLED = {"max_tokens": "-n", "seed": "--seed", "temperature": "--temp", "system": "-sys", "n_ctx": "-c"}


def quoted(text: str) -> str:
    """Return a word as the magics read it back, in quotes where that is needed."""
    if text and not any(char.isspace() or char in "'\"\\{" for char in text):
        return text
    if "'" not in text:
        return f"'{text}'"
    return '"' + text.replace('"', '\\"') + '"'


def _flag(dest: str, value: Any) -> Flag | None:
    fitting = [flag for flag in FLAGS if flag.dest == dest and (bool(flag.metavar) or flag.const == value)]
    return next((flag for flag in fitting if _SPELLED.get(dest) in flag.names), fitting[0] if fitting else None)


def flags_of(values: Mapping[str, Any]) -> str:
    """Return flags that set fields to values, separated by spaces; what no flag can say is left out."""
    words = []
    for dest, value in values.items():
        flag = _flag(dest, value)
        if flag is None or value is None:
            continue
        spelled = _SPELLED.get(dest)
        name = spelled if spelled in flag.names else flag.names[-1] if len(flag.names) == 1 else flag.names[0]
        if not flag.metavar:
            words.append(name)
            continue
        parts = value if flag.repeat and isinstance(value, (tuple, list)) else [value]
        for part in parts:
            text = ";".join(part) if dest == "samplers" else f"{part[0]}{part[1]:+g}" if dest == "logit_bias" else part
            words.append(f"{name} {quoted(f'{text:g}' if isinstance(text, float) else str(text))}")
    line = " ".join(words)
    split(line)  # what can not be read back would be no help
    return line


def cell_of(conversation: Conversation, turn: Turn) -> str:
    """Return the cell that asks what a turn asked, in the same way."""
    params = {} if turn.params is None else turn.params.changed()
    params.pop("logprobs", None)
    chat = "-cnv" if conversation.name == "chat" else f"--chat {quoted(conversation.name)}"
    system = f"-sys {quoted(conversation.system)}" if conversation.system and "\n" not in conversation.system else ""
    head = " ".join(filter(None, ("%%llama", chat, system, flags_of(params))))
    return f"{head}\n{turn.user}"
