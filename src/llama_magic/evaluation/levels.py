"""What a comparison consists of: levels, what to do with them, and what a worker tells meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_magic.inference.params import SamplingParams
from llama_magic.models.options import LoadOptions
from llama_magic.progress import Progress
from llama_magic.quantization.texts import TextPart

__all__ = ["CompareRequest", "LevelUpdate", "QuantizationLevel", "SpeedRuns"]


@dataclass(frozen=True, slots=True)
class QuantizationLevel:
    """One level that is compared: a file, and what is known of it without loading it.

    Attributes
    ----------
    name
        What it is called in the table; no two levels of a comparison have the same.
    path
        The file (of a split model its first part). Empty where there is none; `error` says why.
    ftype
        Its quantization type, as the file says.
    size
        Bytes of the file, of all its parts.
    bits_per_weight
        Bytes of all tensors times 8 by their weights.
    imatrix
        Name of the importance matrix it was made with; empty without one, or where it is not known.
    made
        It was made for comparisons, and is kept in llama_magic's own folder.
    notes
        What is worth knowing, in sentences.
    error
        Why it can not be compared.
    """

    name: str
    path: str = ""
    ftype: str = ""
    size: int = 0
    bits_per_weight: float = 0.0
    imatrix: str = ""
    made: bool = False
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class SpeedRuns:
    """How speed is measured: `runs` repetitions of `n_prompt` tokens read and `n_gen` tokens generated."""

    runs: int = 3
    n_prompt: int = 512
    n_gen: int = 128


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """Measure levels in one worker. What comes of it is told by `LevelUpdate`; the result says what was common to all.

    Attributes
    ----------
    levels
        The levels; the first is the reference, if `has_base`.
    has_base
        The first level is what the others are compared with.
    base_known
        The reference was measured before: it only reads the text again, beside the others.
    prompt
        What all of them answer; None: no answers.
    complete
        Continue the prompt as it stands, without the model's chat template.
    params
        How to sample; the seed is the same for all.
    system
        System prompt.
    text
        What perplexity and KL divergence are computed on; None: neither.
    n_ctx, chunks
        Tokens of a chunk, and most chunks of the text; None: all.
    kinds
        Texts of several kinds, for each of which the KL divergence is told by itself, and tokens of their chunks.
    speed
        How speed is measured; None: not.
    options
        How to load the levels.
    force
        Load what seems not to fit into memory.
    """

    levels: tuple[QuantizationLevel, ...]
    has_base: bool = True
    base_known: bool = False
    prompt: str | None = None
    complete: bool = False
    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0, max_tokens=64, seed=1))
    system: str | None = None
    text: TextPart | None = None
    n_ctx: int = 512
    chunks: int | None = None
    kinds: tuple[TextPart, ...] = ()
    kinds_n_ctx: int = 256
    speed: SpeedRuns | None = None
    options: LoadOptions = field(default_factory=LoadOptions)
    force: bool = False


@dataclass(frozen=True, slots=True)
class LevelUpdate(Progress):
    """What became known of one level: fields of `LevelResult` and their values.

    Attributes
    ----------
    level
        Name of the level.
    values
        New values; those of earlier updates stay.
    text
        What its answer goes on with.
    count, tps
        Tokens of its answer so far, and tokens a second of its own decoding.
    """

    level: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    count: int = 0
    tps: float = 0.0
