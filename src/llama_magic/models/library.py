"""Lists of models, and how they look: what is on this machine, what the Hub has, what is good to begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING, Any

from llama_magic.markup import Html, badge, bar, heading, join, note, page, table, text_table
from llama_magic.models.card import clean
from llama_magic.units import format_bytes, format_count

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Catalogue", "CatalogueEntry", "ModelList", "SearchHit", "SearchResults", "StoredModel", "Unfinished"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on this machine.

    Attributes
    ----------
    ref
        What to type for it.
    path
        Its file, the first of a split model.
    size
        Bytes on disk, of all parts.
    place
        Who keeps it: "Hub", "llama_magic", "llama.cpp", "Ollama", "LM Studio", or a package.
    ftype, n_params, licence
        What the file says of itself; empty or 0 where it does not.
    last_used
        When it was last read or written, in seconds since 1970, as the disk has it.
    own
        False where another tool keeps it: it is not deleted.
    parts
        Files that it consists of.
    name
        What it, or the tool that keeps it, calls it.
    problem
        Why it can not be used, or empty.
    """

    ref: str
    path: str
    size: int
    place: str
    ftype: str = ""
    n_params: int = 0
    licence: str = ""
    last_used: float = 0.0
    own: bool = False
    parts: int = 1
    name: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A download that was stopped: its repository, and the bytes that came."""

    repo: str
    size: int


@dataclass(frozen=True, slots=True, repr=False)
class ModelList(Sequence[StoredModel]):
    """The models on this machine, as a sequence.

    Attributes
    ----------
    models, unfinished
        What there is.
    free
        Bytes that are free where downloads go.
    cache, folder
        The Hub's cache and our own folder.
    """

    models: tuple[StoredModel, ...]
    unfinished: tuple[Unfinished, ...] = ()
    free: int = 0
    cache: str = ""
    folder: str = ""

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, index: Any) -> Any:
        return self.models[index]

    def __iter__(self) -> Iterator[StoredModel]:
        return iter(self.models)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(model.size for model in self.models)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each model."""
        return _pandas([model.to_dict() for model in self.models])

    def __repr__(self) -> str:
        rows = [
            (_label(model), format_bytes(model.size), *map(clean, _facts(model)), model.place) for model in self.models
        ]
        head = ("model", "size", "ftype", "parameters", "licence", "last used", "kept by")
        lines = [text_table(head, rows, "lrlrlll")] if rows else ["There is no model on this machine yet."]
        lines += [f"  {_label(model)} is {clean(model.path)}" for model in self.models if model.place == "Ollama"]
        lines += [f"  {clean(model.ref)}: {clean(model.problem)}" for model in self.models if model.problem]
        return "\n".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        largest = max((model.size for model in self.models), default=1) or 1
        rows = [
            (
                _cell(model),
                bar(model.size / largest, _tight(format_bytes(model.size))),
                *map(_tight, _facts(model)),
                model.place if model.own else badge(model.place),
            )
            for model in self.models
        ]
        head = ("model", "size", "ftype", "parameters", "licence", "last used", "kept by")
        parts = [table(head, rows, "lrlrlll")] if rows else [note("There is no model on this machine yet.")]
        title = heading("Models on this machine", f"{len(self.models)}, {format_bytes(self.size)}")
        return page(title, *parts, *(note(line) for line in self._notes()))

    def _notes(self) -> list[str]:
        lines = [
            f"unfinished: {clean(one.repo)}, {format_bytes(one.size)} are here (%llama download goes on, "
            "%llama delete frees them)"
            for one in self.unfinished
        ]
        if not self.models:
            lines.append("%llama models --catalog shows some to begin with, %llama models --search WORDS asks the Hub.")
        return [*lines, f"{format_bytes(self.free)} free where downloads go, {clean(self.cache)}"]


def _label(model: StoredModel) -> str:
    """Return what to show as the model's name: what to type, shortened where it is a path of another tool."""
    shown = model.name if model.place == "Ollama" else model.ref
    if len(shown) > 90:
        shown = "…" + shown[-89:]
    return clean(shown) + (f" ({model.parts} parts)" if model.parts > 1 else "")


def _tight(text: str) -> Html:
    """Return a text that is not broken into lines."""
    return Html(f'<span style="white-space:nowrap">{escape(clean(text))}</span>')


def _cell(model: StoredModel) -> Html:
    """Return the name with what else there is to say of it below."""
    return join(
        _label(model),
        note(clean(model.path)) if model.place == "Ollama" else "",
        note(clean(model.problem), "warning") if model.problem else "",
    )


