"""The client of a server elsewhere: what it sends, what it reads, and what errors become."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from llama_magic import errors
from llama_magic.api.connect import connect
from llama_magic.inference.results import Message
from llama_magic.serving.endpoint import parse_endpoint
from llama_magic.serving.problems import Refusal, error_of, refusal_of
from llama_magic.serving.remote import translate
from tests.serving import Start
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("typed", "base"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://localhost:8080/", "http://localhost:8080/v1"),
        ("https://api.example/v1", "https://api.example/v1"),
        ("https://api.example/openai/v1/", "https://api.example/openai/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
    ],
)
def test_addresses(typed: str, base: str) -> None:
    assert parse_endpoint(typed).base_url == base


@pytest.mark.parametrize("typed", ["", "ftp://x", "http://", "http://x:port", "http://me:secret@example.org"])
def test_addresses_that_are_none(typed: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as raised:
        parse_endpoint(typed)
    assert "secret" not in str(raised.value)


def test_the_key_is_not_shown() -> None:
    endpoint = parse_endpoint("127.0.0.1:1", "sk-secret")
    assert "secret" not in repr(endpoint)
    assert endpoint.headers() == {"Authorization": "Bearer sk-secret"}


def test_asking_a_server(start: Start) -> None:
    server = start("one two", "three", "a b c", api_key="sk-secret")
    with connect(server.url, api_key="sk-secret") as model:
        assert (model.info.n_ctx, model.info.n_embd) == (2048, 3)
        done = model.generate([("user", "Hello")], temperature=0.5, top_k=3, stop="X", logprobs=1, max_tokens=5)
        assert (done.text, done.tokens, done.finish_reason) == ("one two ", (0, 1), "stop")
        assert [(row.text, row.logprob) for row in done.logprobs] == [("one ", -0.5), ("two ", -0.5)]
        assert (done.timings.prompt_tokens, done.timings.cached_tokens) == (7, 2)
        assert done.timings.generation_tps == pytest.approx(100)
        assert done.receipt is not None
        assert "secret" not in json.dumps(done.receipt.to_dict())
        prompt, params = server.served.asked[0]
        assert prompt == (Message("user", "Hello"),)
        assert (params.temperature, params.top_k, params.stop, params.max_tokens) == (0.5, 3, ("X",), 5)
        chat = model.conversation("Be brief")
        assert chat.generate("Hi").text == "three "
        assert server.served.asked[1][0] == (Message("system", "Be brief"), Message("user", "Hi"))
        samples = model.generate("Once", samples=2).samples
        assert [sample.text for sample in samples] == ["a b c ", "a b c "]
        assert model.tokenize("ab") == [97, 98]
        assert model.detokenize([97]) == "a"
        assert model.embed(["ab"]) == [[2.0, 0.5, -1.0]]
        assert "secret" not in repr(model)
        for use in (lambda: model.path, lambda: model.metadata, lambda: model.restore("x"), lambda: chat.save("x")):
            with pytest.raises(errors.InvalidRequestError):
                use()
    with pytest.raises(errors.InvalidRequestError, match="connect again"):
        model.generate("x")


def test_what_is_not_changed_is_not_said(start: Start) -> None:
    """A server that knows nothing of llama.cpp takes no parameters of it."""
    server = start()
    with connect(server.url) as model:
        model.generate("x")
        assert server.served.asked[0][1].changed() == {}


def test_stopping_closes_the_connection(start: Start) -> None:
    server = start("a wait b")
    with connect(server.url) as model:
        stream = model.stream("x")
        assert next(stream).text == "a "
        assert stream.cancel().text == "a "
        wait_until(lambda: server.app.gate.inside == 0)
        assert server.served.streams[0].cancelled


def test_errors_come_back_as_they_were(start: Start) -> None:
    full = errors.ContextFullError(5000, 2048, 4096)
    server = start(full, errors.GrammarError("no root"), errors.SchemaError("no"), errors.EngineCrashed("killed"))
    with connect(server.url) as model:
        with pytest.raises(errors.ContextFullError) as raised:
            model.generate("x")
        assert raised.value.args == full.args
        with pytest.raises(errors.GrammarError, match="no root"):
            model.generate("x")
        with pytest.raises(errors.SchemaError):
            model.generate("x")
        with pytest.raises(errors.RemoteError, match="starts again") as crashed:
            model.generate("x")
        assert crashed.value.status == 503


def test_connecting_fails_in_words(start: Start) -> None:
    locked = start(api_key="sk-secret")
    with pytest.raises(errors.RemoteError, match="does not take this API key") as refused:
        connect(locked.url, api_key="sk-wrong")
    assert "wrong" not in str(refused.value)
    with pytest.raises(errors.RemoteError, match="wants an API key"):
        connect(locked.url)
    with pytest.raises(errors.ModelNotFoundError, match="Did you mean fake"):
        connect(start().url, model="fak")
    with pytest.raises(errors.RemoteError, match="can not be reached"):
        connect("http://127.0.0.1:1")


# -- other servers -------------------------------------------------------------------------


class Foreign:
    """A small HTTP server that answers with what it is given, and notes what it was sent."""

    def __init__(self, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, data))
                status, headers, body = answers.get(self.path, (404, {}, b"nothing here"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815 - the name that http.server looks for

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def foreign() -> Iterator[Any]:
    made: list[Foreign] = []

    def begin(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Foreign:
        made.append(Foreign(answers))
        return made[-1]

    yield begin
    for server in made:
        server.stop()


Response = tuple[int, dict[str, str], bytes]
MODELS: Response = (200, {}, b'{"object": "list", "data": [{"id": "m", "owned_by": "somebody"}]}')
SSE = {"Content-Type": "text/event-stream; charset=utf-8"}


def test_a_server_without_additions(foreign: Any) -> None:
    stream = (
        b': a comment\n\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"H\xc3\xa9"}}]}\r\n\r\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"llo"},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n'
    )
    server = foreign({"/v1/models": MODELS, "/v1/chat/completions": (200, SSE, stream)})
    with connect(server.url) as model:
        done = model.generate([("user", "x")], max_tokens=4)
        assert (done.text, done.finish_reason, done.timings.generated_tokens) == ("Héllo", "stop", 2)
        assert json.loads(server.seen[1][2]) == {
            "model": "m", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.8, "top_p": 0.95,
            "max_tokens": 4, "messages": [{"role": "user", "content": "x"}],
        }  # fmt: skip
        with pytest.raises(errors.InvalidRequestError, match="only llama.cpp's servers"):
            model.tokenize("x")


def test_only_newlines_end_a_line_of_a_stream(foreign: Any) -> None:
    """JSON may hold U+2028, U+0085 and others as they are; only `str.splitlines` takes them for ends of lines."""
    text = "one\u2028two\x85three\u2029"
    event = json.dumps(
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False
    )
    for end in ("\n", "\r\n", "\r"):
        stream = f"data: {event}{end}{end}data: [DONE]{end}{end}".encode()
        server = foreign({"/v1/models": MODELS, "/v1/completions": (200, SSE, stream)})
        with connect(server.url) as model:
            assert model.generate("x").text == text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, SSE, b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'), "broke off before the end"),
        ((200, SSE, b"data: {oops\n\n"), "not understood"),
        ((200, SSE, b"data: 5\n\n"), "no event"),
        ((200, SSE, b'data: {"error": {"message": "overheated"}}\n\n'), "overheated"),
        ((200, {"Content-Type": "application/json"}, b"{}"), "does not stream"),
        ((500, {}, b"<html>oops</html>"), "oops"),
        ((429, {}, b'{"error": {"message": "slow down"}}'), "Try again"),
    ],
)
def test_answers_that_are_none(foreign: Any, answer: Any, words: str) -> None:
    server = foreign({"/v1/models": MODELS, "/v1/completions": answer})
    with connect(server.url) as model, pytest.raises(errors.RemoteError, match=words):
        model.generate("x")


def test_nothing_goes_over_a_redirect(foreign: Any) -> None:
    other = foreign({})
    away = (307, {"Location": f"{other.url}/v1/completions"}, b"")
    server = foreign({"/v1/models": MODELS, "/v1/completions": away})
    with connect(server.url, api_key="sk-secret") as model:
        with pytest.raises(errors.RemoteError, match="redirects to") as raised:
            model.generate("PRIVATE")
        assert raised.value.status == 307
    assert server.seen[1][1]["authorization"] == "Bearer sk-secret"
    assert other.seen == []


def test_several_models_need_a_name(foreign: Any) -> None:
    several: Response = (200, {}, b'{"data": [{"id": "a"}, {"id": "b"}]}')
    server = foreign({"/v1/models": several})
    with pytest.raises(errors.InvalidRequestError, match="names one: a, b"):
        connect(server.url)
    connect(server.url, model="b").close()
    with pytest.raises(errors.RemoteError, match="Is it the address"):
        connect(foreign({}).url)
    connect(foreign({}).url, model="any").close()


# -- no error is left unmapped -------------------------------------------------------------


def subclasses(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


TOPS: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)
HTTPX = {kind.__name__: kind for top in TOPS for kind in subclasses(top)}


@pytest.mark.parametrize("kind", HTTPX.values(), ids=HTTPX)
def test_every_error_of_httpx_becomes_one_of_ours(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    error.args = ("it went wrong",)
    found = translate(error, "http://example.org/v1")
    assert isinstance(found, errors.RemoteError | errors.InvalidRequestError)
    assert "http://example.org/v1" in str(found)
    assert str(pickle.loads(pickle.dumps(found))) == str(found)


def test_every_status_becomes_an_error_of_ours() -> None:
    bodies: list[Any] = [None, {}, [], "words", {"error": "words"}, {"error": {"message": None}}, {"detail": "words"}]
    for status in (0, *range(400, 600)):
        for body in bodies:
            assert "there" in str(error_of(status, body, "there"))


def test_a_context_that_is_full_on_a_server_that_does_not_say_how_far_the_model_goes() -> None:
    told = {"code": 400, "message": "request (3001 tokens) exceeds the available context size (2048 tokens), try "
            "increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 3001, "n_ctx": 2048}  # fmt: skip
    found = error_of(400, {"error": told}, "there")
    assert isinstance(found, errors.ContextFullError)
    assert str(found).startswith(
        "the prompt has 3,001 tokens, the context holds 2,048. What helps: a larger context on"
    )


def test_what_we_say_is_what_we_understand() -> None:
    for kind in (errors.GrammarError, errors.SchemaError, errors.ChatTemplateError, errors.InvalidRequestError):
        told = refusal_of(kind("words"))
        assert type(error_of(told.status, told.body(), "there")) is kind
    assert isinstance(
        error_of(404, Refusal(404, "x", code="model_not_found").body(), "there"), errors.ModelNotFoundError
    )
