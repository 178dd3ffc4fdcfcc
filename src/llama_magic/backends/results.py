"""What is known of backends and devices, as the kernel sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from llama_magic.backends.setup import Problem
from llama_magic.backends.views import backends_html, backends_text, devices_html, devices_text

__all__ = ["Backend", "Backends", "BackendsRequest", "Device", "Devices", "LoadedBackend", "LoadedBackends"]


@dataclass(frozen=True, slots=True)
class Device:
    """A device that a model can run on.

    Attributes
    ----------
    name
        As ``-dev`` takes it: "CPU", "CUDA0", "RPC0".
    type
        "cpu", "gpu", "igpu" (its memory is the machine's), or "accelerator": it holds nothing, and computes beside
        the CPU.
    description
        What the device calls itself.
    backend
        The backend that drives it, as in `Backend.name`.
    memory_free, memory_total
        Bytes; 0 where the device does not tell.
    """

    name: str
    type: str
    description: str
    backend: str
    memory_free: int
    memory_total: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LoadedBackend:
    """A backend that a worker has: ggml's name for it, what its code uses (("AVX2", "1")), its devices."""

    name: str
    features: tuple[tuple[str, str], ...]
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class LoadedBackends:
    """What a worker has: its backends, and the versions of its llama.cpp."""

    backends: tuple[LoadedBackend, ...]
    commit: str
    ggml_version: str

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices of all backends."""
        return tuple(device for backend in self.backends for device in backend.devices)


@dataclass(frozen=True, slots=True)
class BackendsRequest:
    """Ask a worker for its backends; the result is `LoadedBackends`."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend that this llama.cpp knows.

    Attributes
    ----------
    name
        As ``%llama backend`` takes it: "cpu", "blas", "vulkan".
    title
        Its full name.
    state
        "active": workers have it; "built": it is here, and ``%llama backend NAME`` takes it; "buildable":
        ``%llama build NAME`` makes it here; "missing": something has to be installed first; "unsupported": not on
        this system; "broken": it is here and can not be loaded.
    devices
        Its devices. Empty where it is not active and was not asked.
    detail
        What there is to say: instruction sets, or what is missing.
    fix
        A command that helps, empty where there is none.
    source
        "wheel" where it is compiled into llama-cpp-python, "module" where it was built here, else empty.
    """

    name: str
    title: str
    state: str
    devices: tuple[Device, ...] = ()
    detail: str = ""
    fix: str = ""
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True, repr=False)
class Backends(Sequence[Backend]):
    """All backends, and what the last worker had to leave out."""

    rows: tuple[Backend, ...]
    problems: tuple[Problem, ...] = ()
    commit: str = ""
    ggml_version: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int | str) -> Backend: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Backend]: ...
    def __getitem__(self, index: int | str | slice) -> Backend | Sequence[Backend]:
        """Return a row by its place, or by the backend's name."""
        if isinstance(index, str):
            return next(row for row in self.rows if row.name == index)
        return self.rows[index]

    def __iter__(self) -> Iterator[Backend]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return backends_text(self)

    def _repr_html_(self) -> str:
        return backends_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            "backends": [row.to_dict() for row in self.rows],
            "problems": [asdict(problem) for problem in self.problems],
            "commit": self.commit,
            "ggml_version": self.ggml_version,
        }

    def to_pandas(self) -> Any:
        """Return a row for each backend; needs pandas."""
        from pandas import DataFrame

        return DataFrame([{**row.to_dict(), "devices": [d.name for d in row.devices]} for row in self.rows])


@dataclass(frozen=True, slots=True, repr=False)
class Devices(Sequence[Device]):
    """The devices that models can run on now."""

    rows: tuple[Device, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int | str) -> Device: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Device]: ...
    def __getitem__(self, index: int | str | slice) -> Device | Sequence[Device]:
        """Return a row by its place, or by the device's name."""
        if isinstance(index, str):
            return next(row for row in self.rows if row.name == index)
        return self.rows[index]

    def __iter__(self) -> Iterator[Device]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return devices_text(self)

    def _repr_html_(self) -> str:
        return devices_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            "devices": [row.to_dict() for row in self.rows],
            "problems": [asdict(problem) for problem in self.problems],
        }

    def to_pandas(self) -> Any:
        """Return a row for each device; needs pandas."""
        from pandas import DataFrame

        return DataFrame([row.to_dict() for row in self.rows])
