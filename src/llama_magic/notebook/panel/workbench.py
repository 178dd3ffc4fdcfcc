"""The workbench: the state that all panels show, and what their controls do.

One thread owns the state. Panels, jobs and the magics post to it, so nothing here needs a lock, and the main thread,
which cells need, is never held up. `api/session.py` stays the one source of truth: the state is read from it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from llama_magic.api.session import Session, current_session
from llama_magic.errors import LlamaMagicError
from llama_magic.notebook.panel.runner import Job, Runner

if TYPE_CHECKING:
    from llama_magic.notebook.config import Defaults

__all__ = ["Section", "Sink", "Workbench", "workbench"]

#: Takes a message for a panel, and binary buffers.
Sink = Callable[[dict[str, Any], list[bytes]], None]

#: Seconds between two looks at whether the worker still lives.
_LOOK_S = 1.0


class Section:
    """One part of the panel: its state, and its actions, which are its methods named ``do_…``.

    Attributes
    ----------
    name
        The key of its state.
    """

    name = ""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.session = bench.session

    def start(self) -> None:
        """Read what there is, when the first panel opens."""

    def changed(self, what: str) -> None:
        """Read the session again: "model", "defaults" or "chat" changed."""

    def ended(self, job: Job) -> None:
        """Look at a job of any section that is over."""

    def set(self, **values: Any) -> None:
        """Change the section's state; panels are told what is new."""
        self.bench.set(self.name, values)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the section's state."""
        return self.bench.state.get(self.name, {}).get(key, default)


