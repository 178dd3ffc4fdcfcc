from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.help import help_text
from llama_magic.notebook.parsers import split
from llama_magic.notebook.subcommands import CELL, SUBCOMMANDS


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  a  b ", ["a", "b"]),
        ("-p 'a b' \"c d\"", ["-p", "a b", "c d"]),
        (r'-p "say \"hi\" \n \d"', ["-p", r'say "hi" \n \d']),
        (r"C:\models\x.gguf", [r"C:\models\x.gguf"]),
        (r"a\ b it\'s", ["a b", "it's"]),
        ('--schema {"type": "object", "enum": [1, "a b"]} -n 3', ["--schema", '{"type": "object", "enum": [1, "a b"]}', "-n", "3"]),
        ("{name} {a b}", ["{name}", "{a", "b}"]),
        ("''", [""]),
        ("--x='a b'", ["--x=a b"]),
        ("日本語 😀", ["日本語", "😀"]),
    ],
)  # fmt: skip
def test_split(line: str, words: list[str]) -> None:
    assert split(line) == words


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="'"))))
def test_single_quotes_keep_everything(words: list[str]) -> None:
    assert split(" ".join(f"'{word}'" for word in words)) == words


def test_an_open_quote_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"a quote \('\) is not closed: 's"):
        split("it's")


def read(line: str) -> dict[str, Any]:
    return CELL.parse(line).values


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("-n 5 --temp=0 --top-k 1", {"max_tokens": 5, "temperature": 0.0, "top_k": 1}),
        ("-n -1", {"max_tokens": -1}),
        ("-n -2", {"max_tokens": -1}),
        ("-s -1", {"seed": None}),
        ("--seed 0", {"seed": 0}),
        ("-t -1", {"n_threads": None}),
        ("-r -x --stop '\\n'", {"stop": ("-x", "\n")}),
        ("-ngl all -fa 1 -ctk q8_0", {"n_gpu_layers": "all", "flash_attn": "on", "cache_type_k": "q8_0"}),
        ("-ngl 3 -dev A,B", {"n_gpu_layers": 3, "devices": ("A", "B")}),
        ("-hf owner/repo:Q4_0", {"ref": "hf:owner/repo:Q4_0"}),
        ("-l 15043+1 -l 3-inf -l ' Hi-2'", {"logit_bias": ((15043, 1.0), (3, -1e9), (" Hi", -2.0))}),
        ("--samplers top-k;temp", {"samplers": ("top_k", "temperature")}),
        ("--sampler-seq kt", {"samplers": ("top_k", "temperature")}),
        ("-cnv --no-stream --ignore-eos", {"chat": "", "stream": False, "ignore_eos": True}),
        ("--chat poem --new", {"chat": "poem", "new": True}),
        ("--chat --new", {"chat": "", "new": True}),
        ("--out a -o b.txt --format text", {"out": "a", "file_out": "b.txt", "format": "text"}),
        ("-jf s.json", {"schema": Path("s.json")}),
        ("--mirostat 2 --mirostat-lr .2", {"mirostat": 2, "mirostat_eta": 0.2}),
        ("-p '{name} \\n'", {"prompt": "{name} \\n"}),
        ("-p --help", {"prompt": "--help"}),
    ],
)
def test_values(line: str, values: dict[str, Any]) -> None:
    assert read(line) == values


def test_groups_are_ready_for_the_dataclasses() -> None:
    arguments = CELL.parse("-lm none -dev none --dry-sequence-breaker none --temp 1")
    assert arguments.group("loading") == {
        "use_mmap": False,
        "use_mlock": False,
        "direct_io": False,
        "n_gpu_layers": 0,
    }
    assert arguments.group("sampling") == {"dry_sequence_breakers": (), "temperature": 1.0}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--temp abc", "--temp takes a number, 0 or more; got 'abc'"),
        ("--temp nan", "--temp takes a number, 0 or more; got 'nan'"),
        ("--temp -1", "--temp takes a number, 0 or more; got '-1'"),
        ("--temp", "--temp needs a value: --temp X"),
        ("-n -5", "-n takes 1 or more tokens, or -1 for no limit; got '-5'"),
        ("-n 0", "-n takes 1 or more tokens"),
        ("-n 1.5", "-n takes 1 or more tokens"),
        ("-n=5", "a short flag takes its value after a space: -n 5"),
        ("-nlg 3", "unknown flag -nlg. Did you mean -ngl?"),
        ("--tmp 3", "unknown flag --tmp. Did you mean --temp?"),
        ("--max_tokens 3", "unknown flag --max_tokens. Did you mean --max-tokens?"),
        ("--TEMP 3", "unknown flag --TEMP. Did you mean --temp?"),
        ("--qqqqqq", "unknown flag --qqqqqq. %llama help cell lists the flags."),
        ("--no-stream=3", "--no-stream takes no value; got '3'"),
        ("-fa maybe", "-fa takes on, off or auto; got 'maybe'"),
        ("-ctk q9", "-ctk takes f32"),
        ("-hf x", "-hf takes owner/repo"),
        ("--out 3x", "--out takes the name of a Python variable"),
        ("--out for", "--out takes the name of a Python variable"),
        ("--mirostat 3", "--mirostat takes 0, 1 or 2"),
        ("--samplers foo", "--samplers: unknown sampler 'foo'"),
        ("-f nowhere.txt", "-f: no such file: 'nowhere.txt'"),
        ("-f .", "-f: '.' can not be read"),
        ("-l abc", "-l takes TOKEN+BIAS"),
        ("--seed 4294967295", "--seed takes a number between 0 and 4294967294"),
        ("--samples 0", "--samples takes a number between 1 and 64"),
        ("--repeat-penalty 0", "--repeat-penalty takes a number above 0"),
        ("smollm2 tell me", "'tell' is one word too many on the %%llama line"),
        ("-c x", "-c takes a number of tokens"),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_says_what_to_do(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError) as caught:
        CELL.parse(line)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_files_lose_their_last_line_end_as_in_llama_cli(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("a\n\nö\n\n".encode())
    assert read(f"-f '{tmp_path}/p.txt'") == {"file": "a\n\nö\n"}
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequestError, match="is not UTF-8"):
        read(f"-f '{tmp_path}/b.bin'")


def test_subcommands_take_their_own_flags() -> None:
    assert SUBCOMMANDS["load"].parse("smollm2 -c 10").words == ("smollm2",)
    with pytest.raises(InvalidRequestError, match="%llama load does not take --temp"):
        SUBCOMMANDS["load"].parse("--temp 0")
    with pytest.raises(InvalidRequestError, match="Usage: %llama new"):
        SUBCOMMANDS["new"].parse("a b")
    assert SUBCOMMANDS["help"].parse("--temp").word == "--temp"
    assert SUBCOMMANDS["undo"].parse("-3").word == "-3"


def test_help_on_what_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(InvalidRequestError, match="Did you mean load"):
        help_text("laod")


@given(st.text())
def test_any_line_is_read_or_refused(line: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        CELL.parse(line)
