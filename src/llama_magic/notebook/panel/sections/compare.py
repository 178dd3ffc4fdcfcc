"""Comparing levels: the race, the table and the result of `%llama compare`, and a look at each token."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llama_magic.api.compare import DEFAULT_LEVELS, compare
from llama_magic.api.diverge import diverge
from llama_magic.errors import JobInterrupted
from llama_magic.evaluation.comparison import Comparison
from llama_magic.evaluation.divergence import Divergence, ForcedToken, ForcedTokens
from llama_magic.evaluation.divergence_view import summary
from llama_magic.evaluation.requests import short_name
from llama_magic.notebook.compare_view import CompareView
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.progress import Progress
from llama_magic.safe_text import neutralise
from llama_magic.units import format_probability

__all__ = ["CompareSection", "token_by_token"]

Report = Callable[[Progress], None]


class CompareSection(Section):
    """Pick levels, prompt and text; watch them race."""

    name = "compare"

    def start(self) -> None:
        """Offer the usual levels."""
        self.set(
            levels=list(DEFAULT_LEVELS),
            live=self.get("live"),
            result=self.get("result"),
            diverged=self.get("diverged"),
        )

    def do_run(
        self,
        panel: str,
        ref: str,
        levels: list[str],
        prompt: str = "",
        text: str = "",
        chunks: int = 4,
        runs: int = 1,
        tokens: int = 64,
    ) -> None:
        """Compare; `text` is a file, or empty for the built-in text. No chunks: no perplexity, no runs: no speed."""
        read: Any = (Path(text).expanduser() if text else None) if chunks else False

        def work(_job: Job, report: Report) -> Comparison | None:
            view = _View(self, report)
            try:
                return compare(
                    ref, levels, prompt=prompt.strip() or None, text=read, chunks=chunks or None,
                    runs=runs, max_tokens=tokens, progress=view.progress,
                )  # fmt: skip
            except JobInterrupted as stopped:
                if isinstance(found := stopped.result, Comparison):
                    self.bench.post(lambda: self._compared(found))
                raise

        self.set(live={}, result=None)
        self.bench.run(panel, "compare", f"comparing {', '.join(levels)}", work, self._compared)

    def _compared(self, found: Comparison | None) -> None:
        # Made by the package's own markup, which escapes what models wrote.
        self.set(result=None if found is None else found._repr_html_(), live=None)

    def do_diverge(self, panel: str, ref: str, levels: list[str], prompt: str, tokens: int = 64) -> None:
        """Let levels read the reference's answer, and tell what each would have said at each token."""

        def work(_job: Job, report: Report) -> Divergence:
            return diverge(ref, levels, prompt, max_tokens=tokens, progress=report)

        self.set(diverged=None)
        self.bench.run(panel, "diverge", f"reading token by token: {', '.join(levels)}", work, self._diverged)

    def _diverged(self, found: Divergence) -> None:
        self.set(diverged=token_by_token(found))

    def ended(self, job: Job) -> None:
        """Take the race away where nothing came of it."""
        if job.lane == "compare":
            self.set(live=None)


def token_by_token(found: Divergence) -> dict[str, Any]:
    """Return what the view shows of a divergence: the text, and the likeliest tokens of each model at each place."""

    def top(token: int, place: ForcedToken) -> list[list[Any]]:
        return [
            [neutralise(other.text), format_probability(other.logprob), round(math.exp(other.logprob), 5),
             other.id == token]
            for other in place.top
        ]  # fmt: skip

    def tops(one: ForcedTokens) -> list[list[list[Any]]]:
        return [top(token, place) for token, place in zip(found.tokens, one.tokens, strict=True)]

    return {
        "texts": [neutralise(text) for text in found.texts],
        "base": {"name": neutralise(short_name(found.base.model)), "top": tops(found.base)},
        "models": [
            {
                "name": neutralise(short_name(one.model)),
                "summary": summary(found, place),
                "kld": [round(token.kld, 5) for token in one.tokens],
                "rank": [token.rank for token in one.tokens],
                "apart": list(found.disagreements(place)),
                "top": tops(one),
            }
            for place, one in enumerate(found.models)
        ],
        "notes": [neutralise(words) for words in found.notes],
    }


class _View(CompareView):
    """The view of a cell, whose pieces go to the panel."""

    def __init__(self, section: CompareSection, report: Report) -> None:
        super().__init__(SimpleNamespace(kernel=True, display_pub=True), report)
        self._section = section
        self._tell = report

    def progress(self, event: Progress) -> None:
        self._tell(Progress(event.stage, event.fraction, event.message))
        super().progress(event)

    def _put(self, slot: str, source: str) -> None:
        if self._shown.get(slot) == source:
            return
        self._shown[slot] = source
        self._ids.setdefault(slot, slot)
        section = self._section
        section.bench.post(lambda: section.set(live={**(section.get("live") or {}), slot: source}))
