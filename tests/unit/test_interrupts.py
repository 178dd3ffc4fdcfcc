from __future__ import annotations

import signal
import threading

import pytest

from llama_magic.notebook.interrupts import OneInterrupt


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_is_raised_the_rest_is_dropped() -> None:
    before = signal.getsignal(signal.SIGINT)
    with OneInterrupt() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            press()
        press()
        press()
    assert interrupt.pending
    assert signal.getsignal(signal.SIGINT) is before


def test_held_ones_are_noted() -> None:
    with OneInterrupt() as interrupt:
        interrupt.hold()
        assert not interrupt.pending
        press()
    assert interrupt.pending


def test_lingering_drops_and_then_passes_on() -> None:
    before = signal.getsignal(signal.SIGINT)
    with OneInterrupt(linger=60) as interrupt, pytest.raises(KeyboardInterrupt):
        press()
    press()
    assert signal.getsignal(signal.SIGINT) is not before
    interrupt._until = 0.0
    with pytest.raises(KeyboardInterrupt):
        press()
    assert signal.getsignal(signal.SIGINT) is before


def test_lingering_ones_do_not_pile_up() -> None:
    before = signal.getsignal(signal.SIGINT)
    for _ in range(3):
        with OneInterrupt(linger=60), pytest.raises(KeyboardInterrupt):
            press()
    with OneInterrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_lingers() -> None:
    before = signal.getsignal(signal.SIGINT)
    with OneInterrupt(linger=60):
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with OneInterrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
