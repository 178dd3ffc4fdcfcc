"""A comparison spread over the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_magic.api.comparing import BoardUpdate
from llama_magic.errors import InvalidRequestError, JobInterrupted, LlamaMagicError, MissingDependencyError
from llama_magic.evaluation.board import Board
from llama_magic.evaluation.comparison import Comparison
from llama_magic.evaluation.levels import QuantizationLevel
from llama_magic.progress import Report

if TYPE_CHECKING:
    from llama_magic.api.compare import Settings

__all__ = ["compare_on_cluster", "compare_part"]


def compare_on_cluster(
    client: Any,
    ref: str,
    words: Sequence[str],
    settings: Settings,
    *,
    base: str | None,
    imatrix: str | os.PathLike[str] | None,
    max_kld: float,
    progress: Report | None,
) -> Comparison:
    """Compare levels on a cluster: each worker measures some of them beside the reference.

    The rows are those of a comparison in one place, but for speed, load and memory, which are of the worker that
    `LevelResult.where` names.

    Raises
    ------
    MissingDependencyError
        The package distributed is not installed.
    InvalidRequestError
        The cluster has no workers, or every one of them failed.
    JobInterrupted
        The user stopped it; the rows so far are its `result`.
    """
    try:
        from distributed import as_completed
    except ImportError:
        raise MissingDependencyError(
            "a cluster needs the package distributed: pip install 'llama-magic[dask]'"
        ) from None
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise InvalidRequestError("the cluster has no workers; client.wait_for_workers(1) waits for the first")
    shares = _shares(list(dict.fromkeys(words)), workers)
    futures = {
        client.submit(
            compare_part, ref, share, settings, base, imatrix, max_kld, workers=[worker], allow_other_workers=True,
            pure=False, key=f"llama-magic-compare-{number}-{os.urandom(4).hex()}",
        ): (worker, share)
        for number, (worker, share) in enumerate(shares.items())
    }  # fmt: skip
    merged = _Merged(words, settings, progress)
    try:
        for future in as_completed(list(futures)):
            worker, share = futures[future]
            try:
                merged.take(worker, future.result())
            except LlamaMagicError as error:
                merged.fail(share, f"{worker}: {error}")
            except Exception as error:  # noqa: BLE001 - a worker of the cluster was lost, or lacks a package
                merged.fail(share, f"{worker}: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        client.cancel(list(futures))
        raise JobInterrupted(
            merged.comparison(max_kld, interrupted=True), "stopped; what was measured is kept in the rows."
        ) from None
    return merged.comparison(max_kld)


def _shares(words: Sequence[str], workers: Sequence[str]) -> dict[str, list[str]]:
    """Deal levels out: each worker gets about as many."""
    shares: dict[str, list[str]] = {}
    for number, word in enumerate(words):
        shares.setdefault(workers[number % len(workers)], []).append(word)
    return shares


def compare_part(
    ref: str,
    words: Sequence[str],
    settings: Settings,
    base: str | None,
    imatrix: str | os.PathLike[str] | None,
    max_kld: float,
) -> Comparison:
    """Compare some levels; runs in a worker of the cluster, which has its own llama.cpp workers."""
    from llama_magic.api.comparing import measure
    from llama_magic.api.levels import line_up
    from llama_magic.engine.client import get_client

    try:
        lineup = line_up(ref, words, base=base, imatrix=imatrix)
        return measure(lineup, settings.request(), max_kld=max_kld)
    finally:
        get_client().close()


class _Merged:
    """Puts the parts of a comparison together."""

    def __init__(self, words: Sequence[str], settings: Settings, progress: Report | None) -> None:
        self._order = [word.upper() for word in words]
        self._board: Board | None = None
        self._settings = settings
        self._progress = progress
        self._failed: dict[str, str] = {}
        self._done = 0

    def take(self, worker: str, part: Comparison) -> None:
        """Add the rows of a worker; the reference is the one that came first."""
        if self._board is None:
            facts = {name: getattr(part, name) for name in ("model", "prompt", "seed", "text", "n_ctx", "chunks")}
            base = part.base
            self._board = Board((), None if base is None else base.name, machine=dict(part.machine), **facts)
            self._board.note("Levels ran on the workers of a cluster: speeds are those of the worker in the column.")
        for row in part.levels:
            if row.base and any(have.name == row.name for have in self._board.rows):
                continue
            self._board.take(replace(row, where=worker))
        for sentence in part.notes:
            self._board.note(sentence)
        self._done += 1
        self._tell(f"{', '.join(row.name for row in part.levels if not row.base)} came from {worker}")

    def fail(self, share: Sequence[str], reason: str) -> None:
        """Note levels whose worker failed."""
        self._failed |= dict.fromkeys(share, reason)
        self._done += 1
        self._tell(reason)

    def _tell(self, words: str) -> None:
        if self._progress is not None:
            self._progress(BoardUpdate("cluster", None, words, board=self._board))

    def comparison(self, max_kld: float, *, interrupted: bool = False) -> Comparison:
        """Return all rows in the order they were asked for."""
        if self._board is None:
            if interrupted:
                return Board((), None, model="").comparison(interrupted=True)
            raise InvalidRequestError(f"every worker failed: {'; '.join(dict.fromkeys(self._failed.values()))}")
        board = Board((), self._board.base, **self._board.facts)
        board.notes = self._board.notes
        places = {name: place for place, name in enumerate(self._order)}
        for row in sorted(self._board.rows, key=lambda row: (not row.base, places.get(row.name.upper(), len(places)))):
            board.take(row)
        for name, reason in self._failed.items():
            board.add(QuantizationLevel(name, error=reason))
        return board.comparison(interrupted=interrupted, max_kld=max_kld)
