"""The worker process: crashes, interrupts, orphans, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import llama_magic as lm
from llama_magic.engine.client import EngineClient
from llama_magic.engine.protocol import (
    EmbedRequest,
    GenerateRequest,
    LoadRequest,
    StatusRequest,
    TokenizeRequest,
    UnloadRequest,
)
from llama_magic.errors import (
    EngineCrashed,
    GenerationInterrupted,
    InvalidModelError,
    InvalidRequestError,
    ModelNotFoundError,
    OutOfMemoryError,
)
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion, Message
from llama_magic.models.options import LoadOptions, ModelInfo, ModelSpec

ENDLESS = SamplingParams(max_tokens=-1, ignore_eos=True, seed=1)
SHORT = SamplingParams(max_tokens=4, seed=1)
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    event = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        event.wait(0.01)
    return True


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_worker_is_one_readable_error_and_the_next_call_works(client: EngineClient, spec: ModelSpec) -> None:
    stream = client.open(GenerateRequest(spec, ENDLESS, prompt="Once"))
    next(stream)
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match="memory ran out") as caught:
        for _ in stream:
            pass
    assert caught.value.exit_code == -signal.SIGKILL
    assert client.open(GenerateRequest(spec, SHORT, prompt="Once")).collect().text
    assert client.pid != pid


def test_a_closed_worker_is_no_crash(client: EngineClient, spec: ModelSpec) -> None:
    stream = client.open(GenerateRequest(spec, ENDLESS, prompt="Once"))
    next(stream)
    client.close()
    with pytest.raises(EngineCrashed, match="closed while this request was answered"):
        for _ in stream:
            pass
    assert client.open(GenerateRequest(spec, SHORT, prompt="Once")).collect().text


def test_a_crash_inside_tells_what_ggml_said(client: EngineClient, spec: ModelSpec) -> None:
    client.request(LoadRequest(spec))
    assert client.pid is not None
    os.kill(client.pid, signal.SIGABRT)
    assert wait_until(lambda: not client.alive, 5)
    assert client.request(StatusRequest()) == ()


def test_cancel_while_generating_keeps_the_text(client: EngineClient, spec: ModelSpec) -> None:
    stream = client.open(GenerateRequest(spec, ENDLESS, prompt="Once upon a time"))
    seen = next(stream).text + next(stream).text
    pid, started = client.pid, time.monotonic()
    partial = stream.cancel()
    assert time.monotonic() - started < 0.5
    assert partial.finish_reason == "interrupted"
    assert partial.text.startswith(seen)
    assert partial.receipt is not None
    assert stream.cancel() is partial
    assert client.open(GenerateRequest(spec, SHORT, prompt="Once")).collect().text
    assert client.pid == pid


def test_cancel_while_a_prompt_is_processed(client: EngineClient, spec: ModelSpec) -> None:
    client.request(LoadRequest(spec))
    for conversation in (None, "a"):
        started = threading.Event()
        stream = client.open(GenerateRequest(spec, ENDLESS, prompt="word " * 1900, conversation=conversation))
        stream.on_progress = lambda progress, event=started: event.set() if progress.stage == "prompt" else None
        threading.Thread(target=lambda stream=stream: next(stream, None), daemon=True).start()
        assert started.wait(20)
        before = time.monotonic()
        other = client.open(GenerateRequest(spec, SHORT, prompt="Next"))
        stream._pending.cancel()  # type: ignore[union-attr]
        assert other.collect().text
        assert time.monotonic() - before < 3


def test_an_interrupt_raises_and_keeps_the_partial_text(client: EngineClient, spec: ModelSpec) -> None:
    stream = client.open(GenerateRequest(spec, ENDLESS, prompt="Once"))
    next(stream)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(GenerationInterrupted) as caught:
        stream.collect()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.completion.tokens
    assert "Interrupted after" in str(caught.value)


def test_an_interrupt_while_loading(client: EngineClient, spec: ModelSpec) -> None:
    client.request(StatusRequest())
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            while True:
                client.request(LoadRequest(spec))
                client.request(UnloadRequest())
    finally:
        assert client.open(GenerateRequest(spec, SHORT, prompt="Once")).collect().text


def test_the_worker_ignores_sigint(client: EngineClient, spec: ModelSpec) -> None:
    stream = client.open(GenerateRequest(spec, SamplingParams(max_tokens=40, ignore_eos=True), prompt="Once"))
    next(stream)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGINT)
    assert stream.collect().finish_reason == "length"


KERNEL = """
import os, sys
import llama_magic as lm
from llama_magic.engine.client import get_client
model = lm.load("smollm2")
stream = model.stream("Once", max_tokens=-1, ignore_eos=True)
next(stream)
if {fork!r} and os.fork() == 0:
    import time
    time.sleep(30)
    os._exit(0)
