"""What state each backend is in: active, built, buildable here, or what it needs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable

from llama_magic.backends.known import KNOWN, KnownBackend
from llama_magic.backends.modules import Module
from llama_magic.backends.prerequisites import Prerequisite, check, missing
from llama_magic.backends.results import Backend, LoadedBackend, LoadedBackends
from llama_magic.backends.setup import Problem

__all__ = ["states"]


def states(
    loaded: LoadedBackends,
    built: dict[str, Module],
    inside: Iterable[str],
    problems: Iterable[Problem] = (),
    platform: str = sys.platform,
    look: Callable[[str], Prerequisite] = check,
    in_use: Iterable[str] = (),
) -> tuple[Backend, ...]:
    """Return a row for each backend of llama.cpp.

    Parameters
    ----------
    loaded
        What the session's worker has.
    built
        The modules that were built here, by backend.
    inside
        Names of the backends that are compiled into llama-cpp-python.
    problems
        What the worker had to leave out.
    look
        Looks for a prerequisite.
    in_use
        Paths of the modules that the worker was given.
    """
    reasons = {problem.what: problem.reason for problem in problems}
    once = functools.cache(look)
    compiled = {"cpu", *inside}
    rows = []
    for known in KNOWN:
        active = next((row for row in loaded.backends if row.name.lower() == known.ggml.lower()), None)
        module = built.get(known.name)
        if known.name == "cpu-variants" and module is not None and {module.path} & set(in_use) - reasons.keys():
            active = loaded.backends[0]
        rows.append(_row(known, active, module, known.name in compiled, reasons, platform, once))
    return tuple(rows)


def _row(
    known: KnownBackend,
    active: LoadedBackend | None,
    module: Module | None,
    inside: bool,
    reasons: dict[str, str],
    platform: str,
    look: Callable[[str], Prerequisite],
) -> Backend:
    source = "wheel" if inside else "module" if module else ""
    detail = known.hint
    if known.name == "cpu" and active is not None:
        detail = ", ".join(name for name, value in active.features if value == "1")
    use, make = f"%llama backend {known.name}", f"%llama build {known.name}"

    def row(state: str, detail: str = detail, fix: str = "") -> Backend:
        devices = active.devices if active is not None else ()
        return Backend(known.name, known.title, state, devices, detail, fix, source)

    if active is not None:
        return row("active")
    if module is not None and (problem := module.problem or reasons.get(module.path)):
        return row("broken", problem, make)
    if source:
        return row("built", fix=use)
    if known.systems and platform not in known.systems:
        return row("unsupported")
    if not known.checked:
        return row("missing")
    what, command = missing(look(key) for key in known.needs)
    return row("missing", what, command) if what else row("buildable", fix=make)
