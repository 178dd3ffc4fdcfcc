"""Messages of a real connection, read whole however they were cut."""

from __future__ import annotations

import os
import random
import sys
import threading
from multiprocessing import Pipe

import pytest

from llama_magic.engine.framing import receiving, wire

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows reads through the connection itself")

SIZES = [0, 1, 3, 4, 5, 100, 16384, 16385, 65531, 65532, 65533, 65536, 1 << 20, 3_000_000]


def test_what_is_sent_arrives_whole_and_in_order() -> None:
    rng = random.Random(1)
    messages = [rng.randbytes(size) for size in [*SIZES, *(rng.randrange(300) for _ in range(300)), *SIZES]]
    ours, theirs = Pipe()

    def send() -> None:
        sends = [wire(theirs.fileno()).send, theirs.send_bytes]  # either side may be the library's own
        for number, message in enumerate(messages):
            sends[number % 2](message)
        theirs.close()

    threading.Thread(target=send, daemon=True).start()
    with receiving(ours) as receive:
        for message in messages:
            assert receive() == message
        with pytest.raises(EOFError):
            receive()


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_any_cut(step: int) -> None:
    long = b"\xff\xff\xff\xff" + (5).to_bytes(8, "big") + b"hello"  # how a message of 2 GiB and more begins
    data = b"\0\0\0\1x" + long + b"\0\0\0\0" + long
    reading, writing = os.pipe()

    def send() -> None:
        for at in range(0, len(data), step):
            os.write(writing, data[at : at + step])
        os.close(writing)

    threading.Thread(target=send, daemon=True).start()
    end = wire(reading)
    for message in [b"x", b"hello", b"", b"hello"]:
        assert end.ready(5)
        assert end.receive() == message
    with pytest.raises(EOFError):
        end.receive()
    os.close(reading)


def test_what_was_read_along_is_ready() -> None:
    reading, writing = os.pipe()
    end = wire(reading)
    assert not end.ready(0.01)
    os.write(writing, b"\0\0\0\1a\0\0\0\1b")
    assert end.receive() == b"a"
    assert end.ready(0.0)
    assert end.receive() == b"b"
    assert not end.ready(0.01)
    os.close(writing)
    assert end.ready(5)  # the end is something to read, too
    os.close(reading)


def test_half_a_message_is_the_end() -> None:
    ours, theirs = Pipe()
    os.write(theirs.fileno(), b"\0\0\0\5he")
    theirs.close()
    with receiving(ours) as receive, pytest.raises(EOFError):
        receive()


def test_a_connection_that_another_thread_closes_is_not_read_under_its_old_number() -> None:
    ours, theirs = Pipe()
    with receiving(ours) as receive:
        ours.close()
        other = [os.pipe() for _ in range(3)]  # one of them gets the number that was closed
        for _, writing in other:
            os.write(writing, b"\0\0\0\3not")
        theirs.send_bytes(b"ours")
        assert receive() == b"ours"
    for pair in other:
        for number in pair:
            os.close(number)
