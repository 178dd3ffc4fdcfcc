"""A conversation with the current model. It is the session's own: what a cell with -cnv adds is shown here too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llama_magic.api.session import Ask, Generation
from llama_magic.inference.conversation import Conversation, Turn
from llama_magic.inference.results import Chunk, Completion
from llama_magic.notebook.panel.cells import cell_of, flags_of
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.notebook.render import footer_text
from llama_magic.notebook.running import footer_of
from llama_magic.notebook.segments import MarkdownFeed
from llama_magic.progress import Progress
from llama_magic.safe_text import neutralise
from llama_magic.units import format_probability

__all__ = ["SAMPLING", "ChatSection"]

#: The sampling parameters that the panel has controls for.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_tokens", "seed")

#: Alternatives reported for each token, for the view of tokens.
_ALTERNATIVES = 4

Report = Callable[[Progress], None]


class ChatSection(Section):
    """Ask, stop, retry, edit, undo, branch."""

    name = "chat"

    def __init__(self, bench: Any) -> None:
        super().__init__(bench)
        self._shown: list[Turn] = []
        self._sent = ""

    def start(self) -> None:
        """Show the current conversation."""
        self._defaults()
        self.set(streaming=None, probabilities=self.get("probabilities", True))
        self._shown, self._sent = [], ""
        self._conversations()

    def changed(self, what: str) -> None:
        """A cell asked in the conversation, or the defaults changed."""
        if what == "chat":
            self._conversations()
        elif what == "defaults":
            self._defaults()

    def _defaults(self) -> None:
        sampling = self.session.sampling
        values = {name: getattr(sampling, name) for name in SAMPLING}
        changed = {name: value for name, value in sampling.changed().items() if name in SAMPLING}
        self.set(sampling=values, flags=flags_of(changed), system_default=self.session.system or "")

    def _conversation(self) -> Conversation | None:
        return self.session.conversations.get(self.session.chat)

    def _conversations(self) -> None:
        """Send what is new: conversations, branches, and the turns from the first that differs."""
        current = self._conversation()
        turns = list(current.turns) if current is not None else []
        name = self.session.chat
        self.set(
            name=name,
            system=(current.system if current is not None else self.session.system) or "",
            conversations=[
                {"name": each, "turns": len(talk), "branches": [[b, len(line)] for b, line in talk.branches.items()]}
                for each, talk in self.session.conversations.items()
            ],
        )
        same = 0
        if name == self._sent:
            while same < min(len(turns), len(self._shown)) and turns[same] is self._shown[same]:
                same += 1
        new = [_turn(current, turn) for turn in turns[same:]] if current is not None else []
        if new or same < len(self._shown) or name != self._sent:
            held = self.get("turns", [])[:same] + new
            self.bench.state.setdefault("chat", {})["turns"] = held
            self.bench.emit({"turns": {"from": same, "items": new}})
        self._shown, self._sent = turns, name

    # -- asking ----------------------------------------------------------------------------

    def do_ask(self, panel: str, text: str, turn: int | None = None, system: str | None = None) -> None:
        """Ask, or ask again in place of a turn; the line as it was is kept as a branch."""
        ask = Ask(text, chat=self.session.chat, turn=turn, system=system, sampling=self._probabilities())
        self._answer(panel, text, turn, lambda report: self.session.start(ask, report))

    def do_retry(self, panel: str) -> None:
        """Answer the last turn again with another seed."""
        current = self.session.conversation(self.session.chat)
        last = current.last()
        self._answer(
            panel, last.user, len(current) - 1,
            lambda report: self.session.retry(current.name, self._probabilities(), report),
        )  # fmt: skip

    def _probabilities(self) -> dict[str, Any]:
        return {"logprobs": _ALTERNATIVES if self.get("probabilities") else 0}

    def _answer(self, panel: str, text: str, turn: int | None, start: Callable[[Report], Generation]) -> None:
        if self.bench.runner.busy("chat"):
            self.bench.fail("ask", "An answer is being written; stop it, or wait for its end.")
            return

        def work(_job: Job, report: Report) -> None:
            _Stream(self.bench, report).run(start)

        self.bench.dismiss("ask")
        at = len(self._shown) if turn is None else turn
        self.bench.emit({"stream": {"begin": True}})  # first: the answer before this one must not show again
        self.set(streaming={"at": at, "user": neutralise(text), "began": time.time()})
        self.bench.run(panel, "chat", "answering", work)

    def ended(self, job: Job) -> None:
        """Show the finished turn in place of the stream."""
        if job.lane == "chat":
            self._conversations()
            self.set(streaming=None)

    # -- the line --------------------------------------------------------------------------

    def do_undo(self, _panel: str, turns: int = 1) -> None:
        """Remove the last turns."""
        if not self._answering():
            self.session.undo(turns, self.session.chat)

    def do_rewind(self, _panel: str, turns: int) -> None:
        """Go back to the first turns, and keep the line as a branch."""
        if not self._answering():
            self.session.rewind(turns, self.session.chat)

    def do_switch(self, _panel: str, name: str) -> None:
        """Go to another conversation, a new one, or a branch (``name/branch``)."""
        if not self._answering():
            self.session.switch(name)
            self._conversations()

    def do_new(self, panel: str) -> None:
        """Start over; the turns are kept as a branch."""
        if not self._answering():
            self.bench.run(panel, "ask", "starting over", lambda *_: self.session.new(self.session.chat))

    def _answering(self) -> bool:
        if self.bench.runner.busy("chat"):
            self.bench.fail("ask", "An answer is being written; stop it, or wait for its end.")
            return True
        self.bench.dismiss("ask")
        return False

    # -- settings --------------------------------------------------------------------------

    def do_sampling(self, _panel: str, **values: Any) -> None:
        """Change sampling defaults: for cells as well."""
        self.bench.set_defaults(**{name: value for name, value in values.items() if name in SAMPLING})
        self._defaults()

    def do_reset(self, _panel: str) -> None:
        """Go back to llama.cpp's sampling defaults."""
        from llama_magic.inference.params import SamplingParams

        plain = SamplingParams()
        self.bench.set_defaults(**{name: getattr(plain, name) for name in SAMPLING})
        self._defaults()

    def do_probabilities(self, _panel: str, on: bool) -> None:
        """Report alternatives for each token, or not."""
        self.set(probabilities=bool(on))


