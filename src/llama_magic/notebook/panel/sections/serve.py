"""Serving: start and stop, address and key, and the requests as they come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llama_magic.errors import InvalidRequestError
from llama_magic.models.card import clean
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.progress import Progress
from llama_magic.units import format_count, format_seconds

if TYPE_CHECKING:
    from llama_magic.api.serve import Server
    from llama_magic.serving.records import ServedRequest

__all__ = ["ServeSection"]

Report = Callable[[Progress], None]

#: Requests that are shown of each server.
_SHOWN = 25
#: Seconds between two looks at them; the workbench's own tick brings what falls between.
_GAP_S = 0.25


class ServeSection(Section):
    """Serve a model to other programs.

    A server that a panel started is a job of that panel: it ends with it. Servers of cells are shown, and can be
    stopped here, but no panel that closes takes them along. Keys are no part of the state, which is saved with the
    notebook: one goes to the panel that asks for it, once.
    """

    name = "serve"

    def __init__(self, bench: Any) -> None:
        super().__init__(bench)
        self._watched: dict[int, Callable[[], None]] = {}
        self._last = 0.0

    def start(self) -> None:
        """Show what is served already."""
        self._read()

    def changed(self, what: str) -> None:
        """Look again: a cell may have started or stopped a server."""
        if what == "tick":
            self._read()

    def ended(self, job: Job) -> None:
        """Show that a server is there no more."""
        if job.lane in ("serve", "unserve"):
            self._read()

    def do_start(
        self,
        panel: str,
        ref: str = "",
        host: str = "127.0.0.1",
        port: int = 8080,
        alias: str = "",
        key: bool = False,
    ) -> None:
        """Serve, until it is stopped or the panel is closed."""
        wanted = ref.strip()
        current = self.session.model

        def work(job: Job, report: Report) -> None:
            from llama_magic.api.serve import serve_session

            same = current is not None and wanted in ("", current.ref)
            server = serve_session(
                self.session, None if same else wanted or None, host=host, port=port, alias=alias.strip() or None,
                api_key="auto" if key else None, progress=report,
            )  # fmt: skip
            self.bench.post(self._read)
            _until_stopped(job, server)

        self.bench.run(panel, "serve", f"starting to serve {wanted or 'the model'}", work)

    def do_stop(self, panel: str, port: int) -> None:
        """End a server, whoever started it."""

        def work(_job: Job, _report: Report) -> None:
            from llama_magic.api.serve import stop_serving

            stop_serving(port)

        self.bench.run(panel, "unserve", "stopping the server", work)

    def do_key(self, panel: str, port: int) -> None:
        """Tell the panel that asks, and nobody else, a server's key."""
        server = next((server for server in _servers() if server.port == port), None)
        if server is None or server.api_key is None:
            raise InvalidRequestError("this server has no key, or has ended")
        self.bench.tell(panel, {"key": {"port": port, "value": server.api_key}})

    # -- what is there ---------------------------------------------------------------------

    def _read(self) -> None:
        self._last = time.monotonic()
        running = _servers()
        for port in set(self._watched) - {server.port for server in running}:
            self._watched.pop(port)()
        for server in running:
            if server.port not in self._watched:
                self._watched[server.port] = server.watch(self._told)
        self.set(servers=[_shown(server) for server in running])

    def _told(self) -> None:
        """Look at the requests soon, but not at each of a flood."""
        if time.monotonic() - self._last >= _GAP_S and self.bench.watched:
            self._last = time.monotonic()
            self.bench.post(self._read)


def _servers() -> tuple[Server, ...]:
    """Return the servers of this kernel; without the module that makes them there are none."""
    module = sys.modules.get("llama_magic.api.serve")
    return () if module is None else tuple(module.servers())


def _until_stopped(job: Job, server: Server) -> None:
    """Wait until the job is stopped, or the server is from elsewhere; in both cases it has ended then."""
    asked = threading.Event()
    job.stopper.attach(asked.set)
    try:
        job.stopper.check()
        while server.running and not asked.wait(0.1):
            pass
    finally:
        job.stopper.detach(asked.set)
        server.stop()


def _shown(server: Server) -> dict[str, Any]:
    from llama_magic.serving.views import curl_line, python_lines

    told = server.facts()
    return {
        "model": clean(told.model), "url": told.url, "base": f"{told.url}/v1", "port": server.port,
        "local": told.local, "mask": told.mask, "curl": curl_line(told), "python": python_lines(told),
        "requests": [_row(row) for row in server.requests[:_SHOWN]],
    }  # fmt: skip


def _row(row: ServedRequest) -> dict[str, Any]:
    return {
        "number": row.number,
        "time": time.strftime("%H:%M:%S", time.localtime(row.time)),
        "endpoint": row.endpoint,
        "status": row.status,
        "state": row.state,
        "prompt": format_count(row.prompt_tokens) if row.prompt_tokens else "",
        "tokens": format_count(row.tokens) if row.tokens else "",
        "rate": f"{row.tokens_per_second:.1f}" if row.tokens_per_second else "",
        "took": format_seconds(row.seconds) if row.status else "",
        "error": clean(row.error),
    }
