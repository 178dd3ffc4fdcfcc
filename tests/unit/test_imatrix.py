"""Importance matrices as the kernel sees them: requests, results, the line of the magic."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from llama_magic.api import imatrix as api
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.models.options import LoadOptions
from llama_magic.notebook.subcommands import SUBCOMMANDS
from llama_magic.quantization.imatrix import (
    CALIBRATION,
    ImatrixRequest,
    ImatrixResult,
    ImatrixStopped,
    KindOfWeight,
    resume_path,
)
from llama_magic.quantization.texts import TextPart

RESULT = ImatrixResult(
    path=Path("m.imatrix.gguf"),
    model="/models/<b>m</b>.gguf",
    datasets=("<script>.txt",),
    chunks=12,
    chunk_size=512,
    tokens=6144,
    perplexity=9.87654,
    perplexity_error=0.54321,
    entries=4,
    uncovered=("token_embd.weight", "output.weight"),
    partial=("blk.0.ffn_up_exps.weight",),
    kinds=(
        KindOfWeight("attn_q", 2, 64, 0.125, 0.4321),
        KindOfWeight("ffn_up_exps", 2, 64, 1.5, 0.02, experts=16, experts_without=3),
    ),
    size=2048,
    seconds=75.4,
    resumed=4,
    notes=("something <i>worth</i> knowing",),
)


def request(**changes: Any) -> ImatrixRequest:
    return ImatrixRequest(**{"model": "m", "ref": "m", "out": "o", **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": 0}, "chunks must be at least 1"),
        ({"from_chunk": -1}, "from_chunk must be 0 or more"),
        ({"save_frequency": -1}, "save_frequency must be 0 or more"),
        ({"output_frequency": 0}, "output_frequency must be at least 1"),
        ({"options": LoadOptions(n_ctx=31)}, "at least 32 tokens"),
    ],
)
def test_requests_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        request(**changes)


def test_requests_and_results_cross_the_channel() -> None:
    for value in (request(texts=(TextPart("a", "/a"),)), RESULT, ImatrixStopped(3, 9, "x.resume")):
        assert pickle.loads(pickle.dumps(value)) == value


def test_the_result_says_what_it_covers() -> None:
    said = repr(RESULT)
    for words in (
        "12 chunks of 512 tokens", "9.8765 ± 0.5432", "4 with an entry, 2 without: token_embd.weight, output.weight",
        "some without a token in 1 tensors: blk.0.ffn_up_exps.weight", "1 min 15 s", "going on after 4 chunks",
        "43 %", "3 of 16", "2.00 KiB",
    ):  # fmt: skip
        assert words in said
    assert "made with the same model" in repr(dataclasses.replace(RESULT, reused=True))
    assert "perplexity" not in repr(dataclasses.replace(RESULT, perplexity=None, perplexity_error=None))
    assert RESULT.to_dict()["path"] == "m.imatrix.gguf"


def test_its_html_is_escaped() -> None:
    page = RESULT._repr_html_()
    assert "9.8765" in page
    assert "3 of 16" in page
    for tag in ("<script>", "<b>m", "<i>worth"):
        assert tag not in page


def test_what_a_stop_says() -> None:
    assert "before the first chunks" in str(ImatrixStopped(0, 9, "x.resume"))
    said = str(ImatrixStopped(3, 9, str(resume_path("m.gguf"))))
    assert "after 3 of 9 chunks" in said
    assert "m.gguf.resume" in said
    assert "goes on from there" in said


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[ImatrixRequest]:
    """What would be sent to a worker."""
    requests: list[ImatrixRequest] = []

    def run_job(
        made: ImatrixRequest, _progress: object = None, *, partial: object = (), setup: object = None
    ) -> ImatrixResult:
        assert partial
        requests.append(made)
        return RESULT

    monkeypatch.setattr(api, "run_job", run_job)
    return requests


def test_texts(tmp_path: Path, sent: list[ImatrixRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, notes = tmp_path / "m-00001-of-00003.gguf", tmp_path / "notes.txt"
    for number in (1, 2, 3):
        (tmp_path / f"m-{number:05}-of-00003.gguf").write_bytes(b"GGUF")
    notes.write_text("hello")
    assert api.imatrix(str(model)) == RESULT.path
    api.imatrix(str(model), Path("notes.txt"), n_ctx=128, n_threads=3)
    api.imatrix(str(model), ["a text\nof two lines", Path("notes.txt")], out="own.gguf", chunks=3)
    default, file, several = sent
    assert default.texts == (TextPart("llama_magic calibration text", str(CALIBRATION)),)
    assert default.out == str(tmp_path / "m.imatrix.gguf")
    assert default.options.n_ctx == 512
    assert file.texts == (TextPart("notes.txt", str(notes)),)
    assert (file.options.n_ctx, file.options.n_threads) == (128, 3)
    assert several.texts == (TextPart("text", text="a text\nof two lines"), TextPart("notes.txt", str(notes)))
    assert (several.chunks, several.out) == (3, str(tmp_path / "own.gguf"))
    assert len({made.token for made in sent}) == 3


def test_what_can_not_be_asked_for(tmp_path: Path, sent: list[ImatrixRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    (tmp_path / "a.txt").write_text("a")
    ref = str(model)
    for words, arguments, keywords in (
        ("no text file 'none.txt'", (ref, Path("none.txt")), {}),
        (r"give a path: Path\('a.txt'\)", (ref, "a.txt"), {}),
        ("there is no text to read", (ref, []), {}),
        ("is the model itself", (ref,), {"out": ref}),
        ("there is no folder", (ref,), {"out": "none/m.gguf"}),
        ("is a folder", (ref,), {"out": tmp_path}),
        ("needs a file to write", (None,), {"in_files": ["a"]}),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            api.imatrix(*arguments, **keywords)
    with pytest.raises(TypeError, match="n_thread"):
        api.imatrix(ref, n_thread=3)
    assert not sent


def test_an_interrupt_tells_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tmp_path / "m.gguf", tmp_path / "o.gguf"
    model.write_bytes(b"GGUF")
    ends: list[Any] = [ImatrixStopped(3, 9, f"{out}.resume"), None, RESULT]

    def run_job(*_arguments: object, **_keywords: object) -> None:
        raise JobInterrupted(ends.pop(0))

    monkeypatch.setattr(api, "run_job", run_job)
    for words in ("after 3 of 9 chunks", "nothing half-done is left", "it was done already"):
        with pytest.raises(JobInterrupted, match=words):
            api.imatrix(str(model), out=out)
    resume_path(out).write_bytes(b"")
    ends.append(None)
    with pytest.raises(JobInterrupted, match="goes on from there"):
        api.imatrix(str(model), out=out)


def test_the_line() -> None:
    parser = SUBCOMMANDS["imatrix"]
    line = "m.gguf --text a.txt -f b.txt c.txt -c 256 --chunks 7 --in-file x --in-file y -ofreq 2 --save-every 5 "
    parsed = parser.parse(line + "--process-output --parse-special --no-ppl --out o.gguf --force -t 3 -b 512")
    assert parsed.words == ("m.gguf", "c.txt")
    assert parsed.values == {
        "text": ("a.txt", "b.txt"), "n_ctx": 256, "chunks": 7, "in_file": ("x", "y"), "output_frequency": 2,
        "save_frequency": 5, "process_output": True, "parse_special": True, "perplexity": False, "file_out": "o.gguf",
        "force": True, "n_threads": 3, "n_batch": 512,
    }  # fmt: skip
    assert parsed.group("loading") == {"n_threads": 3, "n_batch": 512}
    for wrong in ("--chunks 0", "-c 16", "--chunk -1", "-ofreq 0"):
        with pytest.raises(InvalidRequestError):
            parser.parse(wrong)
