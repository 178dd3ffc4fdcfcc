"""What shows an answer while it is made, in a notebook or in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from llama_magic.notebook.render import FORMATS, Footer, render_completion

if TYPE_CHECKING:
    from llama_magic.engine.protocol import Progress
    from llama_magic.inference.results import Chunk, Completion

__all__ = ["FORMATS", "Footer", "View", "make_view", "render_completion"]


class View(Protocol):
    """Shows one generation: progress, then text as it comes, then the final output.

    Every method may be cut short by a `KeyboardInterrupt`; `finish` and `fail` work all the same afterwards.
    """

    def progress(self, progress: Progress) -> None:
        """Show how far loading is, in the place where the text will be."""

    def add(self, chunk: Chunk) -> None:
        """Show new text: the first at once, the rest at least eight times a second while it comes."""

    def finish(self, completion: Completion, footer: Footer, *, metadata: dict[str, Any]) -> None:
        """Leave one output: the whole answer with its footer, and the receipt as its metadata."""

    def fail(self) -> None:
        """Remove progress after an error; text that has come stays."""


def make_view(
    format: str = "markdown",  # noqa: A002 - the flag's name
    *,
    shell: Any = None,
    stream: bool = True,
    samples: int = 1,
    logprobs: int = 0,
) -> View:
    """Return a view for this shell: a notebook's where it has a kernel, a terminal's otherwise.

    Parameters
    ----------
    format
        One of `FORMATS`.
    shell
        The IPython shell, or None for the terminal.
    stream
        False shows nothing but progress before the end.
    samples
        How many continuations come side by side.
    logprobs
        Above 0 shows tokens by their probability.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if getattr(shell, "kernel", None) is not None:
        from llama_magic.notebook.stream_view import JupyterView

        return JupyterView(shell, format, stream=stream, samples=samples, logprobs=logprobs)
    from llama_magic.notebook.terminal_view import TerminalView

    return TerminalView(stream=stream, samples=samples)
