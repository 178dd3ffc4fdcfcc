"""`%llama compare`, `%%llama --compare` and `%llama choose` in a real IPython shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from llama_magic.evaluation.comparison import Comparison
from tests.tiny import tiny_llama

#: Small and quick.
QUICK = "-c 64 --chunks 2 --runs 1 --n-prompt 8 --n-gen 2 -t 1"


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "llama_magic")
    yield made
    InteractiveShell.clear_instance()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("compare")
    tiny_llama(folder / "tiny-F32.gguf", still_query=False)
    (folder / "text.txt").write_text("a lazy dog sleeps under the brown bridge " * 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LLAMA_MAGIC_HOME", str(folder / "data"))
        yield folder


def shown(shell: Any, line: str, body: str | None = None) -> RichOutput:
    with capture_output() as captured:
        if body is None:
            shell.run_line_magic("llama", line)
        else:
            shell.run_cell_magic("llama", line, body)
    return captured.outputs[-1]


def test_a_line_gives_the_table_and_keeps_it(shell: Any, home: Path) -> None:
    line = (
        f"compare tiny-F32.gguf Q8_0,Q4_0 {QUICK} --text text.txt --complete -p 'a lazy' -n 4 --out found --save a.json"
    )
    output = shown(shell, line)
    for data in (output.data["text/plain"], output.data["text/html"]):
        for said in (
            "2 levels against F32",
            "Q4_0",
            "KLD",
            "generation tok/s",
            "leaves F32" if "leaves" in data else "a",
        ):
            assert said in data
    assert "text/markdown" not in output.data
    receipt = output.metadata["llama_magic"]
    assert [level["level"] for level in receipt["levels"]] == ["F32", "Q8_0", "Q4_0"]
    assert str(home) not in json.dumps(receipt)
    found = shell.user_ns["found"]
    assert isinstance(found, Comparison)
    assert found.text == "text.txt"
    saved = json.loads((home / "a.json").read_text())
    assert saved["levels"][2]["kld"]["value"] == found["Q4_0"].kld.value  # type: ignore[union-attr]
    assert found["Q4_0"].answer is not None
    assert len(found["Q4_0"].answer.tokens) <= 4


def test_a_cell_lets_levels_answer(shell: Any, home: Path) -> None:
    shell.user_ns["animal"] = "dog"
    cells = (
        "--compare Q8_0 -m tiny-F32.gguf -n 4 -t 1",
        f"compare tiny-F32.gguf Q8_0 --no-text {QUICK} -n 4 --out found",
    )
    for line in cells:
        output = shown(shell, line, "a lazy {animal}\n")
        assert "[Q8_0: " in output.data["text/plain"]
        assert output.metadata["llama_magic"]["prompt"] == "a lazy dog"
    assert shell.user_ns["found"]["Q8_0"].kld is None


def test_choose_and_clear(shell: Any, home: Path) -> None:
    output = shown(
        shell, "choose tiny-F32.gguf Q8_0 Q4_0 --max-kld 9 --text text.txt -c 64 --chunks 2 -t 1 --out choice"
    )
    assert "★ Q4_0" in output.data["text/plain"]
    assert "good enough, but larger" in output.data["text/html"]
    assert Path(shell.user_ns["choice"].ref).name == "tiny-Q4_0.gguf"
    with capture_output() as captured:
        shell.run_line_magic("llama", "compare --clear")
        shell.run_line_magic("llama", "compare --clear")
    assert "Deleted what comparisons had made" in captured.stdout
    assert "nothing to delete" in captured.stdout


def test_mistakes_are_one_line(shell: Any, home: Path) -> None:
    for line, words in {
        "compare tiny-F32.gguf Q9_0": "there is no quantization type",
        "compare none.gguf Q8_0": "none.gguf",
        f"compare tiny-F32.gguf Q8_0 {QUICK} --save a.txt": "the ending has to be one of",
        f"compare tiny-F32.gguf Q8_0 {QUICK} --samples 3": "takes no --samples",
        "compare tiny-F32.gguf Q8_0 --chunk 3": "unknown flag",
        "compare tiny-F32.gguf Q8_0 --text none.txt": "none.txt",
        "choose tiny-F32.gguf Q8_0 --max-memory 1K": "nothing fits",
    }.items():
        with pytest.raises(UsageError, match=words), capture_output():
            shell.run_line_magic("llama", line)
    with pytest.raises(UsageError, match="the prompt is empty"), capture_output():
        shell.run_cell_magic("llama", "--compare Q8_0 -m tiny-F32.gguf", "\n")
