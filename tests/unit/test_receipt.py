from __future__ import annotations

import shlex

from llama_magic.inference.params import SamplingParams
from llama_magic.inference.receipt import _ALWAYS, _CHANGED, _LOADING, _SWITCHES, llama_cli_line
from llama_magic.inference.results import Message
from llama_magic.models.options import LoadOptions

OPTIONS = LoadOptions(n_ctx=2048, n_threads=2)


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def value(line: str, flag: str) -> str:
    found = words(line)
    return found[found.index(flag) + 1]


def test_a_chat() -> None:
    messages = (Message("system", "be brief"), Message("user", "it's {a} $b `c`\n\\n 😀"))
    line = llama_cli_line(OPTIONS, SamplingParams(seed=3), path="/m o/m.gguf", messages=messages)
    assert words(line)[:3] == ["llama-cli", "-m", "/m o/m.gguf"]
    assert value(line, "-p") == messages[1].content
    assert value(line, "-sys") == "be brief"
    assert value(line, "-s") == "3"
    assert value(line, "-c") == "2048"
    assert value(line, "--temp") == "0.8"
    assert {"-st", "--no-escape"} <= set(words(line))


def test_a_completion() -> None:
    line = llama_cli_line(OPTIONS, SamplingParams(seed=3, max_tokens=-1), path="m.gguf", prompt="Once")
    assert words(line)[0] == "llama-completion"
    assert "-no-cnv" in words(line)
    assert value(line, "-n") == "-1"


def test_other_machines_are_named() -> None:
    hosts = ("10.0.0.2:50052", "127.0.0.1:50053")
    line = llama_cli_line(OPTIONS, SamplingParams(), path="m.gguf", prompt="a", rpc=hosts)
    assert value(line, "--rpc") == "10.0.0.2:50052,127.0.0.1:50053"
    assert "--rpc" not in words(llama_cli_line(OPTIONS, SamplingParams(), path="m.gguf", prompt="a"))


def test_only_what_differs_is_written() -> None:
    line = llama_cli_line(OPTIONS, SamplingParams(seed=3), path="m.gguf", prompt="a")
    assert not {"--samplers", "--mirostat", "-r", "-ngl", "-fa", "-lm", "--ignore-eos"} & set(words(line))


def test_sampling() -> None:
    params = SamplingParams(
        seed=0, mirostat=2, mirostat_tau=4.0, samplers=("top_k", "temperature"), stop=("\n", "END"), repeat_last_n=-1,
        logit_bias=((15, -1.5), (16, 2.0), (" Hello", 1.0)), ignore_eos=True, grammar='root ::= "a"', samples=2,
        dry_sequence_breakers=(), temperature=1e-5,
    )  # fmt: skip
    line = llama_cli_line(OPTIONS, params, path="m.gguf", prompt="a")
    found = words(line)
    assert value(line, "--samplers") == "top_k;temperature"
    assert [found[i + 1] for i, word in enumerate(found) if word == "-r"] == ["\n", "END"]
    assert [found[i + 1] for i, word in enumerate(found) if word == "--logit-bias"] == ["15-1.5", "16+2"]
    assert value(line, "--repeat-last-n") == "2048"
    assert value(line, "--grammar") == 'root ::= "a"'
    assert value(line, "--mirostat-ent") == "4"
    assert value(line, "--dry-sequence-breaker") == "none"
    assert float(value(line, "--temp")) == 1e-5
    assert line.endswith("# and 1 on the logit of ' Hello'; one of 2 samples")


def test_loading() -> None:
    options = LoadOptions(
        n_ctx=8, n_batch=64, n_gpu_layers="all", flash_attn="on", cache_type_v="q8_0", devices=("A", "B"), use_mmap=False,
    )  # fmt: skip
    line = llama_cli_line(options, SamplingParams(), path="m.gguf", prompt="a")
    assert value(line, "-b") == "64"
    assert value(line, "-ngl") == "all"
    assert value(line, "-ctv") == "q8_0"
    assert value(line, "-dev") == "A,B"
    assert value(line, "-lm") == "none"
    assert (
        value(llama_cli_line(LoadOptions(use_mlock=True), SamplingParams(), path="m", prompt=""), "-lm") == "mmap+mlock"
    )


def test_earlier_turns_are_named() -> None:
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    line = llama_cli_line(OPTIONS, SamplingParams(), path="m.gguf", messages=messages)
    assert value(line, "-p") == "c"
    assert line.endswith("# after 1 earlier turn of the conversation")


def test_every_parameter_has_a_flag() -> None:
    params = set(SamplingParams().to_dict()) - set(_ALWAYS) - set(_CHANGED)
    assert params == {
        "samplers",
        "dry_sequence_breakers",
        "stop",
        "logit_bias",
        "ignore_eos",
        "logprobs",
        "samples",
        "min_keep",
    }
    switches = {name for name, _ in _SWITCHES}
    assert set(LoadOptions().to_dict()) - set(_LOADING) - switches == {
        "backend",  # llama-cli is built with its backends
        "devices",
        "direct_io",
        "lora",
        "memory_budget",
        "override_kv",
        "override_tensor",
        "swa_full",  # changes the memory that is taken, not what is computed
        "tensor_split",
        "use_mlock",
        "use_mmap",
    }


def test_load_options_are_written_as_they_are_read() -> None:
    """What the line says, read by our own table of flags, is what was asked for."""
    from llama_magic.notebook.subcommands import SUBCOMMANDS

    options = LoadOptions.from_keywords(
        n_ctx=512, lora=[("/a.gguf", 0.5), ("/b.gguf", 1.0)], override_tensor={"ffn_.*": "CPU", "x": "CPU"},
        override_kv={"a": 1, "b": 0.5, "c": True, "d": "text"}, tensor_split=(3, 1), cpu_moe=True, n_cpu_moe=2,
        n_cpu_ffn=1, split_mode="row", main_gpu=1, offload_kqv=False, op_offload=False, rope_scaling="yarn",
        rope_freq_base=5e5, rope_freq_scale=0.25, yarn_orig_ctx=4096, yarn_ext_factor=0.5, yarn_attn_factor=1.5,
        yarn_beta_slow=2.0, yarn_beta_fast=30.0, check_tensors=True, repack=False, no_host=True, numa="isolate",
        direct_io=True, use_mmap=False, lazy_mode="on",
    )  # fmt: skip
    loading = words(llama_cli_line(options, SamplingParams(), path="m.gguf", prompt="a"))
    read = SUBCOMMANDS["load"].parse(loading[3 : loading.index("-n")]).group("loading")
    assert LoadOptions.from_keywords(**read) == options
