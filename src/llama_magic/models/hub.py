"""What the Hub says of a repository, through huggingface_hub: files, hashes, licence; and searching it.

Works wherever it is called; `api` calls it in a short-lived worker, which reads HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE afresh and can be stopped at any moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llama_magic.errors import DownloadError, JobInterrupted, LlamaMagicError, ModelNotFoundError
from llama_magic.models.references import HubReference, safe_name

__all__ = [
    "HubFile",
    "Listing",
    "Patience",
    "endpoint",
    "explained",
    "is_network",
    "list_repository",
    "retry_after",
    "status_of",
    "words",
]

#: Answers after which the same question may be answered differently.
AGAIN = (408, 429, 500, 502, 503, 504)
#: Seconds that a server has for the first byte of an answer, and for each one after it.
TIMEOUT_S = 15.0
#: The longest that a server may ask to wait (Retry-After); beyond that the person is told instead.
LONGEST_WAIT_S = 30.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository.

    Attributes
    ----------
    name, size
        Its path in the repository, and bytes.
    etag
        The name of its blob in the cache: the SHA-256 of a large file, git's blob hash of a small one.
    """

    name: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit."""

    repo: str
    commit: str
    files: dict[str, HubFile]
    gated: bool = False
    licence: str = ""


@dataclass(slots=True)
class Patience:
    """How often a question is asked again, and how long to wait in between.

    Attributes
    ----------
    tries
        Failures in a row after which it is given up.
    pause_s
        Seconds before the second try; doubled for each further one, up to `longest_s`.
    cancelled
        Asked while waiting.
    """

    tries: int = 5
    pause_s: float = 0.5
    longest_s: float = 8.0
    cancelled: Callable[[], bool] = field(default=lambda: False)

    def ask(self, question: Callable[[], _T]) -> _T:
        """Return the answer to a question, asking again after errors that may pass."""
        failed = 0
        while True:
            try:
                return question()
            except Exception as exc:
                failed += 1
                if not self.worth_another(exc, failed):
                    raise
                self.wait(exc, failed)

    def worth_another(self, exc: BaseException, failed: int) -> bool:
        """Tell whether to try again after the `failed`-th failure in a row."""
        if failed >= self.tries or retry_after(exc) > LONGEST_WAIT_S:
            return False
        return status_of(exc) in AGAIN or is_network(exc)

    def wait(self, exc: BaseException, failed: int) -> None:
        """Wait as long as the server asks, or longer each time.

        Raises
        ------
        JobInterrupted
            It was cancelled meanwhile.
        """
        seconds = min(self.pause_s * 2 ** (failed - 1), self.longest_s)
        until = time.monotonic() + max(seconds, retry_after(exc))
        while not self.cancelled():
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(left, 0.1))
        raise JobInterrupted


def status_of(exc: BaseException) -> int:
    """Return the HTTP status that an error is about, 0 where it is about none."""
    status = getattr(getattr(exc, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def retry_after(exc: BaseException) -> float:
    """Return the seconds that the server asked to wait, 0 where it did not say."""
    headers = getattr(getattr(exc, "response", None), "headers", None) or {}
    text = str(headers.get("Retry-After", "")).strip()
    return float(text) if text.isdecimal() else 0.0


def is_network(exc: BaseException) -> bool:
    """Tell whether an error is that of a connection, whichever HTTP library huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(exc, (LlamaMagicError, HfHubHTTPError, OfflineModeIsEnabled)):
        return False
    package = type(exc).__module__.partition(".")[0]
    return isinstance(exc, (ConnectionError, TimeoutError)) or package.startswith(
        ("httpx", "httpcore", "requests", "urllib3")
    )


