"""What inspecting says, against independent sources: the package gguf, and llama.cpp's own figures when it loads."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from llama_cpp import llama_cpp as lib

from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import ArrayLength
from llama_magic.native import LogCapture
from tests.gguf import Tensor, write_gguf

N_CTX = 4096


@pytest.fixture(scope="module")
def reader(smollm2_path: Path) -> Any:
    return GGUFReader(smollm2_path)


@pytest.mark.smollm2
def test_every_key_agrees_with_gguf(smollm2_path: Path, reader: Any) -> None:
    metadata = read_metadata(smollm2_path)
    theirs = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert set(metadata.values) == set(theirs)
    for name, value in metadata.values.items():
        expected = theirs[name].contents()
        assert (metadata.array(name) if isinstance(value, ArrayLength) else value) == expected, name
    tokens = theirs["tokenizer.ggml.tokens"].contents()
    assert metadata.special_tokens == {
        "bos": tokens[1], "eos": tokens[2], "unknown": tokens[0], "padding": tokens[2],
    }  # fmt: skip


@pytest.mark.smollm2
def test_every_tensor_agrees_with_gguf(smollm2_path: Path, reader: Any) -> None:
    metadata = read_metadata(smollm2_path)
    ours = [(t.name, t.shape, t.type, metadata.data_offset + t.offset, t.size, t.n_params) for t in metadata.tensors]
    theirs = [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.data_offset), int(t.n_bytes), int(t.n_elements))
        for t in reader.tensors
    ]
    assert ours == theirs
    assert metadata.data_offset == reader.data_offset
    assert metadata.file_size == smollm2_path.stat().st_size


@pytest.mark.smollm2
def test_reading_and_showing_is_ten_times_faster_than_gguf(smollm2_path: Path, tmp_path: Path) -> None:
    """Whatever the machine: the best of a few runs of each, in turns."""
    ours, theirs = [], []
    path = shutil.copy(smollm2_path, tmp_path)
    for number in range(3):
        os.utime(path, (number, number))  # a file that changed is read again
        start = time.perf_counter()
        metadata = read_metadata(path)
        assert metadata._repr_html_()
        assert repr(metadata)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        GGUFReader(path)
        theirs.append(time.perf_counter() - start)
    assert min(theirs) >= 10 * min(ours)


def sizes_of(path: Path, log: LogCapture, cache_type: int) -> tuple[float, float]:
    """Return the MiB of KV cache and of recurrent state that llama.cpp makes for a context."""
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    assert model, log.errors()
    params = lib.llama_context_default_params()
    params.n_ctx = N_CTX
    params.n_batch = params.n_ubatch = 512
    params.swa_full = False
    params.flash_attn_type = 1
    params.type_k = params.type_v = cache_type
    log.clear()
    log.install()
    context = lib.llama_init_from_model(model, params)
    lines = [line for _, line in log.lines]
    assert context, lines
    lib.llama_free(context)
    lib.llama_model_free(model)
    found = {
        kind: sum(
            float(match[1]) for line in lines if (match := re.search(rf"{kind} buffer size = +([\d.]+) MiB", line))
        )
        for kind in ("KV", "RS")
    }
    return found["KV"], found["RS"]


@pytest.mark.smollm2
@pytest.mark.parametrize(("name", "number"), [("f16", 1), ("q8_0", 8)])
def test_the_cache_of_smollm2(smollm2_path: Path, log: LogCapture, name: str, number: int) -> None:
    kv, state = sizes_of(smollm2_path, log, number)
    cache = read_metadata(smollm2_path).kv_cache
    assert cache.size(N_CTX, name) / 2**20 == pytest.approx(kv, abs=0.006)
    assert state == 0


def zeros(tensors: dict[str, tuple[int, ...]]) -> list[Tensor]:
    made: list[Tensor] = []
    for name, shape in tensors.items():
        count = 1
        for length in shape:
            count *= length
        made.append((name, shape, 0, struct.pack("<f", 0.0) * count))
    return made


def gemma3(path: Path) -> Path:
    """A model of 12 layers, of which ten have a sliding window."""
    values = {
        "general.architecture": "gemma3",
        "gemma3.block_count": 12,
        "gemma3.context_length": N_CTX,
        "gemma3.embedding_length": 64,
        "gemma3.feed_forward_length": 32,
        "gemma3.attention.head_count": 2,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 128,
        "gemma3.attention.value_length": 128,
        "gemma3.attention.sliding_window": 300,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.vocab_size": 32,
        "tokenizer.ggml.model": "no_vocab",
    }
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, 32), "output_norm.weight": (64,)}
    for layer in range(12):
        tensors |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (64,), "attn_q_norm": (128,), "attn_k_norm": (128,), "post_attention_norm": (64,),
                "attn_q": (64, 256), "attn_k": (64, 128), "attn_v": (64, 128), "attn_output": (256, 64),
                "ffn_norm": (64,), "post_ffw_norm": (64,), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
            }.items()
        }  # fmt: skip
    return write_gguf(path, values, zeros(tensors))


def mamba(path: Path) -> Path:
    """A model of two layers without attention, whose state is large enough to be seen in the log."""
    values = {
        "general.architecture": "mamba",
        "mamba.block_count": 2,
        "mamba.context_length": N_CTX,
        "mamba.embedding_length": 256,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.ssm.conv_kernel": 4,
        "mamba.ssm.inner_size": 512,
        "mamba.ssm.state_size": 128,
        "mamba.ssm.time_step_rank": 2,
        "mamba.attention.layer_norm_rms_epsilon": 1e-6,
        "mamba.vocab_size": 32,
        "tokenizer.ggml.model": "no_vocab",
    }
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (256, 32), "output_norm.weight": (256,)}
    for layer in range(2):
        tensors |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm.weight": (256,), "ssm_in.weight": (256, 1024), "ssm_conv1d.weight": (4, 512),
                "ssm_conv1d.bias": (512,), "ssm_x.weight": (512, 258), "ssm_dt.weight": (2, 512), "ssm_dt.bias": (512,),
                "ssm_a": (128, 512), "ssm_d": (512,), "ssm_out.weight": (512, 256),
            }.items()
        }  # fmt: skip
    return write_gguf(path, values, zeros(tensors))


def test_the_cache_of_a_sliding_window(tmp_path: Path, log: LogCapture) -> None:
    path = gemma3(tmp_path / "gemma3.gguf")
    kv, _ = sizes_of(path, log, 1)
    cache = read_metadata(path).kv_cache
    assert (cache.layers, cache.window_layers) == (2, 10)
    assert cache.size(N_CTX) / 2**20 == pytest.approx(kv, abs=0.011)
    assert kv < 12 * N_CTX * 512 / 2**20


def test_a_state_instead_of_a_cache(tmp_path: Path, log: LogCapture) -> None:
    path = mamba(tmp_path / "mamba.gguf")
    kv, state = sizes_of(path, log, 1)
    assert kv == 0
    assert read_metadata(path).kv_cache.size(N_CTX) / 2**20 == pytest.approx(state, abs=0.006)
    assert state > 0.5


def test_the_sizes_of_types_are_ggml_s() -> None:
    """Bits of every tensor type, as ggml gives them."""
    from llama_magic.models.metadata import TENSOR_TYPES

    ggml = lib._lib
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    for number, (name, block, width) in TENSOR_TYPES.items():
        kind = ctypes.c_int(number)
        assert (ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind)) == (block, width), name
        assert ggml.ggml_type_name(kind).decode().upper() == name.upper()
