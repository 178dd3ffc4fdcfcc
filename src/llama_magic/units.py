"""Numbers as people read them. Sizes are in binary units, as llama.cpp prints them."""

from __future__ import annotations

import math

__all__ = ["format_bytes", "format_count", "format_probability", "format_rate", "format_seconds"]


def format_bytes(size: float) -> str:
    """Return ``"93.6 MiB"`` for a number of bytes."""
    sign, size = ("-" if size < 0 else ""), abs(size)
    if size < 1000:
        return f"{sign}{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1000 or unit == "TiB":
            break
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{sign}{size:.{digits}f} {unit}"


def format_count(count: float) -> str:
    """Return ``"134.5 M"`` for a number of things."""
    if abs(count) < 10_000:
        return f"{count:,.0f}"
    for unit in ("k", "M", "B", "T"):
        count /= 1000
        if abs(count) < 1000 or unit == "T":
            break
    return f"{count:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Return ``"0.4 s"``, ``"12 s"``, ``"2 min 5 s"`` or ``"1 h 10 min"`` for a time in seconds."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_probability(logprob: float) -> str:
    """Return ``"92 %"``, ``"0.4 %"`` or ``"<0.1 %"`` for a natural-log probability."""
    value = 100 * math.exp(min(logprob, 0.0))
    if value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.1 else "<0.1 %"


def format_rate(rate: float) -> str:
    """Return ``"12.3 MiB/s"`` for bytes a second."""
    return f"{format_bytes(rate)}/s"
