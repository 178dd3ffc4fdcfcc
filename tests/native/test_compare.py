"""Comparing levels for real: against the single functions, and with all that can go wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from llama_magic.api import levels as levels_module
from llama_magic.api.choose import choose
from llama_magic.api.compare import compare
from llama_magic.api.evaluate import kl_divergence
from llama_magic.api.levels import clear_levels, levels_folder, line_up
from llama_magic.api.model import load
from llama_magic.api.quantize import plan, quantize
from llama_magic.engine.client import EngineClient, get_client, set_client
from llama_magic.errors import InvalidRequestError, JobInterrupted, ModelNotFoundError
from llama_magic.evaluation.comparison import Comparison
from llama_magic.models.gguf import read_metadata
from llama_magic.progress import Progress
from tests.tiny import tiny_llama

TEXT = "the quick brown fox jumps over a lazy dog and runs home while it rains on the old stone bridge " * 6
#: Small and quick: one thread, chunks of 64 tokens, runs of some tokens.
QUICK: dict[str, Any] = {
    "text": TEXT, "n_ctx": 64, "chunks": 4, "runs": 2, "n_prompt": 16, "n_gen": 4, "n_threads": 1, "max_tokens": 8,
}  # fmt: skip
PROMPT = "a lazy dog"


@pytest.fixture(scope="module", autouse=True)
def planner() -> Iterator[None]:
    """One worker for the plans of this module."""
    client = EngineClient()
    set_client(client)
    yield
    set_client(None)
    client.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny-F32.gguf"
    tiny_llama(path, still_query=False)
    return path


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder of our own for the module: what one test made, the next finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_MAGIC_HOME", str(tmp_path_factory.mktemp("data")))
        yield levels_folder()


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of our own with nothing in it."""
    monkeypatch.setenv("LLAMA_MAGIC_HOME", str(tmp_path / "data"))
    return levels_folder()


@pytest.fixture(scope="module")
def whole(source: Path, kept: Path) -> Comparison:
    return compare(source, ["Q8_0", "Q4_0"], prompt=PROMPT, complete=True, **QUICK)


