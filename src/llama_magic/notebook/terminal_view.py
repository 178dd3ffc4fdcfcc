"""The view of a plain terminal: text as it comes, on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from llama_magic.notebook.render import Footer, footer_text
from llama_magic.notebook.tokens import token_lines
from llama_magic.safe_text import neutralise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_magic.engine.protocol import Progress
    from llama_magic.inference.results import Chunk, Completion, Sample

__all__ = ["TerminalView"]


class TerminalView:
    """Streams the first sample; the others, if any, follow at the end."""

    def __init__(self, *, stream: bool = True, samples: int = 1, out: TextIO | None = None) -> None:
        self._stream = stream
        self._samples = samples
        self._out = out
        self._shown = False
        self._line = ""
        self._held = ""

    @property
    def _file(self) -> TextIO:
        return self._out if self._out is not None else sys.stdout

    def progress(self, progress: Progress) -> None:
        """Show progress on one line that is written over; nothing where output is not a terminal."""
        if self._shown or not self._file.isatty():
            return
        share = "" if progress.fraction is None else f" {100 * progress.fraction:.0f} %"
        line = neutralise(f"{progress.message or progress.stage}{share}").replace("\n", " ")[:78]
        self._write("\r" + line.ljust(len(self._line)))
        self._line = line

    def add(self, chunk: Chunk) -> None:
        """Write new text of the first sample."""
        if not self._stream or chunk.index != 0:
            return
        text = self._held + chunk.text
        # A carriage return may be half a line end: wait for what follows.
        self._held = "\r" if text.endswith("\r") else ""
        self._begin()
        self._write(neutralise(text.removesuffix("\r") if self._held else text))

    def finish(self, completion: Completion, footer: Footer, *, metadata: dict[str, Any]) -> None:  # noqa: ARG002
        """Write what has not been shown, and the footer line."""
        self._erase()
        samples: Sequence[Completion | Sample] = completion.samples if len(completion.samples) > 1 else (completion,)
        parts = []
        for number, sample in enumerate(samples, 1):
            label = f"--- sample {number} ---\n" if len(samples) > 1 and number > 1 else ""
            if number > 1 or not self._shown:
                parts.append(label + neutralise(sample.text))
            if sample.logprobs:
                parts.append(token_lines(sample.logprobs))
        notes: tuple[str, ...] = ()
        if completion.finish_reason == "interrupted" and not any("interrupted" in n.lower() for n in footer.notes):
            notes = ("interrupted",)
        lead = "\n" if self._shown else ""
        self._write(lead + "\n\n".join([*parts, f"[{footer_text(footer, notes)}]"]) + "\n")

    def fail(self) -> None:
        """Clear the progress line; end the line of text that has come."""
        self._erase()
        if self._shown:
            self._write("\n")

    def _begin(self) -> None:
        if not self._shown:
            self._erase()
            self._shown = True

    def _erase(self) -> None:
        if self._line:
            self._write("\r" + " " * len(self._line) + "\r")
            self._line = ""

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
