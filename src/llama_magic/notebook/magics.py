"""The `%llama` and `%%llama` magics: parse, call, display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from IPython.core.display_functions import display
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from llama_magic.api.files import check_writable, write_text
from llama_magic.api.session import Ask, Generation, current_session
from llama_magic.errors import (
    EngineProtocolError,
    GenerationInterrupted,
    InvalidRequestError,
    JobInterrupted,
    LlamaMagicError,
    SchemaError,
)
from llama_magic.notebook.body import cell_text, fill_in
from llama_magic.notebook.commands import Context
from llama_magic.notebook.config import Defaults
from llama_magic.notebook.converters import unescape
from llama_magic.notebook.help import docstring
from llama_magic.notebook.history import history_bundle
from llama_magic.notebook.origin import cell_run
from llama_magic.notebook.parsers import Arguments, HelpAsked, split
from llama_magic.notebook.running import all_text, run
from llama_magic.notebook.subcommands import CELL, SUBCOMMANDS
from llama_magic.notebook.views import make_view
from llama_magic.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from llama_magic.inference.results import Completion
    from llama_magic.progress import Report

__all__ = ["LlamaMagic"]


#: Seconds after an interrupt in which a kernel drops further ones, see `OneInterrupt`.
_LINGER_S = 0.5


class _Stopped(KeyboardInterrupt):
    """An interrupt outside of a generation: one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return ["Interrupted."]


