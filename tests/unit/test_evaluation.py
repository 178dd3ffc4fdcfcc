"""Perplexity, KL divergence and divergences as the kernel sees them: requests, results, their text and HTML."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llama_magic as lm
from llama_magic.engine.jobs import set_job_client
from llama_magic.errors import GenerationInterrupted, InvalidRequestError, JobInterrupted
from llama_magic.evaluation.divergence import Divergence, DivergeRequest, ForcedToken, ForcedTokens
from llama_magic.evaluation.requests import EVALUATION_NAME, Estimate, EvaluateRequest, EvaluationProgress, short_name
from llama_magic.evaluation.results import Evaluation, KLDivergence, KLDivergences, Perplexities, Perplexity
from llama_magic.inference.results import Candidate
from llama_magic.models.options import ModelSpec
from llama_magic.notebook.scrubber import scrubber
from tests.gguf import write_gguf

EVIL = '<img src=x onerror="alert(1)">'
PERCENTILES = {"Maximum": 1.5, "99.9%": 1.25, "Median": 0.2, "Minimum": 0.001}


def running(*klds: float) -> tuple[Estimate, ...]:
    return tuple(
        Estimate(255 * at, 20 + kld, 0.5, 0.01, 0.002, kld, kld / 10, 0.03, 0.001, 0.9, 0.01)
        for at, kld in enumerate(klds, 1)
    )


def divergence(model: str = "q4_0.gguf", **changes: Any) -> KLDivergence:
    values: dict[str, Any] = {
        "model": model, "path": f"/models/{model}", "text": "notes.txt", "n_ctx": 512, "chunks": 3, "chunks_total": 3,
        "tokens": 765, "seconds": 12.0, "running": running(0.3, 0.25, 0.27), "base": "f16.gguf", "ppl": 21.5,
        "ppl_error": 0.51, "ppl_base": 20.25, "ppl_base_error": 0.5, "correlation": 0.985, "ln_ratio": 0.06,
        "ln_ratio_error": 0.004, "ratio": 1.0618, "ratio_error": 0.0042, "difference": 1.25, "difference_error": 0.08,
        "kld": 0.27, "kld_error": 0.007, "kld_percentiles": PERCENTILES, "dp": -0.012, "dp_error": 0.002,
        "dp_percentiles": {name: value / 2 for name, value in PERCENTILES.items()}, "rms_dp": 0.08,
        "rms_dp_error": 0.003, "same_top": 0.875, "same_top_error": 0.0125,
    }  # fmt: skip
    return KLDivergence(**{**values, **changes})


def alone(**changes: Any) -> Perplexity:
    values: dict[str, Any] = {
        "model": "q4_0.gguf", "path": "/q4_0.gguf", "text": "notes.txt", "n_ctx": 512, "chunks": 3, "chunks_total": 3,
        "tokens": 765, "running": tuple(Estimate(255 * at, 20 + at, 0.5) for at in (1, 2, 3)), "ppl": 23.0,
        "ppl_error": 0.5,
    }  # fmt: skip
    return Perplexity(**{**values, **changes})


def test_the_lines_are_those_of_llama_perplexity() -> None:
    said = repr(divergence())
    for line in (
        "q4_0 against f16", "notes.txt: 3 chunks of 512 tokens, 765 tokens scored", "====== Perplexity statistics ======",
        "Mean PPL(Q)                   : 21.500000 ± 0.510000", "Cor(ln(PPL(Q)), ln(PPL(base))):      98.50 %",
        "====== KL divergence statistics ======", "Mean KLD   : 0.270000 ± 0.007000", "====== Token probability",
        "RMS Δp    : 8.000 ± 0.300 %", "Same top p: 87.500 ± 1.250 %",
    ):  # fmt: skip
        assert line in said
    assert "Final estimate: PPL = 23.0000 +/- 0.50000" in repr(alone())
    assert "stopped before the end of the text" in repr(alone(chunks_total=9))
    assert "3 of 9 chunks" in repr(alone(chunks_total=9))


def test_several_are_a_table() -> None:
    both = KLDivergences((divergence("a.gguf"), divergence("b.gguf", kld=0.5)))
    said = repr(both)
    assert said.count("\n") == 5
    assert re.search(r"^a .*0\.27000 ± 0\.00700.*87\.50 ± 1\.25 %$", said, re.MULTILINE)
    assert both["b.gguf"].kld == 0.5
    assert both[0] is next(iter(both))
    assert len(both) == 2
    with pytest.raises(KeyError):
        both["c.gguf"]
    frame = both.to_pandas()
    assert list(frame["model"]) == ["a.gguf", "b.gguf"]
    assert frame["kld 99.9%"][0] == 1.25
    assert both.to_dict()["a.gguf"]["same_top"] == 0.875
    assert "23.0000 ± 0.5000" in repr(Perplexities((alone(), alone(model="b"))))


@pytest.mark.parametrize("result", [divergence(), KLDivergences((divergence(), divergence("b"))), alone(),
                                    Perplexities((alone(), alone(model="b")))])  # fmt: skip
def test_pages_show_figures_and_how_they_settled(result: Any) -> None:
    page = result._repr_html_()
    assert "<svg" in page
    assert "95 % interval shaded" in page
    assert "<script" not in page
    if hasattr(result, "base"):
        assert "<details open" in page
    assert pickle.loads(pickle.dumps(result)) == result


def test_names_and_texts_are_escaped() -> None:
    for result in (divergence(EVIL, text=EVIL, base=EVIL, notes=(EVIL,)), alone(model=EVIL, text=EVIL)):
        page = result._repr_html_()
        assert "<img" not in page
        assert "&lt;img" in page


def test_intervals() -> None:
    now = running(0.3)[0]
    assert now.kld_interval == pytest.approx((0.3 - 1.959964 * 0.03, 0.3 + 1.959964 * 0.03))
    assert now.ppl_interval[0] < 20.3 < now.ppl_interval[1]
    assert Estimate(5, 2.0, 0.1).kld_interval is None


def test_short_names() -> None:
    assert short_name("/a/b/model-q4_0.gguf") == "model-q4_0"
    assert short_name("owner/repo:Q4_K_M") == "repo:Q4_K_M"
    assert short_name("C:\\models\\m.gguf") == "m"
    assert short_name("x" * 60, 10) == "…" + "x" * 9


@pytest.mark.parametrize(("words", "changes"), [
    ("a chunk has at least 8 tokens", {"n_ctx": 4}),
    ("chunks must be at least 1", {"chunks": 0}),
    ("less than the 512 tokens", {"stride": 512}),
    ("a stride goes with perplexity alone", {"stride": 64, "base": ModelSpec("/b.gguf", "b")}),
    ("name a model", {"models": ()}),
    ("there is no text", {"texts": ()}),
])  # fmt: skip
def test_requests_that_can_not_be(words: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        replace(EvaluateRequest((ModelSpec("/a.gguf", "a"),)), **changes)


# -- the API -----------------------------------------------------------------------------------------------------------


class Worker:
    """A client that answers each request with the same."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []
        self.told: list[Any] = []

    def request(self, request: Any, progress: Any = None) -> Any:
        self.asked.append(request)
        for event in self.told:
            progress(event)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return [str(write_gguf(tmp_path / f"{name}.gguf", {"general.architecture": "llama"})) for name in "abc"]


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Any:
    def answer(value: Any) -> Worker:
        made = Worker(value)
        set_job_client(lambda: made)  # type: ignore[arg-type,return-value]
        return made

    request.addfinalizer(lambda: set_job_client(None))  # noqa: PT021 - the seam is set by what is returned
    return answer


