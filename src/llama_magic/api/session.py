"""The session: which model is current, which defaults hold, and the conversations.

The magics and the panel share one `Session`. It knows nothing of IPython: it turns an
`Ask` into a request, hands that to the engine client, and records what came back.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llama_magic.api.generation import Ask, Generation
from llama_magic.api.schema import Schema, load_schema
from llama_magic.api.watching import Answering, Record, Watchers
from llama_magic.engine.protocol import (
    ForgetRequest,
    GenerateRequest,
    LoadRequest,
    Progress,
    StatusRequest,
    UnloadRequest,
)
from llama_magic.errors import ConversationError, InvalidRequestError, SavedStateError
from llama_magic.inference.conversation import Conversation, Turn
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion, Message
from llama_magic.models.options import LoadOptions, ModelInfo, ModelSpec
from llama_magic.suggest import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from llama_magic.api.saved import SavedConversation
    from llama_magic.engine.client import Client
    from llama_magic.inference.saved import SavedHeader

__all__ = ["Ask", "Generation", "Session", "current_session", "set_session"]

#: The model that is used until another one is loaded, and the conversation that ``-cnv`` continues.
DEFAULT_MODEL = "smollm2"
DEFAULT_CHAT = "chat"

#: What watchers are told when an attribute is set.
_TOLD = {
    "info": "model", "default_model": "defaults", "options": "defaults", "sampling": "defaults", "system": "defaults",
    "chat": "chat",
}  # fmt: skip


class Session:
    """The current model, the defaults, and the conversations.

    Attributes
    ----------
    default_model
        Reference of the model used until one is loaded.
    options, sampling, system
        Defaults for loading and sampling, and the system prompt.
    info
        What the worker reported about the current model; None before the first load.
    conversations
        By name, in the order they were made.
    chat
        Name of the conversation that ``-cnv`` continues.
    last_chat
        Name of the conversation used last: what undo, retry, history and save mean without a name.
    """

    def __init__(self) -> None:
        self._watchers = Watchers()
        self._answering = Answering()
        self.default_model = DEFAULT_MODEL
        self.options = LoadOptions()
        self.sampling = SamplingParams()
        self.system: str | None = None
        self._current: tuple[str, str, dict[str, Any]] | None = None  # path, reference, load options of its own
        self.info: ModelInfo | None = None
        self.conversations: dict[str, Conversation] = {}
        self._drafts: dict[str, Conversation] = {}  # without a turn yet
        self.chat = DEFAULT_CHAT
        self.last_chat = DEFAULT_CHAT
        self._clients: dict[str, Client] = {}  # by backends: held, or their workers would end
        self._specs: dict[str, ModelSpec] = {}  # by conversation key: the model whose cache holds it

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in _TOLD:
            self._watchers.tell(_TOLD[name])

    def watch(self, watcher: Callable[[str], None]) -> Callable[[], None]:
        """Call `watcher` with "model", "defaults" or "chat" when such a thing changed; returns what ends that.

        It is called on the thread that made the change, and must return at once.
        """
        return self._watchers.add(watcher)

    # models

    @property
    def model(self) -> ModelSpec | None:
        """The current model with the defaults of this moment; None until one is loaded."""
        if self._current is None:
            return None
        path, ref, loading = self._current
        return ModelSpec(path, ref, self._options(loading, path))

    def spec(
        self,
        ref: str | None = None,
        loading: Mapping[str, Any] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        tuned: bool = True,
    ) -> ModelSpec:
        """Return the model that `ref` names (the current one when None), to be loaded with these options.

        A model of the Hub that is not here yet is downloaded. With `tuned`, what `tune` found for it is used where
        nothing else is said.
        """
        if self._current is not None and ref in (None, self._current[1]):
            path, ref, own = self._current
            return ModelSpec(path, ref, self._options({**own, **(loading or {})}, path, tuned=tuned))
        from llama_magic.api.locate import locate

        ref = ref or self.default_model
        path = locate(ref, on_progress)
        return ModelSpec(path, ref, self._options(loading or {}, path, tuned=tuned))

    def said(self, loading: Mapping[str, Any]) -> set[str]:
        """Return the names of the load options that a person chose: on the line, or as defaults of their own."""
        plain = LoadOptions().to_dict()
        return {name for name, value in self.options.to_dict().items() if value != plain[name]} | set(loading)

    @property
    def tuned(self) -> dict[str, Any]:
        """The settings of the current model that come from `tune`."""
        if self._current is None:
            return {}
        path, _, loading = self._current
        return self._tuned(loading, path)

    def _tuned(self, loading: Mapping[str, Any], path: str) -> dict[str, Any]:
        from llama_magic.models.places import tuned_file

        if not tuned_file().is_file():
            return {}
        from llama_magic.evaluation.tuned import tuned_for

        options = LoadOptions.from_keywords(backend=loading.get("backend", self.options.backend))
        return tuned_for(path, options, self.said(loading))

    def _options(self, loading: Mapping[str, Any], path: str, *, tuned: bool = True) -> LoadOptions:
        found = self._tuned(loading, path) if tuned else {}
        keywords = {**self.options.to_dict(), **found, **loading}
        if keywords["n_ctx"] == 0:  # llama-cli's "as long as the model was trained for"
            from llama_magic.models.gguf import read_metadata

            keywords["n_ctx"] = read_metadata(path).n_ctx_train or None
        return LoadOptions.from_keywords(**keywords)

    def load(
        self,
        ref: str | None = None,
        loading: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ModelInfo:
        """Load a model and make it the current one."""
        spec = self.spec(ref, loading, on_progress)
        info = self.client(spec).request(LoadRequest(spec, force), on_progress=on_progress)
        assert isinstance(info, ModelInfo)
        self._current = spec.path, spec.ref, dict(loading or {})
        self.info = info
        return info

    def unload(self, ref: str | None = None) -> tuple[str, ...]:
        """Unload one model (all when None), give their memory back, and return the paths."""
        path = None if ref is None else self.spec(ref).path
        unloaded: tuple[str, ...] = ()
        for client in _live_clients():
            unloaded += tuple(client.request(UnloadRequest(path)))
        self._clients.clear()  # workers with backends of their own end with their models
        if self._current is not None and path in (None, self._current[0]):
            self._current = None
        self.info = None if self._current is None else self.info
        return unloaded

    def loaded(self) -> tuple[ModelInfo, ...]:
        """Return what the worker holds, the most recently used last; starts no worker."""
        return tuple(info for client in _live_clients() for info in client.request(StatusRequest()))

    # generating

    def start(self, ask: Ask, on_progress: Callable[[Progress], None] | None = None) -> Generation:
        """Send a request; raises before anything is sent where the request can not work.

        `on_progress` is called while the model is downloaded; loading it is told by the generation.
        """
        self._check(ask)
        schema = None if ask.schema is None else load_schema(ask.schema)
        params = self._params(ask.sampling, schema)
        spec = self.spec(ask.ref, ask.loading, on_progress)
        system = self.system if ask.system is None else ask.system
        if ask.chat is not None:
            return self._start_turn(ask, spec, params, schema, system, on_progress)
        messages = () if ask.complete else _messages(system, ask.text)
        prompt = ask.text if ask.complete else None
        request = GenerateRequest(spec, params, prompt, messages, force=ask.force)
        return self._open(request, schema, lambda _completion: ())

    def retry(
        self,
        name: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Generation:
        """Answer the last turn of a conversation again, with another seed; the old line becomes a branch."""
        conversation = self.conversation(name)
        old = conversation.last()
        params = (old.params or self.sampling).replace(seed=None)
        params = SamplingParams.from_keywords(params, **{"seed": _draw_seed(), **(sampling or {})})
        _check_one_sample(params)
        schema = None if params.schema is None else load_schema(params.schema)
        self.wait_for_chat(conversation, on_progress)
        messages = (*conversation.messages(len(conversation) - 1), Message("user", old.user))
        request = GenerateRequest(self.spec(), params, messages=messages, conversation=conversation.key)

        def record(completion: Completion) -> tuple[str, ...]:
            branch = conversation.retry(Turn(old.user, completion, params, old.origin))
            self._watchers.tell("chat")
            return (f"the earlier answer is kept as branch '{branch}'",)

        return self._open(request, schema, record)

    def _start_turn(
        self,
        ask: Ask,
        spec: ModelSpec,
        params: SamplingParams,
        schema: Schema | None,
        system: str | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> Generation:
        _check_one_sample(params)
        name = ask.chat or self.chat
        conversation = self.conversations.get(name) or self._drafts.setdefault(name, Conversation(name))
        self.wait_for_chat(conversation, on_progress)
        if name not in self.conversations:
            conversation.system = system
        # What the turn changes is kept until it is recorded: a failed request leaves all as it was.
        system = conversation.system if ask.system is None else ask.system
        upto = 0 if ask.new else conversation.position(ask.origin) if ask.turn is None else ask.turn
        history = conversation.messages(upto)
        messages = (
            *_messages(system, None),
            *(message for message in history if message.role != "system"),
            Message("user", ask.text),
        )
        request = GenerateRequest(spec, params, messages=messages, conversation=conversation.key, force=ask.force)

        def record(completion: Completion) -> tuple[str, ...]:
            self.conversations[name] = conversation
            self._drafts.pop(name, None)
            self._specs[conversation.key] = spec
            self.last_chat = name
            conversation.system = system
            notes: list[str] = []
            if ask.new and conversation.position(ask.origin) > 0 and (branch := conversation.start_over()):
                notes.append(f"started over; the earlier turns are kept as branch '{branch}'")
            if ask.turn is not None and (branch := conversation.rewind(ask.turn)):
                notes.append(f"the line before is kept as branch '{branch}'")
            recorded = conversation.record(Turn(ask.text, completion, params, ask.origin))
            self._watchers.tell("chat")
            notes += [f"'{name}', turn {len(conversation)}", recorded.note or ""]
            return tuple(filter(None, notes))

        return self._open(request, schema, record)

    def _open(self, request: GenerateRequest, schema: Schema | None, record: Record) -> Generation:
        from llama_magic.api.backends import noting, rpc_of

        client = self.client(request.spec)
        record = self._watchers.after(noting(client, record))
        stream = client.open(request)
        generation = Generation(request, stream, schema, record, rpc=rpc_of(client))
        if request.conversation is not None:
            generation.over = self._answering.begin(request.conversation, stream)
        return generation

    def wait_for_chat(self, conversation: Conversation, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Wait until a conversation is not being answered."""
        self._answering.wait(conversation.key, conversation.name, on_progress)

    def client(self, spec: ModelSpec) -> Client:
        """Return the client with the backends of a model, and hold it."""
        from llama_magic.api.backends import client_of

        client = client_of(spec.options)
        if spec.options.backend is not None:
            self._clients[spec.options.backend] = client
        return client

    def _params(self, sampling: Mapping[str, Any], schema: Schema | None) -> SamplingParams:
        keywords = dict(sampling)
        if schema is not None:
            keywords["schema"] = schema.text
        params = SamplingParams.from_keywords(self.sampling, **keywords)
        return params if params.seed is not None else params.replace(seed=_draw_seed())

    @staticmethod
    def _check(ask: Ask) -> None:
        if not ask.text.strip():
            raise InvalidRequestError(
                "the prompt is empty: write it below the %%llama line, or give -p TEXT or -f FILE"
            )
        if ask.chat is not None and ask.complete:
            raise InvalidRequestError("-no-cnv continues plain text, -cnv and --chat need a chat: give one of them")
        try:
            ask.text.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError("the prompt holds half of a character (a lone surrogate)") from None

    # conversations

    def conversation(self, name: str | None = None) -> Conversation:
        """Return a conversation (the one used last when None); `ConversationError` when there is none."""
        name = name or self.last_chat
        if name in self.conversations:
            return self.conversations[name]
        if not self.conversations:
            raise ConversationError("there is no conversation yet: run a cell with %%llama -cnv")
        hint = did_you_mean(name, self.conversations)
        raise ConversationError(f"no conversation '{name}'.{hint} There is: {', '.join(self.conversations)}.")

    def switch(self, name: str) -> tuple[Conversation, str | None]:
        """Make a conversation (new if need be) or a branch of one (``name/branch``) the current one.

        Returns the conversation, and the branch that now keeps the line that was left, if any.
        """
        name, _, branch = name.partition("/")
        if branch:
            conversation, kept = self.conversation(name), self.conversation(name).switch(branch)
        else:
            conversation, kept = self.conversations.get(name) or Conversation(name, self.system), None
        self.conversations[name] = conversation
        self.last_chat = name
        self.chat = name
        return conversation, kept

    def undo(self, count: int = 1, name: str | None = None) -> tuple[Turn, ...]:
        """Remove the last turns of a conversation (the one used last when None) and return them."""
        removed = self.conversation(name).undo(count)
        self._watchers.tell("chat")
        return removed

    def rewind(self, turns: int, name: str | None = None) -> str | None:
        """Go back to a conversation's first `turns` turns; returns the branch that keeps the line as it was, if any."""
        kept = self.conversation(name).rewind(turns)
        self._watchers.tell("chat")
        return kept

    def new(self, name: str | None = None) -> tuple[Conversation, str | None]:
        """Start a conversation over; returns it and the branch that keeps its earlier turns, if any."""
        conversation, _ = self.switch((name or self.chat).partition("/")[0])
        kept = conversation.start_over()
        if kept:
            for client in _live_clients():
                client.request(ForgetRequest(conversation.key))
        self._watchers.tell("chat")
        return conversation, kept

    def add(self, conversation: Conversation) -> Conversation:
        """Add a conversation and make it the current one; a name in use gets a number added."""
        base, number = conversation.name, 1
        while (there := self.conversations.get(conversation.name)) and (there.turns or there.branches):
            number += 1
            conversation.name = f"{base}-{number}"
        self.conversations[conversation.name] = conversation
        self.last_chat = conversation.name
        self.chat = conversation.name
        return conversation

    # conversations on disk

    def save(
        self,
        name: str | Path,
        conversation: str | None = None,
        *,
        force: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> SavedConversation:
        """Keep a conversation (the one used last when None) with the state of its cache, see `saved.save_state`."""
        from llama_magic.api.saved import save_state

        found = self.conversation(conversation)
        spec = self._specs.get(found.key) or self.spec()
        saved = save_state(self.client(spec), spec, found, name, force=force, progress=on_progress)
        self._specs[found.key] = spec
        return saved

    def restore(
        self,
        name: str | Path,
        *,
        text_only: bool = False,
        force: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Conversation:
        """Go on with a saved conversation, without processing again what its cache held.

        The current model must be the one it was saved with; where none is loaded yet, that one is.

        Parameters
        ----------
        text_only
            Take the text alone; the model then reads it again.

        Raises
        ------
        SavedStateError
            The file is damaged, or was made with another model, llama.cpp or cache.
        """
        from llama_magic.api.saved import load_saved, put_state

        conversation, header, path = load_saved(name)
        if not text_only:
            before = self._current, self.info
            try:
                if self._current is None:
                    self._load_for(header, force, on_progress)
                spec = self.spec()
                put_state(self.client(spec), spec, conversation, path, force=force, progress=on_progress)
            except BaseException:
                self._current, self.info = before
                raise
            self._specs[conversation.key] = spec
        return self.add(conversation)

    def _load_for(self, header: SavedHeader, force: bool, on_progress: Callable[[Progress], None] | None) -> None:
        """Load the model that a conversation was saved with. A file may name any: nothing is downloaded for it."""
        from pathlib import Path

        from llama_magic.api.locate import locate
        from llama_magic.api.saved import loading_of

        if Path(header.path).is_file():
            path = header.path
        elif header.ref == DEFAULT_MODEL or Path(header.ref).expanduser().is_file():
            path = locate(header.ref, on_progress)
        else:
            raise SavedStateError(
                f"the model it was saved with is not here: %llama load {header.ref}, and restore again. "
                "--text-only takes its text"
            )
        self._current = path, header.ref, loading_of(header)
        spec = self.spec()
        self.info = self.client(spec).request(LoadRequest(spec, force), on_progress=on_progress)


def _messages(system: str | None, text: str | None) -> tuple[Message, ...]:
    messages = [Message("system", system)] if system else []
    return tuple(messages if text is None else [*messages, Message("user", text)])


def _check_one_sample(params: SamplingParams) -> None:
    if params.samples > 1:
        raise InvalidRequestError("--samples works only in a cell that stands alone, not in a conversation")


def _draw_seed() -> int:
    return secrets.randbelow(0xFFFFFFFF)


def _live_clients() -> tuple[Client, ...]:
    from llama_magic.engine.client import live_clients

    return live_clients()


_SHARED: list[Session] = []


def current_session() -> Session:
    """Return the session that everything in this kernel shares."""
    if not _SHARED:
        _SHARED.append(Session())
    return _SHARED[0]


def set_session(session: Session | None) -> None:
    """Replace the shared session; None makes a fresh one at the next use."""
    _SHARED[:] = [] if session is None else [session]
