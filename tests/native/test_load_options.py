"""Every load option arrives in llama.cpp: in its parameters, or in what it says while it loads."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from llama_magic.errors import InvalidModelError, InvalidRequestError
from llama_magic.models.loading import context_settings, model_settings
from llama_magic.models.options import LoadOptions
from llama_magic.native import LogCapture, NativeContext, NativeModel
from llama_magic.native.library import lib
from llama_magic.native.loading import ModelSettings, _Place, model_params


def params_of(**keywords: Any) -> tuple[Any, list[Any]]:
    return model_params(model_settings(LoadOptions.from_keywords(**keywords)))


@pytest.mark.parametrize(
    ("option", "field", "value", "expected"),
    [
        ("n_gpu_layers", "n_gpu_layers", 3, 3),
        ("split_mode", "split_mode", "row", 2),
        ("main_gpu", "main_gpu", 2, 2),
        ("lazy_mode", "lazy_mode", "on", 2),
        ("check_tensors", "check_tensors", True, True),
        ("repack", "use_extra_bufts", False, False),
        ("no_host", "no_host", True, True),
        ("use_mmap", "load_mode", False, 0),
        ("use_mlock", "load_mode", True, 3),
        ("direct_io", "load_mode", True, 4),
    ],
)
def test_model_parameters(option: str, field: str, value: object, expected: object) -> None:
    changed, _ = params_of(**{option: value})
    default, _ = params_of()
    assert getattr(changed, field) == expected
    assert getattr(default, field) != expected


def test_shares_places_and_metadata_of_the_model() -> None:
    params, keep = params_of(
        tensor_split="3,1", override_tensor=r"ffn_.*=CPU", n_cpu_moe=2, cpu_moe=True, n_cpu_ffn=1,
        override_kv="a.int=int:-3,a.float=float:0.5,a.bool=bool:true,a.text=str:né",
    )  # fmt: skip
    assert params.tensor_split[:2] == [3.0, 1.0]
    places = ctypes.cast(params.tensor_buft_overrides, ctypes.POINTER(_Place))
    patterns: list[str] = []
    while places[len(patterns)].pattern:
        assert places[len(patterns)].buft
        patterns.append(places[len(patterns)].pattern.decode())
    experts, dense = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", r"\.ffn_(up|down|gate)\."
    assert patterns == [r"ffn_.*", experts, rf"blk\.0{experts}", rf"blk\.1{experts}", rf"blk\.0{dense}"]
    pairs = params.kv_overrides
    assert [(pairs[i].key, pairs[i].tag) for i in range(5)] == [
        (b"a.int", 0), (b"a.float", 1), (b"a.bool", 2), (b"a.text", 3), (b"", 0),
    ]  # fmt: skip
    assert (pairs[0].value.val_i64, pairs[1].value.val_f64, pairs[2].value.val_bool) == (-3, 0.5, True)
    assert pairs[3].value.val_str.decode() == "né"
    assert keep


def test_an_unknown_buffer_type_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"no buffer type 'CPUU'.*has CPU"):
        params_of(override_tensor="ffn=CPUU")


def test_context_parameters(model: NativeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch what is handed to `llama_init_from_model`."""
    seen = []

    def caught(_model: Any, params: Any) -> None:
        seen.append({name: getattr(params, name) for name, *_ in params._fields_})

    monkeypatch.setattr(lib, "llama_init_from_model", caught)
    wanted = {
        "offload_kqv": False, "op_offload": False, "swa_full": False, "rope_freq_base": 5000.0,
        "rope_freq_scale": 0.25, "yarn_orig_ctx": 1024, "yarn_ext_factor": 0.5, "yarn_attn_factor": 2.0,
        "yarn_beta_slow": 3.0, "yarn_beta_fast": 16.0,
    }  # fmt: skip
    options = LoadOptions.from_keywords(rope_scaling="yarn", cache_type_k="q8_0", flash_attn="on", **wanted)
    for chosen in (options, LoadOptions()):
        with pytest.raises(MemoryError):
            NativeContext(model, context_settings(chosen, 256, 2))
    changed, default = seen
    assert {name: changed[name] for name in wanted} == wanted
    assert all(default[name] != value for name, value in wanted.items())
    assert (changed["rope_scaling_type"], default["rope_scaling_type"]) == (2, -1)
    assert (changed["type_k"], changed["flash_attn_type"]) == (8, 1)
    fresh = lib.llama_context_default_params()
    assert all(default[name] == getattr(fresh, name) for name in wanted)


def test_llama_cpp_says_what_it_was_told(smollm2_path: Path, log: LogCapture) -> None:
    options = LoadOptions.from_keywords(
        override_kv={"llama.context_length": 2048}, use_mmap=False, rope_scaling="linear", rope_freq_scale=0.5,
        rope_freq_base=20000.0, override_tensor=r"blk\.0\.ffn_up=CPU", n_ctx=512,
    )  # fmt: skip
    loaded = NativeModel(str(smollm2_path), log, settings=model_settings(options))
    try:
        assert loaded.n_ctx_train == 2048
        text = "\n".join(line for _, line in log.lines)
        assert "CPU_Mapped" not in text
        assert "overriding" in text.lower() or "override" in text.lower()
        context = NativeContext(loaded, context_settings(options, 512, 2))
        text = "\n".join(line for _, line in log.lines)
        assert re.search(r"freq_base\s*= 20000\.0", text)
        assert re.search(r"freq_scale\s*= 0\.5", text)
        context.close()
    finally:
        loaded.close()


def test_a_pattern_that_is_none_is_one_line(smollm2_path: Path, log: LogCapture) -> None:
    with pytest.raises(InvalidModelError) as caught:
        NativeModel(str(smollm2_path), log, settings=ModelSettings(tensor_places=(("ffn_(", "CPU"),)))
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_found(smollm2_path: Path, tmp_path: Path, log: LogCapture) -> None:
    from llama_magic.models.gguf import read_metadata

    metadata = read_metadata(str(smollm2_path))
    tensor = next(tensor for tensor in metadata.tensors if tensor.type == "Q4_1")
    data = bytearray(smollm2_path.read_bytes())
    at = metadata.data_offset + tensor.offset
    data[at : at + 2] = b"\xff\x7f"  # the scale of a block becomes no number
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    NativeModel(str(damaged), log).close()
    with pytest.raises(InvalidModelError, match="invalid data"):
        NativeModel(str(damaged), log, settings=model_settings(LoadOptions(check_tensors=True)))
