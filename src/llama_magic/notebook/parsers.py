"""Lines of `%llama` and `%%llama`: split into words, and the words read by the table of flags.

Written for this table instead of `argparse`, which takes a value that starts with a dash for a
flag (``-r "-- end"``, ``-n -5``), reads ``-nlg`` as ``-n lg``, and explains neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.flags import FLAGS, Flag
from llama_magic.suggest import did_you_mean

__all__ = ["Arguments", "HelpAsked", "Parser", "flag_of", "split"]


class HelpAsked(Exception):  # noqa: N818 - not an error
    """A line holds ``-h`` or ``--help``; `topic` is what `help_text` takes."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic


def split(line: str) -> list[str]:
    r"""Split a line into words, with quotes as in a shell but backslashes kept.

    ``'…'`` is literal, in ``"…"`` only ``\"`` is special, and a word that starts as a JSON
    object is read to its end. So Windows paths, regular expressions and JSON arrive as typed.
    """
    words: list[str] = []
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
            continue
        word, at = _json_word(line, at) if line[at] == "{" else (None, at)
        if word is None:
            word, at = _word(line, at)
        words.append(word)
    return words


def _json_word(line: str, at: int) -> tuple[str | None, int]:
    try:
        _, end = json.JSONDecoder().raw_decode(line, at)
    except ValueError:
        return None, at
    return (line[at:end], end) if line[end : end + 1].strip() == "" else (None, at)


def _word(line: str, at: int) -> tuple[str, int]:
    parts: list[str] = []
    while at < len(line) and not line[at].isspace():
        char, following = line[at], line[at + 1 : at + 2]
        if char in "'\"":
            end = at + 1
            while end < len(line) and line[end] != char:
                end += 2 if char == '"' and line[end : end + 2] in ('\\"', "\\\\") else 1
            if end >= len(line):
                raise InvalidRequestError(f"a quote ({char}) is not closed: {line[at : at + 30]}")
            text = line[at + 1 : end]
            parts.append(text.replace('\\"', '"') if char == '"' else text)
            at = end + 1
        elif char == "\\" and following and following in " '\"":
            parts.append(following)
            at += 2
        else:
            parts.append(char)
            at += 1
    return "".join(parts), at


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a line said.

    Attributes
    ----------
    words
        The words that belong to no flag.
    values
        Values by `Flag.dest`, of the flags that were given.
    groups
        The group of each of these.
    """

    words: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def get(self, dest: str, default: Any = None) -> Any:
        """Return a value, or `default` where its flag was not given."""
        return self.values.get(dest, default)

    def group(self, name: str) -> dict[str, Any]:
        """Return the values of one group of flags, as keywords."""
        found = {dest: value for dest, value in self.values.items() if self.groups[dest] == name}
        found |= found.pop("load_mode", {})
        if found.get("devices") == ("none",):
            del found["devices"]
            found["n_gpu_layers"] = 0
        if found.get("dry_sequence_breakers") == ("none",):
            found["dry_sequence_breakers"] = ()
        return found

    @property
    def word(self) -> str | None:
        """The first word, or None."""
        return self.words[0] if self.words else None


@dataclass(frozen=True, slots=True)
class Parser:
    """One subcommand: what it takes, and what its help says.

    Attributes
    ----------
    name
        The subcommand; empty for the cell itself.
    usage, help
        One line each.
    groups, only
        Groups of flags it takes, and single flags by `Flag.dest`.
    words
        Most words that belong to no flag.
    complete
        What tab completion offers for these words, as in `Flag.complete`.
    examples
        Lines to show.
    literal
        Words that start with a dash are words like any other.
    own
        Flags that only this subcommand has; they go before those of the table.
    run
        The function that does it, as ``module:name``: takes `Context` and `Arguments`, and returns a text, or an
        object to display, or None. Imported when the subcommand is first used.
    """

    name: str
    usage: str
    help: str
    groups: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    words: int = 0
    complete: str | tuple[str, ...] = ""
    examples: tuple[str, ...] = ()
    literal: bool = False
    own: tuple[Flag, ...] = ()
    run: str = ""

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The flags it takes."""
        taken = {name for flag in self.own for name in flag.names}
        table = (flag for flag in FLAGS if flag.group in self.groups or flag.dest in self.only)
        return (*self.own, *(flag for flag in table if not taken & set(flag.names)))

    def action(self) -> Callable[..., Any]:
        """Return the function that does it."""
        module, _, name = self.run.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found

    def parse(self, line: str | list[str]) -> Arguments:
        """Read a line.

        Raises
        ------
        InvalidRequestError
            It can not be understood; one sentence says what to do.
        HelpAsked
            It asks for help.
        """
        todo = split(line) if isinstance(line, str) else list(line)
        known = {name: flag for flag in self.flags for name in flag.names}
        glued = {name: flag for name, flag in known.items() if flag.glued}
        words: list[str] = []
        arguments = Arguments()
        while todo:
            word = todo.pop(0)
            name, equals, value = word.partition("=")
            if self.literal or re.fullmatch(r"-(?:\d+)?", word):
                words.append(word)
            elif word in known:
                _set(arguments, known[word], word, todo)
            elif equals and name in known:
                _set_equals(arguments, known[name], name, value)
            elif word[:2] in glued:
                _store(arguments, glued[word[:2]], _convert(glued[word[:2]], word[:2], word[2:]))
            elif word in ("-h", "--help"):
                raise HelpAsked(self.name or "cell")
            elif word.startswith("-"):
                raise InvalidRequestError(self._unknown(word))
            else:
                words.append(word)
        if len(words) > self.words:
            raise InvalidRequestError(self._surplus(words))
        return Arguments(tuple(words), arguments.values, arguments.groups)

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        magic = f"%llama {self.name}" if self.name else "%%llama"
        if any(name in flag.names for flag in FLAGS):
            return f"{magic} does not take {name}. It takes: {self._names()}"
        hint = did_you_mean(name, [n for flag in self.flags for n in flag.names])
        return f"unknown flag {name}." + (hint or f" %llama help {self.name or 'cell'} lists the flags.")

    def _names(self) -> str:
        return ", ".join(flag.names[0] for flag in self.flags) or "no flags"

    def _surplus(self, words: list[str]) -> str:
        extra = words[self.words]
        if not self.name:
            return (
                f"{extra!r} is one word too many on the %%llama line: the prompt goes below it (or in quotes after -p)"
            )
        return f"{extra!r} is one word too many. Usage: %llama {self.usage}"


