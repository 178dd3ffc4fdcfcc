"""The table of quantization types: every `llama_ftype` of this llama.cpp, and which to take when.

Where the figures come from:

- number and name: ``enum llama_ftype`` in llama.cpp's ``include/llama.h``;
- the type of most tensors: ``llama_ftype_get_default_type`` in ``src/llama-quant.cpp``;
- bits per weight of that type: its block in ggml (``type_traits`` in ``ggml.c``), bytes times 8 by weights;
- real bits per weight of Llama-3.1-8B: the table in llama.cpp's ``tools/quantize/README.md``;
- loss of perplexity: what ``llama-quantize --help`` prints (``tools/quantize/quantize.cpp``);
- need of an importance matrix: ``tensor_requires_imatrix`` in ``src/llama-quant.cpp``, and which of ggml's
  functions use one where they get it (``ggml-quants.c``).

Real bits per weight depend on the model: `plan` computes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.markup import details, heading, note, page, table, text_table
from llama_magic.models.gguf import TENSOR_TYPES
from llama_magic.suggest import did_you_mean

__all__ = [
    "ALIASES",
    "COPY",
    "FTYPES",
    "OUTTYPES",
    "QUANTIZABLE",
    "Ftype",
    "FtypeTable",
    "find_ftype",
    "find_tensor_type",
    "is_float",
    "tensor_type_number",
]

#: Name under which tensors are only copied, as in llama-quantize.
COPY = "COPY"

#: Types that llama.cpp's converter writes.
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")

#: Further names that llama-quantize takes.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

#: Tensor types that ggml can write (`ggml_quantize_chunk` in ggml.c).
QUANTIZABLE = tuple(
    "F32 F16 BF16 Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 NVFP4 Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S "
    "IQ2_XS IQ2_XXS Q2_0 IQ1_M IQ1_S Q1_0 TQ2_0 TQ1_0".split()
)

_FLOATS = {"F64", "F32", "F16", "BF16"}
_NUMBERS = {label: number for number, (label, _, _) in TENSOR_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Ftype:
    """One quantization type of a model file.

    Attributes
    ----------
    name, number
        As in llama.cpp's ``enum llama_ftype``.
    tensor_type
        Type of most tensors in such a file.
    bits
        Nominal bits per weight: those of `tensor_type`, scales included.
    family
        "float", "legacy" (one scale for a block), "K" (blocks of blocks), "i-quant" (codebooks), "ternary" or "FP4".
    imatrix
        "needed": refused without an importance matrix; "helps"; or "unused".
    use
        When to take it.
    bits_8b
        Real bits per weight of Llama-3.1-8B in this type, None where llama.cpp's table has none.
    loss
        Loss of perplexity that llama-quantize tells, with the model it was measured on; may be empty.
    writable
        False where llama.cpp reads such files but can not make them.
    """

    name: str
    number: int
    tensor_type: str
    family: str
    imatrix: str
    use: str
    bits_8b: float | None = None
    loss: str = ""
    writable: bool = True

    @property
    def bits(self) -> float:
        """Nominal bits per weight."""
        _, weights, size = TENSOR_TYPES[_NUMBERS[self.tensor_type]]
        return 8 * size / weights

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a plain dict."""
        return {**asdict(self), "bits": self.bits}


_L3 = "ppl @ Llama-3-8B"
_M7 = "ppl @ Mistral-7B"

