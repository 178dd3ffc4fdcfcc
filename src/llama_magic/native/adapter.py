"""A LoRA adapter in memory: small matrices that change what a model's own compute."""

from __future__ import annotations

import weakref
from typing import Any

from llama_magic.errors import InvalidModelError
from llama_magic.native.library import lib
from llama_magic.native.log import LogCapture
from llama_magic.native.model import NativeModel

__all__ = ["NativeAdapter"]

#: What llama.cpp says where an adapter is none or belongs to another model (llama-adapter.cpp), and what it means.
_REASONS = (
    ("arch mismatch", "it was made for a model of another architecture"),
    ("does not exist in base model", "it was made for another model: it changes tensors that this one has not"),
    ("incorrect shape", "it was made for another model: its tensors have other sizes"),
    ("general.type", "it is no adapter"),
    ("adapter.type", "it is an adapter of another kind"),
    ("missing one component", "a tensor of it is missing"),
)


class NativeAdapter:
    """A LoRA adapter for one model, which is kept alive; close it before the model.

    Raises
    ------
    InvalidModelError
        The file is no adapter, or one for another model.
    """

    def __init__(self, model: NativeModel, path: str, log: LogCapture) -> None:
        log.clear()
        handle = lib.llama_adapter_lora_init(model.handle, path.encode())
        if not handle:
            said = " ".join(line.split(": ", 1)[-1] for line in log.errors())
            reason = next((words for part, words in _REASONS if part in said), f"llama.cpp says: {said or 'nothing'}")
            raise InvalidModelError(f"{path} can not be used as a LoRA adapter for this model: {reason}")
        self.handle: Any = handle
        self.path = path
        self._model = model
        self._finalizer = weakref.finalize(self, _free, handle, model)

    def close(self) -> None:
        """Free it. No context may use it any more."""
        self._finalizer()


def _free(handle: Any, _model: NativeModel) -> None:
    lib.llama_adapter_lora_free(handle)
