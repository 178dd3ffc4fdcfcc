"""Waiting for a condition: tests never sleep for a time that is hoped to be enough."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["wait_until"]


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `condition` is true; fail where it does not become so in time."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        pause.wait(0.01)
