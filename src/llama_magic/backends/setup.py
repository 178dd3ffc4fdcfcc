"""What a worker gets beside the backends compiled into llama.cpp, and what this kernel has selected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["STOCK", "BackendSetup", "Problem", "SetUpRequest", "select", "selected"]


@dataclass(frozen=True, slots=True)
class BackendSetup:
    """How a worker's backends are set up, before it does anything else. Hashable, and pickles.

    Accelerators such as BLAS are used by every context of a process once they are registered, so
    what differs in backends needs workers of its own.

    Attributes
    ----------
    modules
        Paths of backend modules, loaded in this order.
    rpc
        RPC hosts as ``host:port``; their devices are named RPC0, RPC1 and so on, in this order.
    keep
        Names (as ggml has them) of the backends compiled into llama.cpp that stay, beside the CPU's; None: all.
    environment
        (name, value) pairs that the worker is started with, such as ``GGML_VK_VISIBLE_DEVICES``.
    name
        What people call it: "blas", "vulkan,rpc". It makes no difference between two setups.
    """

    modules: tuple[str, ...] = ()
    rpc: tuple[str, ...] = ()
    keep: tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    name: str = field(default="", compare=False)

    @property
    def is_stock(self) -> bool:
        """True where nothing is to be done: the backends are those compiled in."""
        return self == STOCK

    def steps(self) -> Iterator[tuple[str, BackendSetup]]:
        """Return this setup in parts, each with a module or a host that it is about, or empty."""
        if self.keep is not None:
            yield "", BackendSetup(keep=self.keep)
        for path in self.modules:
            yield path, BackendSetup(modules=(path,))
        for host in self.rpc:
            yield host, BackendSetup(rpc=(host,))


#: The backends compiled into llama.cpp, and nothing else.
STOCK = BackendSetup()


@dataclass(frozen=True, slots=True)
class Problem:
    """What a worker had to leave out: a module's path or an RPC host, and why in words."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class SetUpRequest:
    """Set a fresh worker's backends up; the result is a tuple of `Problem`."""

    setup: BackendSetup


_selected = STOCK


def selected() -> BackendSetup:
    """Return the setup that this process has selected: what workers get where nothing else is said."""
    return _selected


def select(setup: BackendSetup) -> None:
    """Select a setup; the next request of the session's client starts a fresh worker with it."""
    global _selected  # noqa: PLW0603 - one selection per kernel is the design
    _selected = setup
