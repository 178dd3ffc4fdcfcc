"""How backends and devices are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_magic.backends.known import find_backend
from llama_magic.markup import Html, badge, details, heading, join, note, page, table, text_table
from llama_magic.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llama_magic.backends.results import Backend, Backends, Device, Devices
    from llama_magic.backends.setup import Problem

__all__ = ["backends_html", "backends_text", "devices_html", "devices_text"]

#: What a state is called, and its tone.
_STATES = {
    "active": ("active", "good"),
    "built": ("built", "info"),
    "buildable": ("can be built", "info"),
    "missing": ("needs something", "info"),
    "unsupported": ("not on this system", "info"),
    "broken": ("broken", "error"),
}
_CODE = "font-family:var(--jp-code-font-family,ui-monospace,monospace);white-space:nowrap"


def _code(text: str) -> Html:
    return join(Html(f'<code style="{_CODE}">'), text, Html("</code>")) if text else Html("")


def backends_html(found: Backends) -> str:
    """Return what the notebook shows of `Backends`."""
    shown, special, rest = _sorted(found)
    rows = [
        (
            join(Html("<b>"), row.name, Html("</b>")),
            badge(*_STATES[row.state]),
            ", ".join(device.name for device in row.devices),
            row.detail,
            _code(row.fix),
        )
        for row in shown
    ]
    build = f"llama.cpp {found.commit}, ggml {found.ggml_version}" if found.commit else ""
    return page(
        heading("Backends", build),
        table(("backend", "state", "devices", "about", "what to run"), rows),
        details(
            f"{len(special)} more for special hardware",
            table(("backend", ""), [(join(Html("<b>"), row.name, Html("</b>")), row.detail) for row in special]),
        )
        if special
        else "",
        note(f"Not on this system: {', '.join(row.name for row in rest)}.") if rest else "",
        *_problems(found.problems),
    )


def _sorted(found: Backends) -> tuple[list[Backend], list[Backend], list[Backend]]:
    """Return what most people look for, what needs special hardware, and what does not exist on this system."""
    rest = [row for row in found if row.state == "unsupported"]
    special = [row for row in found if row.state == "missing" and not find_backend(row.name).checked]
    return [row for row in found if row not in rest and row not in special], special, rest


def backends_text(found: Backends) -> str:
    """Return the same for a terminal."""
    shown, special, rest = _sorted(found)
    rows = [
        (row.name, _STATES[row.state][0], ", ".join(device.name for device in row.devices), _told(row)) for row in shown
    ]
    lines = [text_table(("backend", "state", "devices", "about"), rows)]
    if special:
        lines.append(f"For special hardware: {', '.join(row.name for row in special)}.")
    if rest:
        lines.append(f"Not on this system: {', '.join(row.name for row in rest)}.")
    lines += [f"! {problem.what}: {problem.reason}" for problem in found.problems]
    return "\n".join(lines)


def _told(row: Backend) -> str:
    return "; ".join(part for part in (row.detail, row.fix) if part)


def _memory(device: Device) -> tuple[str, str]:
    if not device.memory_total:
        return "", ""
    return format_bytes(device.memory_free), format_bytes(device.memory_total)


_TYPES = {"gpu": "GPU", "igpu": "integrated GPU", "cpu": "CPU", "accelerator": "accelerator"}
_NOTE = "An accelerator holds no weights: it computes beside the CPU, on main memory."


def devices_html(found: Devices) -> str:
    """Return what the notebook shows of `Devices`."""
    rows = [
        (
            join(Html("<b>"), device.name, Html("</b>")),
            _TYPES.get(device.type, device.type),
            device.description,
            device.backend,
            *_memory(device),
        )
        for device in found
    ]
    return page(
        heading("Devices"),
        table(("device", "type", "about", "backend", "free", "memory"), rows, "llllrr"),
        note(_NOTE) if _any_accelerator(found) else "",
        *_problems(found.problems),
    )


def devices_text(found: Devices) -> str:
    """Return the same for a terminal."""
    rows = [
        (device.name, _TYPES.get(device.type, device.type), device.description, device.backend, *_memory(device))
        for device in found
    ]
    lines = [text_table(("device", "type", "about", "backend", "free", "memory"), rows, "llllrr")]
    if _any_accelerator(found):
        lines.append(_NOTE)
    lines += [f"! {problem.what}: {problem.reason}" for problem in found.problems]
    return "\n".join(lines)


def _any_accelerator(found: Iterable[Device]) -> bool:
    return any(device.type == "accelerator" for device in found)


def _problems(problems: Iterable[Problem]) -> list[Html]:
    return [note(f"{problem.what}: {problem.reason}. It is left out.", "warning") for problem in problems]
