"""`%llama serve` and `%llama stop` in a real shell, with a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import llama_magic as lm
from llama_magic.api.serve import serve
from llama_magic.api.session import set_session
from llama_magic.engine.client import EngineClient, get_client, set_client
from llama_magic.notebook.complete import candidates

pytestmark = pytest.mark.smollm2


class Notebook(InteractiveShell):
    """A shell that has a kernel."""

    kernel = object()


@pytest.fixture(scope="module")
def one_shell(smollm2_path: Path) -> Iterator[Any]:
    set_client(EngineClient())
    set_session(None)
    shell: Any = Notebook.instance()
    shell.run_line_magic("load_ext", "llama_magic")
    yield shell
    shell.run_line_magic("unload_ext", "llama_magic")
    Notebook.clear_instance()
    get_client().close()
    set_client(None)
    set_session(None)


@pytest.fixture
def shell(one_shell: Any) -> Iterator[Any]:
    yield one_shell
    for server in lm.servers():
        server.stop()


def say(shell: Any, line: str) -> tuple[str, str]:
    """What a line shows: text, and HTML."""
    with capture_output() as said:
        shell.run_line_magic("llama", line)
    rich = [output.data for output in said.outputs if "text/html" in output.data]
    text = said.stdout + "".join(data["text/plain"] for data in rich)
    return text, "".join(data["text/html"] for data in rich)


def error(shell: Any, line: str) -> str:
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("llama", line)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ask(server: lm.Server, **headers: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    return httpx.post(f"{server.base_url}/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)


def test_serve_look_and_stop(shell: Any) -> None:
    assert say(shell, "stop")[0] == "Nothing is served from this kernel.\n"
    text, page = say(shell, "serve --port 0 -c 512 --alias tiny --out server")
    server = shell.user_ns["server"]
    for shown in (text, page):
        assert f"{server.url}/v1" in shown
        assert f"curl {server.url}/v1/chat/completions" in shown.replace("&#x27;", "'")
    assert "from openai import OpenAI" in page
    assert "Only this machine reaches it" in page
    assert "<script" not in page
    assert ask(server).json()["model"] == "tiny"
    text, page = say(shell, "serve")
    assert "/v1/chat/completions  200 done" in text
    assert "200 done" in page
    assert "Hello" not in text.partition("time  ")[2]
    unloaded = say(shell, "unload")[0]
    assert unloaded.startswith("Unloaded SmolLM2")
    assert f"It is served at {server.url}: the next request loads it again. %llama stop ends that." in unloaded
    assert ask(server).status_code == 200  # it is loaded again by itself
    stopped = say(shell, f"stop {server.port}")[0]
    assert stopped.startswith(f"Stopped {server.url}. The model stays loaded")
    assert not server.running
    assert "stopped" in server._repr_html_()
    assert "served at" not in say(shell, "unload")[0]


def test_beyond_this_machine_there_is_a_key(shell: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text, page = say(shell, "serve --host 0.0.0.0 --port 0 -c 512 --out server")
    server = shell.user_ns["server"]
    key = server.api_key
    assert len(key) >= 43
    for shown in (text, page, say(shell, "serve")[0], repr(server.requests), json.dumps(server.to_dict())):
        assert key not in shown
    assert f"sk-…{key[-4:]}, in full: llama_magic.servers()[0].api_key" in text
    assert "nothing encrypts" in page
    assert lm.servers()[0].api_key == key
    assert ask(server).status_code == 401
    assert ask(server, Authorization=f"Bearer {key}").status_code == 200
    assert "port" in error(shell, f"serve --port {server.port} --host 0.0.0.0")
    (tmp_path / "key.txt").write_text("sk-out-of-a-file-of-mine\n")
    say(shell, f"serve --port 0 --api-key-file {tmp_path / 'key.txt'} --out other")
    assert shell.user_ns["other"].api_key == "sk-out-of-a-file-of-mine"
    # a terminal keeps nothing, so there it is shown, once
    monkeypatch.delattr(Notebook, "kernel")
    text, page = say(shell, "serve --port 0 --api-key auto --out third")
    assert text.startswith(f"API key: {shell.user_ns['third'].api_key}\n")
    assert shell.user_ns["third"].api_key not in page
    assert len(lm.servers()) == 3
    assert say(shell, "stop")[0].count("http://") == 3


def test_lines_that_are_wrong(shell: Any) -> None:
    assert "a port from 0 to 65535" in error(shell, "serve --port 70000")
    assert "a port, for example 8080" in error(shell, "stop everything")
    assert "Did you mean --alias" in error(shell, "serve --alais x")
    assert "no such file" in error(shell, "serve --api-key-file /no/such/file")
    assert "an origin is like" in error(shell, "serve --cors example.org")


def test_a_missing_extra_is_named(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert error(shell, "serve").endswith("pip install 'llama-magic[serve]'")
    with pytest.raises(lm.MissingDependencyError):
        serve("smollm2", port=0)


def test_completion() -> None:
    assert candidates("ser", cell=False) == ("ser", ["serve"])
    assert candidates("serve --al", cell=False) == ("--al", ["--alias", "--allowed-host"])