# fmt: off
#: From the most bits to the fewest.
FTYPES: tuple[Ftype, ...] = (
    Ftype("F32", 0, "F32", "float", "unused", "The weights as they were trained, twice as large as needed."),
    Ftype("BF16", 32, "BF16", "float", "unused",
          "What most models are published in; the best source to quantize from.", None, f"-0.0050 {_M7}"),
    Ftype("F16", 1, "F16", "float", "unused",
          "As good as the original for nearly every model; a source to quantize from.", 16.0005, f"+0.0020 {_M7}"),
    Ftype("Q8_0", 7, "Q8_0", "legacy", "unused",
          "Practically without loss, half of F16; where memory allows, and for small models.", 8.5008,
          f"+0.0026 {_L3}"),
    Ftype("Q6_K", 18, "Q6_K", "K", "helps", "Nearly without loss; when Q8_0 is a little too large.", 6.5633,
          f"+0.0217 {_L3}"),
    Ftype("Q5_1", 9, "Q5_1", "legacy", "helps", "Older format; take Q5_K_M unless rows do not divide by 256.", None,
          f"+0.1062 {_L3}"),
    Ftype("Q5_K_M", 17, "Q5_K", "K", "helps", "Very small loss; a good choice with some memory to spare.", 5.7036,
          f"+0.0569 {_L3}"),
    Ftype("Q5_K_S", 16, "Q5_K", "K", "helps", "A little smaller than Q5_K_M, a little worse.", 5.5704,
          f"+0.1049 {_L3}"),
    Ftype("Q5_0", 8, "Q5_0", "legacy", "helps", "Older format; take Q5_K_S unless rows do not divide by 256.", None,
          f"+0.1316 {_L3}"),
    Ftype("Q4_1", 3, "Q4_1", "legacy", "helps", "Older format with a minimum for each block; Q4_K_M is better.", None,
          f"+0.4511 {_L3}"),
    Ftype("Q4_K_M", 15, "Q4_K", "K", "helps", "The usual choice: a quarter of F16 with little loss.", 4.8944,
          f"+0.1754 {_L3}"),
    Ftype("Q4_K_S", 14, "Q4_K", "K", "helps", "Smaller than Q4_K_M, slightly worse.", 4.6672, f"+0.2689 {_L3}"),
    Ftype("Q4_0", 2, "Q4_0", "legacy", "helps",
          "Simple and fast, above all on ARM and small processors; Q4_K_M is more exact.", None, f"+0.4685 {_L3}"),
    Ftype("IQ4_NL", 25, "IQ4_NL", "i-quant", "helps",
          "4 bits with uneven steps, in blocks of 32: where rows do not divide by 256.", 4.6818),
    Ftype("NVFP4", 39, "NVFP4", "FP4", "unused",
          "Models published in NVIDIA's 4-bit float; llama.cpp reads such files, the quantizer does not make them.",
          writable=False),
    Ftype("IQ4_XS", 30, "IQ4_XS", "i-quant", "helps", "The smallest 4 bits worth having; slower on processors.",
          4.4597),
    Ftype("MXFP4_MOE", 38, "MXFP4", "FP4", "unused",
          "Experts in 4-bit floats, the rest Q8_0: for mixture-of-experts models trained that way (gpt-oss)."),
    Ftype("Q3_K_L", 13, "Q3_K", "K", "helps", "3 bits with more of them where it hurts most.", 4.2979,
          f"+0.5562 {_L3}"),
    Ftype("Q3_K_M", 12, "Q3_K", "K", "helps", "When 4 bits do not fit; the loss begins to show.", 3.9960,
          f"+0.6569 {_L3}"),
    Ftype("IQ3_M", 27, "IQ3_S", "i-quant", "helps", "Better than Q3_K_M at less; make an importance matrix.", 3.7628),
    Ftype("IQ3_S", 26, "IQ3_S", "i-quant", "helps", "3.4 bits throughout; better than Q3_K_S at the same size.",
          3.6606),
    Ftype("Q3_K_S", 11, "Q3_K", "K", "helps", "The smallest 3-bit K-quant; IQ3_S is better.", 3.6429,
          f"+1.6321 {_L3}"),
    Ftype("IQ3_XS", 22, "IQ3_S", "i-quant", "needed", "Between IQ3_XXS and IQ3_S.", 3.4977),
    Ftype("IQ3_XXS", 23, "IQ3_XXS", "i-quant", "needed", "3 bits for large models; the loss shows.", 3.2548),
    Ftype("Q2_K", 10, "Q2_K", "K", "helps", "Small with a clear loss; for large models that would not fit otherwise.",
          3.1593, f"+3.5199 {_L3}"),
    Ftype("Q2_K_S", 21, "Q2_K", "K", "needed", "Smaller than Q2_K.", 2.9697, f"+3.1836 {_L3}"),
    Ftype("IQ2_M", 29, "IQ2_S", "i-quant", "needed", "The best of about 2.7 bits; large models stay usable.", 2.9294),
    Ftype("IQ2_S", 28, "IQ2_XS", "i-quant", "needed", "Between IQ2_XS and IQ2_M.", 2.7403),
    Ftype("IQ2_XS", 20, "IQ2_XS", "i-quant", "needed", "2.3 bits; only for very large models.", 2.5882),
    Ftype("Q2_0", 41, "Q2_0", "legacy", "helps", "2 bits with a scale for 64 weights: for models trained for it."),
    Ftype("IQ2_XXS", 19, "IQ2_XXS", "i-quant", "needed", "2 bits; only for very large models.", 2.3824),
    Ftype("TQ2_0", 37, "TQ2_0", "ternary", "unused",
          "Weights of -1, 0 and 1, quick to compute: for models trained that way (BitNet, TriLM)."),
    Ftype("IQ1_M", 31, "IQ1_M", "i-quant", "needed", "1.75 bits; the last resort for the largest models.", 2.1460),
    Ftype("TQ1_0", 36, "TQ1_0", "ternary", "unused", "As TQ2_0, packed tighter and slower."),
    Ftype("IQ1_S", 24, "IQ1_S", "i-quant", "needed", "1.56 bits, the smallest of all; an experiment.", 2.0042),
    Ftype("Q1_0", 40, "Q1_0", "legacy", "helps", "1 bit, the sign of each weight: for models trained for it."),
)
# fmt: on

