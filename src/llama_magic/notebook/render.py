"""A finished generation as one output: HTML for the notebook, plain text for everything else."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_magic.notebook import style
from llama_magic.safe_text import neutralise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_magic.inference.results import Completion, Sample

__all__ = ["FORMATS", "Footer", "columns", "footer_html", "footer_text", "render_completion", "strip_fence"]

FORMATS: tuple[str, ...] = ("markdown", "text", "html", "json", "code", "math")

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
#: What HTML answers may load: nothing. Applies inside the sandboxed frame, before the model's text.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; form-action 'none'; base-uri 'none'"
)
#: Elements that can reach the network past that policy (name look-ups, refresh) or hold other pages. Scripts are not
#: among them: the frame's sandbox has none.
_REACHING = re.compile(r"<(?=(?:link|meta|base|i?frame|frameset|object|embed|portal|fencedframe)\b)", re.IGNORECASE)
_FRAME_LOOK = "<style>body{font:14px/1.5 system-ui,sans-serif;margin:12px;color:#222;background:#fff}</style>"


@dataclass(frozen=True, slots=True)
class Footer:
    """What the thin line under an answer says; `notes` follow it.

    Rates are in tokens per second and the time in seconds.
    """

    model: str
    device: str
    tokens_per_second: float
    time_to_first_token_s: float
    tokens: int
    notes: tuple[str, ...] = ()


def render_completion(completion: Completion, format: str, footer: Footer) -> dict[str, Any]:  # noqa: A002 - the flag's name
    """Return the mimebundle of a completion: ``text/html`` and ``text/plain``.

    Needs no kernel to be shown again. `format` is one of `FORMATS`; several samples stand side by side.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    answers: Sequence[Completion | Sample] = completion.samples if len(completion.samples) > 1 else (completion,)
    parts = [_answer(answer, format) for answer in answers]
    notes = tuple(dict.fromkeys(note for _, more in parts for note in more))
    if completion.finish_reason == "interrupted" and not any("interrupted" in note.lower() for note in footer.notes):
        notes += ("interrupted",)
    body = columns([inner for inner, _ in parts]) if len(parts) > 1 else parts[0][0]
    if any(answer.logprobs for answer in answers):
        from llama_magic.notebook.tokens import LEGEND

        body += LEGEND
    return {
        "text/html": style.root(body + footer_html(footer, notes)),
        "text/plain": f"{_plain(answers)}\n\n{footer_text(footer, notes)}",
    }


def columns(inners: Sequence[str], first: int = 1) -> str:
    """Return samples side by side; columns too narrow to read go below each other."""
    cells = "".join(
        f'<div style="{style.CELL}"><p style="{style.LABEL}"><small>Sample {number}</small></p>{inner}</div>'
        for number, inner in enumerate(inners, first)
    )
    return f'<div style="{style.GRID}">{cells}</div>'


def footer_html(footer: Footer, more: Sequence[str] = ()) -> str:
    """Return the footer line."""
    facts = html.escape(" · ".join(_facts(footer)))
    notes = "".join(
        f' · <span style="{style.NOTE}">{html.escape(neutralise(n))}</span>' for n in (*footer.notes, *more)
    )
    return f'<p dir="ltr" style="{style.FOOTER}"><small>{facts}{notes}</small></p>'


def footer_text(footer: Footer, more: Sequence[str] = ()) -> str:
    """Return the footer line as plain text."""
    return neutralise(" · ".join([*_facts(footer), *footer.notes, *more]))


def strip_fence(text: str) -> tuple[str, str]:
    r"""Return the code of a text and its language: that of its fenced blocks, or else all of it.

    >>> strip_fence("Sure:\n```python\nx = 1\n```\nDone.")
    ('x = 1', 'python')
    """
    blocks = [(match.group(3), match.group(2).strip()) for match in _FENCE.finditer(text)]
    if not blocks:
        return text.strip("\n"), ""
    language = next((info.split()[0] for _, info in blocks if info), "")
    return "\n\n".join(code.rstrip("\n") for code, _ in blocks), language


def _facts(footer: Footer) -> list[str]:
    facts = [neutralise(footer.model), neutralise(footer.device)]
    if footer.tokens_per_second > 0:
        facts.append(f"{footer.tokens_per_second:.1f} tok/s")
    if footer.tokens:
        facts.append(f"first token {footer.time_to_first_token_s:.2f} s")
    facts.append(f"{footer.tokens:,} token{'' if footer.tokens == 1 else 's'}")
    return [fact for fact in facts if fact]


def _plain(answers: Sequence[Completion | Sample]) -> str:
    if len(answers) == 1:
        return neutralise(answers[0].text)
    return "\n\n".join(f"[sample {number}]\n{neutralise(answer.text)}" for number, answer in enumerate(answers, 1))


def _answer(answer: Completion | Sample, format: str) -> tuple[str, tuple[str, ...]]:  # noqa: A002
    """Return one answer's HTML and what there is to say about it."""
    if answer.logprobs:
        from llama_magic.notebook.tokens import tokens_html

        return tokens_html(answer.logprobs), ()
    if not answer.text.strip():
        return f'<p style="{style.LABEL}"><small>(no text)</small></p>', ()
    if format == "markdown":
        return _markdown(answer.text), ()
    if format == "json":
        return _json(answer)
    if format == "code":
        from llama_magic.notebook.highlight import code_block

        return code_block(*strip_fence(answer.text)), ()
    if format == "html":
        return _frame(answer.text)
    if format == "math":
        return _maths(answer.text)
    return f'<div dir="auto" style="{style.PRE_WRAP}">{html.escape(neutralise(answer.text))}</div>', ()


def _markdown(text: str) -> str:
    from llama_magic.notebook.markdown import render_markdown

    return render_markdown(text)


def _json(answer: Completion | Sample) -> tuple[str, tuple[str, ...]]:
    from llama_magic.notebook.highlight import code_block

    source = strip_fence(answer.text)[0]
    try:
        pretty = json.dumps(json.loads(source), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return code_block(source, "json"), ("not valid JSON",)
    return code_block(pretty, "json"), ()


def _frame(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the model's page in a frame without scripts, origin or network, and its source below."""
    from llama_magic.notebook.highlight import code_block

    source = strip_fence(text)[0]
    page = (
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta http-equiv="x-dns-prefetch-control" content="off"><meta name="referrer" content="no-referrer">'
        f"{_FRAME_LOOK}{_REACHING.sub('<x-', neutralise(source))}"
    )
    frame = (
        f'<iframe sandbox="" referrerpolicy="no-referrer" loading="lazy" title="HTML answer" style="{style.FRAME}" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        f"<details><summary><small>Source</small></summary>{code_block(source, 'html')}</details>"
    )
    return frame, ("scripts in it do not run",) if "<script" in source.lower() else ()


def _maths(text: str) -> tuple[str, tuple[str, ...]]:
    from llama_magic.notebook.maths import safe_tex, typeset

    source = strip_fence(text)[0].strip()
    for opening, closing in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")):
        if source.startswith(opening) and source.endswith(closing) and len(source) > len(opening) + len(closing):
            source = source[len(opening) : -len(closing)]
            break
    tex = safe_tex(source)
    if tex is not None and not re.search(r"(?<![\\A-Za-z{])[A-Za-z]{3,} +[A-Za-z]{2,}", source):
        return typeset(tex, display=True), ()
    return _markdown(text), ()
