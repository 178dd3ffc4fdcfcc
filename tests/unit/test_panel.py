"""The panel without a browser: its state, its jobs, two views in step, and what it says in words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from llama_magic.api.session import Ask, Session
from llama_magic.engine.client import get_client, set_client
from llama_magic.errors import InvalidModelError
from llama_magic.evaluation.divergence import Divergence, ForcedToken, ForcedTokens
from llama_magic.inference.conversation import Conversation, Turn
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Candidate, Completion, Timings
from llama_magic.notebook.panel.cells import cell_of, flags_of, quoted
from llama_magic.notebook.panel.runner import Job, Runner
from llama_magic.notebook.panel.sections.compare import token_by_token
from llama_magic.notebook.panel.sections.quantize import KINDS, _kind
from llama_magic.notebook.panel.static_page import static_page
from llama_magic.notebook.panel.workbench import Workbench
from llama_magic.notebook.parsers import split
from llama_magic.notebook.subcommands import CELL
from llama_magic.progress import Progress
from tests.fakes import FakeClient
from tests.waiting import wait_until

# -- jobs --------------------------------------------------------------------------------------------------


class Jobs:
    """A runner whose posts are done at once, and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.lock = threading.RLock()
        self.runner = Runner(self.post, lambda job: self.told.append((job.state, job.message, job.error)))

    def post(self, work: Callable[[], None]) -> None:
        with self.lock:
            work()

    def wait(self, job: Job | None) -> str:
        assert job is not None
        wait_until(lambda: not job.active)
        return job.state


def test_a_job_reports_and_is_done() -> None:
    jobs, values = Jobs(), list[str]()

    def work(_job: Job, report: Callable[[Progress], None]) -> str:
        report(Progress("load", 0.5, "half"))
        return "value"

    assert jobs.wait(jobs.runner.start("a", "working", work, values.append)) == "done"
    assert values == ["value"]
    assert ("running", "half", "") in jobs.told


def test_errors_are_words_and_bugs_keep_their_traceback() -> None:
    jobs = Jobs()

    def refuse(*_: object) -> None:
        raise InvalidModelError("the file is empty")

    def bug(*_: object) -> None:
        raise ZeroDivisionError("oops")

    job = jobs.runner.start("a", "", refuse)
    assert jobs.wait(job) == "failed"
    assert job is not None
    assert (job.error, job.detail) == ("the file is empty", "")
    job = jobs.runner.start("a", "", bug)
    assert jobs.wait(job) == "failed"
    assert job is not None
    assert job.error == "This is a bug in llama_magic: ZeroDivisionError: oops"
    assert "Traceback" in job.detail


def test_a_lane_does_one_thing_at_a_time_and_stops_at_once() -> None:
    jobs, started = Jobs(), threading.Event()

    def endless(job: Job, _report: object) -> None:
        started.set()
        pause = threading.Event()
        while True:
            job.stopper.check()
            pause.wait(0.01)

    job = jobs.runner.start("a", "", endless, owner="one")
    assert started.wait(5)
    assert jobs.runner.start("a", "", endless) is None
    other = jobs.runner.start("b", "", endless, owner="two")
    before = time.monotonic()
    jobs.runner.stop_of("one")
    assert jobs.wait(job) == "stopped"
    assert time.monotonic() - before < 0.3
    assert other is not None
    assert other.active
    assert jobs.runner.stop("b")
    assert jobs.wait(other) == "stopped"
    assert not jobs.runner.stop("b")


# -- the state ---------------------------------------------------------------------------------------------


class View:
    """What a panel would show, from the messages it gets."""

    def __init__(self, bench: Workbench, name: str) -> None:
        self.bench, self.name = bench, name
        self.messages: list[dict[str, Any]] = []
        self.state: dict[str, Any] = {"chat": {}, "jobs": {}}
        self.state = bench.open(name, self.take)

    def take(self, message: dict[str, Any], _buffers: list[bytes]) -> None:
        self.messages.append(message)
        for section, values in message.get("set", {}).items():
            self.state.setdefault(section, {}).update(values)
        if turns := message.get("turns"):
            chat = self.state["chat"]
            chat["turns"] = [*chat.get("turns", [])[: turns["from"]], *turns["items"]]

    def act(self, what: str, **values: Any) -> None:
        self.bench.receive(self.name, {"do": what, "with": values})

    def job(self, lane: str) -> dict[str, Any]:
        return dict(self.state["jobs"].get(lane) or {})

    @property
    def users(self) -> list[str]:
        return [turn["user"] for turn in self.state["chat"].get("turns", [])]


@pytest.fixture
def client(fresh_home: object) -> Iterator[FakeClient]:
    before, fake = get_client(), FakeClient()
    set_client(fake)
    yield fake
    set_client(before)


@pytest.fixture
def bench(client: FakeClient) -> Workbench:
    assert client is get_client()
    return Workbench(Session())