def _facts(model: StoredModel) -> tuple[str, str, str, str]:
    params = format_count(model.n_params) if model.n_params else ""
    return model.ftype, params, model.licence[:40], _day(model.last_used)


def _day(seconds: float) -> str:
    if seconds <= 0:
        return ""
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().strftime("%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A small instruct model that is good for teaching.

    Attributes
    ----------
    name, ref
        What it is called, and what to type.
    licence
        As the model's authors give it.
    parameters, n_ctx
        As the model's card gives them; the context in tokens.
    size
        Bytes of the file that `ref` means.
    remark
        What it is good for.
    """

    name: str
    ref: str
    licence: str
    parameters: str
    n_ctx: int
    size: int
    remark: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Catalogue(Sequence[CatalogueEntry]):
    """Small instruct models to begin with, as a sequence; `source` says where the figures come from."""

    entries: tuple[CatalogueEntry, ...]
    source: str = ""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each model."""
        return _pandas([asdict(entry) for entry in self.entries])

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                entry.name, entry.ref, format_bytes(entry.size), entry.parameters, f"{entry.n_ctx:,}", entry.licence,
                entry.remark,
            )
            for entry in self.entries
        ]  # fmt: skip

    def __repr__(self) -> str:
        head = ("model", "type this", "size", "parameters", "context", "licence", "")
        return f"{text_table(head, self._rows(), 'llrrrll')}\n%llama download REF fetches one. {self.source}"

    def _repr_html_(self) -> str:
        head = ("model", "type this", "size", "parameters", "context", "licence", "")
        largest = max((entry.size for entry in self.entries), default=1)
        rows = [
            (_tight(row[0]), row[1], bar(entry.size / largest, _tight(row[2])), *row[3:5], _tight(row[5]), row[6])
            for entry, row in zip(self.entries, self._rows(), strict=True)
        ]
        title = heading("Small models to begin with", "%llama download REF fetches one")
        return page(title, table(head, rows, "llrrrll"), note(self.source))


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A repository with GGUF files.

    Attributes
    ----------
    repo, downloads, likes
        Downloads are those of the last 30 days, as the Hub counts them.
    n_params
        Weights of the model; 0 where the Hub does not tell.
    licence, gated
        The licence by the repository's own word; whether it must be accepted first.
    file, size
        The file that the repository's name alone means, and its bytes; empty and 0 where it could not be asked.
    quants
        Quantizations that there are.
    """

    repo: str
    downloads: int = 0
    likes: int = 0
    n_params: int = 0
    licence: str = ""
    gated: bool = False
    file: str = ""
    size: int = 0
    quants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class SearchResults(Sequence[SearchHit]):
    """What the Hub found, the most downloaded first, as a sequence."""

    words: str
    hits: tuple[SearchHit, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: Any) -> Any:
        return self.hits[index]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each repository."""
        return _pandas([asdict(hit) for hit in self.hits])

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                hit.repo,
                format_count(hit.downloads),
                format_count(hit.n_params) if hit.n_params else "",
                format_bytes(hit.size) if hit.size else "",
                ", ".join(hit.quants[:8]) + (" …" if len(hit.quants) > 8 else ""),
                clean(hit.licence, 40) + (", gated" if hit.gated else ""),
            )
            for hit in self.hits
        ]

    def __repr__(self) -> str:
        if not self.hits:
            return f"The Hub has no GGUF repository for {clean(self.words)!r}. Fewer words find more."
        return (
            f"{text_table(_FOUND, self._rows(), 'lrrrll')}\n"
            "%llama download REPO[:QUANT] fetches one; the size is that of the file without a quant."
        )

    def _repr_html_(self) -> str:
        title = heading("GGUF models on the Hub", f"for “{clean(self.words)}”, the most downloaded first")
        if not self.hits:
            return page(title, note("Nothing was found. Fewer words find more."))
        told = "%llama download REPO[:QUANT] fetches one; the size is that of the file without a quant."
        return page(title, table(_FOUND, self._rows(), "lrrrll"), note(told))


_FOUND = ("repository", "downloads", "parameters", "size", "quants", "licence")


def _pandas(rows: list[dict[str, Any]]) -> pd.DataFrame:
    from llama_magic.errors import MissingDependencyError

    try:
        import pandas as pd
    except ImportError:
        raise MissingDependencyError("to_pandas needs pandas: pip install pandas") from None
    return pd.DataFrame(rows)
