"""Who wants to know when the session changes, and which conversations are being answered."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from llama_magic.engine.stopping import check_stop
from llama_magic.inference.results import Completion
from llama_magic.progress import Progress, Report

__all__ = ["Answering", "Record", "Watchers"]

#: Records an answer, and returns what there is to say about it.
Record: TypeAlias = Callable[[Completion], tuple[str, ...]]

#: Seconds between two looks at whether a conversation is free.
_LOOK_S = 0.05


class Watchers:
    """Functions to call with a word for what changed, on the thread that changed it."""

    def __init__(self) -> None:
        self._watchers: list[Callable[[str], None]] = []

    def add(self, watcher: Callable[[str], None]) -> Callable[[], None]:
        """Add one; returns what takes it away again."""
        self._watchers.append(watcher)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._watchers.remove(watcher)

        return remove

    def tell(self, what: str) -> None:
        """Tell all of them."""
        for watcher in tuple(self._watchers):
            watcher(what)

    def after(self, record: Record) -> Record:
        """Return what records an answer and tells "model" where one was loaded for it."""

        def finish(completion: Completion) -> tuple[str, ...]:
            notes = record(completion)
            if completion.timings.load_s > 0:
                self.tell("model")
            return notes

        return finish


class Answering:
    """Conversations under an answer, by key: a second question waits, since its prompt begins with the first answer.

    A stream that somebody left unread, or whose request failed, holds nobody up.
    """

    def __init__(self) -> None:
        self._streams: dict[str, weakref.ref[Any]] = {}
        self._pause = threading.Event()

    def begin(self, key: str, stream: Any) -> Callable[[], None]:
        """Note that `stream` answers a conversation; returns what says that it is over."""
        mine = self._streams[key] = weakref.ref(stream)

        def over() -> None:
            if self._streams.get(key) is mine:
                del self._streams[key]

        return over

    def busy(self, key: str) -> bool:
        """Tell whether a conversation is being answered."""
        found = self._streams.get(key)
        stream = None if found is None else found()
        return stream is not None and (stream.running or stream.completion is not None)

    def wait(self, key: str, name: str, report: Report | None) -> None:
        """Wait until a conversation is free, saying so; an interrupt or a stop ends it."""
        said = False
        while self.busy(key):
            if not said and report is not None:
                report(Progress("wait", None, f"waiting: '{name}' is being answered elsewhere"))
            said = True
            check_stop()
            self._pause.wait(_LOOK_S)
