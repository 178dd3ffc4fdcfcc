from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_magic.api.session import current_session, set_session
from llama_magic.inference.conversation import Turn
from llama_magic.inference.results import Completion, Timings
from llama_magic.notebook.complete import _at_cursor, candidates
from llama_magic.notebook.subcommands import SUBCOMMANDS


@pytest.fixture(autouse=True)
def conversations() -> Iterator[None]:
    set_session(None)
    conversation, _ = current_session().switch("poem")
    conversation.record(Turn("a", Completion("b", (), "stop", Timings())))
    conversation.start_over()
    yield
    set_session(None)


def line(text: str) -> list[str]:
    return candidates(text, cell=False, namespace=["Person", "_hidden"])[1]


def cell(text: str) -> list[str]:
    return candidates(text, cell=True, namespace=["Person", "_hidden"])[1]


def test_subcommands() -> None:
    assert line(" ") == list(SUBCOMMANDS)
    assert line(" un") == ["undo", "unload"] or line(" un") == ["unload", "undo"]
    assert line(" zz") == []


def test_flags_of_the_subcommand() -> None:
    assert "--ctx-size" in line(" load --")
    assert "--temp" not in line(" load --")
    assert cell(" --tem") == ["--temp", "--temperature"]
    assert line(" --temp") == ["--temp", "--temperature"]


def test_values() -> None:
    assert cell(" --format ") == ["markdown", "text", "html", "json", "code", "math"]
    assert candidates(" --format=te", cell=True) == ("te", ["text"])
    assert cell(" -ctk q8") == ["q8_0"]
    assert cell(" --schema P") == ["Person"]
    assert cell(" --temp ") == []
    assert cell(" --samplers top_") == ["top_n_sigma", "top_k", "top_p"]


def test_models_and_conversations() -> None:
    assert "smollm2" in cell(" -m smo")
    assert "smollm2" in line(" load smo")
    assert cell(" --chat p") == ["poem"]
    assert line(" chat p") == ["poem", "poem/branch-1"]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "ab.txt", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").touch()
    assert cell(" -f ") == ["a.txt", "ab.txt", "sub/"]
    assert cell(" -f sub/") == ["sub/c.txt"]
    assert cell(" -f .h") == [".hidden"]
    assert cell(f" -o {tmp_path}/a") == [f"{tmp_path}/a.txt", f"{tmp_path}/ab.txt"]
    assert cell(" -f nowhere/") == []


@pytest.mark.parametrize(
    ("text", "line_number", "column", "found"),
    [
        ("%llama lo", 0, 9, (False, " lo")),
        ("%llama lo -c 5", 0, 9, (False, " lo")),
        ("x = 1\n%llama lo", 1, 9, (False, " lo")),
        ("%%llama --te\nbody", 0, 12, (True, " --te")),
        ("\n%%llama -", 1, 9, (True, " -")),
        ("%%llama --te\nbody", 1, 4, None),
        ("%llama", 0, 6, None),
        ("%llamas x", 0, 9, None),
        ("x\n%%llama -", 1, 9, None),
        ("x", 5, 0, None),
    ],
)
def test_where_it_applies(text: str, line_number: int, column: int, found: tuple[bool, str] | None) -> None:
    assert _at_cursor(text, line_number, column) == found
