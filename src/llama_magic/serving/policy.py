"""Who may ask: keys, hosts, origins, sizes."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass

from llama_magic.errors import InvalidRequestError
from llama_magic.serving.problems import Refusal

__all__ = ["Policy", "is_loopback", "make_key", "make_policy"]

#: Least characters of a key where others than this machine's users can try to guess it.
_SHORTEST_KEY = 16
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def make_key() -> str:
    """Return a fresh API key of 256 random bits."""
    return "sk-" + secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, repr=False)
class Policy:
    """What a server asks of its clients. Its repr does not show the key.

    Attributes
    ----------
    api_key
        The key; None where there is none.
    hosts
        Names under which it may be called; empty: any.
    origins
        Web pages that may ask it.
    max_body
        Most bytes of a request's body.
    """

    api_key: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()
    max_body: int = 4 << 20

    def __repr__(self) -> str:
        return f"Policy(key={'yes' if self.api_key else 'no'}, hosts={sorted(self.hosts)}, origins={self.origins})"

    def check_host(self, header: str) -> None:
        """Refuse a foreign name: a web page whose name was made to point at this machine (DNS rebinding)."""
        name = _host_name(header)
        if self.hosts and name not in self.hosts:
            raise Refusal(
                403,
                f"this server is not called {name[:100]!r}; where a proxy passes that name on, serve with "
                "allowed_hosts=[…] (--allowed-host)",
                code="host_not_allowed",
            )

    def check_origin(self, origin: str | None) -> None:
        """Refuse what a web page sends, unless it is one of those named."""
        if origin is not None and "*" not in self.origins and origin not in self.origins:
            raise Refusal(
                403,
                f"web pages of {origin[:100]!r} may not ask this server; serve with cors=[…] (--cors) to let them",
                code="origin_not_allowed",
            )

    def check_key(self, authorization: str | None, x_api_key: str | None) -> None:
        """Refuse a request without the key; the time that it takes tells nothing of it."""
        if self.api_key is None:
            return
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else (x_api_key or "")
        if secrets.compare_digest(given.encode("utf-8", "replace"), self.api_key.encode()):
            return
        words = "is not the one of this server" if given else "is missing"
        raise Refusal(
            401,
            f"the API key {words}: send it as Authorization: Bearer KEY (server.api_key in the notebook that serves)",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _host_name(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def make_policy(
    host: str, api_key: str | None, cors: tuple[str, ...], allowed_hosts: tuple[str, ...], max_body: int
) -> Policy:
    """Return the policy for an address: beyond this machine there is always a key.

    Raises
    ------
    InvalidRequestError
        A key is too short or has blanks; an origin is none.
    """
    local = is_loopback(host)
    if api_key == "auto" or (api_key is None and not local):
        api_key = make_key()
    if api_key is not None:
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise InvalidRequestError("an API key consists of printable ASCII characters without blanks")
        if not local and len(api_key) < _SHORTEST_KEY:
            raise InvalidRequestError(
                f"an API key for an address that others reach needs {_SHORTEST_KEY} characters or more; "
                "without one given, a good one is made"
            )
    for origin in cors:
        if origin == "*":
            if api_key is None:
                raise InvalidRequestError("cors='*' lets every web page ask: that needs an API key (api_key='auto')")
        elif not origin.startswith(("http://", "https://", "app://", "capacitor://")) or origin.endswith("/"):
            raise InvalidRequestError(f"an origin is like https://example.org, without a path; got {origin!r}")
    hosts = {_host_name(name) for name in allowed_hosts}
    if local:
        hosts |= _LOCAL_NAMES | {host.lower()}
    return Policy(api_key, frozenset(hosts), cors, max_body)
