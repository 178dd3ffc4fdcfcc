"""The defaults that `%config LlamaMagic` shows and sets."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from traitlets import All, Bool, Dict, Enum, Float, Int, TraitError, Unicode, Union, observe, validate
from traitlets.config import Configurable

from llama_magic.api.session import DEFAULT_MODEL, Session
from llama_magic.errors import InvalidRequestError
from llama_magic.inference.params import SamplingParams
from llama_magic.models.options import CACHE_TYPES, FLASH_ATTENTION, LoadOptions
from llama_magic.notebook.flags import FORMATS

__all__ = ["Defaults"]

_S, _L = SamplingParams(), LoadOptions()
_SAMPLING = {f.name for f in fields(SamplingParams)}
_LOADING = {f.name for f in fields(LoadOptions)}


class Defaults(Configurable):
    """Defaults of `%%llama`; a flag in a cell goes before them."""

    model = Unicode(DEFAULT_MODEL, help="Model used until one is loaded.").tag(config=True)
    system = Unicode("", help="System prompt; empty for none.").tag(config=True)
    format = Enum(FORMATS, "markdown", help="How answers are shown.").tag(config=True)
    stream = Bool(True, help="Show the answer while it is made.").tag(config=True)

    max_tokens = Int(_S.max_tokens, help="Most tokens to generate; -1 for no limit.").tag(config=True)
    temperature = Float(_S.temperature, help="Temperature; 0 always takes the likeliest token.").tag(config=True)
    top_k = Int(_S.top_k, help="Keep the likeliest tokens; 0 is off.").tag(config=True)
    top_p = Float(_S.top_p, help="Keep the likeliest tokens that make up this share; 1 is off.").tag(config=True)
    min_p = Float(_S.min_p, help="Keep tokens this many times as likely as the likeliest.").tag(config=True)
    repeat_penalty = Float(_S.repeat_penalty, help="Penalty on repeated tokens; 1 is off.").tag(config=True)
    seed = Int(None, allow_none=True, help="Seed; None draws one for each cell.").tag(config=True)
    sampling = Dict(help="Further sampling keywords, such as {'mirostat': 2}.").tag(config=True)

    n_ctx = Int(None, allow_none=True, help="Tokens that the context holds.").tag(config=True)
    n_threads = Int(None, allow_none=True, help="Threads; None: as many as the container may use.").tag(config=True)
    n_gpu_layers = Union([Int(), Enum(("auto", "all"))], default_value="auto").tag(config=True)
    flash_attn = Enum(tuple(FLASH_ATTENTION), "auto", help="Flash attention.").tag(config=True)
    cache_type_k = Enum(tuple(CACHE_TYPES), _L.cache_type_k, help="Type of the KV cache's keys.").tag(config=True)
    cache_type_v = Enum(tuple(CACHE_TYPES), _L.cache_type_v, help="Type of the KV cache's values.").tag(config=True)
    memory_budget = Union(
        [Int(), Unicode()], default_value=None, allow_none=True,
        help="Most memory for all loaded models together, in bytes or as '8G'; None: what is free.",
    ).tag(config=True)  # fmt: skip
    loading = Dict(help="Further load options, such as {'n_batch': 512}.").tag(config=True)

    session: Session

    def apply(self) -> None:
        """Hand the defaults to the session."""
        own = {name: getattr(self, name) for name in self.trait_names(config=True)}
        session = self.session
        sampling = {name: value for name, value in own.items() if name in _SAMPLING}
        session.sampling = SamplingParams.from_keywords(**{**sampling, **self.sampling})
        loading = {name: value for name, value in own.items() if name in _LOADING}
        session.options = LoadOptions.from_keywords(**{**loading, **self.loading})
        session.default_model = self.model
        session.system = self.system or None

    def set(self, **values: Any) -> None:
        """Set several defaults, by the names of traits or of sampling and loading keywords."""
        own = set(self.trait_names(config=True))
        with self.hold_trait_notifications():
            for name, value in values.items():
                if name in own:
                    setattr(self, name, value)
                elif name in _SAMPLING:
                    self.sampling = {**self.sampling, name: value}
                elif name in _LOADING:
                    self.loading = {**self.loading, name: value}

    def reset(self) -> None:
        """Go back to the defaults that llama_magic comes with."""
        with self.hold_trait_notifications():
            for name, trait in self.traits(config=True).items():
                setattr(self, name, trait.default())

    def rows(self) -> list[tuple[str, Any, bool]]:
        """Return name, value and whether it was changed, for each default."""
        traits = self.traits(config=True)
        own = [n for n in self.class_own_names() if n in traits]
        return [(name, getattr(self, name), getattr(self, name) != traits[name].default()) for name in own]

    @classmethod
    def class_own_names(cls) -> list[str]:
        """Return the names of the defaults, in the order they are written above."""
        return [name for name, value in vars(Defaults).items() if name in cls.class_trait_names(config=True)]

    @validate(
        *("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "sampling"),
        *("n_ctx", "n_threads", "n_gpu_layers", "memory_budget", "loading"),
    )
    def _valid(self, proposal: dict[str, Any]) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        try:
            if name in _SAMPLING:
                SamplingParams.from_keywords(**{name: value})
            elif name in _LOADING:
                LoadOptions.from_keywords(**{name: value})
            elif name == "sampling":
                SamplingParams.from_keywords(**value)
            elif name == "loading":
                LoadOptions.from_keywords(**value)
        except (InvalidRequestError, TypeError) as error:
            raise TraitError(str(error)) from error
        return value

    @observe(All)
    def _changed(self, change: dict[str, Any]) -> None:
        if change["name"] in self.class_own_names() and getattr(self, "session", None) is not None:
            self.apply()
