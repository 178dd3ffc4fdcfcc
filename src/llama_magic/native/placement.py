"""Where a model really is: layers and buffers of each device, read back from llama.cpp's log of the load."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from llama_magic.native.devices import list_devices
from llama_magic.native.loading import device_buffer_types
from llama_magic.native.log import LogCapture

__all__ = ["Placed", "place_of_buffer", "placement", "splits"]

_LAYER = re.compile(r"layer +(\d+) assigned to device ([^,]+),")
_BUFFER = re.compile(r"(\S+) model buffer size\s*=\s*([\d.]+) MiB")
_SPLITS = re.compile(r"sched_reserve: graph.* splits = (\d+)(?: / (\d+))?")


@dataclass(frozen=True, slots=True)
class Placed:
    """What a device got of a model.

    Attributes
    ----------
    device, type
        As `Device` has them.
    layers
        Layers that it computes, the output layer included.
    weights
        Bytes of weights that it holds.
    repacked
        Bytes of these that lie in an order of the CPU's own, which no other backend can use.
    """

    device: str
    type: str
    layers: int
    weights: int
    repacked: int


def placement(log: LogCapture) -> tuple[Placed, ...]:
    """Return what each device got of the model that was loaded last, the one with most layers first.

    Accelerators are among them: they have no layers and hold nothing.
    """
    layers = Counter(match[2] for line in log.layers if (match := _LAYER.search(line)))
    weights: Counter[str] = Counter()
    repacked: Counter[str] = Counter()
    types = device_buffer_types()
    for _, line in log.lines:
        match = _BUFFER.search(line)
        if match:
            device = place_of_buffer(match[1], types)
            size = round(float(match[2]) * 2**20)
            weights[device] += size
            repacked[device] += size if match[1].endswith("_REPACK") else 0
    kinds = {device.name: device.type for device in list_devices()}
    names = dict.fromkeys([*layers, *weights, *(name for name, kind in kinds.items() if kind == "accelerator")])
    rows = [Placed(name, kinds.get(name, "other"), layers[name], weights[name], repacked[name]) for name in names]
    return tuple(sorted(rows, key=lambda row: (-row.layers, -row.weights)))


def place_of_buffer(name: str, types: dict[str, str]) -> str:
    """Return the device that a buffer belongs to, by its name: "CUDA0", "CPU_Mapped", "CUDA_Host".

    Parameters
    ----------
    types
        Devices by the names of their buffer types.
    """
    if name in types:
        return types[name]
    stem, _, ending = name.partition("_")
    if ending == "Host":  # main memory that an accelerator reads fast
        return "CPU"
    return types.get(stem, stem)


def splits(log: LogCapture) -> tuple[int, int] | None:
    """Return into how many parts the last context's graph is split, for a batch and for one token; None if unknown.

    One part means that one device computes all of it.
    """
    for _, line in reversed(log.lines):
        match = _SPLITS.search(line)
        if match:
            batch = int(match[1])
            return batch, int(match[2]) if match[2] else batch
    return None
