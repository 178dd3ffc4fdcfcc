"""`connect` against llama.cpp's own server, where it was built: it is none of the tools that the tests build."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llama_magic import errors
from llama_magic.api.connect import RemoteModel, connect
from llama_magic.api.model import Model, load
from tests.waiting import wait_until

pytestmark = pytest.mark.smollm2

_KEY = "sk-test"
_QUESTION = [("user", "Name three colours.")]


@pytest.fixture(scope="module")
def address(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tool = Path(os.environ.get("LLAMA_MAGIC_TOOLS", ".")) / "llama-server"
    if not tool.is_file():
        pytest.skip("$LLAMA_MAGIC_TOOLS names no folder with llama-server (llama.cpp's target of that name)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        str(tool), "-m", str(smollm2_path), "--host", "127.0.0.1", "--port", str(port), "-c", "2048", "-np", "2", "-t", "2",
        "--api-key", _KEY, "--alias", "smollm2",
    ]  # fmt: skip
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            wait_until(lambda: _is_up(port), 60)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def there(address: str) -> Iterator[RemoteModel]:
    with connect(address, api_key=_KEY) as model:
        yield model


@pytest.fixture(scope="module")
def here(smollm2_path: Path) -> Iterator[Model]:
    with load(str(smollm2_path), n_ctx=1024) as model:
        yield model


def test_it_answers_as_the_model_here_does(there: RemoteModel, here: Model) -> None:
    assert (there.info.ref, there.info.n_ctx_train, there.info.n_vocab) == ("smollm2", 8192, 49152)
    for prompt in (_QUESTION, "The capital of France is"):
        remote, local = (model.generate(prompt, temperature=0, max_tokens=12) for model in (there, here))
        assert remote.text == local.text
        assert remote.finish_reason == local.finish_reason == "length"
        assert remote.timings.prompt_tokens == local.timings.prompt_tokens
        assert remote.timings.generated_tokens == 12
    text = "Llamas <|im_end|> h\u00e9 \U0001f999"
    assert there.tokenize(text) == here.tokenize(text)
    plain = here.tokenize("Llamas h\u00e9 \U0001f999")
    assert there.detokenize(plain) == here.detokenize(plain)


def test_its_parameters_are_llama_cpp_s(there: RemoteModel) -> None:
    grammar = 'root ::= "red" | "blue"'
    assert there.generate(_QUESTION, grammar=grammar).text in ("red", "blue")
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    assert there.generate(_QUESTION, temperature=0, max_tokens=40, schema=schema).parsed in (
        {"yes": True},
        {"yes": False},
    )
    for changed in (
        {"mirostat": 2},
        {"dry_multiplier": 0.8, "top_n_sigma": 1.0},
        {"samplers": ["top_k", "temperature"]},
    ):
        texts = {there.generate(_QUESTION, seed=3, max_tokens=8, **changed).text for _ in range(2)}
        assert len(texts) == 1, changed
    assert len(there.generate(_QUESTION, max_tokens=4, samples=2).samples) == 2
    first, *_ = there.generate(_QUESTION, temperature=0, max_tokens=2, logprobs=3).logprobs
    assert len(first.top) == 3
    assert first.logprob == max(candidate.logprob for candidate in first.top)
    stopped = there.generate(_QUESTION, temperature=0, max_tokens=40, stop=":")
    assert (stopped.finish_reason, ":" in stopped.text) == ("stop", False)


def test_a_conversation_and_a_stop(there: RemoteModel) -> None:
    chat = there.conversation("Be brief.")
    chat.generate("Hello, I am Ada.", temperature=0, max_tokens=8)
    assert chat.generate("Who am I?", temperature=0, max_tokens=8).timings.cached_tokens > 20
    stream = there.stream("Once upon a time", max_tokens=900, temperature=0, ignore_eos=True)
    assert next(stream).text
    stopped = stream.cancel()
    assert stopped.finish_reason == "interrupted"
    assert stopped.text


def test_its_errors_are_told(address: str, there: RemoteModel) -> None:
    with pytest.raises(errors.RemoteError, match="wants an API key"):
        connect(address)
    with pytest.raises(errors.RemoteError, match="does not take this API key"):
        connect(address, api_key="sk-other")
    with pytest.raises(errors.ContextFullError, match="the context holds"):
        there.generate("word " * 3000, max_tokens=2)
    with pytest.raises(errors.InvalidRequestError, match="grammar"):
        there.generate("x", grammar="root := oops")
    with pytest.raises(errors.RemoteError, match="embeddings"):
        there.embed("A llama")
    assert there.generate("The", max_tokens=2, temperature=0).text
