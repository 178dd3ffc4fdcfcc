"""The library's subcommands in a real shell, against the Hub on this machine."""

from __future__ import annotations

import builtins
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import StdinNotImplementedError, UsageError
from IPython.core.interactiveshell import InteractiveShell

from llama_magic.api import session as session_module
from llama_magic.engine.client import get_client, set_client
from llama_magic.models.download import Download
from llama_magic.models.hub_cache import repo_folder
from llama_magic.models.library import Catalogue, ModelList, SearchResults
from llama_magic.progress import Progress
from llama_magic.units import format_bytes
from tests.fakes import FakeClient
from tests.gguf import write_gguf
from tests.hub import Hub

REPO = "owner/model-GGUF"


@pytest.fixture(scope="module")
def one_shell() -> Iterator[Any]:
    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(one_shell: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A shell in an empty home, with a Hub that holds one small model."""
    values = {"general.architecture": "llama", "general.file_type": 15}
    data = write_gguf(tmp_path / "m.gguf", values, [("token_embd.weight", (512,), 0, bytes(2048))]).read_bytes()
    hub.add(REPO, {"m-Q4_K_M.gguf": data, "m-Q8_0.gguf": data + random.Random(0).randbytes(100)})
    set_client(FakeClient())
    session_module.set_session(None)
    one_shell.reset(new_session=False)
    one_shell.run_line_magic("load_ext", "llama_magic.notebook")
    yield one_shell
    one_shell.run_line_magic("unload_ext", "llama_magic.notebook")
    set_client(None)


def run(shell: Any, line: str) -> Any:
    """Run a line with ``--out`` and return the object that it gave."""
    shell.run_cell(f"%llama {line} --out got").raise_error()
    return shell.user_ns.pop("got")


def error(shell: Any, line: str) -> str:
    """Run a line that must fail with one line of text."""
    problem = shell.run_cell(f"%llama {line}").error_in_exec
    assert isinstance(problem, UsageError), problem
    assert "\n" not in str(problem)
    return str(problem)


def test_from_search_to_deletion(
    shell: Any, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(shell, "models --search model gguf")
    assert isinstance(found, SearchResults)
    assert [hit.repo for hit in found] == [REPO]

    done = run(shell, f"download {REPO}")
    assert isinstance(done, Download)
    assert "checksum right" in repr(done)
    assert "licence: apache-2.0" in repr(done)
    assert done.path.is_file()

    listed = run(shell, "models")
    assert isinstance(listed, ModelList)
    assert f"{REPO}:Q4_K_M" in [model.ref for model in listed]

    shell.run_cell(f"%llama alias small {REPO}:Q4_K_M").raise_error()
    assert f"small = {REPO}:Q4_K_M" in capsys.readouterr().out

    size = format_bytes(done.size)
    questions: list[str] = []

    def answer(text: str) -> Any:
        def ask(question: str) -> str:
            questions.append(question)
            return text

        return ask

    monkeypatch.setattr(builtins, "input", answer("n"))
    shell.run_cell("%llama delete small").raise_error()
    assert "Nothing was deleted" in capsys.readouterr().out
    assert done.path.is_file()
    monkeypatch.setattr(builtins, "input", answer("Y"))
    shell.run_cell("%llama delete small").raise_error()
    assert questions == [f"Delete {REPO}:Q4_K_M ({size})? [y/N] "] * 2
    assert f"Deleted {REPO}:Q4_K_M; {size} were freed." in capsys.readouterr().out
    assert not repo_folder(REPO).exists()
    assert "is not on this machine" in error(shell, "delete small")

    shell.run_cell("%llama alias --delete small").raise_error()
    shell.run_cell("%llama alias").raise_error()
    assert "no alias yet" in capsys.readouterr().out


def test_where_nobody_can_answer_nothing_is_deleted(
    shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(shell, f"download {REPO}").path

    def refuse(_question: str) -> str:
        raise StdinNotImplementedError("raw_input was called, but this frontend does not support input requests.")

    monkeypatch.setattr(builtins, "input", refuse)
    assert "add --yes" in error(shell, f"delete {REPO}")
    assert path.is_file()
    shell.run_cell(f"%llama delete {REPO} --yes").raise_error()
    assert "were freed" in capsys.readouterr().out
    assert not path.exists()


def test_a_cell_brings_its_model_and_shows_how_far_it_is(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_magic.notebook.terminal_view import TerminalView

    seen: list[Progress] = []
    monkeypatch.setattr(TerminalView, "progress", lambda _self, progress: seen.append(progress))
    shell.run_cell(f"%%llama {REPO}:q8_0\nHello").raise_error()
    assert "download" in [step.stage for step in seen]
    assert any("m-Q8_0.gguf" in step.message for step in seen)
    client = get_client()
    assert isinstance(client, FakeClient)
    assert client.generated[-1].spec.path.endswith("m-Q8_0.gguf")


def test_catalogue_and_mistakes(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(run(shell, "models --catalog"), Catalogue)
    shell.run_cell("%llama models --catalog").raise_error()
    assert "SmolLM2 135M Instruct" in capsys.readouterr().out
    assert "--search smol" in error(shell, "models smol")
    assert "not both" in error(shell, "models --catalog --search x")
    assert "needs a model" in error(shell, "download")
    assert "needs a model" in error(shell, "delete")
    assert "Did you mean Q4_K_M?" in error(shell, f"download {REPO}:Q4_K_S")
    assert "To make it" in error(shell, "alias nothing")
    assert "can not be an alias" in error(shell, "alias a/b smollm2")
    assert "hf:owner/repo/x.gguf" in error(shell, "download https://huggingface.co/owner/repo/blob/main/x.gguf")
    assert "leaves its repository" in error(shell, "download hf:owner/repo/../x.gguf")
    shell.run_cell("%llama download smollm2").raise_error()
    assert "is on this machine already" in capsys.readouterr().out
