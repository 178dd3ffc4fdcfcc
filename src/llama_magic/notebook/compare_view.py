"""A comparison while it runs: the race of the answers, the table that fills, and what is being done.

Each update has a bounded size, whatever has been written: a column shows the end of its answer, and the table has as
many rows as there are levels. So what is sent grows with the time a comparison takes, not with its square. At the end
all of it goes, and the result is shown in its place.
"""

from __future__ import annotations

import html
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llama_magic.api.comparing import BoardUpdate
from llama_magic.evaluation.answers_view import column, columns, marked_words, parting_words
from llama_magic.evaluation.comparison_view import level_table
from llama_magic.evaluation.differences import words_of
from llama_magic.models.card import clean
from llama_magic.notebook import style
from llama_magic.progress import Progress, Report

if TYPE_CHECKING:
    from llama_magic.evaluation.board import Board

__all__ = ["TAIL_WORDS", "CompareView"]

#: Words of an answer that a column shows: all of a short one, the end of a long one.
TAIL_WORDS = 90
#: Seconds between two updates of the race, and of the table.
_RACE_S, _TABLE_S = 0.15, 0.6


class CompareView:
    """Shows a comparison in the output of a notebook cell; in a terminal, only what is being done.

    Parameters
    ----------
    shell
        The IPython shell, or None.
    report
        Shows progress where there is no notebook.
    clock
        Gives seconds.
    """

    def __init__(self, shell: Any, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._publisher = getattr(shell, "display_pub", None) if getattr(shell, "kernel", None) is not None else None
        self._report = report
        self._clock = clock
        self._ids: dict[str, str] = {}
        self._last: dict[str, float] = {}
        self._shown: dict[str, str] = {}

    def progress(self, event: Progress) -> None:
        """Show what is new, when it is time to."""
        if self._publisher is None:
            self._report(event)
            return
        board = event.board if isinstance(event, BoardUpdate) else None
        racing = event.stage == "answer"
        if self._due("head", _RACE_S, hurry=False):
            self._put("head", _head(event, board if racing else None))
        if board is not None and (event.stage != "answer" or "table" not in self._ids) and self._due("table", _TABLE_S):
            self._put("table", level_table(board.rows))

    def close(self) -> None:
        """Remove what is shown."""
        if self._ids and self._publisher is not None:
            self._publisher.clear_output(wait=True)
            self._ids.clear()

    def _due(self, slot: str, gap: float, *, hurry: bool = True) -> bool:
        now = self._clock()
        if now - self._last.get(slot, float("-inf")) < gap and not (hurry and slot not in self._ids):
            return False
        self._last[slot] = now
        return True

    def _put(self, slot: str, source: str) -> None:
        """Send a slot where it has changed."""
        if self._publisher is None or self._shown.get(slot) == source:
            return
        self._shown[slot] = source
        known = slot in self._ids
        display_id = self._ids.setdefault(slot, uuid.uuid4().hex)
        self._publisher.publish(
            data={"text/html": style.root(source), "text/plain": ""},
            metadata={},
            transient={"display_id": display_id},
            update=known,
        )


def _head(event: Progress, board: Board | None) -> str:
    """Return what is being done, and the race while there is one."""
    share = "" if event.fraction is None else f" {100 * event.fraction:.0f} %"
    words = html.escape(clean(event.message or event.stage) + ("" if board is not None else share))
    bar = ""
    if event.fraction is not None and board is None:
        width = 100 * min(max(event.fraction, 0.0), 1.0)
        bar = f'<div style="{style.BAR}"><div style="{style.BAR_FILL};width:{width:.0f}%"></div></div>'
    line = f'<p style="{style.FOOTER};margin:0 0 .3em"><small>{words}</small></p>{bar}'
    if board is None:
        return line
    told = "All levels answer in one process, in turns: next comes the one whose own clock shows the least."
    return _race(board) + f'<p style="{style.FOOTER}"><small>{told}</small></p>'


def _race(board: Board) -> str:
    base = board.base
    reference = words_of(board.text(base)) if base is not None else []
    cells = []
    fastest = max((tps for _, tps in board.pace.values()), default=0.0)
    for row in board.rows:
        count, tps = board.pace.get(row.name, (0, 0.0))
        words = words_of(board.text(row.name))
        done = row.answer is not None
        first = max(0, len(words) - TAIL_WORDS)
        under = f"{tps:.1f} tok/s · {count} tokens" + (" · ✓ done" if done else "")
        pace = f'<div style="{style.BAR_FILL};width:{100 * tps / fastest if fastest else 0:.0f}%"></div>'
        under += f'<div style="{style.BAR};height:4px;margin:.15em 0">{pace}</div>'
        if row.name != base and base is not None:
            # the last word may still grow
            settled = words if done else words[:-1]
            whole = done and any(one.base and one.answer for one in board.rows)
            apart = parting_words(reference, settled, clean(base)) if settled and reference else ""
            judged = apart.startswith("leaves") or whole
            under += html.escape(apart) if judged else "&nbsp;"
            body = marked_words(reference, words, whole=whole, first=first)
        else:
            under += "&nbsp;"
            body = html.escape("".join(words[first:]))
        body = ("…" if first else "") + body
        cells.append(column(html.escape(clean(row.name)), under, body))
    return columns(cells)
