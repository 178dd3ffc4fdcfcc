"""What an importance matrix holds and lacks, in a few figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from llama_magic.models.metadata import ModelMetadata
from llama_magic.quantization.imatrix import KindOfWeight
from llama_magic.quantization.imatrix_file import Entry

__all__ = ["partly_covered", "summarize", "uncovered"]

_BLOCK = re.compile(r"(?:.*\.)?blk\.\d+\.(.+)")


def uncovered(metadata: ModelMetadata, entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """Return the matrices of a model that have no entry; single rows are not quantized."""
    return tuple(
        tensor.name
        for tensor in metadata.tensors
        if tensor.name.endswith("weight") and sum(length > 1 for length in tensor.shape) > 1
        if tensor.name not in entries
    )


def partly_covered(entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """Return the tensors of experts of which some got no token."""
    return tuple(name for name, entry in sorted(entries.items()) if (entry.counts == 0).any())


def summarize(entries: Mapping[str, Entry]) -> tuple[KindOfWeight, ...]:
    """Return figures for each kind of weight, over all layers."""
    kinds: dict[str, list[Entry]] = {}
    for name, entry in sorted(entries.items()):
        match = _BLOCK.fullmatch(name)
        kinds.setdefault((match[1] if match else name).removesuffix(".weight"), []).append(entry)
    return tuple(_kind(kind, members) for kind, members in kinds.items())


def _kind(kind: str, members: Sequence[Entry]) -> KindOfWeight:
    means, shares, experts, without = [], [], 0, 0
    for entry in members:
        rows = entry.sums.reshape(len(entry.counts), -1)
        seen = entry.counts > 0
        if len(seen) > 1:
            experts += len(seen)
            without += int((~seen).sum())
        for row, count in zip(rows[seen], entry.counts[seen], strict=True):
            total = float(row.sum())
            top = np.partition(row, -_hundredth(row.size))[-_hundredth(row.size) :]
            means.append(total / float(count) / row.size)
            shares.append(float(top.sum()) / total if total else 0.0)
    columns = members[0].sums.size // len(members[0].counts)
    mean = float(np.mean(means)) if means else 0.0
    share = float(np.mean(shares)) if shares else 0.0
    return KindOfWeight(kind, len(members), columns, mean, share, experts, without)


def _hundredth(count: int) -> int:
    return max(1, round(count / 100))