def test_two_panels_stay_in_step_and_a_cell_is_seen(bench: Workbench, client: FakeClient) -> None:
    one, two = View(bench, "one"), View(bench, "two")
    client.replies += ["a *first* answer", "second"]
    one.act("chat.ask", text="hello")
    wait_until(lambda: two.users == ["hello"] and not two.state["chat"]["streaming"])
    assert one.state["chat"]["turns"][0]["html"] == two.state["chat"]["turns"][0]["html"]
    assert "<em>first</em>" in two.state["chat"]["turns"][0]["html"]
    # what a cell does
    made = bench.session.start(Ask("from a cell", chat="chat"))
    for _ in made.stream:
        pass
    assert made.stream.completion is not None
    made.finish(made.stream.completion)
    wait_until(lambda: one.users == two.users == ["hello", "from a cell"])
    two.act("chat.undo")
    wait_until(lambda: one.users == ["hello"])
    bench.session.sampling = SamplingParams(temperature=0.25)
    wait_until(lambda: one.state["chat"]["sampling"]["temperature"] == 0.25)
    assert one.state["chat"]["flags"] == "--temp 0.25"
    one.act("chat.sampling", top_k=7)
    wait_until(lambda: two.state["chat"]["sampling"]["top_k"] == 7)
    assert bench.session.sampling.top_k == 7


def test_streaming_sends_bytes_linear_in_the_text(bench: Workbench, client: FakeClient) -> None:
    def sent(words: int) -> int:
        view = View(bench, f"view{words}")
        client.replies.append([f"word{n} " for n in range(words)])
        view.act("chat.ask", text="go")
        wait_until(lambda: view.state["chat"].get("turns") and not view.state["chat"]["streaming"])
        bench.close(view.name)
        return sum(len(str(m)) for m in view.messages if "stream" in m or "turns" in m)

    bench.sections["chat"].session.conversations.clear()
    first = sent(2000)
    bench.session.switch("other")
    assert sent(4000) < 2.4 * first


def test_edit_branch_switch(bench: Workbench) -> None:
    view = View(bench, "one")
    for text in ("one", "two", "three"):
        view.act("chat.ask", text=text)
        wait_until(partial(lambda said: view.users[-1:] == [said] and not view.state["chat"]["streaming"], text))
    view.act("chat.ask", text="two, edited", turn=1)
    wait_until(lambda: view.users == ["one", "two, edited"])
    talk = view.state["chat"]["conversations"][0]
    assert talk["branches"] == [["branch-1", 3]]
    view.act("chat.rewind", turns=1)
    wait_until(lambda: view.users == ["one"])
    view.act("chat.switch", name="chat/branch-1")
    wait_until(lambda: view.users == ["one", "two", "three"])
    view.act("chat.switch", name="a new one")
    wait_until(lambda: view.state["chat"]["name"] == "a new one" and view.users == [])


def test_errors_appear_where_they_happened(bench: Workbench, client: FakeClient) -> None:
    view = View(bench, "one")
    client.replies.append(InvalidModelError("the file is cut off"))
    view.act("chat.ask", text="hello")
    wait_until(lambda: view.job("chat").get("state") == "failed")
    assert view.job("chat")["error"] == "the file is cut off"
    assert not view.state["chat"]["streaming"]
    view.act("model.load", ref="/no/such.gguf")
    wait_until(lambda: view.job("model").get("state") == "failed")
    assert "there is no model" in view.job("model")["error"]
    view.act("chat.sampling", temperature=-3)
    wait_until(lambda: view.job("chat").get("error", "").startswith("temperature"))
    view.act("app.dismiss", lane="chat")
    wait_until(lambda: not view.job("chat"))
    view.act("theatre.look", turn=3, tokens=1)  # a click on a turn that was taken away meanwhile
    wait_until(lambda: view.job("theatre").get("state") == "failed")
    assert view.job("theatre")["error"] == "the conversation has no turn 4 any more"
    view.act("nothing.such")
    wait_until(lambda: view.state["app"].get("bug"))
    view.act("chat.ask", text="still works")
    wait_until(lambda: view.users == ["still works"])


def test_closing_one_panel_stops_what_it_started_and_nothing_else(bench: Workbench, client: FakeClient) -> None:
    one, two = View(bench, "one"), View(bench, "two")
    gate = threading.Event()

    def pieces() -> Iterator[str]:
        yield "begun "
        gate.wait(5)
        yield "ended"

    client.replies.append(pieces())
    two.act("chat.ask", text="hello")
    wait_until(lambda: two.job("chat").get("state") == "running")
    bench.close("one")
    one.act("chat.undo")  # a closed panel does nothing
    gate.set()
    wait_until(lambda: two.users == ["hello"])
    assert two.state["chat"]["turns"][0]["text"] == "begun ended"


