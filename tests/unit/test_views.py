"""The views: how much they send, how often, and what they leave."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from llama_magic.engine.protocol import Progress
from llama_magic.inference.results import Candidate, Chunk, Completion, Sample, Timings, TokenLogprob
from llama_magic.notebook.render import render_completion, strip_fence
from llama_magic.notebook.stream_view import MAX_SLOTS, JupyterView
from llama_magic.notebook.terminal_view import TerminalView
from llama_magic.notebook.views import FORMATS, Footer, View, make_view

FOOTER = Footer("SmolLM2 Q4_1", "CPU", 57.31, 0.213, 64)
WORDS = "The quick brown fox jumps over the lazy dog while *many* others `watch` and **wait** for a long time. "
SOURCES = {
    "paragraphs": (WORDS * 3 + "\n\n") * 200,
    "one paragraph": WORDS * 600,
    "one word": "x" * 60_000,
    "code": "```python\n" + "".join(f"print({i}, 'text')  # {i}\n" for i in range(2000)) + "```\n",
    "list": "".join(f"{i}. item {WORDS}\n" for i in range(500)),
    "nested": "".join(f"- item\n  - {WORDS}\n    ```js\n    var x = {i};\n    ```\n" for i in range(400)),
    "table": "| a | b |\n|---|---|\n" + "".join(f"| {i} | {WORDS} |\n" for i in range(500)),
    "quote": "".join(f"> {WORDS}\n" for i in range(600)),
    "blank lines": "\n" * 60_000,
}


@dataclass
class Output:
    """One output of the cell, as the front end keeps it."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None


@dataclass
class Publisher:
    """What JupyterLab does with the messages, and how many bytes they were."""

    outputs: list[Output] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    most: int = 0
    clear_next: bool = False
    on_publish: Callable[[], None] | None = None

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
    ) -> None:
        self.sizes.append(len(json.dumps([data, metadata or {}, transient or {}])))
        if self.on_publish:
            self.on_publish()
        display_id = (transient or {}).get("display_id")
        if update:
            found = [output for output in self.outputs if output.display_id == display_id]
            assert found, "an update of what is not there"
            for output in found:
                output.data, output.metadata = data, metadata or {}
            return
        if self.clear_next:
            self.outputs.clear()
            self.clear_next = False
        self.outputs.append(Output(data, metadata or {}, display_id))
        self.most = max(self.most, len(self.outputs))

    def clear_output(self, wait: bool = False) -> None:
        if wait:
            self.clear_next = True
        else:
            self.outputs.clear()

    @property
    def html(self) -> str:
        return "\n".join(output.data["text/html"] for output in self.outputs)

    @property
    def text(self) -> str:
        return re.sub(r"<[^>]*>", "", self.html)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A notebook's view with its fakes."""

    publisher: Publisher
    clock: Clock
    view: JupyterView

    def stream(self, text: str, *, per_chunk: int = 4, seconds: float = 0.01) -> list[float]:
        """Stream text and return when something was sent."""
        sent = []
        for at in range(0, len(text), per_chunk):
            before = len(self.publisher.sizes)
            self.view.add(Chunk(text[at : at + per_chunk], (1,)))
            if len(self.publisher.sizes) > before:
                sent.append(self.clock.now)
            self.clock.now += seconds
        return sent


def bench(format: str = "markdown", **options: Any) -> Bench:  # noqa: A002 - the flag's name
    publisher, clock = Publisher(), Clock()
    shell = SimpleNamespace(kernel=object(), display_pub=publisher)
    return Bench(publisher, clock, JupyterView(shell, format, clock=clock, **options))


