"""Errors of many weights, added up piece by piece in double precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llama_magic.native.ggml_types import Floats
from llama_magic.quantization.microscope import ErrorStats, Histogram

__all__ = ["ErrorHistogram", "ErrorSums"]

_BINS = 2048


@dataclass(slots=True)
class ErrorSums:
    """Sums over pairs of weights; pieces can be summed by several threads and then added."""

    count: int = 0
    source: float = 0.0
    target: float = 0.0
    product: float = 0.0
    squared: float = 0.0
    signed: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, source: Floats, target: Floats) -> ErrorSums:
        """Return the sums of one piece."""
        a, b = source.astype(np.float64).ravel(), target.astype(np.float64).ravel()
        # exact in double precision: both are single
        error = b - a
        largest = float(np.abs(error).max(initial=0))
        return cls(a.size, float(a @ a), float(b @ b), float(a @ b), float(error @ error), float(error.sum()), largest)

    def add(self, other: ErrorSums) -> None:
        """Add another piece."""
        self.count += other.count
        self.source += other.source
        self.target += other.target
        self.product += other.product
        self.squared += other.squared
        self.signed += other.signed
        # not max(): it would lose values that are no numbers
        self.largest = other.largest if not other.largest <= self.largest else self.largest

    def stats(self) -> ErrorStats:
        """Return what the sums say."""
        norms = math.sqrt(self.source) * math.sqrt(self.target)
        return ErrorStats(
            rmse=math.sqrt(self.squared / self.count) if self.count else 0.0,
            relative=math.sqrt(self.squared / self.source) if self.source else (math.inf if self.squared else 0.0),
            cosine=self.product / norms if norms else math.nan,
            max=self.largest,
            mean=self.signed / self.count if self.count else 0.0,
        )


class ErrorHistogram:
    """Counts errors in one pass: where one does not fit, the range doubles and bins are merged in pairs."""

    def __init__(self) -> None:
        self.reach = 0.0
        self.counts = np.zeros(_BINS, np.int64)

    def add(self, errors: Floats) -> None:
        """Count a piece."""
        largest = float(np.abs(errors).max(initial=0))
        if not math.isfinite(largest):
            return
        if not self.reach and largest:
            zeros = int(self.counts.sum())
            self.counts[:] = 0
            self.counts[_BINS // 2] = zeros
            self.reach = 1.25 * largest
        if not self.reach:
            self.counts[_BINS // 2] += errors.size
            return
        while largest >= self.reach:
            half = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[_BINS // 4 : _BINS // 4 + len(half)] = half
            self.reach *= 2
        found, _ = np.histogram(errors, _BINS, (-self.reach, self.reach))
        self.counts += found

    def result(self, bins: int = 64) -> Histogram:
        """Return the histogram over the range that holds all but the rarest errors, in about `bins` bins."""
        total = int(self.counts.sum())
        if not self.reach or not total:
            return Histogram(0.0, 0.0, (total,))
        middle = _BINS // 2
        beyond = self.counts[middle:] + self.counts[middle - 1 :: -1]
        inside = np.cumsum(beyond)
        needed = int(np.searchsorted(inside, 0.9995 * total)) + 1
        width = max(1, -(-2 * needed // bins))
        half = -(-needed // width) * width
        half = min(half, middle // width * width)
        kept = self.counts[middle - half : middle + half]
        reach = self.reach * half / middle
        return Histogram(-reach, reach, tuple(map(int, kept.reshape(-1, width).sum(1))), total - int(kept.sum()))