class _Stream:
    """One answer on its way to the panels: pieces that are settled once, and a short live end."""

    _GAP = 0.05

    def __init__(self, bench: Any, report: Report) -> None:
        self._bench = bench
        self._report = report
        self._feed = MarkdownFeed()
        self._last = 0.0
        self._tokens = 0
        self._began = 0.0

    def run(self, start: Callable[[Report], Generation]) -> None:
        generation = start(self._report)
        generation.stream.on_progress = self._report
        try:
            for chunk in generation.stream:
                self._add(chunk)
            completion = generation.stream.completion
        except KeyboardInterrupt:
            completion = generation.stream.cancel()
        except BaseException:
            generation.stream.close()
            generation.over()
            raise
        self._draw()
        if completion is not None:
            generation.finish(completion)

    def _add(self, chunk: Chunk) -> None:
        now = time.monotonic()
        self._began = self._began or now
        self._feed.add(chunk)
        self._tokens += len(chunk.tokens)
        if now - self._last >= self._GAP:
            self._last = now
            self._draw()

    def _draw(self) -> None:
        settled, live = self._feed.advance()
        spent = time.monotonic() - self._began if self._began else 0.0
        rate = self._tokens / spent if spent > 0.2 else 0.0
        message = {"stream": {"settled": settled, "live": live, "tokens": self._tokens, "rate": rate}}
        self._bench.post(lambda: self._bench.emit(message))


def _turn(conversation: Conversation, turn: Turn) -> dict[str, Any]:
    completion = turn.completion
    return {
        "user": neutralise(turn.user),
        "text": completion.text,
        "html": _html(completion),
        "footer": footer_text(footer_of(completion)),
        "reason": completion.finish_reason,
        "cell": cell_of(conversation, turn),
        "tokens": _tokens(completion),
        "count": len(completion.tokens),
        "from_cell": turn.origin is not None,
    }


def _html(completion: Completion) -> str:
    from llama_magic.notebook.markdown import render_markdown

    return render_markdown(completion.text) if completion.text.strip() else ""


def _tokens(completion: Completion) -> list[list[Any]]:
    """Return text, probability in words, natural log and alternatives of each token."""
    return [
        [
            neutralise(entry.text),
            format_probability(entry.logprob),
            round(entry.logprob, 4),
            [[neutralise(other.text), format_probability(other.logprob), other.id == entry.id] for other in entry.top],
        ]
        for entry in completion.logprobs
    ]