def test_one_model_gives_one_result_several_a_sequence(models: list[str], answering: Any) -> None:
    worker = answering(Evaluation(((divergence(),), (divergence("b"),)), (), (), 3, 3))
    assert isinstance(lm.kl_divergence(models[1], models[0]), KLDivergence)
    assert isinstance(lm.kl_divergence(models[1:], models[0], "a text", n_ctx=64, chunks=2), KLDivergences)
    first, second = worker.asked
    assert first.texts[0].name == EVALUATION_NAME
    assert (second.base.ref, second.n_ctx, second.chunks, second.texts[0].text) == (models[0], 64, 2, "a text")
    answering(Evaluation(((alone(),),), (), (), 3, 3))
    assert isinstance(lm.perplexity(models[0], stride=16), Perplexity)
    assert isinstance(lm.perplexity(models[:1]), Perplexities)
    with pytest.raises(TypeError, match="n_thread"):
        lm.perplexity(models[0], n_thread=2)
    assert isinstance(lm.perplexity(models[0], "~nobody/ " + "word " * 60), Perplexity), "no name of a file"
    with pytest.raises(InvalidRequestError, match="a string is the text itself"):
        lm.perplexity(models[0], models[0])
    with pytest.raises(InvalidRequestError, match="no text file"):
        lm.perplexity(models[0], Path("none.txt"))


