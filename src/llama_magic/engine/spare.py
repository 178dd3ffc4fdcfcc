"""A worker that waits, so that a short job or a first answer is not mostly the start of its worker.

Off unless somebody asks for it, as the notebook does: a script that quantizes once has no use for it. It is started
when a job is likely to come (a plan, a look at a model or at the types, another job) or costs nobody anything (no cell
runs), imports what jobs and models need, does nothing until then, and ends after a while. Whoever needs a worker next
gets it, a job or a session, but only in the environment that it was started in: what a notebook sets in between has to
hold.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_magic.errors import LlamaMagicError

if TYPE_CHECKING:
    from llama_magic.engine.client import Client
    from llama_magic.engine.process import WorkerProcess

__all__ = [
    "IDLE_S", "drop_spare", "end_job", "keep_spare", "not_now", "prepare_soon", "prepare_spare", "take_spare",
]  # fmt: skip

#: Seconds after which a spare worker that nobody needed is ended.
IDLE_S = 1800.0
#: Seconds that the end of a worker may take before the next one does not wait for it.
_ENDING_S = 3.0
#: Seconds after which `prepare_soon` starts one: what was asked for is on the screen by then.
_SOON_S = 0.3


@dataclass(frozen=True, slots=True)
class _Spare:
    process: WorkerProcess
    environment: dict[str, str]
    owner: int
    timer: threading.Timer

    @property
    def fits(self) -> bool:
        """True where who needs a worker now would get it."""
        return self.owner == os.getpid() and self.process.alive and self.environment == dict(os.environ)

    def close(self) -> None:
        """End it, from the process that started it."""
        if self.owner == os.getpid():
            self.timer.cancel()
            self.process.kill()


_lock = threading.Lock()
_wanted = False
_waiting: list[_Spare] = []
_ending: list[threading.Thread] = []
_soon: list[threading.Timer] = []


def keep_spare(wanted: bool) -> None:
    """Say whether there shall be a spare worker from now on; False ends the one there is."""
    global _wanted  # noqa: PLW0603 - one for each process
    _wanted = wanted
    if not wanted:
        drop_spare()


def prepare_spare() -> None:
    """Start a spare worker where one is wanted and none waits. That takes milliseconds: nobody waits for its start."""
    with _lock:
        if not _wanted or _ready():
            return
        while _waiting:
            _waiting.pop().close()
        from llama_magic.engine.process import WorkerProcess

        process = WorkerProcess(early=True)
        timer = threading.Timer(IDLE_S, drop_spare)
        timer.daemon = True
        timer.start()
        _waiting.append(_Spare(process, dict(os.environ), os.getpid(), timer))


def prepare_soon(delay: float | None = None, then: Callable[[], object] | None = None) -> None:
    """Start a spare worker in a moment, where one is wanted: a job may come, and this call must not wait for it.

    Parameters
    ----------
    delay
        Seconds until then. A worker that is started meanwhile, for whatever it is, has the processor for itself.
    then
        Called then, too, in a thread of its own, also where a worker waits already.
    """
    if not _wanted or (then is None and _ready()):
        return
    not_now()
    timer = threading.Timer(_SOON_S if delay is None else delay, _prepare_quietly, (then,))
    timer.daemon = True
    _soon[:] = [timer]
    timer.start()


def _ready() -> bool:
    return any(spare.fits for spare in tuple(_waiting))


def _prepare_quietly(then: Callable[[], object] | None) -> None:
    # A job that can not start its worker says why; a process that ends starts no threads any more.
    with contextlib.suppress(LlamaMagicError, OSError, RuntimeError):
        prepare_spare()
    if then is not None:
        then()


def not_now() -> None:
    """Start none that `prepare_soon` spoke of."""
    for timer in _soon:
        timer.cancel()


def end_job(client: Client, *, wait: bool) -> None:
    """End a job's worker and start a spare one where that is wanted.

    Parameters
    ----------
    wait
        False where the result is there already: nobody has to wait until the worker's memory is given back, but
        `take_spare` does.
    """

    def end() -> None:
        client.close()
        prepare_spare()

    if wait:
        end()
        return
    thread = threading.Thread(target=end, name="llama-magic-ending", daemon=True)
    with _lock:
        _ending[:] = [*(other for other in _ending if other.is_alive()), thread]
        thread.start()


def _settle() -> None:
    """Wait until what ends has ended."""
    with _lock:
        threads = list(_ending)
    for thread in threads:
        thread.join(_ENDING_S)


def take_spare() -> WorkerProcess | None:
    """Return a worker that is started already, None where there is none that fits. The caller ends it."""
    not_now()
    _settle()
    with _lock:
        spare = _waiting.pop() if _waiting else None
    if spare is None:
        return None
    if spare.fits:
        spare.timer.cancel()
        return spare.process
    spare.close()
    return None


def drop_spare() -> None:
    """End the one there is: the next worker starts afresh."""
    not_now()
    _settle()
    with _lock:
        gone, _waiting[:] = _waiting[:], []
    for spare in gone:
        spare.close()
