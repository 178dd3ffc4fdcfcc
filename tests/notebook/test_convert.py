"""`%llama convert` in a real IPython shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "llama_magic")
    yield made
    InteractiveShell.clear_instance()


def test_from_a_folder_to_a_smaller_file(
    shell: Any, checkpoints: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with capture_output() as captured:
        shell.run_line_magic("llama", f"convert {checkpoints[0] / 'llama'} Q4_K_M,Q8_0 --result made")
    shown = captured.outputs[-1].data
    for data in (shown["text/plain"], shown["text/html"]):
        for words in ("converted to GGUF", "LlamaForCausalLM", "llama-BF16.gguf", "llama-Q4_K_M.gguf", "13 Q4_K"):
            assert words in data
    assert "<script" not in shown["text/html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama-Q4_K_M.gguf", "llama-Q8_0.gguf"]
    assert shell.user_ns["made"].quantized[1].ftype == "Q8_0"
    with pytest.raises(UsageError, match=r"llama-Q8_0.gguf exists; --force"):
        shell.run_line_magic("llama", f"convert {checkpoints[0] / 'llama'} Q8_0")
    with pytest.raises(UsageError, match="goes behind -o"):
        shell.run_line_magic("llama", "convert folder out.gguf")
    with pytest.raises(UsageError, match="convert needs a folder"):
        shell.run_line_magic("llama", "convert")
