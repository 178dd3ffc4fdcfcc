"""Conversations that outlive the kernel: saved, the kernel restarted, restored, in a real kernel with a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook.test_kernel import REPOSITORY, Kernel

SETUP = f"""
import sys
sys.path[:0] = [{str(REPOSITORY / "src")!r}]
%load_ext llama_magic
"""
QUESTION = "%%llama -cnv --temp 0 -n 24 --out answer\nAnd another one?"
TOLD = "t = answer.timings; print(t.prompt_tokens, t.cached_tokens, answer.tokens)"


@pytest.mark.slow
def test_a_conversation_goes_on_after_a_restart(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert smollm2_path.exists()
    monkeypatch.setenv("LLAMA_MAGIC_HOME", str(tmp_path))
    kernel = Kernel()
    try:
        kernel.run(SETUP)
        system = "You are the guide of a zoo. " + "It has llamas, goats and owls. " * 20
        first = f"%%llama -c 1024 -cnv -sys '{system}' --temp 0 -n 24\nName one animal."
        assert kernel.run(first)[0]["status"] == "ok"
        said = kernel.text("%llama save zoo")
        assert "Saved 'chat' as 'zoo': 1 turn, " in said
        assert kernel.run(f"{QUESTION}".replace("-cnv", "-c 1024 -cnv"))[0]["status"] == "ok"
        prompt, cached, tokens = kernel.text(TOLD).split(" ", 2)

        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=60)
        kernel.run(SETUP)
        assert "zoo" in str(kernel.run("%llama restore")[1])
        assert kernel.text("%llama restore zoo").startswith("Restored 'chat' (1 turn); -cnv continues it.")
        assert kernel.run(QUESTION)[0]["status"] == "ok"
        prompt_again, cached_again, tokens_again = kernel.text(TOLD).split(" ", 2)
        assert (prompt_again, tokens_again) == (prompt, tokens)
        assert cached_again == cached
        assert int(prompt_again) - int(cached_again) < 32 < int(cached)

        kernel.text("%llama save --delete zoo")
        assert list((tmp_path / "conversations").iterdir()) == []
        reply, outputs = kernel.run("%llama restore zoo")
        assert reply["status"] == "error"
        assert "no saved conversation 'zoo'" in str(outputs)
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)
