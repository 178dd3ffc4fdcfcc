"""Requests from several threads to one worker: turns, stops, interrupts, and what dies with a worker."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from llama_magic.api.session import Ask, Session
from llama_magic.engine.client import EngineClient
from llama_magic.engine.protocol import GenerateRequest, Progress, StatusRequest
from llama_magic.engine.stopping import Stopper, asking_as, stopping
from llama_magic.errors import EngineCrashed, EngineError, GenerationInterrupted
from llama_magic.inference.params import SamplingParams
from llama_magic.models.options import ModelSpec
from tests.fakes import ThreadWorker
from tests.waiting import wait_until

SPEC = ModelSpec("fake.gguf", "fake")


def generate(tokens: int = -1) -> GenerateRequest:
    return GenerateRequest(SPEC, SamplingParams(max_tokens=tokens), prompt="hi")


@pytest.fixture
def workers() -> list[ThreadWorker]:
    return []


@pytest.fixture
def client(workers: list[ThreadWorker]) -> Iterator[EngineClient]:
    def start(_environment: object) -> ThreadWorker:
        workers.append(ThreadWorker())
        return workers[-1]

    made = EngineClient()
    made.start_worker = start
    yield made
    made.close()


def in_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as exc:  # noqa: BLE001 - the test looks at it
            found.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def test_a_request_waits_its_turn_and_is_told_what_for(client: EngineClient, workers: list[ThreadWorker]) -> None:
    with asking_as("the panel"):
        first = client.open(generate())
    next(first)
    said: list[Progress] = []
    told = threading.Event()

    def report(progress: Progress) -> None:
        said.append(progress)
        told.set()

    thread, found = in_thread(lambda: client.request(StatusRequest(), report))
    assert told.wait(5)
    assert (said[0].stage, said[0].message) == ("wait", "waiting: the panel is answering a prompt")
    assert client.busy == "the panel is answering a prompt"
    assert not found
    workers[0].let_go.set()
    thread.join(5)
    assert found == [()]
    assert first.collect().finish_reason == "length"
    wait_until(lambda: client.busy == "")  # a result is handed out a moment before the line goes on


def test_in_the_order_they_came(client: EngineClient, workers: list[ThreadWorker]) -> None:
    first = client.open(generate())
    next(first)
    others = [client.open(generate(count)) for count in (1, 2, 3)]
    workers[0].let_go.set()
    for stream in (first, *others):
        stream.collect()
    assert [request.params.max_tokens for request in workers[0].answered if isinstance(request, GenerateRequest)] == [
        -1, 1, 2, 3,
    ]  # fmt: skip


def test_an_interrupt_while_waiting_stops_nothing_else(client: EngineClient, workers: list[ThreadWorker]) -> None:
    first = client.open(generate())
    next(first)
    threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,)).start()
    started = time.monotonic()
    with pytest.raises(GenerationInterrupted):
        client.request(StatusRequest())
    assert time.monotonic() - started < 5
    next(first)
    assert first.running
    workers[0].let_go.set()
    assert first.collect().tokens
    assert len(workers) == 1
    assert len(workers[0].answered) == 1, "what was taken out of the line must not reach the worker"


def test_a_cancelled_stream_that_waits_kills_nobody(client: EngineClient, workers: list[ThreadWorker]) -> None:
    first = client.open(generate())
    next(first)
    second = client.open(generate())
    assert second.cancel().tokens == ()
    next(first)
    assert first.cancel().finish_reason == "interrupted"
    assert len(workers) == 1


def test_a_stream_that_nobody_reads_holds_nobody_up(client: EngineClient) -> None:
    client.open(generate(3))
    assert client.request(StatusRequest()) == ()


def test_a_stopper_stops_another_threads_work(client: EngineClient) -> None:
    stopper = Stopper()
    first = threading.Event()

    def work() -> Any:
        with stopping(stopper):
            stream = client.open(generate())
            next(stream)
            first.set()
            return stream.collect()

    thread, found = in_thread(work)
    assert first.wait(5)
    started = time.monotonic()
    stopper.stop()
    thread.join(5)
    assert time.monotonic() - started < 1
    assert isinstance(found[0], GenerationInterrupted)
    assert found[0].completion.finish_reason == "interrupted"
    assert client.request(StatusRequest()) == ()


def test_a_stop_before_the_request_sends_nothing_and_is_raised_once(client: EngineClient) -> None:
    stopper = Stopper()
    stopper.stop()
    with stopping(stopper):
        with pytest.raises(KeyboardInterrupt):
            client.request(StatusRequest())
        assert not client.alive
        assert client.request(StatusRequest()) == ()  # to tidy up
    assert stopper.asked


def test_a_worker_that_dies_takes_one_request_with_it(client: EngineClient, workers: list[ThreadWorker]) -> None:
    first = client.open(generate())
    next(first)
    second = client.open(generate(2))
    workers[0].kill()
    with pytest.raises(EngineCrashed, match="was killed"):
        first.collect()
    assert second.collect().tokens == (0, 1)
    assert len(workers) == 2


def test_a_deaf_worker_is_killed_and_the_next_one_answers(client: EngineClient, workers: list[ThreadWorker]) -> None:
    first = client.open(generate())
    next(first)
    workers[0].deaf = True
    second = client.open(generate(1))
    assert first.cancel(0.05).finish_reason == "interrupted"
    assert second.collect().tokens == (0,)
    assert not workers[0].alive


def test_closing_gives_up_what_waits(client: EngineClient) -> None:
    first = client.open(generate())
    next(first)
    second = client.open(generate())
    client.close()
    for stream in (first, second):
        with pytest.raises(EngineCrashed):
            stream.collect()
    assert not client.alive
    assert client.request(StatusRequest()) == ()


def test_a_worker_that_can_not_be_started_is_an_error_of_the_request() -> None:
    def fail(_environment: object) -> ThreadWorker:
        raise EngineError("the worker process could not be started: no such file")

    client = EngineClient()
    client.start_worker = fail
    with pytest.raises(EngineError, match="could not be started"):
        client.request(StatusRequest())


def test_a_client_that_nobody_holds_ends_its_worker(workers: list[ThreadWorker]) -> None:
    def start(_environment: object) -> ThreadWorker:
        workers.append(ThreadWorker())
        return workers[-1]

    client = EngineClient()
    client.start_worker = start
    client.open(generate(2)).collect()
    gone = weakref.ref(client)
    del client
    deadline = time.monotonic() + 5
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
    assert gone() is None
    assert not workers[0].alive


def test_many_threads_at_once(client: EngineClient, workers: list[ThreadWorker]) -> None:
    threads = [in_thread(lambda: [client.open(generate(1)).collect().tokens for _ in range(10)]) for _ in range(8)]
    for thread, _ in threads:
        thread.join(20)
    assert [found for _, found in threads] == [[[(0,)] * 10]] * 8
    assert len(workers[0].answered) == 80


def test_a_second_question_waits_for_the_first_answer(
    client: EngineClient, workers: list[ThreadWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell asks in a conversation that the panel is having answered: its prompt holds that answer."""
    session = Session()
    monkeypatch.setattr(session, "client", lambda _spec: client)
    monkeypatch.setattr(session, "spec", lambda *_more: SPEC)
    first = session.start(Ask("one", chat="talk"))
    next(first.stream)
    said: list[Progress] = []
    waits = threading.Event()

    def report(progress: Progress) -> None:
        said.append(progress)
        waits.set()

    thread, found = in_thread(lambda: session.start(Ask("two", chat="talk"), report))
    assert waits.wait(5)
    waits.clear()
    workers[0].let_go.set()
    first.finish(first.stream.collect())
    thread.join(5)
    second = found[0]
    second.finish(second.stream.collect())
    assert [turn.user for turn in session.conversations["talk"].turns] == ["one", "two"]
    third = session.start(Ask("more", chat="talk"))
    thread, found = in_thread(lambda: session.start(Ask("last", chat="talk"), report))
    assert waits.wait(5)
    assert said[-1].message == "waiting: 'talk' is being answered elsewhere"
    third.finish(third.stream.collect())
    thread.join(5)
    users = [message.content for message in found[0].request.messages if message.role == "user"]
    assert users == ["one", "two", "more", "last"]


def test_an_abandoned_answer_holds_no_conversation(
    client: EngineClient, workers: list[ThreadWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    monkeypatch.setattr(session, "client", lambda _spec: client)
    monkeypatch.setattr(session, "spec", lambda *_more: SPEC)
    done = session.start(Ask("zero", chat="talk", sampling={"max_tokens": 1}))
    done.finish(done.stream.collect())
    session.start(Ask("one", chat="talk", sampling={"max_tokens": 1}))
    gc.collect()
    again = session.start(Ask("two", chat="talk", sampling={"max_tokens": 1}))
    assert [message.content for message in again.request.messages if message.role == "user"] == ["zero", "two"]
    assert workers
