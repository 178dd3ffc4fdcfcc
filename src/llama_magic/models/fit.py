"""Whether a model fits, and what would: the request, and the report that people read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.options import LoadOptions
from llama_magic.units import format_bytes, format_rate

__all__ = ["BITS_PER_WEIGHT", "DeviceFit", "FitReport", "FitRequest", "QuantizationFit", "bytes_per_token", "choices"]

#: Bits per weight of Llama 3.1 8B in each ftype (llama.cpp, tools/quantize/README.md), the largest first. Small models
#: need more: a larger part of them stays in finer types.
BITS_PER_WEIGHT: dict[str, float] = {
    "F16": 16.0005, "Q8_0": 8.5008, "Q6_K": 6.5633, "Q5_K_M": 5.7036, "Q5_K_S": 5.5704, "Q4_K_M": 4.8944,
    "Q4_K_S": 4.6672, "IQ4_XS": 4.4597, "Q3_K_L": 4.2979, "Q3_K_M": 3.9960, "IQ3_M": 3.7628, "Q3_K_S": 3.6429,
    "IQ3_XXS": 3.2548, "Q2_K": 3.1593, "IQ2_M": 2.9294, "IQ2_XS": 2.5882, "IQ2_XXS": 2.3824, "IQ1_M": 2.1460,
    "IQ1_S": 2.0042,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FitRequest:
    """Ask what a model would take; the result is a `FitReport`.

    Attributes
    ----------
    ref, path
        What was typed, and the file; for a model on the Hub, its name there.
    options
        How it would be loaded.
    metadata
        What the file says of itself; a file that is not here is laid out from it.
    local
        The file is here.
    reclaimable
        Bytes that models loaded now hold: they are unloaded first.
    bandwidth
        Bytes a second that memory was measured to give; None to measure it.
    """

    ref: str
    path: str
    options: LoadOptions
    metadata: ModelMetadata
    local: bool = True
    reclaimable: int = 0
    bandwidth: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """What a model takes on one device, in bytes.

    Attributes
    ----------
    name, description
        The device; "CPU" stands for main memory.
    weights, kv_cache, compute
        As llama.cpp lays them out.
    other
        Vocabulary, metadata, logits: what else the process takes.
    cached
        Part of the weights: pages of the file that lie in memory beside the repacked copy that was made of them. The
        system takes them back when memory is short.
    free, total
        What the device has.
    """

    name: str
    description: str
    weights: int
    kv_cache: int
    compute: int
    other: int
    free: int
    total: int
    cached: int = 0

    @property
    def need(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute + self.other

    @property
    def fits(self) -> bool:
        """Whether that much is free; cached pages make room."""
        return self.need - self.cached <= self.free


@dataclass(frozen=True, slots=True)
class QuantizationFit:
    """About what a model would take in another quantization: the weights and everything, in bytes."""

    ftype: str
    bits_per_weight: float
    weights: int
    need: int
    fits: bool


@dataclass(frozen=True, slots=True, repr=False)
class FitReport:
    """What a model will take, and whether it fits.

    Attributes
    ----------
    ref, path, ftype, n_params, bits_per_weight
        The model.
    n_ctx, n_ctx_train
        Tokens of the context reckoned with, and tokens the model was trained for.
    options
        How it would be loaded.
    devices
        What it takes on each device, main memory first.
    conversations
        Bytes that the second context takes, which conversations share: it is made for the first of them.
    n_layer
        Layers that can be offloaded, the output layer included.
    n_gpu_layers
        How many of them to offload; None where there is no accelerator.
    bandwidth
        Bytes of main memory read a second, as measured.
    bytes_per_token, kv_per_token
        Bytes read for each new token: weights, and cache for each token before it.
    tokens_per_second, tokens_per_second_full
        What that allows at most, with an empty and with a full context; None where an accelerator computes.
    reclaimable
        Bytes that models loaded now hold; they are unloaded first.
    quantizations
        What other quantizations would take, the largest first.
    suggestion
        The largest quantization that fits; None where the model itself fits, or nothing does.
    max_n_ctx
        The largest context that fits, in tokens; 0 where none does.
    measured
        False where a part was estimated, since the file is not here.
    """

    ref: str
    path: str
    ftype: str
    n_params: int
    bits_per_weight: float
    n_ctx: int
    n_ctx_train: int
    options: LoadOptions
    devices: tuple[DeviceFit, ...]
    conversations: int
    n_layer: int
    n_gpu_layers: int | None
    bandwidth: float
    bytes_per_token: int
    kv_per_token: float
    tokens_per_second: float | None
    tokens_per_second_full: float | None
    reclaimable: int
    quantizations: tuple[QuantizationFit, ...]
    suggestion: str | None
    max_n_ctx: int
    measured: bool = True

    @property
    def need(self) -> int:
        """Bytes on all devices."""
        return sum(device.need for device in self.devices)

    @property
    def fits(self) -> bool:
        """Whether it can be loaded, after models that are loaded now have made room."""
        first, *others = self.devices
        return first.need - first.cached <= first.free + self.reclaimable and all(device.fits for device in others)

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        from llama_magic.models.card import clean

        first, name = self.devices[0], clean(self.ref)
        short = [device.name for device in self.devices if not device.fits]
        if not short:
            return f"{name} fits: it takes {format_bytes(self.need)}, {format_bytes(first.free)} of memory are free"
        if self.fits:
            return f"{name} fits once other models are unloaded, which happens by itself"
        where = " and ".join(each if each != "CPU" else "memory" for each in short)
        return f"{name} does not fit into {where}: it takes {format_bytes(self.need)}"

    @property
    def speed(self) -> str:
        """What to expect of its speed, and why."""
        if self.tokens_per_second is None or self.tokens_per_second_full is None:
            return "not estimated where an accelerator computes"
        return (
            f"at most {self.tokens_per_second:,.0f} tok/s, {self.tokens_per_second_full:,.0f} with a full context: "
            f"each token reads {format_bytes(self.bytes_per_token)} of weights and the cache, "
            f"and memory gives {format_rate(self.bandwidth)} here"
        )

    def advice(self) -> list[str]:
        """Return what helps where it does not fit, and what else is worth knowing."""
        lines = []
        if not self.fits:
            if self.max_n_ctx:
                lines.append(f"a context of {self.max_n_ctx:,} tokens fits (-c {self.max_n_ctx})")
            if self.suggestion:
                lines.append(f"{self.suggestion} fits, at about {BITS_PER_WEIGHT[self.suggestion]:.1f} bits per weight")
            if not lines:
                lines.append("no quantization of it fits: take a smaller model")
        if self.n_gpu_layers is not None:
            lines.append(f"offload {self.n_gpu_layers} of {self.n_layer} layers (-ngl {self.n_gpu_layers})")
        if cached := self.devices[0].cached:
            lines.append(
                f"{format_bytes(cached)} of the weights are pages of the file beside their repacked copy, "
                "given back when memory is short (--no-mmap: not there at all)"
            )
        lines.append(f"the first conversation (-cnv) takes {format_bytes(self.conversations)} more")
        if not self.measured:
            lines.append("the file is not here: vocabulary and metadata are estimated, the rest is llama.cpp's count")
        return lines

    def __repr__(self) -> str:
        from llama_magic.models.fit_view import text

        return text(self)

    def _repr_html_(self) -> str:
        from llama_magic.models.fit_view import html

        return html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        values = asdict(replace(self, devices=(), quantizations=()))
        values["devices"] = [{**asdict(device), "need": device.need, "fits": device.fits} for device in self.devices]
        values["quantizations"] = [asdict(row) for row in self.quantizations]
        return {**values, "need": self.need, "fits": self.fits}


def bytes_per_token(metadata: ModelMetadata) -> int:
    """Return the bytes of weights that one token reads: all but the rows of other tokens and of unused experts.

    The embedding is read as a whole where the output layer shares it.
    """
    names = {tensor.name for tensor in metadata.tensors}
    tied = "output.weight" not in names
    used, experts = metadata.n_expert_used, metadata.n_expert
    total = 0.0
    for tensor in metadata.tensors:
        if tensor.name == "token_embd.weight" and not tied:
            continue
        share = used / experts if experts and used and "_exps." in tensor.name else 1.0
        total += tensor.size * share
    return int(total)


def choices(metadata: ModelMetadata, rest: int, free: int) -> tuple[QuantizationFit, ...]:
    """Return about what quantizations smaller than the file's own would take; `rest` is what is no weights."""
    rows = []
    for ftype, bits in BITS_PER_WEIGHT.items():
        if bits < 0.98 * metadata.bits_per_weight and ftype != metadata.ftype:
            weights = int(metadata.n_params * bits / 8)
            rows.append(QuantizationFit(ftype, bits, weights, weights + rest, weights + rest <= free))
    return tuple(rows)
