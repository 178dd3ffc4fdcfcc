"""The server over a fake model: what goes in, what comes out, and who may ask."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llama_magic import errors
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Message
from llama_magic.serving.listening import open_socket
from llama_magic.serving.orders import read_chat, read_completion
from llama_magic.serving.parameters import IGNORED, SAMPLING
from llama_magic.serving.policy import make_key, make_policy
from llama_magic.serving.problems import Refusal, refusal_of
from llama_magic.serving.views import ServerFacts, mask, server_page, server_text
from tests.serving import Running, Start
from tests.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
BASE = SamplingParams(max_tokens=-1)


def post(server: Running, path: str = "/v1/chat/completions", *, headers: Any = None, **body: Any) -> httpx.Response:
    body = {"messages": HELLO, **body} if path.endswith("chat/completions") else body
    return httpx.post(server.url + path, json=body, headers=headers, trust_env=False)


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    assert all(part.startswith("data: ") for part in parts[:-1])
    return [json.loads(part[6:]) for part in parts[:-2]]


# -- what is read --------------------------------------------------------------------------


def test_parameters_become_sampling_params() -> None:
    body = {
        "messages": HELLO, "temperature": 0.3, "top_p": 0.5, "max_completion_tokens": 9, "stop": "END", "seed": 4.0,
        "n": 2, "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"15": -100, "yes": 2}, "top_k": 7,
        "min_p": 0.1, "repeat_penalty": 1.2, "samplers": ["top_k", "temperature"], "logprobs": True, "top_logprobs": 3,
        "user": "me", "cache_prompt": True,
    }  # fmt: skip
    order = read_chat(body, BASE)
    assert order.params == SamplingParams(
        temperature=0.3, top_p=0.5, max_tokens=9, stop=("END",), seed=4, samples=2, presence_penalty=1.0,
        frequency_penalty=-1.0, logit_bias=((15, -100.0), ("yes", 2.0)), top_k=7, min_p=0.1, repeat_penalty=1.2,
        samplers=("top_k", "temperature"), logprobs=3,
    )  # fmt: skip
    assert order.prompts == ((Message("user", "Hello"),),)
    assert (order.tops, order.stream, order.chat) == (3, False, True)


def test_every_parameter_that_is_read_is_one_of_ours() -> None:
    known = SamplingParams().to_dict()
    assert {field for field, _ in SAMPLING.values()} <= set(known)
    # what is not read: the schema comes by response_format, probabilities are two parameters in OpenAI's interface
    assert set(known) - {field for field, _ in SAMPLING.values()} == {"schema", "logprobs"}
    assert not IGNORED & set(SAMPLING)


def test_nothing_said_means_the_defaults() -> None:
    nulls = dict.fromkeys(("temperature", "stop", "seed", "tools", "response_format", "logprobs", "stream", "n"))
    assert read_chat({"messages": HELLO, **nulls}, BASE).params == BASE
    assert read_chat({"messages": HELLO, "seed": -1, "max_tokens": -1, "tools": []}, BASE).params == BASE


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}, {"type": "array"}),
        ({"type": "json_object", "schema": {"type": "string"}}, {"type": "string"}),
    ],
)
def test_response_format(wanted: Any, schema: Any) -> None:
    found = read_chat({"messages": HELLO, "response_format": wanted}, BASE).params.schema
    assert (None if found is None else json.loads(found)) == schema


def test_contents_in_parts_and_roles() -> None:
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {"role": "assistant", "content": "c", "tool_calls": None},
    ]
    prompt = (Message("system", "Be brief"), Message("user", "a\nb"), Message("assistant", "c"))
    assert read_chat({"messages": messages}, BASE).prompts == (prompt,)


def test_completion_takes_several_prompts() -> None:
    order = read_completion({"prompt": ["a", "b"], "n": 2, "best_of": 2, "logprobs": 0, "echo": True}, BASE)
    assert order.prompts == ("a", "b")
    assert (order.tops, order.params.logprobs, order.echo) == (0, 1, True)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("temperature", {"temperature": "hot"}, "temperature takes a number"),
    ("temperature", {"temperature": True}, "temperature takes a number"),
    ("seed", {"seed": 1.5}, "a whole number"),
    ("stop", {"stop": [1]}, "a text or a list of texts"),
    ("stop", {"stop": ["\ud800"]}, "half of a character"),
    ("n", {"n": 0}, "between 1 and 64"),
    ("stream", {"stream": "yes"}, "true or false"),
    ("max_token", {"max_token": 3}, "Did you mean max_tokens?"),
    ("tools", {"tools": [{"type": "function"}]}, "calls no tools"),
    ("tool_choice", {"tool_choice": "required"}, "calls no tools"),
    ("response_format", {"response_format": {"type": "xml"}}, "text, json_object or json_schema"),
    ("response_format", {"response_format": {"type": "json_schema"}}, "a schema under"),
    ("response_format", {"response_format": {"type": "json_object", "schema": [1]}}, "which is an object"),
    ("logit_bias", {"logit_bias": [1]}, "a map from token ids"),
    ("logit_bias", {"logit_bias": {"5": "x"}}, "a number"),
    ("top_logprobs", {"top_logprobs": 3}, "needs logprobs: true"),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 500}, "between 0 and 100"),
    ("messages", {"messages": []}, "takes a list"),
    ("messages[0]", {"messages": ["hi"]}, "an object with role and content"),
    ("messages[0]", {"messages": [{"role": "tool", "content": "3"}]}, "calls no tools"),
    ("messages[0].role", {"messages": [{"role": "llama", "content": "3"}]}, "system, user or assistant"),
    ("messages[0].content", {"messages": [{"role": "user", "content": None}]}, "a text or a list"),
    ("messages[0].content", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only"),
    ("modalities", {"modalities": ["audio"]}, "text only"),
    ("stream_options", {"stream_options": 1}, "takes an object"),
]


@pytest.mark.parametrize(("param", "body", "words"), BAD)
def test_what_is_refused(param: str, body: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_chat({"messages": HELLO, **body}, BASE)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "prompt is missing"),
        ({"prompt": [1, 2]}, "takes text"),
        ({"prompt": []}, "1 to 64 texts"),
        ({"prompt": "a", "suffix": "b"}, "continued at its end"),
        ({"prompt": "a", "best_of": 3}, "best_of is not supported"),
    ],
)
def test_completions_that_are_refused(body: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal, match=words):
        read_completion(body, BASE)


# -- what comes out ------------------------------------------------------------------------


def test_a_chat(start: Start) -> None:
    server = start()
    found = post(server, model="other").json()
    assert found["object"] == "chat.completion"
    assert found["model"] == "fake"
    assert found["id"].startswith("chatcmpl-")
    assert found["choices"] == [
        {"index": 0, "logprobs": None, "finish_reason": "stop",
         "message": {"role": "assistant", "content": "one two three ", "refusal": None}},
    ]  # fmt: skip
    assert found["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}
    }  # fmt: skip
    assert found["timings"]["predicted_per_second"] == pytest.approx(100)
    assert (found["timings"]["cache_n"], found["timings"]["prompt_n"]) == (2, 5)


def test_a_chat_in_pieces(start: Start) -> None:
    server = start()
    found = events(post(server, stream=True, n=2, stream_options={"include_usage": True}))
    assert {row["object"] for row in found} == {"chat.completion.chunk"}
    assert len({row["id"] for row in found}) == 1
    *pieces, end_0, end_1, usage = found
    for index in (0, 1):
        mine = [row["choices"][0] for row in pieces if row["choices"][0]["index"] == index]
        assert [choice["delta"].get("role") for choice in mine] == ["assistant", None, None]
        assert "".join(choice["delta"]["content"] for choice in mine) == "one two three "
    for index, row in enumerate((end_0, end_1)):
        assert row["choices"] == [{"index": index, "logprobs": None, "finish_reason": "stop", "delta": {}}]
    assert all(row["usage"] is None for row in found[:-1])
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    assert "usage" not in events(post(server, stream=True))[-1]


def test_an_answer_without_a_token_still_has_its_role(start: Start) -> None:
    found = events(post(start(""), stream=True))
    assert [row["choices"][0]["delta"] for row in found] == [{"role": "assistant", "content": ""}]


def test_probabilities_of_a_chat(start: Start) -> None:
    server = start()
    whole = post(server, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert whole[0] == {
        "id": 0, "token": "one ", "logprob": -0.5, "bytes": list(b"one "),
        "top_logprobs": [{"id": 0, "token": "one ", "logprob": -0.5, "bytes": list(b"one ")},
                         {"id": 9, "token": "é\ufffd", "logprob": -1.5, "bytes": None}],
    }  # fmt: skip
    pieces = events(post(server, logprobs=True, top_logprobs=2, stream=True))
    rows = [row for piece in pieces[:-1] for row in piece["choices"][0]["logprobs"]["content"]]
    assert rows == whole
    assert post(server, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_completion(start: Start) -> None:
    server = start("a b", "c")
    found = post(server, "/v1/completions", prompt=["x ", "y "], echo=True, logprobs=1, return_tokens=True).json()
    assert found["object"] == "text_completion"
    assert [choice["text"] for choice in found["choices"]] == ["x a b ", "y c "]
    assert found["choices"][0]["logprobs"] == {
        "tokens": ["a ", "b "], "token_logprobs": [-0.5, -0.5], "top_logprobs": [{"a ": -0.5}, {"b ": -0.5}],
        "text_offset": [0, 2],
    }  # fmt: skip
    assert found["choices"][0]["tokens"] == [0, 1]
    assert [prompt for prompt, _ in server.served.asked] == ["x ", "y "]


def test_a_completion_in_pieces(start: Start) -> None:
    found = events(post(start("a b", "c"), "/v1/completions", prompt=["x", "y"], stream=True, logprobs=0))
    text: dict[int, str] = {0: "", 1: ""}
    for row in found:
        text[row["choices"][0]["index"]] += row["choices"][0]["text"]
    assert text == {0: "a b ", 1: "c "}
    assert [row["choices"][0]["finish_reason"] for row in found] == [None, None, None, "stop", "stop"]
    assert [row["choices"][0]["logprobs"]["text_offset"] for row in found[:3]] == [[0], [2], [0]]


def test_embeddings_tokens_models_health(start: Start) -> None:
    server = start()
    found = post(server, "/v1/embeddings", input=["ab", "c"], model="fake").json()
    assert [row["embedding"] for row in found["data"]] == [[2.0, 0.5, -1.0], [1.0, 0.5, -1.0]]
    assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    packed = post(server, "/v1/embeddings", input="ab", encoding_format="base64").json()["data"][0]["embedding"]
    assert packed == "AAAAQAAAAD8AAIC/"  # 2.0, 0.5, -1.0 as 32-bit little-endian floats
    assert post(server, "/tokenize", content="ab", add_special=True).json() == {"tokens": [1, 97, 98]}
    assert post(server, "/detokenize", tokens=[97]).json() == {"content": "a"}
    models = httpx.get(f"{server.url}/v1/models", trust_env=False).json()
    assert [row["id"] for row in models["data"]] == ["fake"]
    assert httpx.get(f"{server.url}/v1/models/other", trust_env=False).json()["id"] == "fake"
    assert httpx.get(f"{server.url}/health", trust_env=False).json() == {"status": "ok"}


# -- errors --------------------------------------------------------------------------------


def error(response: httpx.Response) -> Any:
    found = response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(found)
    return found


def test_errors_have_openais_shape(start: Start) -> None:
    server = start(errors.ContextFullError(5000, 2048, 4096), max_body=2000)
    full = post(server)
    assert full.status_code == 400
    assert error(full)["code"] == "context_length_exceeded"
    assert (error(full)["n_prompt_tokens"], error(full)["n_ctx"]) == (5000, 2048)
    assert "%llama" not in error(full)["message"]
    wrong = post(server, model="gpt-9")
    assert (wrong.status_code, error(wrong)["code"]) == (404, "model_not_found")
    assert "'fake'" in error(wrong)["message"]
    large = post(server, user="x" * 2000)
    assert (large.status_code, error(large)["code"]) == (413, "body_too_large")
    for content in (b"{", b"[1]", b"\xff", b'{"temperature": NaN}', b"[" * 1500):
        broken = httpx.post(f"{server.url}/v1/chat/completions", content=content, trust_env=False)
        assert (broken.status_code, error(broken)["code"]) == (400, "invalid_json")
    lost = httpx.get(f"{server.url}/nothing", trust_env=False)
    assert lost.status_code == 404
    assert "/v1/chat/completions" in error(lost)["message"]
    assert error(httpx.get(f"{server.url}/v1/completions", trust_env=False))["code"] == "method_not_allowed"
    bad = post(server, temperature="hot")
    assert (error(bad)["type"], error(bad)["param"]) == ("invalid_request_error", "temperature")
    negative = post(server, temperature=-1)
    assert (negative.status_code, error(negative)["message"]) == (400, "temperature must be 0 or more; got -1.0")


def test_a_body_that_hides_its_length_is_cut_off(start: Start) -> None:
    server = start(max_body=2000)

    def parts() -> Iterator[bytes]:
        yield b'{"messages": "'
        for _ in range(100):
            yield b"x" * 1000

    response = httpx.post(f"{server.url}/v1/chat/completions", content=parts(), trust_env=False)
    assert (response.status_code, error(response)["code"]) == (413, "body_too_large")


def test_a_stream_that_is_refused_at_once_has_its_status(start: Start) -> None:
    assert post(start(errors.GrammarError("no root")), stream=True, grammar="x").status_code == 400


def test_a_stream_that_fails_on_the_way_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start("a wait b")

    def fail(*_arguments: Any) -> None:
        raise errors.EngineCrashed("killed", -9, ("/secret/path",))

    monkeypatch.setattr("tests.serving.FakeGeneration._wait", fail)
    response = post(server, stream=True)
    first, last = response.text.strip().split("\n\n")
    assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "a "
    assert json.loads(last[6:])["error"]["code"] == "engine_crashed"
    assert "secret" not in response.text
    wait_until(lambda: server.log.rows()[0].state == "failed")


def every_error() -> list[type[BaseException]]:
    return [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_ours_has_a_status(kind: type[BaseException]) -> None:
    given = (5000, 2048, 4096) if kind is errors.ContextFullError else ("no /home/me/model.gguf",)
    found = refusal_of(kind(*given))
    assert 400 <= found.status <= 504
    assert found.body()["error"]["message"]
    own = issubclass(kind, errors.InvalidRequestError)
    assert (found.status == 400) == (own or kind is errors.ContextFullError)
    # what is not the client's fault is told without paths of this machine
    assert own or "/home" not in found.message


def test_a_bug_is_told_as_one(start: Start) -> None:
    server = start(KeyError("secret"))
    response = post(server)
    assert (response.status_code, error(response)["type"]) == (500, "server_error")
    assert "secret" not in response.text


# -- who may ask ---------------------------------------------------------------------------


def test_the_key(start: Start) -> None:
    server = start(api_key="auto")
    key = server.policy.api_key
    assert key is not None
    assert len(key) >= 43
    assert make_key() != key
    for headers in ({}, {"Authorization": f"Bearer {key}x"}, {"Authorization": key}, {"Authorization": "Bearer é"}):
        encoded = {name: value.encode() for name, value in headers.items()}
        response = post(server, headers=encoded)
        assert (response.status_code, error(response)["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert key not in response.text
    assert post(server, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert post(server, headers={"X-Api-Key": key}).status_code == 200
    assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
    assert key not in repr(server.policy)
    assert key not in repr(server.log.rows())


def test_names_and_origins(start: Start) -> None:
    server = start()
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:80"):
        response = post(server, headers={"Host": host})
        assert (response.status_code, error(response)["code"]) == (403, "host_not_allowed")
    for host in ("localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:80"):
        assert post(server, headers={"Host": host}).status_code == 200
    for origin in ("https://evil.example", "null"):
        response = post(server, headers={"Origin": origin})
        assert (response.status_code, error(response)["code"]) == (403, "origin_not_allowed")
    assert len(server.served.asked) == 4
    assert post(start(allowed_hosts=("lab.example",)), headers={"Host": "lab.example:443"}).status_code == 200


def test_origins_that_are_named(start: Start) -> None:
    server = start(cors=("https://app.example",), api_key="auto")
    preflight = httpx.options(
        f"{server.url}/v1/chat/completions",
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        },
        trust_env=False,
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    refused = post(server, headers={"Origin": "https://app.example"})
    assert refused.status_code == 401  # the page may read why
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    assert post(server, headers={"Origin": "https://other.example"}).status_code == 403


def test_policies() -> None:
    def policy(host: str, key: str | None = None, cors: tuple[str, ...] = ()) -> Any:
        return make_policy(host, key, cors, (), 1000)

    assert policy("127.0.0.1").api_key is None
    assert policy("localhost", "short").api_key == "short"
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert len(policy(host).api_key) >= 43
        assert not policy(host).hosts
    for host, key, cors, words in (
        ("0.0.0.0", "short", (), "16 characters"),
        ("127.0.0.1", "with blank", (), "without blanks"),
        ("127.0.0.1", "", (), "printable"),
        ("127.0.0.1", None, ("*",), "needs an API key"),
        ("127.0.0.1", None, ("example.org",), "an origin is like"),
    ):
        with pytest.raises(errors.InvalidRequestError, match=words):
            policy(host, key, cors)


# -- waiting, going away -------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back(start: Start) -> None:
    server = start("wait a", waiting=0)
    done: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: done.append(post(server)))
    thread.start()
    wait_until(lambda: server.app.gate.inside == 1)
    response = post(server)
    assert (response.status_code, error(response)["code"]) == (503, "queue_full")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 200
    server.served.release.set()
    thread.join(10)
    assert done[0].status_code == 200
    wait_until(lambda: server.app.gate.inside == 0)
    assert post(server).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_generation(start: Start, stream: bool) -> None:
    server = start("wait a" if not stream else "a wait b")
    with httpx.Client(trust_env=False, timeout=1.0 if not stream else 20) as client:
        if stream:
            with client.stream(
                "POST", f"{server.url}/v1/chat/completions", json={"messages": HELLO, "stream": True}
            ) as response:
                assert next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/chat/completions", json={"messages": HELLO}, timeout=0.2)
    wait_until(lambda: server.app.gate.inside == 0)
    assert server.served.streams[0].cancelled
    wait_until(lambda: server.log.rows()[0].status == 499)
    assert server.log.rows()[0].state == "gone"


def test_records_hold_no_text(start: Start) -> None:
    server = start()
    post(server, messages=[{"role": "user", "content": "PRIVATE"}], stop=["PRIVATE"])
    post(server, response_format={"type": "PRIVATE"}, user="PRIVATE")
    httpx.get(f"{server.url}/PRIVATE?q=PRIVATE", trust_env=False)
    wait_until(lambda: len(server.log.rows()) == 3 and all(row.status for row in server.log.rows()))
    rows = server.log.rows()
    assert [(row.endpoint, row.status) for row in rows] == [
        ("(unknown)", 404), ("/v1/chat/completions", 400), ("/v1/chat/completions", 200),
    ]  # fmt: skip
    done = rows[2]
    assert (done.prompt_tokens, done.tokens) == (7, 3)
    assert done.tokens_per_second == pytest.approx(100)
    shown = repr(rows) + rows._repr_html_() + json.dumps(rows.to_dict()) + repr(rows.to_pandas())
    assert "PRIVATE" not in shown


# -- addresses -----------------------------------------------------------------------------


def test_a_port_that_is_in_use_names_one_that_is_free() -> None:
    with open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            errors.ServerError, match=rf"port {port} is in use; (\d+) is free, and port 0 picks"
        ) as raised:
            open_socket("127.0.0.1", port)
        assert "\n" not in str(raised.value)
    free = int(str(raised.value).split("; ")[1].split()[0])
    open_socket("127.0.0.1", free).close()


def test_addresses_that_are_none() -> None:
    with pytest.raises(errors.ServerError, match="no address of this machine"):
        open_socket("no such host", 0)
    with pytest.raises(errors.InvalidRequestError, match="from 0 to 65535"):
        open_socket("127.0.0.1", 65536)


def test_what_is_shown_holds_no_key() -> None:
    key = make_key()
    assert mask(key) == f"sk-…{key[-4:]}"
    assert mask("short") == "…"
    assert mask(None) == ""
    told = ServerFacts("m<b>", "http://127.0.0.1:8080", running=True, local=False, mask=mask(key), place=1)
    for shown in (server_text(told), server_page(told)):
        assert key not in shown
        assert "llama_magic.servers()[1].api_key" in shown
        assert "nothing encrypts" in shown
    assert "m<b>" not in server_page(told)
