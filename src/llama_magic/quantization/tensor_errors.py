"""How far each tensor of a quantized file is from its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_magic.errors import MissingDependencyError
from llama_magic.markup import bar, details, heading, note, page, table, text_table
from llama_magic.quantization.microscope import ErrorStats

__all__ = ["TensorError", "TensorErrors", "TensorErrorsRequest"]

#: Rows that are shown before the rest is folded away.
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class TensorErrorsRequest:
    """Compare a quantized file with its source; the result is a `TensorErrors`.

    Attributes
    ----------
    quantized, source
        The two files.
    n_threads
        Threads, None: as many as this container may use.
    """

    quantized: str
    source: str
    n_threads: int | None = None


@dataclass(frozen=True, slots=True)
class TensorError:
    """One tensor's error.

    Attributes
    ----------
    name, shape
        The tensor; ggml's order, rows last.
    source_type, type
        Before and after quantizing.
    size
        Bytes after.
    stats
        The errors.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    size: int
    stats: ErrorStats

    @property
    def n_params(self) -> int:
        """Weights in it."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes after quantizing."""
        return 8 * self.size / self.n_params if self.n_params else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return name, types, bits and errors in one flat dict."""
        stats = asdict(self.stats)
        return {
            "name": self.name, "shape": list(self.shape), "source_type": self.source_type, "type": self.type,
            "size": self.size, "bits_per_weight": self.bits_per_weight, **stats,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
class TensorErrors:
    """The errors of all tensors, a sequence of `TensorError`; also by name: ``errors["blk.0.attn_q.weight"]``.

    Attributes
    ----------
    quantized, source
        The two files.
    tensors
        In the order of the quantized file.
    total
        Errors over all weights together.
    only_source, only_quantized
        Names of tensors that one file has alone.
    """

    quantized: str
    source: str
    tensors: tuple[TensorError, ...]
    total: ErrorStats
    only_source: tuple[str, ...] = ()
    only_quantized: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[TensorError]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, which: int | str) -> TensorError:
        if isinstance(which, str):
            found = next((tensor for tensor in self.tensors if tensor.name in (which, f"{which}.weight")), None)
            if found is None:
                raise KeyError(which)
            return found
        return self.tensors[which]

    @property
    def worst(self) -> tuple[TensorError, ...]:
        """The tensors by their relative error, the largest first."""
        return tuple(sorted(self.tensors, key=lambda tensor: tensor.stats.relative, reverse=True))

    def __repr__(self) -> str:
        rows = [_cells(tensor) for tensor in self.worst[:_SHOWN]]
        more = len(self.tensors) - _SHOWN
        lines = [self._title(), text_table(_HEAD, rows, _ALIGN)]
        if more > 0:
            lines.append(f"… and {more} more with smaller relative errors")
        return "\n".join([*lines, *self._alone()])

    def _repr_html_(self) -> str:
        worst = self.worst
        most = max((tensor.stats.relative for tensor in worst), default=0.0)
        rows = [_bars(tensor, most) for tensor in worst]
        parts: list[object] = [heading(self._title())]
        parts.append(table(_HEAD, rows[:_SHOWN], _ALIGN))
        if rows[_SHOWN:]:
            parts.append(details(f"{len(rows) - _SHOWN} more tensors", table(_HEAD, rows[_SHOWN:], _ALIGN)))
        parts += [note(line, "warning") for line in self._alone()]
        parts.append(note(_FOOT))
        return page(*parts)

    def _title(self) -> str:
        total = self.total
        return (
            f"{Path(self.quantized).name} against {Path(self.source).name}: relative error {_percent(total.relative)}, "
            f"cosine {total.cosine:.6f} over all weights"
        )

    def _alone(self) -> list[str]:
        pairs = ((self.source, self.only_source), (self.quantized, self.only_quantized))
        return [
            f"Only in {Path(path).name}: {', '.join(names[:6])}{' and so on' if len(names) > 6 else ''}"
            for path, names in pairs
            if names
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            "quantized": self.quantized, "source": self.source, "total": asdict(self.total),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "only_source": list(self.only_source), "only_quantized": list(self.only_quantized),
        }  # fmt: skip

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`, a row for each tensor."""
        try:
            import pandas as pd
        except ImportError as exc:
            raise MissingDependencyError("to_pandas needs pandas: pip install pandas") from exc
        return pd.DataFrame([tensor.to_dict() for tensor in self.tensors])


_HEAD = ("tensor", "from", "to", "bits", "relative", "RMSE", "cosine", "largest")
_ALIGN = "lllrrrrr"
_FOOT = (
    "Relative: root of the squared errors by that of the squared weights; 0 is exact, 100 % as bad as zeros. "
    "The bars compare the tensors with the worst one. A large error in a tensor need not hurt the model: "
    "perplexity and KL divergence tell that."
)


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2f} %" if share >= 1e-4 else f"{100 * share:.1e} %"


def _cells(tensor: TensorError) -> tuple[str, ...]:
    stats = tensor.stats
    return (
        tensor.name, tensor.source_type, tensor.type, f"{tensor.bits_per_weight:.4g}", _percent(stats.relative),
        f"{stats.rmse:.3g}", f"{stats.cosine:.6f}", f"{stats.max:.3g}",
    )  # fmt: skip


def _bars(tensor: TensorError, most: float) -> tuple[object, ...]:
    cells: list[object] = list(_cells(tensor))
    cells[4] = bar(tensor.stats.relative / most if most else 0.0, cells[4])
    return tuple(cells)
