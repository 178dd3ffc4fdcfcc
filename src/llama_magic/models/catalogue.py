"""Small instruct models that are good for teaching, and searching the Hub for others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from llama_magic.errors import LlamaMagicError
from llama_magic.models.hub import TIMEOUT_S, Patience, endpoint, explained, list_repository
from llama_magic.models.library import Catalogue, CatalogueEntry, SearchHit, SearchResults
from llama_magic.models.references import HubReference, choose_file, models_among, parse_hub, quant_of, split_parts
from llama_magic.progress import Progress

__all__ = ["CATALOGUE", "SearchRequest", "run", "search"]

_SOURCE = (
    "Parameters, context and licence are those of the models' cards, sizes those of the files on the Hub, "
    "both as of 2025; the Hub's own figures count."
)

# fmt: off
#: Names, licences, parameters and contexts: the models' cards on huggingface.co. Sizes: bytes of the named file there
#: (Gemma's rounded to a million), as public lists of these files give them.
CATALOGUE = Catalogue((
    CatalogueEntry("SmolLM2 135M Instruct", "smollm2", "apache-2.0", "135M", 8192, 98_362_432,
                   "comes with the extra demo; answers at once, knows little"),
    CatalogueEntry("SmolLM2 360M Instruct", "bartowski/SmolLM2-360M-Instruct-GGUF:Q4_K_M", "apache-2.0", "360M", 8192,
                   270_590_880, "small, English"),
    CatalogueEntry("SmolLM2 1.7B Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF:Q4_K_M", "apache-2.0", "1.7B",
                   8192, 1_055_609_536, "its training data are public too"),
    CatalogueEntry("Qwen2.5 0.5B Instruct", "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M", "apache-2.0", "0.49B", 32768,
                   491_400_032, "many languages"),
    CatalogueEntry("Qwen2.5 1.5B Instruct", "Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M", "apache-2.0", "1.54B", 32768,
                   1_117_320_736, "many languages, some code"),
    CatalogueEntry("Qwen3 0.6B", "Qwen/Qwen3-0.6B-GGUF:Q8_0", "apache-2.0", "0.6B", 32768, 639_446_688,
                   "reasons aloud before it answers"),
    CatalogueEntry("TinyLlama 1.1B Chat", "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M", "apache-2.0", "1.1B", 2048,
                   668_788_096, "Llama 2's design, small; to compare with newer ones"),
    CatalogueEntry("Llama 3.2 1B Instruct", "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", "llama3.2", "1.23B", 131072,
                   807_694_464, "long contexts; a licence with conditions"),
    CatalogueEntry("Gemma 3 1B Instruct", "ggml-org/gemma-3-1b-it-GGUF:Q4_K_M", "gemma", "1B", 32768,
                   806_000_000, "a large vocabulary; a licence with conditions"),
    CatalogueEntry("Phi-4-mini Instruct", "unsloth/Phi-4-mini-instruct-GGUF:Q4_K_M", "mit", "3.8B", 131072,
                   2_491_874_272, "the largest and slowest here"),
), _SOURCE)
# fmt: on


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Words to search the Hub for, and how many repositories to return."""

    words: str
    limit: int = 15
    pause_s: float = 0.5


def run(request: SearchRequest, tools: Any) -> SearchResults:
    """Do it as a job of a worker."""
    tools.report(Progress("search", None, "asking the Hub"))
    return search(request, Patience(pause_s=request.pause_s, cancelled=tools.cancelled))


def search(request: SearchRequest, patience: Patience | None = None) -> SearchResults:
    """Return repositories with GGUF files, the most downloaded first, with the file that each would give.

    Raises
    ------
    DownloadError
        The Hub can not be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    patience = patience or Patience(pause_s=request.pause_s)
    session: Any = get_session()
    session.timeout = TIMEOUT_S  # list_models takes none of its own

    def ask() -> list[Any]:
        found = HfApi(endpoint=endpoint()).list_models(
            search=request.words, filter="gguf", sort="downloads", limit=request.limit,
            expand=["downloads", "likes", "gguf", "gated", "tags"],
        )  # fmt: skip
        return list(found)

    with explained("the list of models"):
        infos = [info for info in patience.ask(ask) if parse_hub(str(info.id)) is not None]
    with ThreadPoolExecutor(4) as pool:
        hits = list(pool.map(lambda info: _hit(info, patience), infos))
    return SearchResults(request.words, tuple(hits))


def _hit(info: Any, patience: Patience) -> SearchHit:
    gguf = info.gguf if isinstance(info.gguf, dict) else {}
    total = gguf.get("total", 0)
    tags = [tag for tag in info.tags or () if isinstance(tag, str)]
    licence = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")
    repo, file, size = str(info.id), "", 0
    quants: tuple[str, ...] = ()
    try:
        listing = list_repository(HubReference(repo), patience)
        names = models_among(listing.files)
        file = choose_file(names, None, repo)
        size = sum(listing.files[part].size for part in split_parts(file) if part in listing.files)
        quants = tuple(dict.fromkeys(quant_of(name) for name in names))
    except LlamaMagicError:
        pass  # the search is still worth showing
    return SearchHit(
        repo, int(info.downloads or 0), int(info.likes or 0), total if isinstance(total, int) else 0, licence,
        bool(info.gated), file, size, quants,
    )  # fmt: skip
