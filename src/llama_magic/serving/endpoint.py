"""The address of a server elsewhere, as a person types it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from llama_magic.errors import InvalidRequestError
from llama_magic.serving.policy import is_loopback

__all__ = ["Endpoint", "parse_endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server.

    Attributes
    ----------
    base_url
        Its address with ``/v1``.
    api_key
        The key to send; None for none. It is not part of the repr.
    ours
        Whether it is a server of llama_magic or llama-server, which take llama.cpp's parameters.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    ours: bool = False

    @property
    def root(self) -> str:
        """The address without ``/v1``."""
        return re.sub(r"/v\d+$", "", self.base_url)

    @property
    def is_loopback(self) -> bool:
        """True where it is on this machine."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    def headers(self) -> dict[str, str]:
        """Return the headers of each request."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


def parse_endpoint(url: str, api_key: str | None = None) -> Endpoint:
    """Read an address: ``http://host:8080``, with or without ``/v1``, or ``host:8080``.

    Raises
    ------
    InvalidRequestError
        It is no address of a server.
    """
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{url!r} is no address of a server: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequestError(f"{url!r} is no address of a server: it is like http://127.0.0.1:8080")
    if parts.username or parts.password:
        raise InvalidRequestError(
            "a key does not go into the address, where it would be shown: connect(url, api_key=…)"
        )
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise InvalidRequestError("an API key consists of printable ASCII characters")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    path = path if re.search(r"/v\d+$", path) else f"{path}/v1"
    return Endpoint(f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}", api_key or None)
