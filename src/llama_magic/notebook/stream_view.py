"""The view of a notebook: pieces that settle stay, only a short live end is sent again.

The outputs of a cell are used as slots in a row. The last one in use holds the live end and is
updated in place; what has settled is sent once more, into its slot, and the live end moves on to
the next. JupyterLab shows 50 outputs of a cell at most, so when the slots run out, all settled ones
are merged into one and the row begins again behind it: each byte is sent a bounded number of times.
At the end one output with the whole answer takes the place of all.
"""

from __future__ import annotations

import html
import time
import uuid
from typing import TYPE_CHECKING, Any

from llama_magic.notebook import style
from llama_magic.notebook.render import Footer, columns, render_completion
from llama_magic.safe_text import neutralise

if TYPE_CHECKING:
    from collections.abc import Callable

    from llama_magic.engine.protocol import Progress
    from llama_magic.inference.results import Chunk, Completion
    from llama_magic.notebook.segments import Feed

__all__ = ["JupyterView", "Slots"]

#: Most outputs in use while streaming.
MAX_SLOTS = 32
#: Settled HTML moves out of the live output from this length on, in characters of one column.
FREEZE = 400
#: Seconds between updates: the usual gap, and the one that waiting for the next chunk must not exceed.
_GAP, _LONGEST_GAP = 0.05, 0.12
#: The same for tables that fill while work goes on: they are longer, and change seldom.
_PARTIAL_GAP = 0.25


