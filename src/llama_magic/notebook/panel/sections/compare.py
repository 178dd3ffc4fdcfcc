"""Comparing levels: the race, the table and the result of `%llama compare`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from llama_magic.api.compare import DEFAULT_LEVELS, compare
from llama_magic.errors import JobInterrupted
from llama_magic.evaluation.comparison import Comparison
from llama_magic.notebook.compare_view import CompareView
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.progress import Progress

__all__ = ["CompareSection"]

Report = Callable[[Progress], None]


class CompareSection(Section):
    """Pick levels, prompt and text; watch them race."""

    name = "compare"

    def start(self) -> None:
        """Offer the usual levels."""
        self.set(levels=list(DEFAULT_LEVELS), live=self.get("live"), result=self.get("result"))

    def do_run(
        self,
        panel: str,
        ref: str,
        levels: list[str],
        prompt: str = "",
        chunks: int = 4,
        runs: int = 1,
        tokens: int = 64,
    ) -> None:
        """Compare; no chunks: no perplexity, no runs: no speed."""

        def work(_job: Job, report: Report) -> Comparison | None:
            view = _View(self, report)
            try:
                return compare(
                    ref, levels, prompt=prompt.strip() or None, text=None if chunks else False, chunks=chunks or None,
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

    def ended(self, job: Job) -> None:
        """Take the race away where nothing came of it."""
        if job.lane == "compare":
            self.set(live=None)


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