def completion(text: str, *, finish_reason: str = "stop", **more: Any) -> Completion:
    return Completion(text, (1,) * (len(text) // 4), finish_reason, Timings(), **more)


# --- what is sent ---


@pytest.mark.parametrize("name", SOURCES)
def test_bytes_are_linear_in_the_length(name: str) -> None:
    source = SOURCES[name]
    sizes = []
    for tokens in (1000, 2000):
        it = bench()
        it.stream(source[: tokens * 4])
        it.view.finish(completion(source[: tokens * 4]), FOOTER, metadata={})
        sizes.append(sum(it.publisher.sizes))
    assert sizes[1] <= 2.2 * sizes[0]


@pytest.mark.parametrize("name", SOURCES)
def test_long_answers_use_few_outputs_and_small_updates(name: str) -> None:
    source = SOURCES[name]
    it = bench()
    it.stream(source)
    assert it.publisher.most <= MAX_SLOTS < 50
    # Merging sends a lot, but rarely: half of the updates are small, and so is nearly everything.
    ordered = sorted(it.publisher.sizes)
    assert ordered[len(ordered) // 2] < 8_000
    assert ordered[int(len(ordered) * 0.97)] < 16_000
    assert sum(it.publisher.sizes) < 120 * len(source) + 300_000


def test_text_shown_while_streaming_is_the_text() -> None:
    words = [f"word{i}" for i in range(9000)]
    for source in (" ".join(words), "\n\n".join(words), "- " + "\n- ".join(words), "```\n" + "\n".join(words)):
        it = bench()
        it.stream(source, per_chunk=7)
        it.view.fail()
        assert re.findall(r"word\d+", it.publisher.text) == words


def test_chunks_of_any_size_give_the_same_text() -> None:
    source = "\n\n".join(SOURCES[name][:2500] for name in ("paragraphs", "nested", "table", "code"))
    wanted = None
    for per_chunk in (3, 20, 100, 100_000):
        it = bench()
        it.stream(source, per_chunk=per_chunk, seconds=0.2)
        it.view.fail()
        shown = re.sub(r"\s+", "", it.publisher.text)
        wanted = wanted or shown
        assert shown == wanted


@pytest.mark.parametrize("gap", [0.0004, 0.009, 0.04, 0.05, 0.061, 0.079, 0.1, 0.119, 0.5])
def test_at_least_eight_updates_a_second_while_tokens_arrive(gap: float) -> None:
    it = bench()
    sent = it.stream(WORDS * 20, seconds=gap)
    assert sent[0] == 100.0, "the first token at once"
    waits = [later - earlier for earlier, later in pairwise(sent)]
    assert max(waits) <= max(0.125, gap + 1e-9)
    if gap < 0.05:
        assert len(sent) <= 20 * (sent[-1] - sent[0]) + 2, "and not many more"


def test_the_last_text_is_shown_by_finish_and_by_fail() -> None:
    for end in ("finish", "fail"):
        it = bench()
        it.stream("first second third", seconds=0)
        assert "third" not in it.publisher.text
        if end == "finish":
            it.view.finish(completion("first second third"), FOOTER, metadata={})
        else:
            it.view.fail()
        assert "first second third" in it.publisher.text


# --- what is left ---


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("length", [0, 3, 60, 20_000])
def test_one_output_is_left(kind: str, length: int) -> None:
    it = bench(kind)
    it.view.progress(Progress("loading", 0.3))
    text = (WORDS * 250)[:length]
    it.stream(text)
    receipt = {"llama_magic": {"seed": 1}}
    it.view.finish(completion(text), FOOTER, metadata=receipt)
    [output] = it.publisher.outputs
    assert output.metadata == receipt
    assert set(output.data) == {"text/html", "text/plain"}
    assert "SmolLM2 Q4_1 · CPU · 57.3 tok/s · first token 0.21 s · 64 tokens" in output.data["text/html"]
    assert text.strip()[-20:] in output.data["text/plain"]


def test_without_streaming_only_the_end_is_sent() -> None:
    it = bench(stream=False)
    it.stream(WORDS * 10)
    assert not it.publisher.sizes
    it.view.finish(completion(WORDS * 10), FOOTER, metadata={})
    assert len(it.publisher.sizes) == len(it.publisher.outputs) == 1


def test_progress_is_shown_and_replaced() -> None:
    it = bench()
    it.view.progress(Progress("loading", 0.4, "loading <SmolLM2>"))
    assert "loading &lt;SmolLM2&gt; 40 %" in it.publisher.html
    assert "width:40%" in it.publisher.html
    it.view.progress(Progress("loading", 0.41))
    assert len(it.publisher.sizes) == 1, "throttled"
    it.clock.now += 1
    it.view.progress(Progress("loading", None, "processing the prompt"))
    assert "processing the prompt" in it.publisher.html
    it.view.add(Chunk("Hi"))
    assert len(it.publisher.outputs) == 1
    assert it.publisher.text.strip() == "Hi"
    it.clock.now += 1
    it.view.progress(Progress("loading", 0.9))
    assert it.publisher.text.strip() == "Hi"


def test_a_failure_before_the_first_token_leaves_nothing() -> None:
    it = bench()
    it.view.progress(Progress("loading", 0.4))
    it.view.fail()
    assert not it.publisher.outputs
    it = bench()
    it.view.fail()
    assert not it.publisher.sizes


def test_an_interrupt_anywhere_leaves_one_marked_output() -> None:
    source = WORDS * 30
    for nth in range(1, 40):
        it = bench()

        def interrupt(nth: int = nth, it: Bench = it) -> None:
            if len(it.publisher.sizes) == nth:
                raise KeyboardInterrupt

        it.publisher.on_publish = interrupt
        text = ""
        try:
            for at in range(0, len(source), 4):
                text += source[at : at + 4]
                it.view.add(Chunk(source[at : at + 4]))
                it.clock.now += 0.03
        except KeyboardInterrupt:
            it.view.finish(completion(text, finish_reason="interrupted"), FOOTER, metadata={"llama_magic": {}})
        [output] = it.publisher.outputs
        assert ">interrupted</span>" in output.data["text/html"]
        assert output.data["text/plain"].startswith(text)


# --- samples, probabilities ---


def test_samples_stream_side_by_side() -> None:
    it = bench(samples=3)
    texts = [f"sample{number} " * 800 for number in range(3)]
    for at in range(0, len(texts[0]), 8):
        for number, text in enumerate(texts):
            it.view.add(Chunk(text[at : at + 8], index=number))
            it.clock.now += 0.01
    assert it.publisher.most <= MAX_SLOTS
    it.view.fail()
    assert all(it.publisher.html.count(f"sample{number}") == 800 for number in range(3))
    samples = tuple(Sample(text, (1,), "stop") for text in texts)
    it.view.finish(completion(texts[0], samples=samples), FOOTER, metadata={})
    [output] = it.publisher.outputs
    assert output.data["text/html"].count("display:grid") == 1
    assert "Sample 3" in output.data["text/html"]
    assert output.data["text/plain"].count("sample2") == 800


def logprobs(count: int) -> tuple[TokenLogprob, ...]:
    values = (0.95, 0.7, 0.3, 0.1, 0.001)
    return tuple(
        TokenLogprob(i, f" w{i}", math.log(p), (Candidate(i, f" w{i}", math.log(p)), Candidate(-1, '"<b>', -2.0)))
        for i, p in zip(range(count), values * count, strict=False)
    )


def test_probabilities_are_told_by_colour_underline_and_number() -> None:
    entries = logprobs(500)
    it = bench(logprobs=2)
    for entry in entries:
        it.view.add(Chunk(entry.text, (entry.id,), (entry,)))
        it.clock.now += 0.01
    text = "".join(entry.text for entry in entries)
    it.view.fail()
    assert re.findall(r"w\d+", it.publisher.text) == text.split()
    it.view.finish(completion(text, logprobs=entries), FOOTER, metadata={})
    [output] = it.publisher.outputs
    source = output.data["text/html"]
    for words in ("underline dotted", "underline double", "95 %", "0.1 %", "Probability of each token"):
        assert words in source
    assert "&quot;&lt;b&gt;" in source
    assert "<b>" not in source


def test_bytes_of_probabilities_are_linear() -> None:
    sizes = []
    for count in (1000, 2000):
        it = bench(logprobs=2)
        for entry in logprobs(count):
            it.view.add(Chunk(entry.text, (entry.id,), (entry,)))
            it.clock.now += 0.01
        sizes.append(sum(it.publisher.sizes))
        assert it.publisher.most <= MAX_SLOTS
    assert sizes[1] <= 2.2 * sizes[0]


# --- formats ---


def test_json_is_pretty_or_said_not_to_be_json() -> None:
    data = render_completion(completion('```json\n{"a": [1, "é"]}\n```'), "json", FOOTER)
    assert "&quot;é&quot;" in data["text/html"]
    assert "not valid JSON" not in data["text/html"]
    data = render_completion(completion('{"a": '), "json", FOOTER)
    assert "not valid JSON" in data["text/html"]
    assert "not valid JSON" in data["text/plain"]


def test_code_without_its_fence() -> None:
    assert strip_fence("Sure:\n```python\nx = 1\n```\nand\n~~~\ny\n~~~") == ("x = 1\n\ny", "python")
    assert strip_fence("x = 1\n") == ("x = 1", "")
    assert strip_fence("```py\nx = 1") == ("x = 1", "py")
    source = render_completion(completion("Sure:\n```python\ndef f(): pass\n```"), "code", FOOTER)["text/html"]
    assert "Sure" not in source
    assert "keyword-color" in source


def test_maths_is_typeset_as_a_whole_where_it_is_safe() -> None:
    assert r"\[x^2\]" in render_completion(completion("$$x^2$$"), "math", FOOTER)["text/html"]
    assert "mathjax_process" not in render_completion(completion(r"\href{a}{b}"), "math", FOOTER)["text/html"]
    prose = render_completion(completion("The answer is $x$."), "math", FOOTER)["text/html"]
    assert r"The answer is <span" in prose


def test_html_is_framed_without_scripts_or_network() -> None:
    text = (
        '"><script>alert(1)</script><link rel=dns-prefetch href=//a><META http-equiv=refresh content="0;url=//a">'
        "<iframe src=//a></iframe><img src=//a>"
    )
    source = render_completion(completion(text), "html", FOOTER)["text/html"]
    frame = re.search(r"<iframe[^>]*>", source)
    assert frame
    assert 'sandbox=""' in frame.group()
    page = frame.group().split('srcdoc="')[1]
    assert page.startswith("&lt;!doctype html&gt;&lt;meta charset=&quot;utf-8&quot;&gt;&lt;meta http-equiv=")
    assert "default-src &#x27;none&#x27;" in page
    for tag in ("link", "META http-equiv=refresh", "iframe"):
        assert f"&lt;{tag}" not in page
    assert source.count("<iframe") == 1
    assert "<script" not in source
    assert "scripts in it do not run" in source


def test_everything_is_closed_to_mathjax() -> None:
    for kind in FORMATS:
        source = render_completion(completion("a"), kind, FOOTER)["text/html"]
        assert source.startswith('<div class="llama-magic mathjax_ignore tex2jax_ignore"')


def test_notes_and_names_are_escaped() -> None:
    footer = Footer("<b>m", "CPU", 0.0, 0.0, 0, ("turn replaced; 2 later turns kept as branch '<i>'",))
    data = render_completion(completion(""), "markdown", footer)
    assert "&lt;b&gt;m · CPU · 0 tokens" in data["text/html"]
    assert "<i>" not in data["text/html"]
    assert "(no text)" in data["text/html"]
    assert data["text/plain"].endswith("<b>m · CPU · 0 tokens · turn replaced; 2 later turns kept as branch '<i>'")


# --- terminal ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_terminal_gets_text_as_it_comes() -> None:
    out = Terminal()
    view = TerminalView(out=out)
    view.progress(Progress("loading", 0.5, "loading SmolLM2"))
    assert out.getvalue() == "\rloading SmolLM2 50 %"
    view.add(Chunk("Hel"))
    assert out.getvalue().endswith("\rHel")
    view.add(Chunk("lo \x1b[31mred\r"))
    view.add(Chunk("\nend"))
    view.finish(completion("ignored"), FOOTER, metadata={})
    assert out.getvalue().endswith(
        "\rHello ␛[31mred\nend\n[SmolLM2 Q4_1 · CPU · 57.3 tok/s · first token 0.21 s · 64 tokens]\n"
    )


def test_a_pipe_gets_no_progress() -> None:
    out = io.StringIO()
    view = TerminalView(out=out)
    view.progress(Progress("loading", 0.5))
    view.fail()
    assert out.getvalue() == ""


def test_the_terminal_shows_all_samples_and_probabilities() -> None:
    out = io.StringIO()
    view = TerminalView(samples=2, out=out)
    view.add(Chunk("one"))
    view.add(Chunk("two", index=1))
    samples = (Sample("one", (1,), "stop", logprobs(2)), Sample("two", (1,), "stop"))
    view.finish(completion("one", samples=samples, finish_reason="interrupted"), FOOTER, metadata={})
    assert out.getvalue().startswith("one\n")
    assert "--- sample 2 ---\ntwo" in out.getvalue()
    assert '95 %  “ w0”   “"<b>” 14 %' in out.getvalue()
    assert out.getvalue().endswith("64 tokens · interrupted]\n")


def test_the_terminal_without_streaming() -> None:
    out = io.StringIO()
    view = TerminalView(stream=False, out=out)
    view.add(Chunk("one"))
    assert out.getvalue() == ""
    view.finish(completion("one"), FOOTER, metadata={})
    assert out.getvalue().startswith("one\n\n[SmolLM2")


def test_the_shell_decides_which_view(capsys: pytest.CaptureFixture[str]) -> None:
    notebook: View = make_view(shell=SimpleNamespace(kernel=object(), display_pub=Publisher()))
    assert isinstance(notebook, JupyterView)
    terminal: View = make_view("text", shell=SimpleNamespace(), samples=2, logprobs=1)
    assert isinstance(terminal, TerminalView)
    terminal.add(Chunk("hi"))
    assert capsys.readouterr().out == "hi"
    with pytest.raises(ValueError, match="unknown format 'xml'; known: markdown"):
        make_view("xml")
