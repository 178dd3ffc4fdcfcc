from __future__ import annotations

import shlex

from llama_magic.inference.params import SamplingParams
from llama_magic.inference.receipt import _ALWAYS, _CHANGED, _LOADING, llama_cli_line
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
    assert set(LoadOptions().to_dict()) - set(_LOADING) == {"devices", "use_mmap", "use_mlock"}