class Workbench:
    """The state that all panels of a session share.

    Parameters
    ----------
    session
        Whose models and conversations it shows.
    """

    def __init__(self, session: Session) -> None:
        from llama_magic.notebook.panel.sections import SECTIONS

        self.session = session
        self.defaults: Defaults | None = None
        self.state: dict[str, dict[str, Any]] = {"jobs": {}, "app": {}}
        self.listeners: list[Callable[[str], None]] = []
        #: By cell: which run of it showed a panel, and that panel.
        self.places: dict[str, tuple[str, Any]] = {}
        self._sinks: dict[str, Sink] = {}
        self._hidden: set[str] = set()
        self._posts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._unwatch: Callable[[], None] | None = None
        self._alive = False
        self.runner = Runner(self.post, self._job_changed)
        self.sections: dict[str, Section] = {kind.name: kind(self) for kind in SECTIONS}

    # -- the thread ------------------------------------------------------------------------

    def post(self, work: Callable[[], None]) -> None:
        """Do something on the state's thread."""
        with self._lock:
            self._posts.put(work)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="llama-magic-panel", daemon=True)
                self._thread.start()

    def call(self, work: Callable[[], Any], timeout: float = 5.0) -> Any:
        """Do something on the state's thread, wait for it, and return what it gives."""
        if threading.current_thread() is self._thread:
            return work()
        found: Future[Any] = Future()

        def answer() -> None:
            try:
                found.set_result(work())
            except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
                found.set_exception(exc)

        self.post(answer)
        return found.result(timeout)

    def _serve(self) -> None:
        while True:
            try:
                work = self._posts.get(timeout=_LOOK_S)
            except queue.Empty:
                if not self._sinks:
                    with self._lock:
                        if self._posts.empty():
                            self._thread = None
                            return
                work = self._tick
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - a bug of one action must not end them all
                self.say_bug(exc)

    def _tick(self) -> None:
        """Look at what nobody tells of: a worker that was killed, figures that change by themselves."""
        alive = self._worker_alive()
        if alive != self._alive:
            self._alive = alive
            self._changed("model")
        if self.watched:
            for section in self.sections.values():
                section.changed("tick")

    @staticmethod
    def _worker_alive() -> bool:
        from llama_magic.engine.client import get_client

        return get_client().alive

    def say_bug(self, exc: BaseException) -> None:
        """Tell of an error that nobody expected, in the panel."""
        import traceback

        detail = "".join(traceback.format_exception(exc))
        self.set("app", {"bug": {"text": f"This is a bug in llama_magic: {type(exc).__name__}: {exc}",
                                 "detail": detail}})  # fmt: skip

    # -- panels ----------------------------------------------------------------------------

    @property
    def watched(self) -> bool:
        """True while a panel can be seen."""
        return bool(set(self._sinks) - self._hidden)

    def open(self, panel: str, sink: Sink) -> dict[str, Any]:
        """Add a panel, and return the state it begins with."""

        def add() -> dict[str, Any]:
            if not self._sinks:
                self._unwatch = self.session.watch(lambda what: self.post(lambda: self._changed(what)))
                self._alive = self._worker_alive()
                for section in self.sections.values():
                    section.start()
            self._sinks[panel] = sink
            return self.snapshot()

        found: dict[str, Any] = self.call(add)
        return found

    def close(self, panel: str) -> None:
        """Take a panel away, and stop what was started from it."""

        def remove() -> None:
            if self._sinks.pop(panel, None) is None:
                return
            self._hidden.discard(panel)
            self.runner.stop_of(panel)
            if not self._sinks and self._unwatch is not None:
                self._unwatch()
                self._unwatch = None

        self.post(remove)

    def show(self, panel: str, *, visible: bool) -> None:
        """Note whether a panel can be seen: figures are measured only then."""
        self._hidden.discard(panel) if visible else self._hidden.add(panel)

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state."""
        return {name: dict(values) for name, values in self.state.items()}

    def set(self, section: str, values: dict[str, Any]) -> None:
        """Change state and tell the panels what is new."""
        held = self.state.setdefault(section, {})
        new = {key: value for key, value in values.items() if key not in held or held[key] != value}
        if new:
            held.update(new)
            self.emit({"set": {section: new}})
            for listener in self.listeners:
                listener(section)

    def emit(self, message: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        """Send a message to all panels."""
        for sink in list(self._sinks.values()):
            sink(message, buffers or [])

    def tell(self, panel: str, message: dict[str, Any]) -> None:
        """Send a message to one panel only."""
        sink = self._sinks.get(panel)
        if sink is not None:
            sink(message, [])

    # -- what happens ----------------------------------------------------------------------

    def receive(self, panel: str, message: dict[str, Any]) -> None:
        """Do what a control of a panel asks; returns at once."""
        self.post(lambda: self._do(panel, message))

    def _do(self, panel: str, message: dict[str, Any]) -> None:
        if panel not in self._sinks:
            return
        name, _, action = str(message.get("do", "")).partition(".")
        arguments = message.get("with") or {}
        if name == "app":
            self._do_app(panel, action, arguments)
            return
        section = self.sections.get(name)
        method = getattr(section, f"do_{action}", None)
        if method is None:
            raise ValueError(f"the panel knows no {name}.{action}")
        try:
            method(panel, **arguments)
        except LlamaMagicError as exc:
            self.fail(name, str(exc))

    def _do_app(self, panel: str, action: str, arguments: dict[str, Any]) -> None:
        if action == "stop":
            self.runner.stop(arguments["lane"])
        elif action == "dismiss":
            self.dismiss(arguments["lane"])
        elif action == "visible":
            self.show(panel, visible=bool(arguments["visible"]))
        elif action == "forgive":
            self.set("app", {"bug": None})
        elif action == "hello":
            sink = self._sinks[panel]
            sink({"all": self.snapshot()}, [])

    def run(
        self,
        panel: str,
        lane: str,
        title: str,
        work: Callable[..., Any],
        done: Callable[[Any], None] = lambda _value: None,
    ) -> Job | None:
        """Start a job for a panel."""

        def ended(job: Job) -> None:
            for section in self.sections.values():
                section.ended(job)

        return self.runner.start(lane, title, work, done, owner=panel, ended=ended)

    def fail(self, lane: str, text: str) -> None:
        """Show an error where it happened."""
        job = Job(lane, "", state="failed", error=text)
        if not self.runner.busy(lane):
            self.runner.jobs[lane] = job
            self._job_changed(job)

    def dismiss(self, lane: str) -> None:
        """Forget how a lane's last job ended."""
        if not self.runner.busy(lane) and self.runner.jobs.pop(lane, None) is not None:
            self.set("jobs", {lane: None})

    def _job_changed(self, job: Job) -> None:
        if self.runner.jobs.get(job.lane) is job:
            self.set("jobs", {job.lane: job.to_dict()})

    def _changed(self, what: str) -> None:
        for section in self.sections.values():
            section.changed(what)

    # -- defaults --------------------------------------------------------------------------

    def set_defaults(self, **values: Any) -> None:
        """Change the session's defaults by way of `%config LlamaMagic`, where the magics are loaded."""
        from traitlets import TraitError

        from llama_magic.errors import InvalidRequestError

        if self.defaults is not None and self.defaults.session is self.session:
            try:
                self.defaults.set(**values)
            except TraitError as error:
                raise InvalidRequestError(str(error)) from error
            return
        from llama_magic.inference.params import SamplingParams

        values = dict(values)
        if "system" in values:
            self.session.system = values.pop("system") or None
        if values:
            self.session.sampling = SamplingParams.from_keywords(self.session.sampling, **values)


_BENCHES: dict[Session, Workbench] = {}


def workbench(session: Session | None = None) -> Workbench:
    """Return the workbench of a session (the shared one when None), made at the first call."""
    session = session or current_session()
    found = _BENCHES.get(session)
    if found is None:
        found = _BENCHES[session] = Workbench(session)
    return found
