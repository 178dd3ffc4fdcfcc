"""`%llama imatrix` in a real IPython shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from llama_magic.quantization.imatrix_file import read_imatrix
from tests.tiny import tiny_llama


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "llama_magic")
    yield made
    InteractiveShell.clear_instance()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "tiny.gguf", experts=True)
    (tmp_path / "a.txt").write_text("a lazy dog sleeps under the brown bridge " * 8)
    (tmp_path / "b.txt").write_text("quick foxes jump over walls and run home " * 8)
    return tmp_path


def shown(shell: Any, line: str) -> RichOutput:
    with capture_output() as captured:
        shell.run_line_magic("llama", f"imatrix {line}")
    # the bar of progress is an output, too, that is emptied at the end
    return captured.outputs[-1]


def test_two_texts(shell: Any, folder: Path) -> None:
    output = shown(shell, "tiny.gguf --text a.txt b.txt -c 64 -t 1 -o m.gguf")
    for data in (output.data["text/plain"], output.data["text/html"]):
        for said in ("Importance matrix of tiny.gguf", "a.txt, b.txt", "10 chunks of 64 tokens", "ffn_down_exps"):
            assert said in data
    assert "text/markdown" not in output.data
    assert read_imatrix("m.gguf").datasets == ("a.txt", "b.txt")
    again = shown(shell, "tiny.gguf --text a.txt b.txt -c 64 -t 1 -o m.gguf")
    assert "was there already" in again.data["text/plain"]
    assert (
        "Importance matrices, added up"
        in shown(shell, "--in-file m.gguf --in-file m.gguf -o s.gguf").data["text/plain"]
    )
    assert read_imatrix("s.gguf").chunk_count == 20


def test_the_text_that_comes_along(shell: Any, folder: Path) -> None:
    output = shown(shell, "tiny.gguf -c 64 --chunks 3 -t 1")
    assert "llama_magic calibration text" in output.data["text/plain"]
    assert (folder / "tiny.imatrix.gguf").is_file()


def test_mistakes_are_one_line(shell: Any, folder: Path) -> None:
    for line, words in {
        "tiny.gguf --text none.txt": "no text file 'none.txt'",
        "tiny.gguf --text a.txt": "only 330 tokens; chunks of 512 need 1,024",
        "tiny.gguf --chunk_size 3": "unknown flag",
        "none.gguf": "none.gguf",
        "tiny.gguf -c 64 -o tiny.gguf": "is the model itself",
        "--in-file a.txt -o b.gguf": "a.txt",
    }.items():
        with pytest.raises(UsageError, match=words), capture_output():
            shell.run_line_magic("llama", f"imatrix {line}")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt", "tiny.gguf"]