def endpoint() -> str:
    """Return the address of the Hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def words(exc: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(exc).split())[:300] or type(exc).__name__


def list_repository(reference: HubReference, patience: Patience) -> Listing:
    """Return the files of a repository with their hashes.

    Raises
    ------
    ModelNotFoundError, DownloadError
    """
    from huggingface_hub import HfApi

    repo, revision = reference.repo, reference.revision

    def ask() -> Any:
        return HfApi(endpoint=endpoint()).model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)

    with explained(repo, None, revision):
        info = patience.ask(ask)
    files = {}
    for sibling in info.siblings or ():
        name = str(sibling.rfilename)
        etag = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        # Names come from strangers and become paths here; a hash becomes the name of a file.
        if safe_name(name) and isinstance(sibling.size, int) and str(etag).isalnum():
            files[name] = HubFile(name, sibling.size, str(etag))
    commit = str(info.sha)
    if not (len(commit) == 40 and commit.isalnum()):
        raise DownloadError(f"{endpoint()} does not say which commit of {repo} it gives; check HF_ENDPOINT")
    card: Any = info.card_data
    licence = str(card.get("license") or "") if card is not None else ""
    return Listing(repo, commit, files, bool(info.gated), licence)


@contextmanager
def explained(repo: str, file: str | None = None, revision: str | None = None) -> Iterator[None]:
    """Raise our errors for those of huggingface_hub and its HTTP library."""
    from huggingface_hub import errors

    try:
        yield
    except LlamaMagicError:
        raise
    except errors.OfflineModeIsEnabled as exc:
        raise DownloadError(f"{repo} is not in the cache and HF_HUB_OFFLINE is set; unset it to download") from exc
    except errors.HfHubHTTPError as exc:
        raise _refused(exc, repo, file, revision) from exc
    except errors.HFValidationError as exc:
        raise ModelNotFoundError(f"{repo} can not be the name of a repository: {words(exc)}") from exc
    except Exception as exc:
        if is_network(exc):
            raise DownloadError(
                f"{endpoint()} can not be reached ({words(exc)}). Check the network, and HF_ENDPOINT and the proxy "
                "settings where they are set; a download goes on where it stopped."
            ) from exc
        raise


def _refused(exc: Exception, repo: str, file: str | None, revision: str | None) -> LlamaMagicError:
    """Return the error for an answer of the Hub that says no."""
    from huggingface_hub import errors, get_token

    status, known = status_of(exc), get_token() is not None
    page = f"{endpoint()}/{repo}"
    tokens = f"{endpoint()}/settings/tokens"
    if isinstance(exc, errors.GatedRepoError):
        then = (
            "then run it again; the account of HF_TOKEN has no access yet"
            if known
            else f"then set HF_TOKEN to a token of that account ({tokens})"
        )
        return DownloadError(f"{repo} is gated: accept its licence at {page}, {then}.")
    if isinstance(exc, errors.RevisionNotFoundError):
        return ModelNotFoundError(f"{repo} has no revision {revision!r}; {page}/commits lists them")
    if isinstance(exc, errors.EntryNotFoundError):
        return ModelNotFoundError(f"{repo} has no file {file}")
    if isinstance(exc, errors.RepositoryNotFoundError):
        more = "the account of HF_TOKEN can not see it" if known else f"it is private: set HF_TOKEN ({tokens})"
        return ModelNotFoundError(f"there is no repository {repo} on the Hub, or {more}. Check the name.")
    return DownloadError(_why(exc, status, known=known, repo=repo, page=page, tokens=tokens))


def _why(exc: Exception, status: int, *, known: bool, repo: str, page: str, tokens: str) -> str:
    """Return in words what an HTTP status means here, and what helps."""
    if status == 401:
        return f"the Hub does not know the token in HF_TOKEN: make a new one at {tokens}, or unset it"
    if status == 403:
        return (
            f"the Hub refused {repo} (403): the token may not read it. Accept its licence at {page}, or make a token "
            f"with read access at {tokens}"
        )
    if status == 429:
        wait = retry_after(exc)
        when = f"in {wait:.0f} s" if wait else "in a few minutes"
        return f"the Hub got too many requests (429). Try again {when}{'' if known else '; HF_TOKEN raises the limit'}."
    if status >= 500:
        return (
            f"the Hub fails at the moment ({status}) and did not give {repo}. Try again later; a download goes on "
            "where it stopped."
        )
    return f"the Hub did not give {repo}: {words(exc)}"
