"""What a build gave, as the kernel sees it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_magic.backends.known import driver_of, find_backend
from llama_magic.backends.modules import Module
from llama_magic.backends.results import Device
from llama_magic.markup import Html, facts, heading, join, note, page
from llama_magic.units import format_bytes, format_seconds

__all__ = ["BuildResult", "WheelResult"]


_NO_DEVICE = {
    "rpc": "its devices are those of other machines",
    "vulkan": "no device on this machine (GGML_VK_VISIBLE_DEVICES=0 in the environment shows one in software)",
}


@dataclass(frozen=True, slots=True, repr=False)
class BuildResult:
    """Modules that were built, probed and installed.

    Attributes
    ----------
    modules
        The modules.
    devices
        What they offer on this machine.
    seconds
        How long all of it took.
    log
        The file with everything that was said.
    """

    modules: tuple[Module, ...]
    devices: tuple[Device, ...]
    seconds: float
    log: str

    def _lines(self) -> list[tuple[str, str]]:
        rows = []
        for module in self.modules:
            driver = driver_of(module.name)
            names = ", ".join(f"{row.name} ({row.description})" for row in self.devices if row.backend == driver)
            names = names or _NO_DEVICE.get(module.name, "no device on this machine")
            rows.append((find_backend(module.name).title, f"{format_bytes(module.size)}; {names}"))
        return rows

    @property
    def _next(self) -> tuple[str, str]:
        """The line that uses it, and what that does."""
        name = self.modules[0].name
        if name == "rpc":
            return "%llama rpc add HOST:PORT", "attaches another machine"
        return f"%llama backend {name}", "uses it"

    def __repr__(self) -> str:
        head = f"Built in {format_seconds(self.seconds)}, for llama.cpp {self.modules[0].commit}:"
        rows = [f"  {name}: {told}" for name, told in self._lines()]
        return "\n".join([head, *rows, f"{' '.join(self._next)}. Log: {self.log}"])

    def _repr_html_(self) -> str:
        line, does = self._next
        return page(
            heading(f"Built in {format_seconds(self.seconds)}", f"for llama.cpp {self.modules[0].commit}"),
            facts([*self._lines(), ("log", _short(self.log))]),
            note(join(Html("<code>"), line, Html("</code> "), does)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            "modules": [module.to_dict() for module in self.modules],
            "devices": [device.to_dict() for device in self.devices],
            "seconds": self.seconds,
            "log": self.log,
        }


def _short(path: str) -> str:
    home = str(Path.home())
    return path.replace(home, "~", 1) if len(home) > 1 and path.startswith(home) else path


@dataclass(frozen=True, slots=True, repr=False)
class WheelResult:
    """A llama-cpp-python that was built and installed: its backends, its version, how long it took, and the log."""

    backends: tuple[str, ...]
    version: str
    seconds: float
    log: str

    def __repr__(self) -> str:
        return (
            f"Built and installed llama-cpp-python {self.version} with {', '.join(self.backends)} in "
            f"{format_seconds(self.seconds)}. The worker has it from its next start, which is the next request; "
            f"the kernel need not be restarted. Log: {self.log}"
        )

    def _repr_html_(self) -> str:
        return page(note(repr(self), "good"))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)
