"""Every error that llama_magic raises, as one tree.

::

    LlamaMagicError
    ├── InvalidRequestError (ValueError)      an argument that can not be used
    │   ├── GrammarError                      a GBNF grammar with a syntax error
    │   ├── SchemaError                       a JSON schema that is not one
    │   └── ChatTemplateError                 a chat template that failed on these messages
    ├── ModelError
    │   ├── ModelNotFoundError (FileNotFoundError)   no such file, repository or alias
    │   ├── InvalidModelError (ValueError)           the file is not a usable GGUF model
    │   ├── OutOfMemoryError (MemoryError)           the model would not fit, or did not
    │   └── DownloadError (OSError)                  the Hub could not give the file
    ├── ContextFullError (ValueError)         the prompt is longer than the context
    ├── DiskFullError (OSError)               a file does not fit on the disk
    ├── NativeError (RuntimeError)            llama.cpp reported a failure
    ├── BackendError (RuntimeError)           a hardware backend is not there, can not be loaded or not be built
    │   ├── BuildError                        building one failed; holds the end and the place of its log
    │   └── RpcHostError (OSError)            another machine does not answer, or serves somebody else
    ├── EngineError (RuntimeError)
    │   ├── EngineCrashed                     the worker process died
    │   └── EngineProtocolError               the two processes disagree (a bug)
    ├── ConversationError (LookupError)       no such conversation or turn
    ├── SavedStateError (ValueError)          a saved conversation is damaged, foreign or out of date
    ├── ServerError (OSError)                 a server can not listen where it was told to
    ├── RemoteError (OSError)                 a server elsewhere can not be reached, refused, or failed
    ├── MissingDependencyError (ImportError)  an optional package is not installed
    └── GenerationInterrupted (KeyboardInterrupt)  the user stopped it; holds what was made
        └── JobInterrupted                the same for long work that is no generation

Each message says what happened and, where something can be done, what to do next.
Errors cross the process boundary, so each must pickle: every argument that ``__init__``
takes is kept in ``args``.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendError",
    "BuildError",
    "ChatTemplateError",
    "ContextFullError",
    "ConversationError",
    "DiskFullError",
    "DownloadError",
    "EngineCrashed",
    "EngineError",
    "EngineProtocolError",
    "GenerationInterrupted",
    "GrammarError",
    "InvalidModelError",
    "InvalidRequestError",
    "JobInterrupted",
    "LlamaMagicError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotFoundError",
    "NativeError",
    "OutOfMemoryError",
    "RemoteError",
    "RpcHostError",
    "SavedStateError",
    "SchemaError",
    "ServerError",
]


class LlamaMagicError(Exception):
    """Base of all errors that this package raises on purpose."""


class InvalidRequestError(LlamaMagicError, ValueError):
    """An argument, flag or combination of them can not be used."""


class GrammarError(InvalidRequestError):
    """A GBNF grammar could not be parsed."""


class SchemaError(InvalidRequestError):
    """What was given as a JSON schema is not one, or uses what can not be constrained."""


class ChatTemplateError(InvalidRequestError):
    """The model's chat template failed on these messages."""


class ModelError(LlamaMagicError):
    """Base of the errors about a model's file."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """A model reference names nothing that exists."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InvalidModelError(ModelError, ValueError):
    """A file is not a GGUF model, is cut off, or is of an unknown architecture."""


class OutOfMemoryError(ModelError, MemoryError):
    """A model would not fit into memory, or an allocation failed."""


class DownloadError(ModelError, OSError):
    """The Hub could not be reached or refused the file."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ContextFullError(LlamaMagicError, ValueError):
    """A prompt does not fit into the context window.

    Parameters
    ----------
    n_prompt
        Tokens in the prompt.
    n_ctx
        Tokens that the context holds.
    n_ctx_train
        Tokens that the model was trained for; larger contexts work badly. 0 where a server does not tell.
    """

    def __init__(self, n_prompt: int, n_ctx: int, n_ctx_train: int) -> None:
        super().__init__(n_prompt, n_ctx, n_ctx_train)
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx
        self.n_ctx_train = n_ctx_train

    def __str__(self) -> str:
        remedies = ["shorten the prompt", "start over (%llama new)"]
        if self.n_prompt < self.n_ctx_train:
            larger = min(self.n_ctx_train, 1 << self.n_prompt.bit_length())
            remedies.insert(0, f"a larger context (-c {larger})")
        elif not self.n_ctx_train:
            remedies.insert(0, "a larger context on the server")
        trained = f" (the model was trained for {self.n_ctx_train:,})" if self.n_ctx_train else ""
        return (
            f"the prompt has {self.n_prompt:,} tokens, the context holds {self.n_ctx:,}{trained}. "
            f"What helps: {', '.join(remedies)}."
        )


class DiskFullError(LlamaMagicError, OSError):
    """A file does not fit on the disk, or the disk became full while it was written."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NativeError(LlamaMagicError, RuntimeError):
    """llama.cpp reported a failure that has no better name here."""


