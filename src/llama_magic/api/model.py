"""Models as objects: the Python face of llama_magic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from llama_magic.api.backends import client_of, rpc_of
from llama_magic.api.locate import locate
from llama_magic.api.saved import SavedConversation, load_saved, put_state, save_state
from llama_magic.api.schema import Schema, load_schema
from llama_magic.api.session import Generation
from llama_magic.api.stream import GenerationStream
from llama_magic.api.watching import Record
from llama_magic.engine.client import Client, EngineClient, get_client
from llama_magic.engine.protocol import (
    DetokenizeRequest,
    EmbedRequest,
    ForgetRequest,
    GenerateRequest,
    LoadRequest,
    Progress,
    TokenizeRequest,
    UnloadRequest,
)
from llama_magic.errors import InvalidRequestError
from llama_magic.evaluation.tuned import tuned_for
from llama_magic.inference.conversation import Conversation, Turn
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion, Message
from llama_magic.models.gguf import ModelMetadata, read_metadata
from llama_magic.models.options import LoadOptions, ModelInfo, ModelSpec

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Chat", "Model", "load"]

#: A prompt: text to continue, or messages of a chat as (role, content) pairs or as OpenAI's dicts.
PromptLike = str | Sequence[Message | tuple[str, str] | Mapping[str, str]]


def load(
    ref: str = "smollm2",
    *,
    backend: str | None = None,
    n_ctx: int | None = None,
    n_gpu_layers: int | str = "auto",
    n_threads: int | None = None,
    force: bool = False,
    isolate: bool = True,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Model:
    """Load a model and return it. What `tune` found for it on this machine is used where nothing else is said.

    Parameters
    ----------
    ref
        A file, ``owner/repo[:quant]`` on the Hub, or ``smollm2``.
    backend
        The backends to run on: "cpu", "blas", "vulkan", or several, "vulkan,rpc". None: those that are selected
        (`use_backend`). A model with backends of its own gets a worker of its own.
    n_ctx
        Tokens that the context holds. None: the model's own length, at most 4,096.
    n_gpu_layers
        Layers to keep on the accelerator: a number, "auto" or "all".
    n_threads
        Threads to compute with. None: as many as the container may use.
    force
        Load even where the model seems not to fit into memory.
    isolate
        False loads libllama into this process instead of a worker: for scripts and debugging.
    progress
        Called while it loads.
    **options
        Any other field of `LoadOptions`: ``n_batch``, ``flash_attn``, ``cache_type_k`` and so on.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, OutOfMemoryError, DownloadError
    TypeError
        An option is unknown; the nearest one is named.
    """
    if not isolate:
        if backend not in (None, "cpu"):
            raise InvalidRequestError("a backend belongs to a worker; leave out isolate=False, or the backend")
        options, backend = ({**options, "devices": ("CPU",)} if backend == "cpu" else options), None
    chosen = LoadOptions.from_keywords(
        n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, n_threads=n_threads, backend=backend, **options
    )
    path = locate(ref, progress)
    if isolate:
        usual = {"n_gpu_layers": "auto", "n_threads": None, "backend": None}
        said = {*options, *(name for name, value in usual.items() if getattr(chosen, name) != value)}
        chosen = chosen.replace(**tuned_for(path, chosen, said))
    spec = ModelSpec(path, ref, chosen)
    client: Client
    if isolate:
        client = client_of(chosen)
    else:
        from llama_magic.engine.local import LocalClient

        client = LocalClient()
    info = client.request(LoadRequest(spec, force), progress)
    return Model(spec, cast(ModelInfo, info), client, owned=not isolate)


class Model:
    """A loaded model. Use it as a context manager, or `close` it, to give its memory back.

    Should the worker process die, the next call starts another and loads the model again.

    Attributes
    ----------
    spec
        File and load options.
    info
        What the worker found when it loaded the model.
    """

    def __init__(self, spec: ModelSpec, info: ModelInfo, client: Client, *, owned: bool = False) -> None:
        self.spec = spec
        self.info = info
        self._held = client
        self._owned = owned

    @property
    def _client(self) -> Client:
        """The client to ask: with the backends of its own, or with those selected by now."""
        if not self._owned:
            current = get_client()  # here a changed selection takes effect
            if self.spec.options.backend is not None and isinstance(current, EngineClient):
                self._held = client_of(self.spec.options)
        return self._held

    def __repr__(self) -> str:
        return f"Model({self.spec.ref!r}, {self.info.description}, n_ctx={self.info.n_ctx})"

    @property
    def path(self) -> Path:
        """The GGUF file."""
        return Path(self.spec.path)

    @property
    def metadata(self) -> ModelMetadata:
        """What the file says of itself."""
        return read_metadata(self.spec.path)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that hold weights."""
        return self.info.devices

    def stream(self, prompt: PromptLike, params: SamplingParams | None = None, **sampling: Any) -> GenerationStream:
        """Generate, piece by piece: an iterator of `Chunk`; its ``completion`` is set at the end.

        Parameters
        ----------
        prompt
            Text is continued as it stands; messages are put through the model's chat template.
        params
            Sampling parameters; `sampling` keywords change single ones. ``schema`` takes a dict, JSON
            text, a file or a pydantic model.
        """
        return self._open(prompt, params, sampling, None, lambda _completion: ())

    def generate(self, prompt: PromptLike, params: SamplingParams | None = None, **sampling: Any) -> Completion:
        """Generate and return the `Completion`; see `stream` for the arguments."""
        return self.stream(prompt, params, **sampling).collect()

    def conversation(self, system: str | None = None) -> Chat:
        """Return a conversation, whose earlier turns stay warm in the cache."""
        return Chat(self, Conversation("chat", system))

    def restore(
        self, name: str | Path, *, text_only: bool = False, progress: Callable[[Progress], None] | None = None
    ) -> Chat:
        """Go on with a conversation that `Chat.save` kept, without processing again what its cache held.

        Parameters
        ----------
        name
            A name, or a path that ends in ``.chat``.
        text_only
            Take the text alone; the model then reads it again.

        Raises
        ------
        SavedStateError
            The file is damaged, or was made with another model, llama.cpp or cache.
        """
        conversation, _, path = load_saved(name)
        if not text_only:
            put_state(self._client, self.spec, conversation, path, progress=progress)
        return Chat(self, conversation)

    def tokenize(self, text: str, *, add_special: bool = False, special: bool = True) -> list[int]:
        """Return the token ids of a text.

        Parameters
        ----------
        add_special
            Add the beginning-of-sequence token where the vocabulary wants one.
        special
            Read ``<|im_start|>`` and the like as one token.
        """
        return list(self._client.request(TokenizeRequest(self.spec, text, add_special, special)))

    def detokenize(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids."""
        return str(self._client.request(DetokenizeRequest(self.spec, tuple(tokens))))

    def embed(self, text: str | Sequence[str]) -> list[list[float]]:
        """Return one embedding of unit length for each text, shape (n_texts, n_embd)."""
        texts = (text,) if isinstance(text, str) else tuple(text)
        return [list(vector) for vector in self._client.request(EmbedRequest(self.spec, texts))]

    def close(self) -> None:
        """Unload the model."""
        if self._client.alive:
            self._client.request(UnloadRequest(self.spec.path))
        if self._owned:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(
        self,
        prompt: PromptLike,
        params: SamplingParams | None,
        sampling: dict[str, Any],
        conversation: str | None,
        record: Record,
    ) -> GenerationStream:
        schema: Schema | None = None
        if sampling.get("schema") is not None:
            schema = load_schema(sampling["schema"])
            sampling = {**sampling, "schema": schema.text}
        elif params is not None and params.schema is not None:
            schema = load_schema(params.schema)
        chosen = SamplingParams.from_keywords(params, **sampling)
        text = prompt if isinstance(prompt, str) else None
        messages = () if isinstance(prompt, str) else tuple(map(_message, prompt))
        request = GenerateRequest(self.spec, chosen, text, messages, conversation)
        stream = self._client.open(request)
        return stream.map(Generation(request, stream, schema, record, rpc=rpc_of(self._client)).finish)


class Chat:
    """A conversation with one model.

    Attributes
    ----------
    conversation
        The turns so far.
    """

    def __init__(self, model: Model, conversation: Conversation) -> None:
        self._model = model
        self.conversation = conversation

    def __repr__(self) -> str:
        return f"Chat({self._model.spec.ref!r}, {len(self.conversation)} turns)"

    def stream(self, text: str, params: SamplingParams | None = None, **sampling: Any) -> GenerationStream:
        """Say something and stream the answer; the turn is kept when the stream has ended."""

        def record(completion: Completion) -> tuple[str, ...]:
            self.conversation.record(Turn(text, completion, params or SamplingParams(), None))
            return ()

        messages = (*self.conversation.messages(), Message("user", text))
        return self._model._open(messages, params, sampling, self.conversation.key, record)  # noqa: SLF001

    def generate(self, text: str, params: SamplingParams | None = None, **sampling: Any) -> Completion:
        """Say something and return the answer."""
        return self.stream(text, params, **sampling).collect()

    def save(
        self, name: str | Path, *, force: bool = False, progress: Callable[[Progress], None] | None = None
    ) -> SavedConversation:
        """Keep the conversation on disk with the state of its cache, for `Model.restore`.

        What was saved under the name before is replaced. A system prompt alone can be saved too: it is
        processed once, and conversations restored from it begin there.

        Parameters
        ----------
        name
            A name, or a path that ends in ``.chat``.
        force
            Overwrite a file that is no saved conversation.
        """
        return save_state(
            self._model._client,  # noqa: SLF001
            self._model.spec,
            self.conversation,
            name,
            force=force,
            progress=progress,
        )

    def forget(self) -> None:
        """Drop the conversation's cache; its turns stay."""
        self._model._client.request(ForgetRequest(self.conversation.key))  # noqa: SLF001


def _message(item: Message | tuple[str, str] | Mapping[str, str]) -> Message:
    if isinstance(item, Mapping):
        try:
            return Message(item["role"], item["content"])
        except KeyError as exc:
            raise InvalidRequestError(f"a message needs role and content; {exc.args[0]!r} is missing") from None
    role, content = item
    return Message(role, content)
