"""The request to build llama-cpp-python itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WheelRequest"]


@dataclass(frozen=True, slots=True)
class WheelRequest:
    """Build and install llama-cpp-python with backends inside; the result is its version.

    Attributes
    ----------
    backends
        Names of `KNOWN`; ("cpu",) for none.
    log
        The file that everything said is written to.
    defines
        What CMake gets beside the recipe.
    """

    backends: tuple[str, ...]
    log: str
    defines: tuple[str, ...] = ()
