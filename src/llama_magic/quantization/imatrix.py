"""Importance matrices, as the kernel sees them: what to ask a worker for, and what came of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.markup import bar, details, facts, heading, note, page, table, text_table
from llama_magic.models.options import LoadOptions
from llama_magic.quantization.texts import TextPart
from llama_magic.units import format_bytes, format_seconds

__all__ = [
    "CALIBRATION",
    "CALIBRATION_NAME",
    "LEAST_CTX",
    "ImatrixRequest",
    "ImatrixResult",
    "ImatrixStopped",
    "KindOfWeight",
    "resume_path",
    "temporary_paths",
]

#: The default calibration text: 60 kB and more of prose, dialogue, code in several languages, mathematics, tables and
#: a dozen human languages, written for llama_magic. Its purpose is to send something through every part of a
#: model, so that no column of weights and hardly an expert is left without a count. It is small: some 40 chunks
#: of 512 tokens. For a model with one trade (code, law, one language) a few hundred kB of text of that trade
#: give a better matrix.
CALIBRATION = Path(__file__).parent / "data" / "calibration.txt"
#: What is written into files as the name of that text.
CALIBRATION_NAME = "llama_magic calibration text"

#: The fewest tokens of a chunk: llama-imatrix leaves batches of less than 16 out, and a chunk is read in halves.
LEAST_CTX = 32


@dataclass(frozen=True, slots=True)
class ImatrixRequest:
    """Collect an importance matrix; the result is an `ImatrixResult`, or `ImatrixStopped` after a cancel.

    Attributes
    ----------
    model
        Absolute path of the model; None only adds up `in_files`.
    ref
        What the user typed.
    out
        Absolute path of the file to write.
    texts
        What the model reads, in order.
    options
        How to load it; `n_ctx` is the length of a chunk in tokens.
    n_ctx_given
        The user asked for that length. Matrices that are only added up keep theirs otherwise.
    chunks
        Most chunks to read; None: all.
    from_chunk
        Chunks to leave out at the start.
    in_files
        Matrices to start from; absolute paths.
    process_output
        Collect for the output matrix, too.
    parse_special
        Read the texts of control tokens as these tokens.
    perplexity
        Compute the perplexity on the way.
    output_frequency
        Chunks after which the state is kept that a later call goes on from.
    save_frequency
        Chunks after which a copy is written beside the file, named ``….at_N``; 0: never.
    force
        Overwrite a file that was made otherwise, and load a model that seems not to fit.
    token
        Makes the names of temporary files unique.
    """

    model: str | None
    ref: str
    out: str
    texts: tuple[TextPart, ...] = ()
    options: LoadOptions = field(default_factory=lambda: LoadOptions(n_ctx=512))
    n_ctx_given: bool = True
    chunks: int | None = None
    from_chunk: int = 0
    in_files: tuple[str, ...] = ()
    process_output: bool = False
    parse_special: bool = False
    perplexity: bool = True
    output_frequency: int = 10
    save_frequency: int = 0
    force: bool = False
    token: str = ""

    def __post_init__(self) -> None:
        if (self.options.n_ctx or 0) < LEAST_CTX:
            raise InvalidRequestError(
                f"a chunk has at least {LEAST_CTX} tokens (-c {LEAST_CTX}); llama.cpp's own is 512"
            )
        if self.chunks is not None and self.chunks < 1:
            raise InvalidRequestError(f"chunks must be at least 1, or None for all; got {self.chunks}")
        for name in ("from_chunk", "save_frequency"):
            if getattr(self, name) < 0:
                raise InvalidRequestError(f"{name} must be 0 or more; got {getattr(self, name)}")
        if self.output_frequency < 1:
            raise InvalidRequestError(f"output_frequency must be at least 1; got {self.output_frequency}")


def resume_path(out: str | os.PathLike[str]) -> Path:
    """Return where the state of an unfinished matrix is kept: beside the file, until that is there."""
    target = Path(out)
    return target.with_name(f"{target.name}.resume")


def temporary_paths(request: ImatrixRequest) -> tuple[Path, Path]:
    """Return under which names the file and the state are written, before they get their own."""
    target = Path(request.out)
    file, state = (f".{path.name}.{request.token}.part" for path in (target, resume_path(target)))
    return target.with_name(file), target.with_name(state)


@dataclass(frozen=True, slots=True)
class ImatrixStopped:
    """The user stopped it; the next call with the same model, text and settings goes on after `done` chunks."""

    done: int
    chunks: int
    resume: str

    def __str__(self) -> str:
        if not self.done:
            return "stopped before the first chunks were read; nothing was written."
        return (
            f"stopped after {self.done:,} of {self.chunks:,} chunks. They are kept in {Path(self.resume).name}: "
            "the next call with the same model, text and settings goes on from there."
        )


@dataclass(frozen=True, slots=True)
class KindOfWeight:
    """What was collected for weights of one kind, such as ``attn_q``, in all layers.

    Attributes
    ----------
    tensors
        How many there are.
    columns
        Columns of one of them.
    mean_square
        Mean of the squared activations.
    top_share
        Part of the sum of squares that the largest hundredth of the columns has: what makes an importance matrix
        worth its while. Even activations have 0.01.
    experts, experts_without
        Experts in all these tensors, and those that no token was sent to.
    """

    kind: str
    tensors: int
    columns: int
    mean_square: float
    top_share: float
    experts: int = 0
    experts_without: int = 0


@dataclass(frozen=True, slots=True)
class ImatrixResult:
    """An importance matrix that was written.

    Attributes
    ----------
    path
        The file.
    model
        The model's file; empty where matrices were only added up.
    datasets
        Names of the texts.
    chunks, chunk_size, tokens
        Chunks of text that the matrix stands for, tokens in each, and tokens in all.
    perplexity, perplexity_error
        Of the text, as llama-imatrix prints it, and its standard error; None where it was not computed.
    entries
        Weights that have an entry.
    uncovered
        Weights of the model that have none; they are quantized as without a matrix.
    partial
        Tensors of experts of which some got no token.
    kinds
        What was collected, by kind of weight.
    size, seconds
        Bytes of the file, and the time it took.
    resumed
        Chunks that an earlier, stopped call had read.
    reused
        The file was there already, made with the same model, text and settings.
    copies
        Copies that were written on the way.
    notes
        What is worth knowing, in sentences.
    """

    path: Path
    model: str
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    tokens: int
    perplexity: float | None
    perplexity_error: float | None
    entries: int
    uncovered: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    kinds: tuple[KindOfWeight, ...] = ()
    size: int = 0
    seconds: float = 0.0
    resumed: int = 0
    reused: bool = False
    copies: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __fspath__(self) -> str:
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self) | {"path": str(self.path)}

    def _facts(self) -> list[tuple[str, str]]:
        rows = [("file", f"{self.path} ({format_bytes(self.size)})")]
        rows.append(("text", ", ".join(self.datasets) or "not named in the file"))
        rows.append(("read", f"{self.chunks:,} chunks of {self.chunk_size:,} tokens"))
        if self.perplexity is not None:
            error = f" ± {self.perplexity_error:.4f}" if self.perplexity_error is not None else ""
            rows.append(("perplexity", f"{self.perplexity:.4f}{error}"))
        without = f", {len(self.uncovered)} without: {_some(self.uncovered)}" if self.uncovered else ""
        rows.append(("weights", f"{self.entries:,} with an entry{without}"))
        if self.partial:
            rows.append(("experts", f"some without a token in {len(self.partial)} tensors: {_some(self.partial)}"))
        if self.reused:
            rows.append(("time", "it was there already, made with the same model, text and settings"))
        else:
            resumed = f", going on after {self.resumed:,} chunks of an earlier call" if self.resumed else ""
            rows.append(("time", f"{format_seconds(self.seconds)}{resumed}"))
        if self.copies:
            rows.append(("copies", ", ".join(self.copies)))
        return rows

    def _title(self) -> str:
        return f"Importance matrix of {Path(self.model).name}" if self.model else "Importance matrices, added up"

    def __repr__(self) -> str:
        rows = self._facts()
        width = max(len(label) for label, _ in rows)
        lines = [self._title(), *(f"  {label:<{width}}  {value}" for label, value in rows)]
        if self.kinds:
            lines += ["", text_table(_HEAD, [_cells(kind) for kind in self.kinds], _ALIGN)]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        parts: list[object] = [heading(self._title()), facts(self._facts()), *(note(text) for text in self.notes)]
        if self.kinds:
            rows = [
                (*_cells(kind)[:4], bar(kind.top_share, f"{100 * kind.top_share:.0f} %"), *_cells(kind)[5:])
                for kind in self.kinds
            ]
            told = (
                "top 1 %: the part of the squared activations that the largest hundredth of the columns has. "
                "Where it is high, a quantizer that spares these columns loses less."
            )
            parts.append(details("What was collected, by kind of weight", table(_HEAD, rows, _ALIGN), note(told)))
        return page(*parts)


_HEAD = ("weight", "tensors", "columns", "mean square", "top 1 %", "experts without a token")
_ALIGN = "lrrrrr"


def _cells(kind: KindOfWeight) -> tuple[str, ...]:
    experts = f"{kind.experts_without:,} of {kind.experts:,}" if kind.experts else ""
    share = f"{100 * kind.top_share:.0f} %"
    return (kind.kind, f"{kind.tensors:,}", f"{kind.columns:,}", f"{kind.mean_square:.4g}", share, experts)


def _some(names: tuple[str, ...], most: int = 3) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