_BY_NAME = {ftype.name: ftype for ftype in FTYPES}
_BY_NUMBER = {str(ftype.number): ftype for ftype in FTYPES}
_COPY = Ftype(COPY, 0, "F32", "float", "unused", "Copies every tensor as it is: joins split files, prunes layers.")


def find_ftype(name: str) -> Ftype:
    """Return the type that a name, alias or number means; case does not matter.

    Raises
    ------
    InvalidRequestError
        There is none, with near names, or llama.cpp can not write it.
    """
    word = str(name).strip().upper()
    if word == COPY:
        return _COPY
    found = _BY_NAME.get(ALIASES.get(word, word)) or _BY_NUMBER.get(word)
    if found is None:
        hint = did_you_mean(word, [*_BY_NAME, *ALIASES]) or _alike(word)
        raise InvalidRequestError(f"there is no quantization type {name!r}.{hint} %llama quantize --list shows all.")
    if not found.writable:
        raise InvalidRequestError(
            f"llama.cpp reads {found.name} files but can not make them; MXFP4_MOE and Q4_0 are near"
        )
    return found


def _alike(word: str) -> str:
    """Name the types of as many bits, where no name is near."""
    digits = [char for char in word if char.isdigit()][:1]
    alike = [ftype.name for ftype in FTYPES if digits and digits[0] in ftype.name and ftype.writable]
    return f" With {digits[0]} bits there are {', '.join(alike)}." if alike else ""


def find_tensor_type(name: str) -> str:
    """Return the name of a tensor type that ggml can write; case does not matter.

    Raises
    ------
    InvalidRequestError
        There is none, with near names.
    """
    word = str(name).strip().upper()
    if word in QUANTIZABLE:
        return word
    if word in _BY_NAME:
        return find_tensor_type(_BY_NAME[word].tensor_type)
    hint = did_you_mean(word, QUANTIZABLE) or f" There are {', '.join(QUANTIZABLE)}."
    raise InvalidRequestError(f"there is no tensor type {name!r} that can be written.{hint}")


def tensor_type_number(name: str) -> int:
    """Return ggml's number of a tensor type."""
    return _NUMBERS[name]


def is_float(type_name: str) -> bool:
    """Tell whether a tensor type holds plain numbers."""
    return type_name in _FLOATS or (type_name.startswith("I") and type_name[1:].isdigit())


@dataclass(frozen=True, slots=True)
class FtypeTable:
    """All quantization types; a sequence of `Ftype`, also by name: ``ftypes()["Q4_K_M"]``."""

    types: tuple[Ftype, ...] = FTYPES

    def __iter__(self) -> Iterator[Ftype]:
        return iter(self.types)

    def __len__(self) -> int:
        return len(self.types)

    def __getitem__(self, which: int | str) -> Ftype:
        if isinstance(which, str):
            found = _BY_NAME.get(ALIASES.get(which.upper(), which.upper()))
            if found is None:
                raise KeyError(which)
            return found
        return self.types[which]

    def __repr__(self) -> str:
        rows = [(*_row(ftype), ftype.use) for ftype in self.types]
        return text_table(_HEAD, rows, "lrrll") + "\n" + _FOOT

    def _repr_html_(self) -> str:
        rows = [(*_row(ftype), ftype.use, ftype.loss) for ftype in self.types]
        return page(
            heading("Quantization types", f"{len(self.types)} in this llama.cpp"),
            table((*_HEAD, "loss, as llama-quantize tells it"), rows, "lrrll"),
            note(_FOOT),
            details("Where the figures come from", note(_SOURCES)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the entries by name."""
        return {ftype.name: ftype.to_dict() for ftype in self.types}

    def to_pandas(self) -> Any:
        """Return the table as a `pandas.DataFrame`."""
        import pandas as pd

        return pd.DataFrame([ftype.to_dict() for ftype in self.types])


_HEAD = ("type", "bits/weight", "of an 8B model", "family and matrix", "when to take it")
_FOOT = (
    "bits/weight: nominal, of the type's blocks; of an 8B model: real, all tensors of Llama-3.1-8B. "
    "%llama plan MODEL TYPE … tells those of your model."
)
_SOURCES = (
    "Names and numbers: llama.h. Bits: ggml's blocks. 8B model: tools/quantize/README.md of llama.cpp. "
    "Loss of perplexity: the table that llama-quantize prints. Importance matrix: llama-quant.cpp."
)


def _row(ftype: Ftype) -> tuple[str, str, str, str]:
    real = "" if ftype.bits_8b is None else f"{ftype.bits_8b:.2f}"
    matrix = {"needed": ", matrix needed", "helps": ", matrix helps"}.get(ftype.imatrix, "")
    return ftype.name, f"{ftype.bits:.4g}", real, ftype.family + matrix
