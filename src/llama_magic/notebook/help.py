"""Help texts, all made from the tables of flags and subcommands."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.flags import FLAGS, GROUPS, OWN, Flag
from llama_magic.notebook.parsers import Parser
from llama_magic.notebook.subcommands import CELL, SUBCOMMANDS
from llama_magic.suggest import did_you_mean

__all__ = ["docstring", "help_text"]

_BODY = """\
The body goes to the model as typed. {name} is replaced where a variable of that name exists;
every other brace stays, nothing is evaluated, and --raw replaces nothing at all.
A cell stands alone: same cell, same seed, same answer. With -cnv or --chat it is a turn of a
conversation, and running it again replaces that turn."""


def help_text(topic: str | None = None) -> str:
    """Return the help on a subcommand, a flag, ``cell`` or (None) on everything."""
    if topic is None:
        return _overview()
    word = topic.lstrip("%")
    if word in ("", "cell", "llama"):
        return f"{_usage(CELL)}\n\n{_BODY}\n\n{_flags(CELL.flags)}"
    if word in SUBCOMMANDS:
        parser = SUBCOMMANDS[word]
        return "\n\n".join(filter(None, (_usage(parser), _flags(parser.flags))))
    if topic in GROUPS:
        return _flags([flag for flag in FLAGS if flag.group == topic])
    found = [flag for flag in FLAGS if topic in flag.names or topic == flag.dest]
    if not found and not topic.startswith("-"):
        found = [flag for flag in FLAGS if any(name.lstrip("-") == topic for name in flag.names)]
    if found:
        return _flags(found)
    names = [*SUBCOMMANDS, *GROUPS, "cell", *(name for flag in FLAGS for name in flag.names)]
    hint = did_you_mean(topic, names) or " %llama help shows what there is."
    raise InvalidRequestError(f"no help on {topic!r}.{hint}")


def docstring() -> str:
    """Return what ``%%llama?`` shows."""
    return f"{_overview()}\n\n{_flags(CELL.flags)}\n"


def _overview() -> str:
    width = max(len(parser.usage) for parser in SUBCOMMANDS.values())
    width = min(width, 28)
    lines = [
        "Ask a local model from a notebook cell.",
        "",
        f"  {CELL.usage}",
        "  prompt, as many lines as it takes",
        "",
    ]
    for parser in SUBCOMMANDS.values():
        usage = parser.usage if len(parser.usage) <= width else parser.name
        lines.append(f"  %llama {usage:<{width}}  {parser.help}")
    lines += ["", _BODY, "", "Examples:", ""]
    examples = [*CELL.examples, "%llama load smollm2 -c 4096", "%llama help --temp"]
    lines += [textwrap.indent(example, "  ") + "\n" for example in examples]
    lines.append("More: %llama help cell (all flags), %llama help SUBCOMMAND, %llama help FLAG, %config LlamaMagic")
    return "\n".join(lines)


def _usage(parser: Parser) -> str:
    usage = parser.usage if parser is CELL else f"%llama {parser.usage}"
    examples = "".join("\n" + textwrap.indent(example, "  ") for example in parser.examples)
    return f"{usage}\n  {parser.help}." + (f"\n\nExamples:{examples}" if examples else "")


def _flags(flags: Iterable[Flag]) -> str:
    chosen = list(flags)
    own = [_row(flag) for flag in chosen if flag.group == OWN]
    blocks = ["Flags:\n" + "\n".join(own)] if own else []
    for group, title in GROUPS.items():
        rows = [_row(flag) for flag in chosen if flag.group == group]
        if rows:
            blocks.append(f"{title}:\n" + "\n".join(rows))
    return "\n\n".join(blocks)


def _row(flag: Flag) -> str:
    value = f" [{flag.metavar}]" if flag.optional else f" {flag.metavar}" if flag.metavar else ""
    left = f"  {', '.join(flag.names)}{value}"
    gap = "  " if len(left) <= 36 else "\n" + " " * 38
    return f"{left:<36}{gap}{flag.help}" if len(left) <= 36 else f"{left}{gap}{flag.help}"