@magics_class
class LlamaMagic(Magics, Defaults):
    """Defaults of `%%llama`; a flag in a cell goes before them."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._shell = shell
        self.session = current_session()
        self.apply()

    def llama(self, line: str, cell: str | None = None) -> None:
        """Made from the table of flags, below."""
        try:
            if cell is None:
                self._line(split(line))
            else:
                self._whole_cell(line, cell_text(cell))
        except HelpAsked as asked:
            self._line(["help", asked.topic])
        except (GenerationInterrupted, EngineProtocolError):
            raise  # the first renders itself, the second is a bug
        except LlamaMagicError as error:
            raise UsageError(str(error)) from error
        except KeyboardInterrupt:
            raise _Stopped from None

    llama.__doc__ = docstring()
    llama = cast("Callable[..., None]", no_var_expand(line_cell_magic(llama)))

    def _line(self, words: list[str]) -> None:
        name = {"": "help", "-h": "help", "--help": "help", "--version": "version"}.get(words[0] if words else "", "")
        name = name or words[0]
        if name in SUBCOMMANDS:
            arguments = SUBCOMMANDS[name].parse(words[1:])
            {"history": self._history, "retry": self._retry}.get(name, self._command)(name, arguments)
        elif any(word.startswith("-") for word in words):
            self._cell(CELL.parse(words), "")
        else:
            raise InvalidRequestError(_unknown(name))

    def _whole_cell(self, line: str, body: str) -> None:
        words = split(line)
        if words[:1] == ["compare"]:
            self._compare(SUBCOMMANDS["compare"].parse(words[1:]), body)
            return
        arguments = CELL.parse(words)
        if "compare" in arguments.values:
            self._compare(arguments, body)
        else:
            self._cell(arguments, body)

    def _compare(self, arguments: Arguments, body: str) -> None:
        """Let levels answer the body: ``%%llama compare REF …`` and ``%%llama --compare Q8_0,Q2_K``."""
        fill = str if arguments.get("raw") else lambda text: fill_in(text, self._shell.user_ns)
        parts = [arguments.get("file"), unescape(fill(arguments.get("prompt", ""))), fill(body)]
        values = {name: value for name, value in arguments.values.items() if name not in ("file", "prompt")}
        text = "\n\n".join(part for part in parts if part and part.strip())
        if text:
            values["prompt"] = text
        self._command("compare", Arguments(arguments.words, values, {**arguments.groups, "prompt": "prompt"}))

    def _command(self, name: str, arguments: Arguments) -> None:
        view = make_view("text", shell=self._shell)
        try:
            context = Context(self.session, self, view.progress, self._shell.user_ns, self._shell)
            said = SUBCOMMANDS[name].action()(context, arguments)
        except JobInterrupted as stopped:
            if hasattr(stopped.result, "_repr_html_"):  # what was done until then
                view.fail()
                self._say(arguments, stopped.result)
                raise stopped.shown() from None
            raise
        except KeyboardInterrupt:
            raise _Stopped from None
        finally:
            view.fail()  # removes the progress of loading
        self._say(arguments, said)

    def _say(self, arguments: Arguments, said: Any) -> None:
        if "out" in arguments.values:
            self._shell.user_ns[arguments.get("out")] = said
        if isinstance(said, str):
            print(said)  # noqa: T201 - what a line magic says is its output
        elif said is not None:
            display(said)

    def _history(self, _name: str, arguments: Arguments) -> None:
        name, _, branch = (arguments.word or "").partition("/")
        bundle = history_bundle(self.session.conversation(name or None), self.format, branch)
        self._shell.display_pub.publish(data=bundle)

    def _retry(self, _name: str, arguments: Arguments) -> None:
        sampling = arguments.group("sampling")
        if "schema" in sampling:
            raise InvalidRequestError("retry keeps the schema of the turn; leave out --schema")
        self._show(arguments, lambda _progress: self.session.retry(arguments.word, sampling))

    def _cell(self, arguments: Arguments, body: str) -> None:
        ask = self._ask(arguments, body)
        self._show(arguments, lambda progress: self.session.start(ask, progress))

    def _ask(self, arguments: Arguments, body: str) -> Ask:
        if arguments.word in SUBCOMMANDS:
            raise InvalidRequestError(f"{arguments.word} works on a line of its own: %llama {arguments.word}")
        fill = str if arguments.get("raw") else lambda text: fill_in(text, self._shell.user_ns)
        parts = [arguments.get("file"), fill(unescape(arguments.get("prompt", ""))), fill(body)]
        sampling = arguments.group("sampling")
        system = arguments.get("system")
        return Ask(
            text="\n\n".join(part for part in parts if part and part.strip()),
            ref=arguments.get("ref", arguments.word),
            loading=arguments.group("loading"),
            schema=self._schema(sampling.pop("schema", None)),
            sampling=sampling,
            system=None if system is None else fill(system),
            chat="" if arguments.get("new") and "chat" not in arguments.values else arguments.get("chat"),
            new=arguments.get("new", False),
            complete=arguments.get("complete", False),
            origin=cell_run(self._shell),
            force=arguments.get("force", False),
        )

    def _schema(self, word: Any) -> Any:
        if not isinstance(word, str) or not word.isidentifier():
            return word
        if word in self._shell.user_ns:
            return self._shell.user_ns[word]
        if Path(word).is_file():
            return Path(word)
        hint = did_you_mean(word, [name for name in self._shell.user_ns if not name.startswith("_")])
        raise SchemaError(f"--schema: there is no variable or file {word!r}.{hint}")

    def _show(self, arguments: Arguments, start: Callable[[Report], Generation]) -> None:
        file = Path(arguments.get("file_out", "")).expanduser()
        if "file_out" in arguments.values:
            check_writable(file)
        shape = "json" if "schema" in arguments.values else self.format
        view = make_view(
            arguments.get("format", shape),
            shell=self._shell,
            stream=arguments.get("stream", self.stream),
            samples=arguments.get("samples", self.session.sampling.samples),
            logprobs=arguments.get("logprobs", self.session.sampling.logprobs),
        )

        def done(completion: Completion) -> None:
            if "out" in arguments.values:
                self._shell.user_ns[arguments.get("out")] = completion
            if "file_out" in arguments.values and completion.finish_reason != "interrupted":
                write_text(file, all_text(completion))

        run(lambda: start(view.progress), view, done, linger=_LINGER_S if hasattr(self._shell, "kernel") else 0.0)


def _unknown(name: str) -> str:
    from llama_magic.models.resolve import is_model_ref

    hint = did_you_mean(name, SUBCOMMANDS)
    if not hint and is_model_ref(name):
        return f"to load {name}: %llama load {name}; to ask it: %%llama {name} and the prompt below"
    return f"unknown subcommand {name!r}.{hint or ' %llama help lists them all.'}"
