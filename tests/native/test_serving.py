"""The server over SmolLM2, asked with OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai import OpenAI

from llama_magic.api.connect import connect
from llama_magic.api.model import Model, load
from llama_magic.api.serve import Server, serve, servers, stop_serving
from llama_magic.engine.client import get_client
from llama_magic.errors import InvalidRequestError, ServerError
from tests.waiting import wait_until

pytestmark = pytest.mark.smollm2

QUESTION: Any = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[Model]:
    with load(str(smollm2_path), n_ctx=1024) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with serve(model, port=0, alias="smollm2", api_key="auto") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0) as made:
        yield made


def chat(client: OpenAI, **more: Any) -> Any:
    more = {"temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(model="smollm2", messages=more.pop("messages", QUESTION), **more)


def test_stream_and_whole_and_the_model_itself_agree(client: OpenAI, model: Model) -> None:
    own = model.generate(QUESTION, temperature=0, max_tokens=24)
    whole = chat(client)
    pieces = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content == own.text
    assert whole.choices[0].finish_reason == own.finish_reason == "length"
    assert whole.usage.prompt_tokens == own.timings.prompt_tokens
    assert whole.usage.completion_tokens == len(own.tokens) == 24
    assert pieces[-1].usage.completion_tokens == 24
    continued = client.completions.create(model="smollm2", prompt="Once upon a time", temperature=0, max_tokens=12)
    assert continued.choices[0].text == model.generate("Once upon a time", temperature=0, max_tokens=12).text


def test_a_seed_gives_the_same_text_again(client: OpenAI, model: Model) -> None:
    texts = {chat(client, temperature=1.2, seed=7).choices[0].message.content for _ in range(2)}
    assert texts == {model.generate(QUESTION, temperature=1.2, seed=7, max_tokens=24).text}


def test_stop_strings_and_samples(client: OpenAI) -> None:
    whole = chat(client).choices[0].message.content
    stop = whole[8:12]
    for stream in (False, True):
        found = chat(client, stop=[stop], stream=stream)
        if stream:
            pieces = list(found)
            text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
            reason = pieces[-1].choices[0].finish_reason
        else:
            text, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.index(stop)], "stop")
    several = chat(client, n=3, temperature=1.5, seed=1, max_tokens=8)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) == 3
    assert several.usage.completion_tokens == 24


def test_probabilities(client: OpenAI, model: Model) -> None:
    found = chat(client, logprobs=True, top_logprobs=3, max_tokens=6).choices[0].logprobs.content
    own = model.generate(QUESTION, temperature=0, max_tokens=6, logprobs=3).logprobs
    assert [(row.token, row.logprob) for row in found] == [(row.text, row.logprob) for row in own]
    assert [[other.token for other in row.top_logprobs] for row in found] == [[o.text for o in row.top] for row in own]
    assert all(row.bytes == list(row.token.encode()) for row in found)
    plain = client.completions.create(model="smollm2", prompt="The sun is", temperature=0, max_tokens=4, logprobs=2)
    rows = plain.choices[0].logprobs
    assert rows is not None
    assert rows.tokens is not None
    assert "".join(rows.tokens) == plain.choices[0].text


def test_json_in_the_shape_of_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "colour": {"type": "string", "enum": ["red", "blue"]},
            "rank": {"type": "integer", "maximum": 9},
        },
        "required": ["colour", "rank"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema, "strict": True}}
    found = json.loads(chat(client, response_format=form, max_tokens=60).choices[0].message.content)
    assert found["colour"] in ("red", "blue")
    assert isinstance(found["rank"], int)
    free = chat(client, response_format={"type": "json_object"}, max_tokens=80, temperature=1, seed=3)
    assert free.choices[0].message.content.lstrip().startswith("{")
    grammar = chat(client, extra_body={"grammar": 'root ::= "yes" | "no"'})
    assert grammar.choices[0].message.content in ("yes", "no")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "https://example.org/s"}}}
    with pytest.raises(openai.BadRequestError, match="only references into the schema"):
        chat(client, response_format=bad)


def test_embeddings(client: OpenAI, model: Model) -> None:
    found = client.embeddings.create(model="smollm2", input=["a llama", "a spoon"])
    own = model.embed(["a llama", "a spoon"])
    assert found.data[1].embedding == pytest.approx(own[1], abs=1e-6)
    assert found.usage.prompt_tokens == sum(
        len(model.tokenize(text, add_special=True)) for text in ("a llama", "a spoon")
    )


def test_errors_are_those_of_openais_client(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as full:
        chat(client, messages=[{"role": "user", "content": "word " * 2000}])
    assert full.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="grammar"):
        chat(client, extra_body={"grammar": "root ::= ("}, stream=True)
    with (
        OpenAI(base_url=server.base_url, api_key="sk-wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_a_client_that_goes_away_frees_the_worker(client: OpenAI, server: Server, model: Model) -> None:
    worker = get_client().pid
    stream = chat(client, stream=True, max_tokens=900, extra_body={"ignore_eos": True})
    next(stream)
    stream.close()
    started = time.monotonic()
    model.generate("a", max_tokens=1)
    assert time.monotonic() - started < 1
    wait_until(lambda: server.requests[0].state == "gone")
    assert get_client().pid == worker  # it was asked to stop, and not killed


def test_a_client_that_waits_in_line_can_go_away(client: OpenAI, server: Server, model: Model) -> None:
    cell = model.stream("Once", max_tokens=900, ignore_eos=True)
    next(cell)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="smollm2", messages=QUESTION)
    wait_until(lambda: server.requests[0].state == "gone")
    assert cell.running
    assert cell.cancel().finish_reason == "interrupted"


def test_two_clients_at_once(client: OpenAI, model: Model) -> None:
    alone = chat(client).choices[0].message.content
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(chat(client).choices[0].message.content)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [alone] * 3


def test_our_own_client(server: Server, model: Model) -> None:
    with connect(server.url, api_key=server.api_key) as far:
        for prompt in (QUESTION, "Once upon a time"):
            here, there = (m.generate(prompt, temperature=0, max_tokens=16) for m in (model, far))
            assert (there.text, there.tokens) == (here.text, here.tokens)
            assert there.timings.prompt_tokens == here.timings.prompt_tokens
        assert (
            far.generate(QUESTION, temperature=0, max_tokens=4, logprobs=2).logprobs
            == model.generate(QUESTION, temperature=0, max_tokens=4, logprobs=2).logprobs
        )
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        assert isinstance(far.generate(QUESTION, schema=schema, max_tokens=40).parsed["n"], int)
        assert far.tokenize("Hello you") == model.tokenize("Hello you")
        assert far.detokenize(far.tokenize("Hello you")) == "Hello you"


def test_langchain(server: Server) -> None:
    from langchain_openai import ChatOpenAI  # takes a second to import

    chat_model = ChatOpenAI(
        base_url=server.base_url, api_key=server.api_key, model="smollm2", temperature=0, max_tokens=8
    )
    whole = chat_model.invoke("Name three colours.").content
    assert "".join(piece.content for piece in chat_model.stream("Name three colours.")) == whole


def test_stopping_while_streaming(model: Model) -> None:
    server = serve(model, port=0)
    with OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        stream = client.completions.create(
            model=server.model, prompt="Once", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 1
        with pytest.raises(openai.APIError, match="stopped on the server"):
            list(stream)
    assert not server.running
    assert server not in servers()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    assert model.generate("a", max_tokens=1).tokens


def test_it_runs_until_its_port_is_closed(model: Model) -> None:
    """What shows servers may look while one is being stopped."""
    server = serve(model, port=0)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/health").status_code == 200  # the connection stays open, which takes a moment to end
        stop = threading.Thread(target=server.stop)
        stop.start()
        wait_until(lambda: not server.running)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        stop.join()


def test_ports_and_keys(server: Server, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match=rf"port {server.port} is in use; \d+ is free"):
        serve(model, port=server.port)
    with pytest.raises(InvalidRequestError, match="no load options"):
        serve(model, n_ctx=5)
    with pytest.raises(TypeError, match="Did you mean n_ctx"):
        serve(str(model.path), port=0, n_cxt=5)
    monkeypatch.setenv("LLAMA_API_KEY", "sk-from-the-environment")
    with serve(model, port=0) as other:
        assert other.api_key == "sk-from-the-environment"
        assert other.api_key not in repr(other) + other._repr_html_() + json.dumps(other.to_dict())
        assert [row.url for row in servers()] == [server.url, other.url]
        assert stop_serving(other.port) == (other.url,)
    assert [row.url for row in servers()] == [server.url]


SCRIPT = """
import sys, threading
from llama_magic.api.model import load
from llama_magic.api.serve import serve
from llama_magic.engine.client import get_client
model = load(sys.argv[1], n_ctx=512)
server = serve(model, port=0)
print(server.port, get_client().pid, flush=True)
input()
"""


@pytest.mark.parametrize("how", ["end", "kill"])
def test_a_process_that_ends_leaves_nothing(smollm2_path: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(smollm2_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        port, worker = map(int, process.stdout.readline().split())
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model=smollm2_path.stem, prompt="Once", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
            )
            next(stream)
            if how == "kill":
                os.kill(process.pid, signal.SIGKILL)
            else:
                process.stdin.write("\n")
                process.stdin.flush()
            assert process.wait(10) == (-signal.SIGKILL if how == "kill" else 0)
            stream.close()
        assert process.stderr.read() == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    wait_until(lambda: not psutil.pid_exists(worker))
