"""Tab completion on `%llama` lines and on the first line of `%%llama` cells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama_magic.notebook.parsers import Parser, flag_of
from llama_magic.notebook.subcommands import CELL, SUBCOMMANDS
from llama_magic.quantization.ftypes import FTYPES

__all__ = ["candidates", "install", "uninstall"]

_LINE = re.compile(r"\s*(%{1,2})llama(?=\s)(.*)", re.DOTALL)


def install(shell: Any) -> None:
    """Add a matcher to the shell's completer."""
    completer = getattr(shell, "Completer", None)
    if completer is None:
        return

    from IPython.core.completer import SimpleCompletion, context_matcher

    def llama_magic_matcher(context: Any) -> Any:
        found = _at_cursor(context.full_text, context.cursor_line, context.cursor_position)
        if found is None:
            return {"completions": [], "suppress": False}
        cell, text = found
        word, words = candidates(text, cell=cell, namespace=shell.user_ns)
        completions = [SimpleCompletion(text=match, type="llama") for match in words]
        return {"completions": completions, "matched_fragment": word, "suppress": True, "ordered": True}

    mark: Any = context_matcher(identifier="llama_magic", priority=1000)
    completer.custom_matchers.append(mark(llama_magic_matcher))


def uninstall(shell: Any) -> None:
    """Remove the matcher."""
    completer = getattr(shell, "Completer", None)
    if completer is not None:
        kept = [m for m in completer.custom_matchers if getattr(m, "matcher_identifier", "") != "llama_magic"]
        completer.custom_matchers[:] = kept


def _at_cursor(text: str, line: int, column: int) -> tuple[bool, str] | None:
    lines = text.split("\n")
    if line >= len(lines):
        return None
    match = _LINE.fullmatch(lines[line][:column])
    if match is None or (match[1] == "%%" and any(before.strip() for before in lines[:line])):
        return None
    return match[1] == "%%", match[2]


def candidates(text: str, *, cell: bool, namespace: Iterable[str] = ()) -> tuple[str, list[str]]:
    """Return the word at the end of `text` (what follows ``%llama``) and what could stand there."""
    *before, word = text.split(" ") if " " in text else ["", text]
    words = [part for part in before if part]
    parser = CELL
    if not cell:
        if not words:
            return word, _starting(word, SUBCOMMANDS) or (_flags(CELL, word) if word.startswith("-") else [])
        if words[0] in SUBCOMMANDS:
            parser = SUBCOMMANDS[words.pop(0)]
    flag = flag_of(parser, words[-1]) if words else None
    name, equals, value = word.partition("=")
    if equals and (spelled := flag_of(parser, name)) is not None:
        return value, _offer(spelled.complete, value, namespace)
    if flag is not None and flag.metavar and not (flag.optional and word.startswith("-")):
        return word, _offer(flag.complete, word, namespace)
    if word.startswith("-"):
        return word, _flags(parser, word)
    if parser.name == "help":
        return word, _starting(word, SUBCOMMANDS)
    what = parser.complete
    if what == "model,ftype":  # a model first, then types
        what = tuple(ftype.name for ftype in FTYPES) if words else "model"
    found = _offer(what, word, namespace)
    return word, found or ([] if word else _flags(parser, word))


def _flags(parser: Parser, word: str) -> list[str]:
    return _starting(word, [name for flag in parser.flags for name in flag.names])


def _offer(what: str | tuple[str, ...], word: str, namespace: Iterable[str]) -> list[str]:
    if isinstance(what, tuple):
        return _starting(word, what)
    if what == "file":
        return _files(word)
    if what == "backend":
        from llama_magic.backends.known import KNOWN

        return _starting(word, ["default", *(backend.name for backend in KNOWN)])
    if what == "model":
        from llama_magic.models.resolve import complete_refs

        return list(complete_refs(word))
    if what == "saved":
        from llama_magic.api.saved import saved_conversations

        return [*_starting(word, [row.name for row in saved_conversations()]), *_files(word)]
    if what in {"chat", "branch"}:
        from llama_magic.api.session import current_session

        conversations = current_session().conversations
        branches = [f"{name}/{branch}" for name, c in conversations.items() for branch in c.branches]
        return _starting(word, [*conversations, *(branches if what == "branch" else [])])
    if what == "variable":
        return _starting(word, sorted(name for name in namespace if not name.startswith("_")))
    return []


def _starting(word: str, known: Iterable[str]) -> list[str]:
    return [name for name in known if name.startswith(word)]


def _files(word: str) -> list[str]:
    typed = word.rpartition("/")[0] + "/" if "/" in word else ""
    folder, start = Path(typed or ".").expanduser(), word.rpartition("/")[2]
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name.lower())
    except OSError:
        return []
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    return [typed + name for name in names if name.startswith(start) and (start or not name.startswith("."))]
