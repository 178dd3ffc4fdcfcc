"""Models on servers elsewhere, used as if they were loaded here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_magic.api.model import Chat, Model
from llama_magic.errors import InvalidRequestError, ModelNotFoundError, RemoteError
from llama_magic.models.options import LoadOptions, ModelInfo, ModelSpec
from llama_magic.serving.endpoint import parse_endpoint
from llama_magic.serving.remote import RemoteClient
from llama_magic.suggest import did_you_mean

if TYPE_CHECKING:
    from llama_magic.models.gguf import ModelMetadata
    from llama_magic.progress import Progress

__all__ = ["RemoteModel", "connect"]

#: What ``owned_by`` says in the lists of servers that take llama.cpp's parameters.
_OURS = {"llama_magic", "llamacpp"}


def connect(url: str, *, api_key: str | None = None, model: str | None = None) -> RemoteModel:
    """Return a model on a server: one of llama_magic, llama-server, or any with OpenAI's interface.

    Parameters
    ----------
    url
        Its address, ``http://host:8080``, with or without ``/v1``.
    api_key
        Its key. It is sent to that address only: redirects are not followed.
    model
        Which of its models; None: the only one.

    Raises
    ------
    RemoteError
        It can not be reached, or does not take the key.
    ModelNotFoundError
        It has no such model.
    InvalidRequestError
        It has several, or `url` is no address.
    """
    endpoint = parse_endpoint(url, api_key)
    client = RemoteClient(endpoint)
    try:
        row = _choose(_listed(client, model), model, endpoint.base_url)
        client.endpoint = replace(endpoint, ours=row.get("owned_by") in _OURS)
        name = str(row["id"])
        return RemoteModel(ModelSpec(endpoint.base_url, name, LoadOptions()), _info(row, endpoint.base_url), client)
    except BaseException:
        client.close()
        raise


def _listed(client: RemoteClient, model: str | None) -> list[Mapping[str, Any]]:
    try:
        found = client.get("/models")
    except RemoteError as error:
        if error.status == 404 and model is not None:  # a server without a list
            return [{"id": model}]
        raise
    rows = found.get("data") if isinstance(found, Mapping) else None
    if not isinstance(rows, list):
        raise RemoteError(f"{client.endpoint.base_url} is no OpenAI-compatible server: it lists no models")
    return [row for row in rows if isinstance(row, Mapping) and "id" in row]


def _choose(rows: list[Mapping[str, Any]], model: str | None, where: str) -> Mapping[str, Any]:
    names = [str(row["id"]) for row in rows]
    if model is not None:
        if model in names:
            return rows[names.index(model)]
        raise ModelNotFoundError(
            f"{where} has no model {model!r}.{did_you_mean(model, names)} It has: {', '.join(names[:20])}"
        )
    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise ModelNotFoundError(f"{where} has no model; connect(url, model=…) names one")
    raise InvalidRequestError(f"{where} has several models; connect(url, model=…) names one: {', '.join(names[:20])}")


def _info(row: Mapping[str, Any], where: str) -> ModelInfo:
    meta = row.get("meta")
    known = meta if isinstance(meta, Mapping) else {}

    def count(name: str) -> int:
        value = known.get(name)
        return int(value) if isinstance(value, int | float) else 0

    return ModelInfo(
        ref=str(row["id"]), path=where, name=str(row["id"]), architecture="", description=f"served at {where}",
        ftype="", n_params=count("n_params"), size=count("size"), n_ctx=count("n_ctx"),
        n_ctx_train=count("n_ctx_train"), n_vocab=count("n_vocab"), n_layer=0, n_embd=count("n_embd"),
        has_chat_template=True, devices=(), n_threads=0, n_threads_batch=0, sha256="", load_s=0.0, memory=0,
        llama_cpp_python="", llama_cpp_commit="",
    )  # fmt: skip


class RemoteModel(Model):
    """A model on a server; `close` ends the connection. What needs its file is not possible."""

    def __init__(self, spec: ModelSpec, info: ModelInfo, client: RemoteClient) -> None:
        super().__init__(spec, info, client, owned=True)

    def __repr__(self) -> str:
        return f"RemoteModel({self.spec.ref!r}, {self.spec.path!r})"

    @property
    def path(self) -> Path:
        """Raise: the file is on the server."""
        raise self._elsewhere("it has no path here")

    @property
    def metadata(self) -> ModelMetadata:
        """Raise: the file is on the server."""
        raise self._elsewhere("its metadata can not be read")

    def restore(
        self, name: str | Path, *, text_only: bool = False, progress: Callable[[Progress], None] | None = None
    ) -> Chat:
        """Go on with the text of a saved conversation (`text_only`): its state belongs to a model loaded here."""
        if not text_only:
            raise self._elsewhere("a state can not be restored there; text_only=True takes the text")
        return super().restore(name, text_only=True, progress=progress)

    def _elsewhere(self, words: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self.spec.ref} is on the server {self.spec.path}: {words}")