def test_what_a_stopped_call_keeps(models: list[str], answering: Any) -> None:
    stopped = GenerationInterrupted()
    stopped.result = Evaluation(((divergence(chunks_total=9),),), (), (), 3, 9)
    answering(stopped)
    with pytest.raises(JobInterrupted, match="stopped after 3 of 9 chunks; what was read is kept") as caught:
        lm.kl_divergence(models[1], models[0])
    assert isinstance(caught.value.result, KLDivergence)
    # a worker that was killed gives nothing back, but has told how far it was
    stopped.result = None
    told = EvaluationProgress("evaluate", 0.5, "", KLDivergences((divergence(),)), chunk=3, chunks=9)
    answering(stopped).told = [told]
    with pytest.raises(JobInterrupted, match="stopped after 3 of 9 chunks") as caught:
        lm.kl_divergence(models[1], models[0])
    assert caught.value.result == divergence(chunks_total=9)
    answering(stopped)
    stopped.result = Evaluation(((),), (), (), 0, 9)
    with pytest.raises(JobInterrupted, match="before the first chunks"):
        lm.perplexity(models[1])


# -- divergences -------------------------------------------------------------------------------------------------------


def forced(token: int, other: int, kld: float) -> ForcedToken:
    top = (Candidate(other, f" w{other}", -0.5), Candidate(token + 50, EVIL, -2.0))
    return ForcedToken(-0.5 if token == other else -2.5, 1 if token == other else 3, top, kld)


def forced_text(count: int = 12, apart: tuple[int, ...] = (3, 7)) -> Divergence:
    base = ForcedTokens("f16.gguf", "/f16.gguf", tuple(forced(at, at, 0.0) for at in range(count)))
    others = tuple(forced(at, at + 100 * (at in apart), 1.5 if at in apart else 0.01) for at in range(count))
    texts = (f"{EVIL}", "\u202e", *(f" w{at}" for at in range(2, count)))
    return Divergence(
        base, (ForcedTokens("q2_k.gguf", "/q2_k.gguf", others),), EVIL, tuple(range(count)), texts, key="k1"
    )


def test_disagreements() -> None:
    found = forced_text()
    assert found.disagreements() == found.disagreements("q2_k.gguf") == (3, 7)
    assert found.models[0].mean_kld == pytest.approx((2 * 1.5 + 10 * 0.01) / 12)
    assert found.to_dict()["disagreements"] == {"q2_k.gguf": (3, 7)}
    frame = found.to_pandas()
    assert list(frame[frame["rank"] > 1]["place"]) == [3, 7]
    assert "2 of 12 tokens disagree, the first at token 4" in repr(found)
    assert "the same token likeliest at all" in repr(forced_text(apart=()))


def test_every_link_of_the_page_leads_somewhere() -> None:
    page = forced_text()._repr_html_()
    targets = set(re.findall(r'id="([^"]+)"', page))
    links = re.findall(r'href="#([^"]+)"', page)
    assert len(links) >= 2 + 2 + 4, "from the strip, from the text, and from the rows"
    assert set(links) <= targets
    assert len(targets) == 4
    assert page.count("<details") == 2
    assert "<script" not in page


def test_model_text_is_escaped_and_harmless() -> None:
    for page in (forced_text()._repr_html_(), scrubber(forced_text()).children[2].value):
        assert "<img" not in page
        assert "\u202e" not in page
        assert "&lt;img" in page


def test_colours_are_not_all_that_tells() -> None:
    page = forced_text()._repr_html_()
    assert page.count("underline double") >= 3, "two tokens and the legend"
    assert "<sup>1</sup>" in page
    assert "<sup>2</sup>" in page
    assert "rank 3" in page


def test_the_slider_jumps_to_the_next_disagreement() -> None:
    widget = scrubber(forced_text())
    _, slider, before, following = widget.children[1].children
    assert slider.value == 4, "the first disagreement"
    following.click()
    assert slider.value == 8
    assert "token 8 of 12" in widget.children[2].value
    following.click()
    assert slider.value == 8, "there is none behind it"
    slider.value = 6
    assert "agree" in widget.children[2].value
    before.click()
    assert slider.value == 4


@pytest.mark.parametrize(("words", "changes"), [
    ("name a quantized model", {"models": ()}), ("needs a prompt", {"prompt": ""}),
    ("max_tokens must be", {"max_tokens": 0}), ("top must be", {"top": 21}),
])  # fmt: skip
def test_divergences_that_can_not_be(words: str, changes: dict[str, Any]) -> None:
    spec = ModelSpec("/a.gguf", "a")
    with pytest.raises(InvalidRequestError, match=words):
        replace(DivergeRequest(spec, (spec,), "p"), **changes)
