"""What the doctor finds, and the page that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from llama_magic.markup import Html, badge, details, heading, join, note, page, table, text_table
from llama_magic.models.card import clean

__all__ = ["OK", "PROBLEM", "WARNING", "DoctorReport", "Finding", "guarded"]

#: The states, the worst first.
PROBLEM, WARNING, OK = "problem", "warning", "ok"
_ORDER = (PROBLEM, WARNING, OK)
_TONES = {PROBLEM: "error", WARNING: "warning", OK: "good"}
_SIGNS = {PROBLEM: "✗", WARNING: "!", OK: "✓"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor looked at.

    Attributes
    ----------
    area
        What it belongs to: "llama.cpp", "processor", "memory", "disk", "building", "graphics", "Hub", "notebook".
    name
        What was looked at.
    state
        "ok", "warning" or "problem".
    evidence
        What was seen, and what follows from it.
    fix
        A command to copy; empty where nothing is to be done, or no command does it.
    """

    area: str
    name: str
    state: str
    evidence: str
    fix: str = ""


def guarded(area: str, name: str, look: Callable[[], Iterable[Finding] | Finding | None]) -> list[Finding]:
    """Return what a check found; a check that fails is a finding itself."""
    try:
        found = look()
        return [] if found is None else [found] if isinstance(found, Finding) else list(found)
    except Exception as exc:  # noqa: BLE001 - the one place where anything may go wrong without an end
        words = f"could not be looked at: {type(exc).__name__}: {exc}".partition("\n")[0]
        return [Finding(area, name, WARNING, words)]


@dataclass(frozen=True, slots=True, repr=False)
class DoctorReport(Sequence[Finding]):
    """Everything the doctor found: a sequence of `Finding`.

    Attributes
    ----------
    findings
        In the order in which they were looked at.
    seconds
        How long it took.
    """

    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self.findings[index]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What keeps something from working."""
        return tuple(finding for finding in self.findings if finding.state == PROBLEM)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What makes something slow, or may fail."""
        return tuple(finding for finding in self.findings if finding.state == WARNING)

    @property
    def ok(self) -> bool:
        """True without a problem."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        counts = Counter(finding.state for finding in self.findings)
        parts = [
            f"{counts[state]} {state}{'' if counts[state] == 1 else 's'}"
            for state in (PROBLEM, WARNING)
            if counts[state]
        ]
        return f"{' and '.join(parts)}; {counts[OK]} in order" if parts else f"all {counts[OK]} in order"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "seconds": self.seconds,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def _sorted(self) -> list[Finding]:
        return sorted(self.findings, key=lambda finding: _ORDER.index(finding.state))

    def __repr__(self) -> str:
        rows = [
            (f"{_SIGNS[row.state]} {row.state}", row.area, clean(row.name), clean(row.evidence))
            for row in self._sorted()
        ]
        fixes = [f"  {clean(row.name)}: {clean(row.fix)}" for row in self._sorted() if row.fix and row.state != OK]
        lines = [self.verdict, text_table(("", "area", "what", "seen"), rows)]
        return "\n".join([*lines, *(["what helps:", *fixes] if fixes else [])])

    def _repr_html_(self) -> str:
        bad = [row for row in self._sorted() if row.state != OK]
        good = [row for row in self.findings if row.state == OK]
        tone = "error" if self.problems else "warning" if self.warnings else "good"
        parts: list[object] = [heading("doctor", f"{self.seconds:.1f} s"), note(self.verdict, tone)]
        if bad:
            parts.append(table(("", "what", "seen, and what helps"), [_bad(row) for row in bad]))
        if good:
            rows = [(row.area, clean(row.name), _seen(row)) for row in good]
            parts.append(details(f"{len(good)} in order", table(("area", "what", "seen"), rows), open_=not bad))
        return page(*parts)


def _bad(row: Finding) -> tuple[object, ...]:
    return badge(row.state, _TONES[row.state]), join(clean(row.name), Html("<br>"), _small(row.area)), _seen(row)


def _seen(row: Finding) -> object:
    return join(clean(row.evidence), _command(clean(row.fix))) if row.fix else clean(row.evidence)


def _small(text: str) -> Html:
    return Html(f'<span style="color:var(--jp-ui-font-color2,#6b6b6b)">{join(text)}</span>')


def _command(text: str) -> Html:
    style = (
        "background:var(--jp-layout-color2,#8882);padding:.15em .45em;margin:.25em 0 0;border-radius:3px;color:inherit;"
        "font-family:var(--jp-code-font-family,ui-monospace,monospace);white-space:pre-wrap;overflow-wrap:anywhere;"
        "user-select:all"
    )
    return Html(f'<pre style="{style}">{join(text)}</pre>')