def test_loading_and_unloading(bench: Workbench, client: FakeClient, smollm2_path: object) -> None:
    view = View(bench, "one")
    view.act("model.load", ref="smollm2", options={"n_ctx": 512})
    wait_until(lambda: (view.state["model"].get("current") or {}).get("n_ctx") == 512)
    assert bench.session.model is not None
    wait_until(lambda: len(view.state["model"].get("loaded") or []) == 1)
    bench.session.unload()
    wait_until(lambda: view.state["model"]["current"] is None and view.state["model"]["loaded"] == [])


# -- as a person would type it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.3, "top_k": 5, "seed": 7, "max_tokens": -1},
        {"stop": ("a b", "it's", '"'), "ignore_eos": True},
        {"grammar": 'root ::= "yes" | [a-z]{1,3}', "samplers": ("top_k", "temperature")},
        {"logit_bias": ((15, -1.5), (16, 2.0)), "min_p": 0.0},
    ],
)
def test_flags_are_read_back_as_they_were(values: dict[str, Any]) -> None:
    assert SamplingParams.from_keywords(**CELL.parse(flags_of(values)).group("sampling")) == (
        SamplingParams.from_keywords(**values)
    )


@pytest.mark.parametrize("word", ["plain", "two words", "it's", 'say "hi"', "C:\\models\\x.gguf", "{a}", ""])
def test_quoted_words_are_read_back(word: str) -> None:
    assert split(quoted(word)) == [word]


def test_a_turn_as_a_cell() -> None:
    talk = Conversation("talk", "Be brief.")
    turn = Turn("Hi\nthere", Completion("Hello", (1,), "stop", Timings()), SamplingParams(temperature=0, logprobs=4))
    assert cell_of(talk, turn) == "%%llama --chat talk -sys 'Be brief.' --temp 0\nHi\nthere"


def test_the_saved_page_is_inert() -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page = static_page(
        {
            "model": {"current": None, "loaded": []},
            "chat": {"name": evil, "system": evil, "turns": [{"user": evil, "html": "<p>fine</p>"}]},
            "quantize": {"made": [{"ftype": "Q4_0", "size": "1 MiB", "bits": "4.5", "name": evil}]},
        }
    )
    assert "<img" not in page
    assert "<script" not in page
    assert "<p>fine</p>" in page


def test_the_saved_page_is_bounded() -> None:
    """It is sent anew after each change, so that a conversation's bytes would grow with the square of its length."""

    def page(turns: int) -> str:
        items = [{"user": f"question {number}", "html": f"<p>{'word ' * 200}</p>"} for number in range(turns)]
        return static_page({"chat": {"name": "chat", "turns": items}})

    assert "question 0" in page(20)
    assert "14 earlier turns" in page(20)
    long, longer = page(100), page(1000)
    assert len(longer) < 1.05 * len(long) < 100_000
    assert "question 999" in longer
    assert "earlier turns are not on this page" in longer


def test_tokens_of_a_divergence_are_inert() -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[31m"

    def tokens(*ids: int) -> tuple[ForcedToken, ...]:
        return tuple(ForcedToken(-0.5, 1, (Candidate(each, evil, -0.5),), 0.25) for each in ids)

    base, other = ForcedTokens(evil, "a", tokens(1, 2)), ForcedTokens(evil, "b", tokens(1, 3))
    shown = token_by_token(Divergence(base, (other,), evil, (1, 2), (evil, evil)))
    assert shown["models"][0]["apart"] == [1]
    assert [each[0][3] for each in shown["models"][0]["top"]] == [True, False]
    assert shown["base"]["top"][0][0][1:3] == ["61 %", 0.60653]
    for text in (*shown["texts"], shown["base"]["name"], shown["base"]["top"][0][0][0]):
        assert "\x1b" not in text


def test_another_panel_goes_on_with_what_one_started() -> None:
    jobs, go = Jobs(), threading.Event()
    job = jobs.runner.start("a", "", lambda *_: go.wait(5), owner="one")
    jobs.runner.hand_over("one", "two")
    jobs.runner.stop_of("one")
    assert job is not None
    assert job.state == "running"
    jobs.runner.stop_of("two")
    assert job.state == "stopping"
    go.set()


def test_kinds_of_tensors() -> None:
    assert _kind("blk.3.attn_q.weight") == "attn_q"
    assert _kind("blk.3.attn_output.weight") == "attn_output"
    assert _kind("blk.3.ffn_down_exps.weight") == "ffn_down"
    assert _kind("token_embd.weight") == "token_embd"
    assert _kind("output.weight") == "output"
    assert _kind("output_norm.weight") == ""
    assert _kind("blk.3.attn_norm.weight") == ""
    import re

    for _, key, pattern in KINDS:
        if not pattern.endswith("_type"):
            assert re.search(pattern, f"blk.0.{key}.weight")