class BackendError(LlamaMagicError, RuntimeError):
    """A hardware backend is not there, can not be loaded, or can not be built here."""


class BuildError(BackendError):
    """Building a backend failed.

    Parameters
    ----------
    message
        What happened and what helps.
    log
        The file with everything that was said; empty where there is none.
    lines
        The end of it.
    """

    def __init__(self, message: str, log: str = "", lines: tuple[str, ...] = ()) -> None:
        super().__init__(message, log, lines)
        self.message = message
        self.log = log
        self.lines = lines

    def __str__(self) -> str:
        tail = "".join(f"\n  {line}" for line in self.lines)
        return self.message + tail + (f"\n  the whole log: {self.log}" if self.log else "")


class RpcHostError(BackendError, OSError):
    """An RPC host does not answer, is none, or serves somebody else."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EngineError(LlamaMagicError, RuntimeError):
    """Base of the errors about the worker process."""


class EngineCrashed(EngineError):  # noqa: N818 - the name users know from the design
    """The worker process died.

    Parameters
    ----------
    cause
        What most likely happened, in words.
    exit_code
        As `subprocess` gives it: negative for a signal.
    log
        The last lines of llama.cpp's own log.
    """

    def __init__(self, cause: str, exit_code: int | None = None, log: tuple[str, ...] = ()) -> None:
        super().__init__(cause, exit_code, log)
        self.cause = cause
        self.exit_code = exit_code
        self.log = log

    def __str__(self) -> str:
        tail = "".join(f"\n  llama.cpp: {line}" for line in self.log[-3:])
        return f"{self.cause} The next call starts a fresh worker and reloads the model.{tail}"


class EngineProtocolError(EngineError):
    """Kernel and worker disagree about their messages: a bug, please report it."""


class ConversationError(LlamaMagicError, LookupError):
    """There is no such conversation, or no turn to undo or retry."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class SavedStateError(LlamaMagicError, ValueError):
    """A saved conversation is damaged, or was made with another model, llama.cpp or cache."""


class ServerError(LlamaMagicError, OSError):
    """A server can not listen where it was told to."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class RemoteError(LlamaMagicError, OSError):
    """A server elsewhere can not be reached, refused a request, or failed.

    Parameters
    ----------
    message
        What happened and what helps.
    status
        The HTTP status; 0 where there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


class MissingDependencyError(LlamaMagicError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class GenerationInterrupted(LlamaMagicError, KeyboardInterrupt):  # noqa: N818
    """The user stopped a generation.

    It is a `KeyboardInterrupt`, so that "Run All" stops, and it keeps what was made so far.

    Parameters
    ----------
    completion
        The partial `Completion`, or None when nothing had been generated yet.
    """

    def __init__(self, completion: Any = None) -> None:
        super().__init__(completion)
        self.completion = completion
        self.result: Any = None

    def __str__(self) -> str:
        made = 0 if self.completion is None else len(self.completion.tokens)
        if not made:
            return "Interrupted before the first token."
        return f"Interrupted after {made:,} token{'' if made == 1 else 's'}; what was written is kept."

    def _render_traceback_(self) -> list[str]:
        """One line in the notebook: the user stopped it, there is nothing to trace."""
        return [str(self)]


class JobInterrupted(GenerationInterrupted):
    """The user stopped long work: a download, a quantization, a measurement.

    Parameters
    ----------
    result
        What there is all the same, or None.
    words
        What became of it, in a sentence.
    """

    def __init__(self, result: Any = None, words: str = "stopped; nothing half-done is left.") -> None:
        super().__init__(None)
        self.result = result
        self.words = words
        self.args = (result, words)

    def __str__(self) -> str:
        return self.words

    def shown(self) -> JobInterrupted:
        """Return the same without the result among the words: it is shown beside them already."""
        head, listed, _ = self.words.partition(":\n")
        return JobInterrupted(self.result, f"{head}.") if listed else self

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]
