"""`%llama inspect` in a real IPython shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from llama_magic.models.card import TensorTable
from llama_magic.models.metadata import ModelMetadata
from tests.gguf import write_gguf
from tests.hub import Hub

VALUES = {
    "general.architecture": "llama",
    "general.name": "Tiny <b>model</b>",
    "llama.context_length": 512,
    "llama.block_count": 1,
    "tokenizer.chat_template": "{% if add_generation_prompt %}<img src=x onerror=alert(1)>{% endif %}",
}


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "llama_magic")
    yield made
    InteractiveShell.clear_instance()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", VALUES, [("blk.0.attn_q.weight", (64, 64), 2, bytes(2304))])


def shown(shell: Any, line: str) -> RichOutput:
    with capture_output() as captured:
        shell.run_line_magic("llama", f"inspect {line}")
    (output,) = captured.outputs
    return output


def test_the_card(shell: Any, tiny: Path) -> None:
    output = shown(shell, f"{tiny} --out about")
    page, text = output.data["text/html"], output.data["text/plain"]
    assert isinstance(shell.user_ns["about"], ModelMetadata)
    assert shell.user_ns["about"].path == str(tiny.resolve())
    for said in ("Tiny", "llama", "512 tokens", "Q4_0", "4.50 bits per weight"):
        assert said in page
        assert said in text
    assert "<img" not in page
    assert "<b>model" not in page
    assert "var(--k)" in page  # the template's keywords are coloured
    assert "text/markdown" not in output.data
    assert str(tiny.parent) not in page


def test_tensors_template_and_json(shell: Any, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = shown(shell, f"{tiny} --tensors --out tensors")
    assert "blk.0.attn_q.weight" in table.data["text/html"]
    assert "64 x 64" in table.data["text/plain"]
    assert isinstance(shell.user_ns["tensors"], TensorTable)
    template = shown(shell, f"{tiny} --template")
    assert template.data["text/plain"] == VALUES["tokenizer.chat_template"]
    assert "&lt;img" in template.data["text/html"]
    capsys.readouterr()
    shell.run_line_magic("llama", f"inspect {tiny} --json")
    told = json.loads(capsys.readouterr().out)
    assert told["n_ctx_train"] == 512
    assert told["tensors"][0]["type"] == "Q4_0"


def test_without_a_template(shell: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", {"general.architecture": "llama"})
    assert "no chat template" in shown(shell, f"{path} --template").data["text/plain"]


def test_from_the_hub(shell: Any, hub: Hub, tiny: Path) -> None:
    hub.add("tiny/model-GGUF", {"tiny.Q4_0.gguf": tiny.read_bytes()})
    shown(shell, "tiny/model-GGUF:q4_0 --out about")
    about = shell.user_ns["about"]
    assert about.path == "hf:tiny/model-GGUF/tiny.Q4_0.gguf"
    assert about.transferred == hub.sent


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("none.gguf", "none.gguf"),
        ("smollm2 --json --tensors", "takes one of"),
        ("hf:owner", "hf:owner"),
    ],
)
def test_mistakes_are_one_line(shell: Any, line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        shell.run_line_magic("llama", f"inspect {line}")
    assert "\n" not in str(caught.value)
