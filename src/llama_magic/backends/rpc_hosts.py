"""The RPC hosts that this kernel has attached."""

from __future__ import annotations

__all__ = ["attach", "attached_hosts", "detach"]

_attached: list[str] = []


def attached_hosts() -> tuple[str, ...]:
    """Return the hosts, ``host:port``, in the order they were attached."""
    return tuple(_attached)


def attach(endpoint: str) -> None:
    """Attach a host; one that is attached stays where it is."""
    if endpoint not in _attached:
        _attached.append(endpoint)


def detach(endpoint: str) -> None:
    """Forget a host."""
    if endpoint in _attached:
        _attached.remove(endpoint)
