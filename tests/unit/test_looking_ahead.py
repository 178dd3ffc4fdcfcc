"""The worker's host works ahead while nobody asks, and stops when somebody does."""

from __future__ import annotations

import os
import pickle
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from llama_magic.engine.framing import Wire
from llama_magic.engine.host import _Host
from llama_magic.engine.protocol import Envelope, Log, Result, StatusRequest, unpack_events

#: Kept open: a host whose kernel goes away ends its process, and here that is the tests' own.
OPEN: list[Connection] = []


class Engine:
    """Looks ahead until it is cancelled, or fails at it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.looking, self.cancelled = threading.Event(), threading.Event()
        self.stopped = 0
        self._fails = fails

    def ready(self) -> None:
        self.cancelled.clear()

    def cancel(self) -> None:
        self.cancelled.set()

    def answer(self, request: Any) -> str:
        assert not self.cancelled.is_set()
        return type(request).__name__

    def look_ahead(self) -> None:
        self.looking.set()
        if self._fails:
            raise RuntimeError("a bug")
        self.stopped += self.cancelled.wait(10)


class Host(_Host):
    def __init__(self, wire: Wire, engine: Any) -> None:
        super().__init__(wire, os.getppid())
        self._engine = engine

    def _engine_for(self, _request: object) -> Any:
        return self._engine


def started(engine: Engine) -> Connection:
    ours, theirs = Pipe()
    OPEN.append(ours)
    OPEN.append(theirs)
    channel = Wire(theirs.recv_bytes, theirs.send_bytes, theirs.poll)
    threading.Thread(target=Host(channel, engine).run, daemon=True).start()
    return ours


def ask(connection: Connection, number: int) -> list[tuple[int, Any]]:
    connection.send_bytes(pickle.dumps(Envelope(number, StatusRequest())))
    events: list[tuple[int, Any]] = []
    while not any(isinstance(event, Result) for _, event in events):
        assert connection.poll(5), "no answer: the host still looks ahead"
        events += unpack_events(connection.recv_bytes())
    return events


def test_a_request_ends_what_is_done_ahead() -> None:
    engine = Engine()
    connection = started(engine)
    for number in range(3):
        assert engine.looking.wait(5)
        engine.looking.clear()
        assert ask(connection, number) == [(number, Result("StatusRequest"))]
        assert engine.stopped == number + 1


def test_a_bug_in_looking_ahead_is_told_in_the_log() -> None:
    engine = Engine(fails=True)
    connection = started(engine)
    assert engine.looking.wait(5)
    events = ask(connection, 1)
    assert [event.level for _, event in events if isinstance(event, Log)] == ["error"]
    assert events[-1] == (1, Result("StatusRequest"))
