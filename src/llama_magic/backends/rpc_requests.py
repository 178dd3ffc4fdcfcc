"""Requests and results about devices of other machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from llama_magic.markup import badge, heading, note, page, table, text_table
from llama_magic.units import format_bytes

__all__ = ["AttachedHost", "RpcHosts", "RpcServeRequest", "memory_words"]


@dataclass(frozen=True, slots=True)
class RpcServeRequest:
    """Serve devices until the worker ends.

    Attributes
    ----------
    endpoint
        Where to listen, ``address:port``.
    devices
        Names of devices; empty: all accelerators, or the CPU where there is none.
    threads
        Threads that a CPU device computes with.
    cache
        Folder for tensors that were sent once; empty for none.
    """

    endpoint: str
    devices: tuple[str, ...]
    threads: int
    cache: str = ""


@dataclass(frozen=True, slots=True)
class AttachedHost:
    """An RPC host that this kernel knows.

    Attributes
    ----------
    endpoint
        ``host:port``.
    role
        "attached": its devices are used here; "served": it is this kernel's own.
    state
        "connected", "answers", "busy" or "gone"; "serving" for one's own.
    devices
        Names of its devices here, or the names of the devices that are served.
    detail
        What there is to say.
    """

    endpoint: str
    role: str
    state: str
    devices: tuple[str, ...] = ()
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return asdict(self)


_TONES = {"connected": "good", "serving": "good", "answers": "info", "busy": "warning", "gone": "error"}
_OPEN = "The protocol has no authentication: whoever reaches a host can use it, and crash it."


@dataclass(frozen=True, slots=True, repr=False)
class RpcHosts(Sequence[AttachedHost]):
    """The hosts that are attached, and those that this kernel serves."""

    rows: tuple[AttachedHost, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> AttachedHost: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AttachedHost]: ...
    def __getitem__(self, index: int | slice) -> AttachedHost | Sequence[AttachedHost]:
        return self.rows[index]

    def __repr__(self) -> str:
        if not self.rows:
            return "No RPC host is attached. %llama rpc add HOST:PORT attaches one, %llama rpc serve makes one here."
        rows = [(row.endpoint, row.role, row.state, ", ".join(row.devices), row.detail) for row in self.rows]
        return text_table(("host", "", "state", "devices", ""), rows)

    def _repr_html_(self) -> str:
        if not self.rows:
            return page(note(repr(self)))
        rows = [
            (row.endpoint, row.role, badge(row.state, _TONES[row.state]), ", ".join(row.devices), row.detail)
            for row in self.rows
        ]
        return page(heading("RPC hosts"), table(("host", "", "state", "devices", ""), rows), note(_OPEN))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {"hosts": [row.to_dict() for row in self.rows]}

    def to_pandas(self) -> Any:
        """Return a row for each host; needs pandas."""
        from pandas import DataFrame

        return DataFrame([row.to_dict() for row in self.rows])


def memory_words(memory: Sequence[tuple[int, int]]) -> str:
    """Say how much memory the devices of a host have."""
    return ", ".join(f"{format_bytes(free)} of {format_bytes(total)} free" for free, total in memory)
