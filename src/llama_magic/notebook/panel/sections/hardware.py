"""Hardware: backends and devices, threads, and what is in use while somebody looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

from llama_magic.api.backends import backends
from llama_magic.api.build import build_backend
from llama_magic.api.fit import worker_memory
from llama_magic.api.switching import switch_backend
from llama_magic.api.tune import tune
from llama_magic.backends.built import BuildResult
from llama_magic.backends.host import available_memory, cpu_quota, default_threads
from llama_magic.backends.results import Backends
from llama_magic.backends.setup import selected
from llama_magic.engine.client import get_client
from llama_magic.evaluation.tune import TuneResult
from llama_magic.models.card import clean
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.progress import Progress
from llama_magic.units import format_bytes

__all__ = ["HardwareSection"]

Report = Callable[[Progress], None]

#: Lines of a build that are kept for the view.
_LOG_LINES = 200


class HardwareSection(Section):
    """Look at backends, switch them, watch the meters."""

    name = "hardware"

    def __init__(self, bench: Any) -> None:
        super().__init__(bench)
        self._metering: set[str] = set()
        self._kernel = psutil.Process()
        self._last = 0.0
        self._shown = ""

    def start(self) -> None:
        """Say what this machine is, without starting anything."""
        quota = cpu_quota()
        self.set(
            cpus=psutil.cpu_count() or 1,
            threads=default_threads(),
            quota=None if quota is None else round(quota, 2),
            chosen_threads=self.session.options.n_threads,
            cards=self.get("cards"),
            log=self.get("log", []),
            tuned=self.get("tuned"),
        )

    def changed(self, what: str) -> None:
        """Measure, while a panel shows the meters."""
        if what == "defaults":
            self.set(chosen_threads=self.session.options.n_threads)
        elif what == "tick" and self._metering and self.bench.watched:
            self._measure()
            if self.get("cards") and _selection() != self._shown:  # a cell chose other backends
                self.do_list("")

    def do_list(self, panel: str) -> None:
        """Ask the worker for backends and devices."""
        self.bench.run(panel, "backends", "asking for backends", lambda *_: backends(), self._listed)

    def _listed(self, found: Backends) -> None:
        self._shown = _selection()
        self.set(
            cards=[
                {
                    "name": row.name, "title": clean(row.title), "state": row.state,
                    "detail": clean(row.detail), "fix": clean(row.fix),
                    "devices": [
                        {
                            "name": device.name, "description": clean(device.description), "type": device.type,
                            "free": format_bytes(device.memory_free), "total": format_bytes(device.memory_total),
                        }
                        for device in row.devices
                    ],
                }
                for row in found
            ],
            problems=[f"{clean(problem.what)}: {clean(problem.reason)}" for problem in found.problems],
        )  # fmt: skip

    def do_use(self, panel: str, names: str) -> None:
        """Select backends; the worker starts anew with them."""

        def work(_job: Job, report: Report) -> Backends:
            switch_backend(self.session, names, report)
            return backends()

        self.bench.run(panel, "backends", f"switching to {names}", work, self._listed)

    def do_build(self, panel: str, name: str) -> None:
        """Build a backend; what the compilers say is shown as it comes."""

        def work(_job: Job, report: Report) -> tuple[BuildResult, Backends]:
            def log(progress: Progress) -> None:
                if progress.message:
                    self.bench.post(lambda: self._log(progress.message))
                report(progress)

            return build_backend(name, progress=log), backends()

        self.set(log=[])
        self.bench.run(panel, "build", f"building {name}", work, lambda found: self._listed(found[1]))

    def _log(self, line: str) -> None:
        log = self.get("log") or []
        if log[-1:] != [line]:
            self.set(log=[*log, clean(line)][-_LOG_LINES:])

    def do_tune(self, panel: str, ref: str) -> None:
        """Find the settings with which a model is fastest here."""

        def work(_job: Job, report: Report) -> TuneResult | None:
            return tune(ref, quick=True, progress=report)

        self.bench.run(panel, "tune", f"tuning {ref}", work, self._tuned)

    def _tuned(self, found: TuneResult | None) -> None:
        # Made by the package's own markup, which escapes what comes from files.
        self.set(tuned=None if found is None else found._repr_html_())

    def do_threads(self, _panel: str, n: int | None) -> None:
        """Compute with so many threads from the next load on; None: as many as this container may use."""
        if self.bench.defaults is not None:
            self.bench.defaults.set(n_threads=n)
        else:
            self.session.options = self.session.options.replace(n_threads=n)
        self.set(chosen_threads=n)

    def do_meter(self, panel: str, on: bool) -> None:
        """Measure while a panel shows it."""
        self._metering.add(panel) if on else self._metering.discard(panel)
        if on:
            self._measure()

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._last < 0.5:
            return
        self._last = now
        memory = psutil.virtual_memory()
        pid = get_client().pid
        self.set(
            meter={
                "cpu": psutil.cpu_percent(),
                "kernel": format_bytes(self._kernel.memory_info().rss),
                "worker": format_bytes(worker_memory()) if pid is not None else "",
                "worker_share": worker_memory() / memory.total if pid is not None else 0.0,
                "free": format_bytes(available_memory()),
                "used_share": memory.percent / 100,
            }
        )


def _selection() -> str:
    """Return what is selected, in a form that can be compared."""
    setup = selected()
    return f"{setup.name} {setup.rpc}"
