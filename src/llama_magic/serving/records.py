"""What a server did: a record of each request, without its text."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, overload

from llama_magic.markup import badge, heading, note, page, table, text_table
from llama_magic.units import format_count, format_seconds

__all__ = ["RequestLog", "ServedRequest", "ServedRequests"]

#: Records that are kept.
_KEPT = 200


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request; nothing of what was said is in it.

    Attributes
    ----------
    time
        When it came, in seconds since 1970.
    endpoint
        Which part of the interface it asked.
    status
        The HTTP status; 0 while it runs, 499 where the client went away.
    prompt_tokens, tokens
        Tokens of the prompt, and tokens generated.
    seconds
        How long it took, with its wait.
    tokens_per_second
        Tokens generated per second.
    error
        What went wrong, in words; empty where nothing did.
    number
        A running number.
    """

    time: float
    endpoint: str
    status: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    error: str = ""
    number: int = 0

    @property
    def state(self) -> str:
        """Return "running", "done", "gone" (the client went away), "refused" or "failed"."""
        if not self.status:
            return "running"
        if self.status < 400:
            return "failed" if self.error else "done"
        return "gone" if self.status == 499 else "refused" if self.status < 500 else "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return asdict(self)


_HEAD = ("time", "endpoint", "status", "prompt", "tokens", "tok/s", "took", "")
_ALIGN = "lllrrrrl"
_TONES = {"running": "info", "done": "good", "gone": "warning", "refused": "warning", "failed": "error"}


@dataclass(frozen=True, slots=True, repr=False)
class ServedRequests(Sequence[ServedRequest]):
    """The last requests of a server, the newest first."""

    rows: tuple[ServedRequest, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ServedRequest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ServedRequest]: ...
    def __getitem__(self, index: int | slice) -> ServedRequest | Sequence[ServedRequest]:
        return self.rows[index]

    def __repr__(self) -> str:
        if not self.rows:
            return "No request yet."
        rows = [_cells(row, f"{row.status or ''} {row.state}".strip()) for row in self.rows]
        return text_table(_HEAD, rows, _ALIGN)

    def _repr_html_(self) -> str:
        if not self.rows:
            return page(note(repr(self)))
        rows = [_cells(row, badge(f"{row.status or ''} {row.state}".strip(), _TONES[row.state])) for row in self.rows]
        return page(heading("requests"), table(_HEAD, rows, _ALIGN))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {"requests": [row.to_dict() for row in self.rows]}

    def to_pandas(self) -> Any:
        """Return a row for each request; needs pandas."""
        from pandas import DataFrame

        return DataFrame([row.to_dict() for row in self.rows])


def _cells(row: ServedRequest, status: object) -> tuple[object, ...]:
    return (
        time.strftime("%H:%M:%S", time.localtime(row.time)),
        row.endpoint,
        status,
        format_count(row.prompt_tokens) if row.prompt_tokens else "",
        format_count(row.tokens) if row.tokens else "",
        f"{row.tokens_per_second:.1f}" if row.tokens_per_second else "",
        format_seconds(row.seconds) if row.status else "",
        row.error,
    )


class RequestLog:
    """The records of one server; any thread may write and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[int, ServedRequest] = OrderedDict()
        self._started: dict[int, float] = {}
        self._count = 0
        self._watchers: list[Callable[[], None]] = []

    def begin(self, endpoint: str) -> int:
        """Note a request that came, and return its number."""
        with self._lock:
            self._count += 1
            number = self._count
            self._rows[number] = ServedRequest(time.time(), endpoint, number=number)
            self._started[number] = time.monotonic()
            while len(self._rows) > _KEPT:
                gone, _ = self._rows.popitem(last=False)
                self._started.pop(gone, None)
        self._tell()
        return number

    def note(self, number: int, **changes: Any) -> None:
        """Add to a record; one that is too old is gone already."""
        with self._lock:
            row = self._rows.get(number)
            if row is None:
                return
            if changes.get("status"):
                changes["seconds"] = time.monotonic() - self._started.get(number, time.monotonic())
            self._rows[number] = replace(row, **changes)
        self._tell()

    def rows(self) -> ServedRequests:
        """Return the records, the newest first."""
        with self._lock:
            return ServedRequests(tuple(reversed(self._rows.values())))

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` on every change, on any thread; returns what ends that."""
        self._watchers.append(watcher)

        def end() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return end

    def _tell(self) -> None:
        for watcher in list(self._watchers):
            watcher()
