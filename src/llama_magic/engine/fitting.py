"""Work out a `FitReport` in a worker: llama.cpp lays the model out, and memory is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from llama_magic.backends.host import available_memory, default_threads
from llama_magic.errors import JobInterrupted
from llama_magic.models.bandwidth import read_bandwidth
from llama_magic.models.dryrun import DryRun, dry_run, write_header
from llama_magic.models.fit import DeviceFit, FitReport, FitRequest, bytes_per_token, choices
from llama_magic.models.loading import chat_flash_attn
from llama_magic.models.memory import VOCABULARY, default_n_ctx
from llama_magic.models.options import LoadOptions
from llama_magic.native import Device, WorkerTools, list_devices
from llama_magic.progress import Progress

__all__ = ["MARGIN", "accelerators", "layers_that_fit", "run"]

#: What is left free on an accelerator, as llama.cpp's own tools do (common.h, `fit_params_target`).
MARGIN = 1 << 30
#: Sequences of the context that conversations share (inference/runtime.py).
_CONVERSATIONS = 16


def accelerators(request_devices: tuple[str, ...] = ()) -> list[Device]:
    """Return the devices that layers can be offloaded to, those of the options if they name some."""
    wanted = {name.lower() for name in request_devices}
    return [
        device
        for device in list_devices()
        if device.type in ("gpu", "igpu") and (not wanted or device.name.lower() in wanted)
    ]


def run(request: FitRequest, tools: WorkerTools) -> FitReport:
    """Answer a `FitRequest`."""
    with tempfile.TemporaryDirectory(prefix="llama-magic-") as folder:
        path = request.path
        if not request.local:
            path = str(Path(folder) / "header.gguf")
            write_header(request.metadata, Path(path))
        return _Fitting(request, path, tools).report()


class _Fitting:
    def __init__(self, request: FitRequest, path: str, tools: WorkerTools) -> None:
        self.request = request
        self.path = path
        self.tools = tools
        self.options = request.options
        self.metadata = request.metadata
        self.threads = default_threads()
        self.n_ctx = default_n_ctx(request.metadata, request.options)
        self.free = available_memory()
        self.gpus = accelerators(request.options.devices)

    def step(self, fraction: float, words: str) -> None:
        if self.tools.cancelled():
            raise JobInterrupted(None, "stopped.")
        self.tools.report(Progress("fit", fraction, words))

    def lay_out(self, n_gpu_layers: int | None = None, n_ctx: int | None = None) -> DryRun:
        return dry_run(
            self.path, self.options, n_ctx or self.n_ctx, self.threads, self.tools.log, n_gpu_layers=n_gpu_layers
        )

    def report(self) -> FitReport:
        request, metadata = self.request, self.metadata
        self.step(0.1, "laying the model out")
        layers: int | None = None
        if self.gpus:
            layers = layers_that_fit(self.lay_out, self.gpus)
        chosen = layers if self.options.n_gpu_layers == "auto" else None
        layout = self.lay_out(chosen)
        used = ("CPU",) if not self.gpus else tuple(device.name for device in self.gpus)
        chat = dry_run(
            self.path, self.options, self.n_ctx, self.threads, self.tools.log, n_gpu_layers=chosen,
            flash_attn=chat_flash_attn(self.options, used), n_seq_max=_CONVERSATIONS,
        )  # fmt: skip
        self.step(0.5, "measuring memory")
        bandwidth = request.bandwidth or read_bandwidth(self.options.n_threads or self.threads)
        self.step(0.8, "looking for what fits")
        devices = self.devices(layout)
        per_token = bytes_per_token(metadata)
        cache = sum(row.kv_cache for row in layout.buffers)
        speeds: tuple[float | None, float | None] = (None, None)
        if not self.gpus and per_token:
            speeds = (bandwidth / per_token, bandwidth / (per_token + cache))
        rest = sum(device.need - device.weights for device in devices)
        room = self.free + request.reclaimable + sum(device.memory_free for device in self.gpus)
        rows = choices(metadata, rest, room)
        report = FitReport(
            ref=request.ref,
            path=request.path,
            ftype=metadata.ftype,
            n_params=metadata.n_params,
            bits_per_weight=metadata.bits_per_weight,
            n_ctx=self.n_ctx,
            n_ctx_train=metadata.n_ctx_train,
            options=self.options,
            devices=devices,
            conversations=sum(row.kv_cache + row.compute for row in chat.buffers) + chat.output,
            n_layer=layout.n_layer,
            n_gpu_layers=layers,
            bandwidth=bandwidth,
            bytes_per_token=per_token,
            kv_per_token=cache / self.n_ctx,
            tokens_per_second=speeds[0],
            tokens_per_second_full=speeds[1],
            reclaimable=request.reclaimable,
            quantizations=rows,
            suggestion=None,
            max_n_ctx=self.n_ctx,
            measured=request.local,
        )
        if report.fits:
            return report
        best = next((row.ftype for row in rows if row.fits), None)
        return replace(report, suggestion=best, max_n_ctx=self.largest_context(room))

    def devices(self, layout: DryRun) -> tuple[DeviceFit, ...]:
        host = layout.host if self.request.local else layout.host + VOCABULARY * self.metadata.n_vocab
        weights, cache, compute = layout.of("CPU")
        total = next((d.memory_total for d in list_devices() if d.type == "cpu"), self.free)
        cached = self.cached(layout)
        other = host + layout.output + _adapters(self.options)
        rows = [DeviceFit("CPU", "main memory", weights + cached, cache, compute, other, self.free, total, cached)]
        for device in self.gpus:
            weights, cache, compute = layout.of(device.name)
            rows.append(
                DeviceFit(
                    device.name, device.description, weights, cache, compute, 0, device.memory_free, device.memory_total
                )
            )
        return tuple(rows)

    def cached(self, layout: DryRun) -> int:
        """Return the bytes of the file's pages that were read to make a repacked copy, and stay mapped.

        llama.cpp maps the file from the first to the last tensor that is used in place (llama-model.cpp).
        """
        if not self.options.use_mmap or self.options.direct_io:
            return 0
        repacked = sum(row.weights for row in layout.buffers if row.device == "CPU" and not row.is_host)
        in_place = layout.of("CPU")[0] - repacked
        return max(0, min(self.metadata.size, in_place + repacked) - in_place) if repacked and in_place else 0

    def largest_context(self, room: int) -> int:
        """Return the largest context that fits, in steps of 256 tokens; 0 where none does."""
        low, high = 0, self.n_ctx // 256
        while low < high:
            middle = (low + high + 1) // 2
            self.step(0.9, "looking for a context that fits")
            layout = self.lay_out(n_ctx=middle * 256)
            need = layout.host + layout.output + sum(r.weights + r.kv_cache + r.compute for r in layout.buffers)
            low, high = (middle, high) if need <= room else (low, middle - 1)
        return low * 256


def _adapters(options: LoadOptions) -> int:
    """Return the bytes of the LoRA adapters."""
    return sum(Path(path).stat().st_size for path, _ in options.lora if Path(path).is_file())


def layers_that_fit(lay_out: Callable[[int], DryRun], devices: Sequence[Device], margin: int = MARGIN) -> int:
    """Return how many layers the accelerators have room for, the output layer included; `margin` is left free."""

    def fits(layers: int) -> bool:
        layout = lay_out(layers)
        return all(sum(layout.of(device.name)) + margin <= device.memory_free for device in devices)

    low, high = 0, lay_out(0).n_layer
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
