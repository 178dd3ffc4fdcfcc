"""What a front end asks for, and the generation that answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llama_magic._version import __version__
from llama_magic.api.schema import Schema
from llama_magic.api.watching import Record
from llama_magic.engine.protocol import GenerateRequest
from llama_magic.inference.conversation import CellRun
from llama_magic.inference.receipt import llama_cli_line
from llama_magic.inference.results import Completion, Receipt

if TYPE_CHECKING:
    from llama_magic.engine.stream import GenerationStream

__all__ = ["Ask", "Generation"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing asked of a model, as a front end puts it.

    Attributes
    ----------
    text
        The prompt.
    ref
        A model reference for this request only; None: the current model.
    loading, sampling
        Load options and sampling keywords that differ from the session's defaults.
    system
        The system prompt; None: the session's.
    schema
        A JSON schema in any form that `load_schema` takes.
    chat
        Make it a turn of this conversation; None: it stands alone.
    new
        Start the conversation over.
    complete
        Continue the text as it is, without the chat template.
    origin
        The cell it comes from; asking again from it replaces its turn.
    turn
        Ask in place of the conversation's turn of this number, from 0; the line as it was becomes a branch.
    force
        Load the model even where it seems not to fit.
    """

    text: str
    ref: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    schema: Any = None
    chat: str | None = None
    new: bool = False
    complete: bool = False
    origin: CellRun | None = None
    turn: int | None = None
    force: bool = False


@dataclass(slots=True)
class Generation:
    """A request under way: read its `stream`, then hand the completion to `finish`.

    `over` is called when the completion is recorded, or will not be. `rpc` are the other machines that the worker uses.
    """

    request: GenerateRequest
    stream: GenerationStream
    schema: Schema | None
    record: Record
    over: Callable[[], None] = lambda: None
    rpc: tuple[str, ...] = ()

    def finish(self, completion: Completion) -> Completion:
        """Complete what only this side knows: parsed object, `llama-cli` line, the conversation's turn.

        An interrupted answer is kept like any other; nothing is recorded where no token came.
        """
        try:
            return self._finish(completion)
        finally:
            self.over()

    def _finish(self, completion: Completion) -> Completion:
        if self.schema is not None:
            completion = _parse(completion, self.schema)
        receipt = completion.receipt or self._bare_receipt()
        completion = replace(completion, receipt=replace(receipt, llama_cli=self._cli(receipt)))
        if not completion.tokens and completion.finish_reason == "interrupted":
            return completion
        return replace(completion, notes=completion.notes + self.record(completion))

    def _cli(self, receipt: Receipt) -> str:
        request = self.request
        if "://" in request.spec.path:  # a model on a server: llama-cli has no file of it
            return ""
        options = request.spec.options.replace(n_ctx=receipt.n_ctx or None, n_threads=receipt.n_threads or None)
        return llama_cli_line(
            options,
            request.params,
            path=request.spec.path,
            prompt=request.prompt,
            messages=request.messages,
            rpc=self.rpc,
        )

    def _bare_receipt(self) -> Receipt:
        """Return what is known without the worker, which had to be stopped before it could report."""
        spec, params = self.request.spec, self.request.params
        return Receipt(
            model=spec.ref,
            path=spec.path,
            sha256="",
            ftype="",
            params=params.to_dict(),
            options=spec.options.to_dict(),
            devices=(),
            n_threads=spec.options.n_threads or 0,
            n_ctx=spec.options.n_ctx or 0,
            timings={},
            llama_cpp_commit="",
            llama_cpp_python="",
            llama_magic=__version__,
            llama_cli="",
            template="completion" if self.request.prompt is not None else "chat",
        )


def _parse(completion: Completion, schema: Schema) -> Completion:
    def parsed(text: str) -> tuple[Any, str | None]:
        try:
            return schema.parse(text), None
        except ValueError as error:  # pydantic's and json's errors are ValueErrors
            return None, str(error).strip().partition("\n")[0]

    value, problem = parsed(completion.text)
    samples = tuple(replace(sample, parsed=parsed(sample.text)[0]) for sample in completion.samples)
    if problem and completion.finish_reason == "interrupted":
        problem = None
    elif problem and completion.finish_reason != "stop":
        problem = "the answer was cut off before its JSON was complete; a larger -n helps"
    elif problem:
        problem = f"the answer does not validate: {problem}"
    notes = (*completion.notes, problem) if problem else completion.notes
    return replace(completion, parsed=value, samples=samples, notes=notes)