print(get_client().pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "with a forked child that holds the channel"])
def test_no_worker_outlives_a_kernel_that_was_killed(fork: bool) -> None:
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL.format(fork=fork)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert kernel.stdout is not None
    assert kernel.stdin is not None
    try:
        worker = int(kernel.stdout.readline())
        assert not gone(worker)
        kernel.kill()
        kernel.wait()
        assert wait_until(lambda: gone(worker), 2.0)
    finally:
        os.killpg(kernel.pid, signal.SIGKILL) if fork else None
        kernel.stdout.close()
        kernel.stdin.close()


def test_a_notebooks_own_modules_do_not_take_the_place_of_the_workers(tmp_path: Path) -> None:
    for name in ("random", "queue", "numpy", "jinja2", "token"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    code = (
        "import sys; sys.path.remove(''); import llama_magic as lm\n"
        "print(lm.load('smollm2').generate('The capital of France is', max_tokens=2, temperature=0).text)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Paris.", done.stderr


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("none.gguf", None, ModelNotFoundError, "there is no file"),
        ("empty.gguf", b"", InvalidModelError, "is empty"),
        ("page.gguf", b"<!DOCTYPE html>", InvalidModelError, "web page"),
    ],
)
def test_bad_models_are_one_line(
    client: EngineClient, tmp_path: Path, name: str, content: bytes | None, kind: type[Exception], words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=words) as caught:
        client.request(LoadRequest(ModelSpec(str(path), str(path))))
    assert "\n" not in str(caught.value)
    assert client.alive


def test_truncated_and_damaged_models(client: EngineClient, tmp_path: Path, smollm2_path: Path) -> None:
    data = smollm2_path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidModelError, match="bytes are missing"):
        client.request(LoadRequest(ModelSpec(str(cut), "cut")))
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(data[:4096].replace(b"llama.block_count", b"llama.blokk_count") + data[4096:])
    with pytest.raises(InvalidModelError, match="block_count"):
        client.request(LoadRequest(ModelSpec(str(odd), "odd")))
    assert client.alive


def test_a_model_that_does_not_fit_is_refused_with_numbers(client: EngineClient, spec: ModelSpec) -> None:
    huge = ModelSpec(spec.path, "smollm2", LoadOptions(n_ctx=50_000_000))
    with pytest.raises(OutOfMemoryError, match=r"needs [\d.]+ [GT]iB .* are free.*What helps: .*-c") as caught:
        client.request(LoadRequest(huge))
    assert "\n" not in str(caught.value)


def test_several_models_stay_loaded_and_unload_gives_memory_back(
    client: EngineClient, spec: ModelSpec, base_model_path: Path
) -> None:
    client.request(StatusRequest())
    assert client.pid is not None
    process = psutil.Process(client.pid)
    before = process.memory_info().rss
    other = ModelSpec(str(base_model_path), "base", spec.options)
    for each in (spec, other):
        assert client.open(GenerateRequest(each, SHORT, prompt="Once")).collect().text
    assert [info.path for info in client.request(StatusRequest())] == [spec.path, other.path]
    loaded = process.memory_info().rss
    assert client.request(UnloadRequest(spec.path)) == (spec.path,)
    assert client.request(UnloadRequest()) == (other.path,)
    after = process.memory_info().rss
    assert after - before < 0.25 * (loaded - before)