class JupyterView:
    """Shows a stream in the output of a notebook cell. `clock` gives seconds."""

    def __init__(
        self,
        shell: Any,
        format: str = "markdown",  # noqa: A002 - the flag's name
        *,
        stream: bool = True,
        samples: int = 1,
        logprobs: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._format = format
        self._stream = stream
        self._clock = clock
        self._slots = Slots(shell, samples)
        self._feeds = [_make_feed(format, logprobs) for _ in range(max(samples, 1))]
        self._settled: list[list[str]] = [[] for _ in self._feeds]
        self._started = False
        self._dirty = False
        self._last_update = float("-inf")
        self._last_chunk = float("-inf")

    def progress(self, progress: Progress) -> None:
        """Show a slim bar until the first text comes, and below it what there is so far."""
        now = self._clock()
        gap = _GAP if progress.partial is None else _PARTIAL_GAP
        if self._started or (now - self._last_update < gap and (progress.fraction or 0) < 1):
            return
        self._slots.show_raw(_progress_html(progress), _progress_text(progress))
        self._last_update = now

    def add(self, chunk: Chunk) -> None:
        """Take a chunk, and draw when it is time to."""
        if not self._stream:
            return
        self._feeds[min(chunk.index, len(self._feeds) - 1)].add(chunk)
        self._dirty = True
        now = self._clock()
        gap, waited = now - self._last_chunk, now - self._last_update
        self._last_chunk = now
        if not self._started or waited >= _GAP or waited + gap > _LONGEST_GAP:
            self._started = True
            self._last_update = now
            self._draw()

    def finish(self, completion: Completion, footer: Footer, *, metadata: dict[str, Any]) -> None:
        """Replace everything by the one final output."""
        self._slots.replace_all(render_completion(completion, self._format, footer), metadata)

    def fail(self) -> None:
        """Draw the text that has come; without any, leave nothing."""
        if self._started:
            if self._dirty:
                self._draw()
        else:
            self._slots.clear()

    def _draw(self) -> None:
        lives = []
        for feed, settled in zip(self._feeds, self._settled, strict=True):
            pieces, live = feed.advance()
            settled.extend(pieces)
            lives.append(live)
        self._dirty = False
        if any(sum(map(len, settled)) >= FREEZE for settled in self._settled):
            self._slots.freeze(["".join(settled) for settled in self._settled])
            self._settled = [[] for _ in self._feeds]
        self._slots.show(["".join(settled) + live for settled, live in zip(self._settled, lives, strict=True)])


class Slots:
    """The row of outputs that one cell's stream uses."""

    def __init__(self, shell: Any, samples: int) -> None:
        self._shell = shell
        self._samples = samples
        self._ids: list[str] = []
        self._frozen: list[list[str]] = []
        self._first = 0
        self._sending = False

    def show(self, inners: list[str]) -> None:
        """Show the live end, one piece of HTML per column, in the current slot."""
        self._put(len(self._frozen), style.root(self._arrange(inners)))

    def show_raw(self, source: str, plain: str) -> None:
        """Show something else than text in the current slot."""
        self._put(len(self._frozen), style.root(source), plain)

    def freeze(self, inners: list[str]) -> None:
        """Leave settled HTML in the current slot and move to the next."""
        self._put(len(self._frozen), style.root(self._arrange(inners)))
        self._frozen.append(inners)
        if len(self._frozen) >= MAX_SLOTS:
            self._merge()

    def replace_all(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Leave one output, with metadata, in place of all."""
        if len(self._ids) == 1 and not self._sending:
            self._publish(data, metadata, self._ids[0], update=True)
            return
        if self._ids or self._sending:
            self._shell.display_pub.clear_output(wait=True)
        self._shell.display_pub.publish(data=data, metadata=metadata)

    def clear(self) -> None:
        """Remove what is shown."""
        if self._ids or self._sending:
            self._shell.display_pub.clear_output(wait=False)
            self._ids.clear()

    def _merge(self) -> None:
        """Join the settled slots behind the ones that were joined before, and empty the rest for reuse."""
        if self._first > MAX_SLOTS // 2:
            self._first = 0
        parts = self._frozen[self._first :]
        joined = ["".join(part[column] for part in parts) for column in range(len(parts[0]))]
        self._put(self._first, style.root(self._arrange(joined)))
        for index in range(self._first + 1, len(self._ids)):
            self._put(index, "")
        self._frozen[self._first :] = [joined]
        self._first += 1

    def _arrange(self, inners: list[str]) -> str:
        return columns(inners) if self._samples > 1 else inners[0]

    def _put(self, index: int, source: str, plain: str = "") -> None:
        data = {"text/html": source, "text/plain": plain}
        if index < len(self._ids):
            self._publish(data, {}, self._ids[index], update=True)
        else:
            display_id = uuid.uuid4().hex
            # An interrupt in between leaves open whether the output is there.
            self._sending = True
            self._publish(data, {}, display_id, update=False)
            self._ids.append(display_id)
            self._sending = False

    def _publish(self, data: dict[str, Any], metadata: dict[str, Any], display_id: str, *, update: bool) -> None:
        self._shell.display_pub.publish(
            data=data, metadata=metadata, transient={"display_id": display_id}, update=update
        )


def _make_feed(format: str, logprobs: int) -> Feed:  # noqa: A002
    from llama_magic.notebook import segments
    from llama_magic.notebook.tokens import TokenFeed

    if logprobs > 0:
        return TokenFeed()
    if format in ("json", "html"):
        return segments.CodeFeed(format)
    return segments.TextFeed() if format in ("text", "math") else segments.MarkdownFeed()


def _progress_text(progress: Progress) -> str:
    words = neutralise(progress.message or progress.stage)
    return words if progress.fraction is None else f"{words} {100 * progress.fraction:.0f} %"


def _progress_html(progress: Progress) -> str:
    words = html.escape(_progress_text(progress))
    bar = ""
    if progress.fraction is not None:
        width = 100 * min(max(progress.fraction, 0.0), 1.0)
        bar = f'<div style="{style.BAR}"><div style="{style.BAR_FILL};width:{width:.0f}%"></div></div>'
    shown = getattr(progress.partial, "_repr_html_", str)() or ""
    return f'<p style="{style.FOOTER};margin:0 0 .3em"><small>{words}</small></p>{bar}{shown}'
