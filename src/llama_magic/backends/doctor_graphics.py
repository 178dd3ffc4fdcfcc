"""The doctor's checks of graphics: what cards there are, whether their drivers are, and whether llama.cpp uses them."""

from __future__ import annotations

import ctypes.util
import glob
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from llama_magic.backends.findings import OK, PROBLEM, WARNING, Finding

__all__ = ["check_cards", "check_metal", "check_nvidia", "check_vulkan", "pci_cards", "vulkan_drivers"]

#: Makers of display controllers by their PCI number, and the backends that are for them, the best first.
_MAKERS = {
    "0x10de": ("NVIDIA", ("cuda", "vulkan")),
    "0x1002": ("AMD", ("hip", "vulkan")),
    "0x8086": ("Intel", ("sycl", "vulkan", "opencl")),
}
#: Vulkan drivers that compute on the processor.
_SOFTWARE = ("lvp", "llvmpipe", "swiftshader")


def pci_cards(root: Path = Path("/sys/bus/pci/devices")) -> tuple[str, ...]:
    """Return the makers of the display controllers and accelerators on the PCI bus (Linux)."""
    found = []
    for device in sorted(root.glob("*")):
        try:
            kind, maker = (device / "class").read_text().strip(), (device / "vendor").read_text().strip()
        except OSError:
            continue
        # 0x03….: display controllers; 0x12….: processing accelerators
        if kind[:4] in ("0x03", "0x12") and maker in _MAKERS:
            found.append(_MAKERS[maker][0])
    return tuple(found)


def check_nvidia(cards: Collection[str], said: str, library: str | None) -> Iterator[Finding]:
    """Tell of NVIDIA's driver.

    Parameters
    ----------
    cards
        Makers of the cards on the bus.
    said
        What ``nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader`` printed; empty where
        it is not there or failed.
    library
        libcuda as the loader finds it, None where it does not.
    """
    rows = [line.strip() for line in said.splitlines() if line.count(",") >= 2]
    if rows:
        yield Finding("graphics", "NVIDIA driver", OK, "; ".join(rows))
        if library is None and sys.platform != "win32":
            words = "the driver runs, but libcuda is not found: containers need --gpus all, and WSL its own libraries"
            yield Finding("graphics", "libcuda", PROBLEM, words, "ldconfig -p | grep libcuda")
    elif "NVIDIA" in cards:
        words = "there is a card of NVIDIA, but its driver does not answer (nvidia-smi): nothing can compute on it"
        yield Finding("graphics", "NVIDIA driver", WARNING, words, "nvidia-smi")
    else:
        yield Finding("graphics", "NVIDIA driver", OK, "not needed: no card of NVIDIA is here")


def check_cards(
    cards: Sequence[str], active: Mapping[str, Sequence[str]], built: Collection[str], selected: str = ""
) -> Finding:
    """Tell whether llama.cpp computes on the cards that are here.

    Parameters
    ----------
    cards
        Their makers.
    active
        Graphics devices of each active backend, by our name of it.
    built
        Backends that are compiled in or built as modules.
    """
    used = [f"{', '.join(devices)} ({name})" for name, devices in active.items() if devices]
    if used:
        return Finding("graphics", "graphics devices", OK, f"in use: {'; '.join(used)}")
    if not cards:
        return Finding("graphics", "graphics devices", OK, "none here: llama.cpp computes on the processor")
    wanted = [name for maker in dict.fromkeys(cards) for name in _backends_of(maker)]
    ready = next((name for name in wanted if name in built), None)
    words = f"there is a card of {' and '.join(dict.fromkeys(cards))}, but llama.cpp computes on the processor"
    if ready is not None:
        words += f"{f' (selected: {selected})' if selected else ''}: the backend {ready} is built"
        return Finding("graphics", "graphics devices", WARNING, words, f"%llama backend {ready}")
    return Finding(
        "graphics", "graphics devices", WARNING, f"{words}: it has no backend for it", f"%llama build {wanted[0]}"
    )


def _backends_of(maker: str) -> tuple[str, ...]:
    return next(names for found, names in _MAKERS.values() if found == maker)


def vulkan_drivers(environment: Mapping[str, str] = os.environ, folders: Sequence[str] | None = None) -> list[str]:
    """Return the manifests of Vulkan's drivers (ICDs), as the loader looks for them."""
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        if environment.get(name):
            return [file for file in environment[name].split(os.pathsep) if Path(file).is_file()]
    if folders is None:
        home = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        folders = [
            "/etc/vulkan",
            "/usr/local/etc/vulkan",
            "/usr/share/vulkan",
            "/usr/local/share/vulkan",
            f"{home}/vulkan",
        ]
    return [file for folder in folders for file in sorted(glob.glob(f"{folder}/icd.d/*.json"))]  # noqa: PTH207


def check_vulkan(
    drivers: Sequence[str],
    cards: Collection[str],
    environment: Mapping[str, str] = os.environ,
    find: Callable[[str], str | None] = ctypes.util.find_library,
) -> Finding:
    """Tell of Vulkan's loader and its drivers."""
    loader = find("vulkan") or find("vulkan-1")
    needed = bool(cards)
    if loader is None:
        state, words = (WARNING, "") if needed else (OK, "not needed without a card: ")
        return Finding("graphics", "Vulkan", state, f"{words}there is no Vulkan loader (libvulkan)")
    names = [re.sub(r"(_icd)?(\.\w+)?\.json$", "", Path(file).name) for file in drivers]
    real = [name for name in names if not name.startswith(_SOFTWARE)]
    if real and not needed:
        words = f"{loader}, drivers: {', '.join(names)}; no card is seen here, so only those for the processor can work"
        return Finding("graphics", "Vulkan", OK, words)
    if real:
        return Finding("graphics", "Vulkan", OK, f"{loader}, drivers: {', '.join(names)}")
    if names and environment.get("GGML_VK_VISIBLE_DEVICES"):
        return Finding(
            "graphics", "Vulkan", OK, f"{loader}, only drivers that compute on the processor: {', '.join(names)}"
        )
    words = f"{loader}, but no driver of a card ({', '.join(names) or 'no ICD at all'})"
    if names and not needed:
        words += "; ggml hides such drivers unless GGML_VK_VISIBLE_DEVICES=0 is set, and they are slow"
    return Finding("graphics", "Vulkan", WARNING if needed else OK, words)


def check_metal(platform: str, machine: str, active: Collection[str]) -> Finding | None:
    """Tell whether Metal is used on Apple silicon."""
    if platform != "darwin" or machine != "arm64":
        return None
    if "metal" in active:
        return Finding("graphics", "Metal", OK, "in use")
    words = "llama-cpp-python was built without Metal: everything is computed on the processor"
    fix = "CMAKE_ARGS='-DGGML_METAL=ON' pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"
    return Finding("graphics", "Metal", WARNING, words, fix)