def test_receipt_and_info(client: EngineClient, spec: ModelSpec) -> None:
    import hashlib

    info = client.request(LoadRequest(spec))
    assert isinstance(info, ModelInfo)
    assert (info.architecture, info.ftype, info.n_layer, info.n_embd) == ("llama", "Q4_1", 30, 576)
    assert info.devices == ("CPU",)
    receipt = client.open(GenerateRequest(spec, SHORT, prompt="Once")).collect().receipt
    assert receipt is not None
    assert receipt.sha256 == "sha256:" + hashlib.sha256(Path(spec.path).read_bytes()).hexdigest()
    assert receipt.seed == 1
    assert receipt.timings["generated_tokens"] == 4
    assert receipt.llama_cpp_commit


def test_tokens_and_embeddings(client: EngineClient, spec: ModelSpec) -> None:
    assert client.request(TokenizeRequest(spec, "<|im_end|>")) == (2,)
    assert len(client.request(TokenizeRequest(spec, "<|im_end|>", special=False))) > 1
    cat, kitten, volcano = client.request(EmbedRequest(spec, ("a cat", "a kitten", "volcanic ash")))
    assert sum(x * x for x in cat) == pytest.approx(1)
    near, far = (sum(x * y for x, y in zip(cat, other, strict=True)) for other in (kitten, volcano))
    assert near > far
    with pytest.raises(InvalidRequestError):
        client.request(EmbedRequest(spec, ("",)))


def test_the_worker_begins_the_next_turn_while_nobody_asks(client: EngineClient, spec: ModelSpec) -> None:
    def ask(*texts: str) -> Completion:
        turns = tuple(Message("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(texts))
        return client.open(GenerateRequest(spec, GREEDY, messages=turns, conversation="a")).collect()

    def left(completion: Completion) -> int:
        return completion.timings.prompt_tokens - completion.timings.cached_tokens

    first = ask("Hi, I am Bob.").text
    at_once = ask("Hi, I am Bob.", first, "Who am I?")
    ask("Hi, I am Bob.")
    time.sleep(1)
    later = ask("Hi, I am Bob.", first, "Who am I?")
    own = client.request(TokenizeRequest(spec, "Who am I?<|im_end|>\n<|im_start|>assistant\n"))
    assert left(later) == len(own)
    assert later.text == at_once.text


def test_python_api() -> None:
    with lm.load("smollm2", n_ctx=512) as model:
        assert model.generate("The capital of France is", max_tokens=8, temperature=0).text.startswith(" Paris")
        assert "".join(chunk.text for chunk in model.stream("One, two,", max_tokens=8, seed=1))
        made = model.generate([("user", "A city as JSON")], schema={"type": "object", "properties": {"city": {"type": "string"}},
                              "required": ["city"]}, max_tokens=60, seed=1)  # fmt: skip
        assert set(made.parsed) == {"city"}
        assert made.receipt is not None
        assert made.receipt.llama_cli.startswith("llama-cli ")
        chat = model.conversation("Be brief.")
        chat.generate("My name is Ada.", max_tokens=8, seed=1)
        second = chat.generate("Who am I?", max_tokens=8, seed=1)
        assert second.timings.cached_tokens > 20
        assert model.detokenize(model.tokenize("héllo 🦙")) == "héllo 🦙"
        assert model.metadata.n_layer == 30
        assert model.path.name.endswith(".gguf")
        with pytest.raises(TypeError, match="Did you mean temperature"):
            model.generate("x", temprature=1)


def test_in_process_engine_gives_the_same_text() -> None:
    with lm.load("smollm2", n_ctx=512) as remote, lm.load("smollm2", n_ctx=512, isolate=False) as local:
        ask: dict[str, Any] = {"max_tokens": 16, "seed": 3}
        assert local.generate("Once upon", **ask).tokens == remote.generate("Once upon", **ask).tokens
        stream = local.stream("Once", max_tokens=-1, ignore_eos=True)
        next(stream)
        assert stream.cancel().finish_reason == "interrupted"
