"""`%llama perplexity` and `%llama diverge` in a real IPython shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from llama_magic.api.evaluate import evaluate_specs
from llama_magic.errors import JobInterrupted
from llama_magic.evaluation.divergence import Divergence
from llama_magic.evaluation.results import KLDivergence, Perplexities
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
    for seed, name in enumerate(["base", "other"]):
        tiny_llama(tmp_path / f"{name}.gguf", seed=seed)
    (tmp_path / "a.txt").write_text("a lazy dog sleeps under the brown bridge " * 12)
    return tmp_path


def shown(shell: Any, line: str) -> RichOutput:
    with capture_output() as captured:
        shell.run_line_magic("llama", line)
    # the bar of progress is an output, too, that is emptied at the end
    return captured.outputs[-1]


def test_perplexity_of_files_and_variables(shell: Any, folder: Path) -> None:
    output = shown(shell, "perplexity other.gguf base.gguf --text a.txt -c 64 -t 1 --out both")
    both = shell.user_ns["both"]
    assert isinstance(both, Perplexities)
    assert [one.model for one in both] == ["other.gguf", "base.gguf"]
    for data in (output.data["text/plain"], output.data["text/html"]):
        for said in ("a.txt: 7 chunks of 64 tokens, 217 tokens scored", f"{both[0].ppl:.4f}"):
            assert said in data
    shell.user_ns["mine"] = (folder / "a.txt").read_text()
    shell.user_ns["place"] = folder / "a.txt"
    shell.user_ns["number"] = 3
    for name in ("mine", "place"):
        again = shown(shell, f"perplexity other.gguf --text {name} -c 64 --chunks 7 -t 1")
        assert f"PPL = {both[0].ppl:.4f}" in again.data["text/plain"]
    with pytest.raises(UsageError, match="variable number is of type int"), capture_output():
        shell.run_line_magic("llama", "perplexity other.gguf --text number")


def test_a_base_gives_every_statistic(shell: Any, folder: Path) -> None:
    output = shown(shell, "perplexity other.gguf --base base.gguf --text a.txt -c 64 -t 1 --out found")
    found = shell.user_ns["found"]
    assert isinstance(found, KLDivergence)
    for said in ("Mean KLD", "99.9% KLD", "RMS Δp", "Same top p", "Cor(ln(PPL(Q)), ln(PPL(base)))"):
        assert said in output.data["text/plain"]
        assert said in output.data["text/html"]
    assert "text/markdown" not in output.data


def test_an_interrupt_shows_what_was_read_once(shell: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any, **named: Any) -> Any:
        found = evaluate_specs(*arguments, **named)
        raise JobInterrupted(found, f"stopped after 7 of 9 chunks; what was read is kept:\n{found!r}")

    monkeypatch.setattr("llama_magic.notebook.actions.evaluate.evaluate_specs", stopped)
    with capture_output() as captured:
        result = shell.run_cell("%llama perplexity other.gguf --text a.txt -c 64 -t 1 --out kept")
    assert f"PPL = {shell.user_ns['kept'].ppl:.4f}" in captured.outputs[-1].data["text/plain"]
    assert isinstance(result.error_in_exec, JobInterrupted)
    assert str(result.error_in_exec) == "stopped after 7 of 9 chunks; what was read is kept."


def test_a_text_is_forced_through_other_models(shell: Any, folder: Path) -> None:
    line = "diverge base.gguf other.gguf -t 1 -p 'a dog' --text a.txt -n 24 --out found"
    output = shown(shell, line)
    found = shell.user_ns["found"]
    assert isinstance(found, Divergence)
    assert found.given
    assert len(found.tokens) == 24
    assert found.text in (folder / "a.txt").read_text()
    assert [token.kld for token in found.base.tokens] == [0.0] * 24
    assert all(token.kld > 0 for token in found.models[0].tokens)
    assert "other" in output.data["text/html"]
    live = shown(shell, f"{line} --live")
    assert "application/vnd.jupyter.widget-view+json" in live.data


def test_mistakes_are_one_line(shell: Any, folder: Path) -> None:
    for line, words in {
        "perplexity other.gguf --text none.txt": "no text file 'none.txt'",
        "perplexity other.gguf --text a.txt": "only 494 tokens; chunks of 512 need 1,024",
        "perplexity --base base.gguf": "name the models to compare",
        "perplexity other.gguf --base base.gguf --stride 4": "a stride goes with perplexity alone",
        "perplexity other.gguf -c 4": "8 or more",
        "perplexity none.gguf": "none.gguf",
        "diverge base.gguf": "needs the reference and a quantized model",
        "diverge base.gguf other.gguf": "needs a prompt",
        "diverge base.gguf other.gguf -p x --top 40": "from 1 to 20",
    }.items():
        with pytest.raises(UsageError, match=words) as caught, capture_output():
            shell.run_line_magic("llama", line)
        assert "\n" not in str(caught.value)