def _set(arguments: Arguments, flag: Flag, name: str, todo: list[str]) -> None:
    value = flag.const
    if flag.metavar:
        if todo and not (flag.optional and todo[0].startswith("-")):
            value = _convert(flag, name, todo.pop(0))
        elif not flag.optional:
            raise InvalidRequestError(f"{name} needs a value: {name} {flag.metavar} ({flag.help})")
    _store(arguments, flag, value)


def _store(arguments: Arguments, flag: Flag, value: Any) -> None:
    if flag.joined:
        value = (*arguments.values.get(flag.dest, ()), *value)
    elif flag.repeat:
        value = (*arguments.values.get(flag.dest, ()), value)
    arguments.values[flag.dest] = value
    arguments.groups[flag.dest] = flag.group


def _set_equals(arguments: Arguments, flag: Flag, name: str, value: str) -> None:
    if not flag.metavar:
        raise InvalidRequestError(f"{name} takes no value; got {value!r}")
    if not name.startswith("--"):
        raise InvalidRequestError(f"a short flag takes its value after a space: {name} {value}")
    _store(arguments, flag, _convert(flag, name, value))


def _convert(flag: Flag, name: str, text: str) -> Any:
    try:
        return flag.convert(text)
    except InvalidRequestError as error:
        raise type(error)(f"{name}: {error}") from error
    except ValueError as error:
        raise InvalidRequestError(f"{name} takes {error}; got {text!r}") from None


def flag_of(parser: Parser, name: str) -> Flag | None:
    """Return the flag that `name` spells, among those `parser` takes."""
    return next((flag for flag in parser.flags if name in flag.names), None)
