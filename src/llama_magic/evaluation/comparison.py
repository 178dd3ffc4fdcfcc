"""What a comparison of quantization levels gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_magic.evaluation import comparison_export as export
from llama_magic.evaluation import comparison_view as view
from llama_magic.evaluation.results import KLDivergence, Perplexity

__all__ = ["Answer", "Comparison", "Figure", "LevelResult", "Rate", "Recommendation"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its standard error; the error is None where it is not known."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.6g}" if self.error is None else f"{self.value:.6g} ± {self.error:.2g}"


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a second of several runs: mean, standard deviation (of the sample, as llama-bench has it), each run."""

    mean: float
    sd: float
    runs: tuple[float, ...]

    @classmethod
    def of(cls, runs: tuple[float, ...]) -> Rate:
        """Return mean and standard deviation of these runs."""
        mean = sum(runs) / len(runs)
        spread = sum((run - mean) ** 2 for run in runs) / (len(runs) - 1) if len(runs) > 1 else 0.0
        return cls(mean, spread**0.5, runs)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a level wrote.

    Attributes
    ----------
    text, tokens
        The answer.
    tps
        Tokens a second of its own decoding, the turns of the other levels not counted.
    finish_reason
        "stop", "length", "context" or "interrupted".
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    tps: float = 0.0
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class LevelResult:
    """What was measured of one level. What was not measured is None.

    Attributes
    ----------
    name, path, ftype, size, bits_per_weight, imatrix, made
        As in `QuantizationLevel`.
    base
        It is the reference of the others.
    where
        Devices that computed, or the worker of a cluster.
    load_s
        Seconds from the file to a model that can compute.
    memory
        Bytes by which the worker grew with model, context and first computation, on all devices.
    prompt, generation
        Tokens a second, reading and generating.
    ppl, ppl_change
        Perplexity, and its difference to the reference's.
    kld
        Mean KL divergence from the reference, in nats a token.
    mean_dp, rms_dp
        Mean and root mean square of the change of the correct token's probability, from 0 to 1.
    same_top
        Share of tokens whose likeliest candidate is the reference's.
    tokens
        Tokens that were scored.
    evaluation
        Every statistic that llama-perplexity prints.
    answer
        What it wrote.
    parting
        Number of the first word in which its answer leaves the reference's, from 0; None where it does not.
    kinds
        KL divergence by kind of text.
    kld_reason
        Why there is no KL divergence.
    notes
        What is worth knowing, in sentences.
    error
        Why it could not be compared, or not to the end.
    """

    name: str
    path: str = ""
    ftype: str = ""
    size: int = 0
    bits_per_weight: float = 0.0
    imatrix: str = ""
    made: bool = False
    base: bool = False
    where: str = ""
    load_s: float | None = None
    memory: int | None = None
    prompt: Rate | None = None
    generation: Rate | None = None
    ppl: Figure | None = None
    ppl_change: Figure | None = None
    kld: Figure | None = None
    mean_dp: Figure | None = None
    rms_dp: Figure | None = None
    same_top: Figure | None = None
    tokens: int = 0
    evaluation: KLDivergence | Perplexity | None = None
    answer: Answer | None = None
    parting: int | None = None
    kinds: Mapping[str, Figure] = field(default_factory=dict)
    kld_reason: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which level to take.

    Attributes
    ----------
    level
        Its name; None where nothing speaks for one of them.
    sentence
        The choice with its reason.
    ties
        Levels that are as good within the error.
    rule
        How it was chosen.
    """

    level: str | None
    sentence: str
    ties: tuple[str, ...] = ()
    rule: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Quantization levels of a model side by side. A sequence of `LevelResult`, also by name: ``comparison["Q4_0"]``.

    Attributes
    ----------
    model
        Name of the model.
    levels
        The reference first, then the others in the order they were asked for.
    recommendation
        Which to take, and why.
    prompt, seed
        What they answered.
    text, n_ctx, chunks
        Name of the text of the evaluation, tokens of a chunk, chunks that were read.
    machine
        What it was measured on: threads, devices, llama.cpp's commit.
    seconds
        How long it took.
    notes
        What is worth knowing of all of it.
    interrupted
        The user stopped it; what is there is what was finished.
    """

    model: str
    levels: tuple[LevelResult, ...]
    recommendation: Recommendation
    prompt: str | None = None
    seed: int | None = None
    text: str = ""
    n_ctx: int = 0
    chunks: int = 0
    machine: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def base(self) -> LevelResult | None:
        """The reference, None where there is none."""
        return next((level for level in self.levels if level.base), None)

    def __iter__(self) -> Iterator[LevelResult]:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, which: int | str) -> LevelResult:
        if isinstance(which, int):
            return self.levels[which]
        for level in self.levels:
            if level.name.lower() == which.lower():
                return level
        raise KeyError(which)

    def __repr__(self) -> str:
        return view.text_of(self)

    def _repr_html_(self) -> str:
        return view.html_of(self)

    def _repr_mimebundle_(self, **_kinds: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """Give the output of a cell its receipt, as an answer has one."""
        shown = {"text/html": view.html_of(self), "text/plain": view.text_of(self)}
        return shown, {"llama_magic": export.receipt(self)}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)

    def to_pandas(self) -> Any:
        """Return a row for each level as a `pandas.DataFrame`; errors have columns of their own."""
        return export.to_pandas(self)

    def to_markdown(self) -> str:
        """Return the table as Markdown, in the columns of the scoreboard in llama.cpp's perplexity README and ours."""
        return export.to_markdown(self)

    def to_csv(self) -> str:
        """Return a row for each level as CSV, unrounded."""
        return export.to_csv(self)

    def to_json(self) -> str:
        """Return everything as JSON."""
        return export.to_json(self)

    def to_html(self) -> str:
        """Return a page of its own."""
        return export.to_html(self)

    def to_svg(self, x: str = "size") -> str:
        """Return the chart of quality against `x`, "size" or "speed", as an SVG file's text.

        Raises
        ------
        InvalidRequestError
            `x` is neither, or no level has both values.
        """
        return export.to_svg(self, x)

    def to_png(self, x: str = "size", *, scale: float = 2.0) -> bytes:
        """Return the same chart as PNG. Needs the package resvg_py (extra ``png``).

        Raises
        ------
        MissingDependencyError, InvalidRequestError
        """
        return export.to_png(self, x, scale)

    def save(self, path: str | Path) -> Path:
        """Write it as the file's ending says: .md, .csv, .json, .html, .svg or .png; returns the file.

        Raises
        ------
        InvalidRequestError
            The ending is none of these, or the file can not be written.
        MissingDependencyError
            PNG without the package resvg_py.
        """
        return export.save(self, Path(path))