def job_workers() -> list[psutil.Process]:
    """Return the workers of jobs: not the one that plans."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid != get_client().pid and "llama_magic.worker" in " ".join(child.cmdline())
    ]


def killing(when: Callable[[Progress], bool], times: int = 1) -> Callable[[Progress], None]:
    """Make a callback that kills the worker, as the system does where memory runs out."""
    left = [times]

    def on_progress(event: Progress) -> None:
        if left[0] and when(event):
            left[0] -= 1
            for worker in job_workers():
                worker.kill()

    return on_progress


# -- what it gives ----------------------------------------------------------------------------------------------------


def test_rows_hold_what_the_single_functions_give(whole: Comparison, source: Path) -> None:
    assert [level.name for level in whole] == ["F32", "Q8_0", "Q4_0"]
    assert whole.base is whole["F32"]
    plans = plan(source, ["Q8_0", "Q4_0"])
    for level in whole:
        assert not level.error
        assert level.size == Path(level.path).stat().st_size
        assert level.prompt is not None
        assert level.generation is not None
        assert len(level.prompt.runs) == len(level.generation.runs) == 2
        assert level.memory
        assert level.load_s
        if level.base:
            continue
        assert level.size == plans[level.name].size
        assert level.bits_per_weight == pytest.approx(plans[level.name].bits_per_weight)
        alone = kl_divergence(level.path, str(source), TEXT, n_ctx=64, chunks=4, n_threads=1)
        assert level.kld is not None
        assert level.kld.value == pytest.approx(alone.kld, rel=1e-9)
        assert level.ppl is not None
        assert (level.ppl.value, level.ppl.error) == pytest.approx((alone.ppl, alone.ppl_error), rel=1e-9)
        assert level.same_top is not None
        assert level.same_top.value == alone.same_top
        assert whole.base is not None
        assert whole.base.ppl is not None
        assert whole.base.ppl.value == pytest.approx(alone.ppl_base, rel=1e-9)
    small = whole["Q4_0"].kld, whole["Q8_0"].kld
    assert small[0] is not None
    assert small[1] is not None
    assert small[0].value > small[1].value > 0
    assert whole.recommendation.level in ("Q8_0", "Q4_0")
    assert whole.chunks == 4


def test_answers_are_those_of_the_model_alone(whole: Comparison) -> None:
    for level in whole:
        with load(level.path, n_threads=1, n_ctx=64) as model:
            expected = model.generate(PROMPT, temperature=0, max_tokens=8)
        assert level.answer is not None
        assert (level.answer.text, level.answer.tokens) == (expected.text, expected.tokens)
        assert level.answer.tps > 0


def test_a_second_comparison_makes_nothing_again(
    whole: Comparison, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        pytest.fail("a level was made again")

    monkeypatch.setattr(levels_module, "quantize", refuse)
    again = line_up(source, ["Q4_0", "Q8_0", "q4_0"])
    assert [level.path for level in again.levels] == [whole["Q4_0"].path, whole["Q8_0"].path]
    # a copy under another name has the same content, so what was made of it is taken
    twin = source.with_name("twin-F32.gguf")
    twin.write_bytes(source.read_bytes())
    monkeypatch.setattr(levels_module, "output_name", lambda _path, name: f"tiny-{name}.gguf")
    assert line_up(twin, ["Q4_0"]).levels[0].path == whole["Q4_0"].path


def test_what_is_made_is_what_quantize_makes(whole: Comparison, source: Path, tmp_path: Path) -> None:
    made = quantize(source, "Q4_0", tmp_path / "x.gguf")
    assert Path(whole["Q4_0"].path).read_bytes() == made.path.read_bytes()


def test_a_quantized_source_gets_a_reference_that_says_so(source: Path, whole: Comparison, empty: Path) -> None:
    lineup = line_up(whole["Q8_0"].path, ["Q4_0", "Q8_0"])
    assert lineup.base.name == "F16"
    assert lineup.base.made
    assert "F16 was made from Q8_0" in lineup.notes[0]
    by_name = {level.name: level for level in lineup.levels}
    assert by_name["Q8_0"].path == whole["Q8_0"].path, "the source is that level itself"
    assert read_metadata(by_name["Q4_0"].path).ftype == "Q4_0"
    files = sorted(path.name for path in empty.rglob("*.gguf"))
    assert files == ["tiny-F16.gguf", "tiny-Q4_0.gguf"]
    assert clear_levels() > 0
    assert not empty.exists()


def test_words_that_mean_nothing(source: Path) -> None:
    with pytest.raises(InvalidRequestError, match="Did you mean Q4_"):
        compare(source, ["Q4_O"])
    with pytest.raises(TypeError, match="Did you mean 'n_threads'|n_threads"):
        compare(source, ["Q4_0"], n_thread=2)
    with pytest.raises(ModelNotFoundError):
        compare("none.gguf", ["Q4_0"])
    with pytest.raises(InvalidRequestError, match="no importance matrix"):
        line_up(source, ["Q4_0"], imatrix="none.gguf")
    missing = line_up(source, ["missing.gguf"]).levels[0]
    assert "missing" in missing.error


# -- what it withstands -----------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_nothing_but_time(source: Path, kept: Path) -> None:
    found = compare(
        source, ["Q8_0", "Q4_0"], prompt=PROMPT, complete=True, **QUICK,
        progress=killing(lambda event: event.stage == "speed"),
    )  # fmt: skip
    assert not [level.error for level in found if level.error]
    assert all(level.kld for level in found if not level.base)
    assert any("died" in sentence for sentence in found.notes)


def test_a_level_that_kills_the_worker_is_a_row_with_the_reason(source: Path, kept: Path) -> None:
    found = compare(
        source, ["Q8_0", "Q4_0"], prompt=PROMPT, complete=True, **QUICK,
        progress=killing(lambda event: event.message == "loading Q4_0", times=2),
    )  # fmt: skip
    assert "memory ran out" in found["Q4_0"].error
    assert found["Q8_0"].kld is not None
    assert found["Q8_0"].answer is not None
    assert "✗ failed" in found._repr_html_()


def test_a_reference_that_kills_the_worker_leaves_the_rest(source: Path, kept: Path) -> None:
    found = compare(
        source, ["Q8_0", "Q4_0"], prompt=PROMPT, complete=True, **QUICK,
        progress=killing(lambda event: event.message == "loading F32", times=2),
    )  # fmt: skip
    assert "memory ran out" in found["F32"].error
    for name in ("Q8_0", "Q4_0"):
        level = found[name]
        assert not level.error
        assert level.answer is not None
        assert level.ppl is not None
        assert level.kld is None
        assert "the reference could not be measured" in level.kld_reason
    assert found.recommendation.level is None


def test_an_interrupt_keeps_what_was_measured(source: Path, kept: Path) -> None:
    def stop(event: Progress) -> None:
        update = getattr(event, "update", None)
        if event.stage == "speed" and update is not None and update.values:
            raise KeyboardInterrupt

    with pytest.raises(JobInterrupted) as caught:
        compare(source, ["Q8_0", "Q4_0"], prompt=PROMPT, complete=True, **QUICK, progress=stop)
    rows = caught.value.result
    assert rows.interrupted
    assert all(level.answer for level in rows)
    assert rows["F32"].prompt is not None
    assert rows["Q4_0"].kld is None
    assert "Stopped" in repr(rows)
    # the worker that was stopped goes away by itself
    deadline = time.monotonic() + 30
    while job_workers() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert not job_workers()


def test_what_does_not_fit_on_the_disk_is_a_row(source: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = plan(source, ["Q8_0", "Q4_0"])
    room = sizes["Q4_0"].size + 1000

    class Usage:
        free = room + levels_module._ROOM

    monkeypatch.setattr("llama_magic.api.levels.shutil.disk_usage", lambda _path: Usage)
    made = line_up(source, ["Q8_0", "Q4_0"])
    eight, four = made.levels
    assert "more are needed" in eight.error
    assert "--clear" in eight.error
    assert not four.error
    assert sorted(path.name for path in empty.rglob("*.gguf")) == ["tiny-Q4_0.gguf"]


def test_a_matrix_that_can_not_be_made_is_the_reason(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide-F32.gguf"
    tiny_llama(wide, embd=256, ff=256)

    def refuse(*_args: object, **_more: object) -> None:
        raise InvalidRequestError("there is no text")

    monkeypatch.setattr(levels_module, "collect_imatrix", refuse)
    made = line_up(wide, ["IQ2_XXS", "Q8_0"])
    assert [level.error for level in made.levels] == ["no importance matrix: there is no text", ""]


def test_a_matrix_makes_another_level(source: Path, empty: Path, tmp_path: Path) -> None:
    from llama_magic.api.imatrix import collect_imatrix

    matrix = tmp_path / "m.imatrix.gguf"
    collect_imatrix(str(source), TEXT, out=matrix, n_ctx=64, n_threads=1)
    plain, weighed = line_up(source, ["Q4_0"]).levels[0], line_up(source, ["Q4_0"], imatrix=matrix).levels[0]
    assert (plain.imatrix, weighed.imatrix) == ("", "m.imatrix.gguf")
    assert Path(plain.path).parent != Path(weighed.path).parent
    assert Path(plain.path).read_bytes() != Path(weighed.path).read_bytes()


def other_vocabulary(source: Path, target: Path) -> Path:
    """Write the same model with two tokens exchanged."""
    data = source.read_bytes()
    one, two = (len(char).to_bytes(8, "little") + char.encode() for char in ("q", "x"))
    assert data.count(one) == 1
    assert data.count(two) == 1
    target.write_bytes(data.replace(one, b"\0" * len(one)).replace(two, one).replace(b"\0" * len(one), two, 1))
    return target


def test_another_vocabulary_is_compared_but_for_the_divergence(source: Path, tmp_path: Path, kept: Path) -> None:
    foreign = other_vocabulary(source, tmp_path / "foreign.gguf")
    found = compare(source, [str(foreign), "Q8_0"], prompt=PROMPT, complete=True, **QUICK)
    level = found["foreign"]
    assert level.kld is None
    assert "vocabular" in level.kld_reason
    assert level.answer is not None
    assert level.generation is not None
    assert found["Q8_0"].kld is not None
    assert "no KL divergence" in repr(found)


def test_logits_that_are_no_numbers(source: Path, tmp_path: Path, kept: Path) -> None:
    broken = tmp_path / "broken.gguf"
    data = bytearray(source.read_bytes())
    metadata = read_metadata(source)
    tensor = next(tensor for tensor in metadata.tensors if tensor.name == "blk.1.ffn_down.weight")
    at = metadata.data_offset + tensor.offset
    data[at : at + 4 * 64] = np.full(64, np.nan, np.float32).tobytes()
    broken.write_bytes(data)
    found = compare(source, [str(broken), "Q8_0"], **QUICK)
    assert "NaN" in found["broken"].kld_reason
    assert found["Q8_0"].kld is not None
    assert found.recommendation.level == "Q8_0"


def test_a_file_that_is_no_model_is_a_row(source: Path, tmp_path: Path, kept: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    found = compare(source, [str(bad), "Q8_0"], **QUICK)
    assert found["bad"].error
    assert found["Q8_0"].kld is not None


def test_a_text_that_is_too_short_says_what_is_needed(source: Path, kept: Path) -> None:
    with pytest.raises(InvalidRequestError, match="128"):
        compare(source, ["Q8_0"], **{**QUICK, "text": "too short"})


def test_one_by_one_where_memory_is_short(
    whole: Comparison, source: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    monkeypatch.setattr("llama_magic.api.comparing.available_memory", lambda: 0)
    found = compare(source, ["Q8_0", "Q4_0"], prompt=PROMPT, complete=True, **QUICK)
    assert any("Memory does not suffice" in sentence for sentence in found.notes)
    for level in found:
        before = whole[level.name]
        assert level.answer is not None
        assert before.answer is not None
        assert level.answer.text == before.answer.text
        assert (level.kld is None) == level.base
        if level.kld is not None and before.kld is not None:
            assert level.kld.value == pytest.approx(before.kld.value, rel=1e-9)


def test_two_at_once_make_each_file_once(source: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = vars(levels_module)["quantize"]

    def counted(src: Any, names: Any, **more: Any) -> Any:
        made.extend([names] if isinstance(names, str) else names)
        return real(src, names, **more)

    monkeypatch.setattr(levels_module, "quantize", counted)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(line_up(source, ["Q8_0", "Q4_0"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 2
    assert found[0] == found[1]
    assert sorted(made) == ["Q4_0", "Q8_0"]
    assert not [level.error for level in found[0].levels if level.error]


# -- choosing, and a cluster ------------------------------------------------------------------------------------------


def test_choose_measures_few_and_takes_the_smallest(whole: Comparison, source: Path, kept: Path) -> None:
    four, eight = whole["Q4_0"].kld, whole["Q8_0"].kld
    assert four is not None
    assert eight is not None
    settings: dict[str, Any] = {"text": TEXT, "n_ctx": 64, "chunks": 4, "n_threads": 1}
    between = (four.value * eight.value) ** 0.5
    found = choose(source, ["Q8_0", "Q4_0"], max_kld=between, **settings)
    assert (found.level, found.ref) == ("Q8_0", whole["Q8_0"].path)
    assert [trial.name for trial in found.tried] == ["Q4_0", "Q8_0"]
    with pytest.raises(InvalidRequestError, match="the nearest is Q8_0"):
        choose(source, ["Q8_0", "Q4_0"], max_kld=eight.value / 2, **settings)
    with pytest.raises(InvalidRequestError, match="nothing fits into 1.00 KiB"):
        choose(source, ["Q8_0", "Q4_0"], max_memory="1K", **settings)
    with pytest.raises(InvalidRequestError, match="tok/s here"):
        choose(source, ["Q8_0", "Q4_0"], max_kld=9, min_tps=1e9, runs=1, n_gen=4, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_a_cluster_gives_the_same_rows(whole: Comparison, source: Path, kept: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = compare(source, ["Q8_0", "Q4_0"], prompt=PROMPT, complete=True, **QUICK, client=client)
    assert [level.name for level in found] == ["F32", "Q8_0", "Q4_0"]
    assert len({level.where for level in found if not level.base}) == 2
    assert any("cluster" in sentence for sentence in found.notes)
    for level in found:
        before = whole[level.name]
        assert not level.error
        assert level.answer is not None
        assert before.answer is not None
        assert level.answer.text == before.answer.text
        assert level.generation is not None
        if level.kld is not None and before.kld is not None:
            assert level.kld.value == pytest.approx(before.kld.value, rel=1e-9)
    assert found["Q4_0"].kld is not None
