"""The sampler theatre: the next token's real distribution. What each stage does to it is computed in the view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_magic.api.looking import next_token
from llama_magic.inference.distribution import NextToken
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.progress import Progress
from llama_magic.safe_text import neutralise

__all__ = ["TheatreSection"]

#: Tokens that come with their text.
_NAMED = 160


class TheatreSection(Section):
    """Look at the next token of the conversation, or of any place in an answer."""

    name = "theatre"

    def start(self) -> None:
        """Begin with an empty stage."""
        self.set(place=self.get("place"))

    def do_look(self, panel: str, text: str = "", turn: int | None = None, tokens: int = 0, label: str = "") -> None:
        """Ask the worker for the distribution after a question, or after so many tokens of an answer."""

        def work(_job: Job, _report: Callable[[Progress], None]) -> NextToken:
            return next_token(self.session, text or None, chat="", turn=turn, tokens=tokens, count=_NAMED)

        self.bench.run(panel, "theatre", "looking at the next token", work, lambda found: self._found(found, label))

    def _found(self, found: NextToken, label: str) -> None:
        self.set(place={"label": label, "n_prompt": found.n_prompt, "n_vocab": found.n_vocab})
        message: dict[str, Any] = {
            "theatre": {
                "label": label,
                "n_prompt": found.n_prompt,
                "texts": [neutralise(candidate.text) for candidate in found.candidates],
                "ids": [candidate.id for candidate in found.candidates],
            }
        }
        self.bench.emit(message, [found.logits])
