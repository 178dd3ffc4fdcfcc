"""A Hub on this machine: speaks the protocol of the Hugging Face Hub to the real huggingface_hub client.

Two servers on two ports of the loopback address. One is the Hub itself: the API, and ``/resolve/`` with its ETag,
``X-Repo-Commit``, ``X-Linked-Etag`` and ``X-Linked-Size``. The other is the storage that it redirects to; a token that
turns up there has leaked. Everything that can go wrong is a `Fault`. Every request is kept in `Hub.requests`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TOKEN", "Fault", "Hub", "Repo", "Request", "Sparse"]

#: The token that the Hub knows. Anything else is refused.
TOKEN = "hf_loopback"
_BLOCK = 64 << 10
_LFS_FROM = 1 << 10


class Sparse:
    """The content of a file that is too large to make: `head`, then zeros up to `size` bytes."""

    def __init__(self, head: bytes, size: int) -> None:
        self.head = head
        self.size = size

    def __len__(self) -> int:
        return self.size

    def part(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`."""
        stop = min(stop, self.size)
        found = self.head[start:stop]
        return found + bytes(max(0, stop - start - len(found)))

    @property
    def sha256(self) -> str:
        """A hash that stands for the content (not the true one, which nobody could wait for)."""
        return hashlib.sha256(self.head + str(self.size).encode()).hexdigest()


class _Bytes(Sparse):
    def __init__(self, data: bytes) -> None:
        super().__init__(data, len(data))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.head).hexdigest()


@dataclass
class Repo:
    """A repository: its files by name, and what the API tells of it. `sha` is the commit of every revision."""

    id: str
    files: dict[str, Sparse]
    private: bool = False
    gated: bool = False
    license: str = "apache-2.0"
    downloads: int = 100
    tags: tuple[str, ...] = ("gguf",)
    branches: tuple[str, ...] = ("main",)

    @property
    def sha(self) -> str:
        """Commit hash: changes with the files."""
        text = repr([(name, content.sha256) for name, content in sorted(self.files.items())])
        return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Fault:
    """Something that goes wrong with requests whose path contains `match`; at most `times` of them, None: with all.

    Attributes
    ----------
    where
        "hub", "storage", or an empty string for both.
    method
        "GET", "HEAD", or an empty string for both.
    status, headers
        Answer this instead.
    cut
        Break the connection after so many bytes of the content. `reset` sends RST instead of FIN.
    corrupt
        Change the byte at this place of the file (True: the first).
    stall
        After so many bytes send nothing more until the client leaves or the Hub is closed.
    rate
        Bytes a second.
    hold
        Answer nothing at all, until the client leaves or the Hub is closed.
    no_ranges
        Send the whole file whatever range was asked for.
    redirect
        Send the client to this address.
    """

    match: str = ""
    times: int | None = None
    where: str = ""
    method: str = ""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False
    corrupt: int | bool | None = None
    stall: int | None = None
    rate: float | None = None
    hold: bool = False
    no_ranges: bool = False
    redirect: str | None = None
    used: int = 0


@dataclass
class Request:
    """One request as it came, and what it got."""

    where: str
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        """The Range header, such as ``bytes=0-99``."""
        return self.headers.get("range")


class Hub:
    """The Hub and its storage. `url` goes into HF_ENDPOINT. A context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._hub = _Server(self, "hub")
        self._storage = _Server(self, "storage")
        self.url = self._hub.url
        self.storage_url = self._storage.url

    # -- what is on it ---------------------------------------------------------------------

    def add(self, repo: str, files: Mapping[str, bytes | Sparse], **facts: Any) -> Repo:
        """Put a repository on the Hub; `facts` are fields of `Repo`."""
        contents = {name: data if isinstance(data, Sparse) else _Bytes(data) for name, data in files.items()}
        made = self.repos[repo] = Repo(repo, contents, **facts)
        return made

    def fault(self, match: str = "", **what: Any) -> Fault:
        """Let something go wrong from now on; see `Fault`."""
        made = Fault(match, **what)
        with self._lock:
            self.faults.append(made)
        return made

    # -- what happened ---------------------------------------------------------------------

    @property
    def sent(self) -> int:
        """Bytes of file contents that were sent."""
        return sum(request.sent for request in self.requests if "/api/" not in request.path)

    @property
    def ranges(self) -> list[str]:
        """The ranges that were asked for, in order; where the Hub redirects, only as the storage got them."""
        return [request.range for request in self.requests if request.range is not None and request.status != 302]

    @property
    def leaks(self) -> list[Request]:
        """Requests that carried a token to the storage, where it has no business."""
        return [
            request for request in self.requests if request.where == "storage" and "authorization" in request.headers
        ]

    def gets(self, name: str) -> list[Request]:
        """Return the GET requests for the content of a file, at the storage or, where it has no redirect, the Hub."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and request.status in (200, 206) and unquote(request.path).endswith(name)
        ]

    def take_fault(self, request: Request) -> Fault | None:
        """Return what shall go wrong with a request."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if (
                    fault.match in unquote(request.path)
                    and fault.where in ("", request.where)
                    and fault.method in ("", request.method)
                    and (fault.times is None or fault.used < fault.times)
                ):
                    fault.used += 1
                    return fault
        return None

    def close(self) -> None:
        """End both servers and every connection."""
        self.closed.set()
        self._hub.close()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    """One of the two servers, in a thread of its own."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub, where: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.where = where
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name=f"test-{where}", daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are part of the game."""

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_body = self.rfile.read(int(headers.get("content-length", 0)))
        self.record = Request(self.server.where, self.command, self.path, headers)
        self.fault = hub.take_fault(self.record) or Fault()
        try:
            if self.fault.hold:
                self._wait_until_left()
                self.close_connection = True
            elif self.fault.status is not None:
                self._refuse(self.fault.status, "injected", **self.fault.headers)
            elif self.fault.redirect is not None:
                self._answer(302, b"", {"Location": self.fault.redirect})
            elif self.server.where == "storage":
                self._storage()
            else:
                self._route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # -- the Hub ---------------------------------------------------------------------------

    def _route(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        lists = parse_qs(address.query)
        path = address.path
        if path == "/api/models":
            self._json(_search(self.server.hub, query, lists))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._with_repo(match[1], match[2], lambda repo: self._json(_model_info(repo, query, lists)))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            folder = unquote(match[3] or "")
            self._with_repo(match[1], match[2], lambda repo: self._json(_tree(repo, folder, query)))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            wanted = parse_qs(self.request_body.decode()).get("paths", [])
            self._with_repo(
                match[1],
                match[2],
                lambda repo: self._json([_entry(name, repo.files[name]) for name in wanted if name in repo.files]),
            )
        elif path == "/api/whoami-v2":
            if self._token() is None:
                self._refuse(401, "Invalid username or password.")
            else:
                self._json({"type": "user", "name": "loopback", "auth": {"accessToken": {"role": "read"}}})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name = unquote(match[3])
            self._with_repo(match[1], match[2], lambda repo: self._resolve(repo, name))
        else:
            self._refuse(404, "Not Found")

    def _token(self) -> str | None:
        given = self.record.headers.get("authorization", "").removeprefix("Bearer ")
        return given if given == TOKEN else None

    def _with_repo(self, name: str, revision: str | None, answer: Any) -> None:
        repo = self.server.hub.repos.get(name)
        if "authorization" in self.record.headers and self._token() is None:
            self._refuse(401, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and self._token() is None):
            # As the Hub does: without a token it does not tell what is private from what is not there.
            status = 404 if self._token() else 401
            self._refuse(status, "Repository not found", **{"X-Error-Code": "RepoNotFound"})
        elif revision is not None and unquote(revision) not in (*repo.branches, repo.sha, repo.sha[:7]):
            self._refuse(404, f"Invalid rev id: {revision}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            answer(repo)

    def _resolve(self, repo: Repo, name: str) -> None:
        commit = {"X-Repo-Commit": repo.sha}
        content = repo.files.get(name)
        if repo.gated and self._token() is None:
            status = 403 if "authorization" in self.record.headers else 401
            self._refuse(status, "Access to model is restricted.", **{"X-Error-Code": "GatedRepo", **commit})
        elif content is None:
            self._refuse(404, "Entry not found", **{"X-Error-Code": "EntryNotFound", **commit})
        elif len(content) < _LFS_FROM:
            self._content(content, {"ETag": f'"{_blob_id(content)}"', **commit})
        else:
            linked = {
                "X-Linked-ETag": f'"{content.sha256}"',
                "X-Linked-Size": str(len(content)),
                "Accept-Ranges": "bytes",
                "Location": f"{self.server.hub.storage_url}/{quote(repo.id)}/{content.sha256}/{quote(name)}?Signature=x",
                **commit,
            }
            self._answer(302, b"", linked)

    # -- the storage -----------------------------------------------------------------------

    def _storage(self) -> None:
        owner, name, _, file = unquote(urlsplit(self.path).path).lstrip("/").split("/", 3)
        repo = self.server.hub.repos.get(f"{owner}/{name}")
        if repo is None or file not in repo.files:
            self._refuse(404, "NoSuchKey")
        else:
            content = repo.files[file]
            self._content(content, {"ETag": f'"{content.sha256}"'})

    # -- answers ---------------------------------------------------------------------------

    def _json(self, data: Any) -> None:
        self._answer(200, json.dumps(data).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _refuse(self, status: int, message: str, **headers: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._answer(status, body, {"Content-Type": "application/json", "X-Error-Message": message, **headers})

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._start(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.record.sent += len(body)
            self.wfile.write(body)

    def _content(self, content: Sparse, headers: Mapping[str, str]) -> None:
        size = len(content)
        start, stop = 0, size
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.record.range or "")
        status = 200
        if wanted and not self.fault.no_ranges:
            if not wanted[1]:
                start = max(0, size - int(wanted[2]))
            else:
                start = int(wanted[1])
                stop = min(size, int(wanted[2]) + 1) if wanted[2] else size
            if start >= stop:
                self._answer(416, b"", {"Content-Range": f"bytes */{size}", **headers})
                return
            status = 206
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}", **headers}
        self._start(status, {"Content-Length": str(stop - start), "Accept-Ranges": "bytes", **headers})
        if self.command != "HEAD":
            self._send(content, start, stop)

    def _send(self, content: Sparse, start: int, stop: int) -> None:
        fault, sent = self.fault, 0
        began = time.monotonic()
        for at in range(start, stop, _BLOCK):
            block = bytearray(content.part(at, min(at + _BLOCK, stop)))
            place = 0 if fault.corrupt is True else fault.corrupt
            if place is not None and at <= place < at + len(block):
                block[place - at] ^= 0xFF
            limits = [limit for limit in (fault.cut, fault.stall) if limit is not None]
            room = min(limits) - sent if limits else len(block)
            # Counted first: a client that has them all may look at once.
            sent += min(len(block), max(0, room))
            self.record.sent = sent
            self.wfile.write(block[: max(0, room)])
            if room <= len(block) and limits:
                if fault.stall is not None:
                    self._wait_until_left()
                self._break()
                return
            if fault.rate is not None and self.server.hub.closed.wait(
                max(0, sent / fault.rate - time.monotonic() + began)
            ):
                return

    def _wait_until_left(self) -> None:
        """Send nothing more; return when the client has left or the Hub is closed."""
        self.connection.settimeout(0.05)
        while not self.server.hub.closed.is_set():
            try:
                if not self.connection.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def _break(self) -> None:
        if self.fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


# -- what the API tells --------------------------------------------------------------------


def _blob_id(content: Sparse) -> str:
    """Git's hash of a blob; a large file's is that of its LFS pointer, which nobody checks."""
    data = content.part(0, len(content)) if len(content) < _LFS_FROM else content.sha256.encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(content: Sparse, key: str) -> dict[str, Any]:
    if len(content) < _LFS_FROM:
        return {}
    return {"lfs": {key: content.sha256, "size": len(content), "pointerSize": 134}}


def _entry(name: str, content: Sparse) -> dict[str, Any]:
    return {"type": "file", "oid": _blob_id(content), "size": len(content), "path": name, **_lfs(content, "oid")}


def _tree(repo: Repo, folder: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
    lead = f"{folder}/" if folder else ""
    inside = {name: content for name, content in repo.files.items() if name.startswith(lead)}
    if query.get("recursive", "").lower() == "true":
        return [_entry(name, content) for name, content in inside.items()]
    folders = {name[len(lead) :].split("/")[0] for name in inside if "/" in name[len(lead) :]}
    return [
        *({"type": "directory", "oid": "0" * 40, "size": 0, "path": lead + name} for name in sorted(folders)),
        *(_entry(name, content) for name, content in inside.items() if "/" not in name[len(lead) :]),
    ]


def _model_info(repo: Repo, query: Mapping[str, str], lists: Mapping[str, list[str]]) -> dict[str, Any]:
    blobs = query.get("blobs", "").lower() == "true"
    siblings = [
        {
            "rfilename": name,
            **({"size": len(content), "blobId": _blob_id(content), **_lfs(content, "sha256")} if blobs else {}),
        }
        for name, content in repo.files.items()
    ]
    facts = {
        "sha": repo.sha,
        "siblings": siblings,
        "downloads": repo.downloads,
        "likes": 7,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "tags": [*repo.tags, f"license:{repo.license}"],
        "cardData": {"license": repo.license},
        "lastModified": "2025-01-02T03:04:05.000Z",
        "createdAt": "2025-01-01T00:00:00.000Z",
        "gguf": {"total": 134515008, "architecture": "llama"},
    }
    wanted = lists.get("expand") or lists.get("expand[]")
    kept = {name: value for name, value in facts.items() if wanted is None or name in wanted}
    return {"_id": repo.sha[:24], "id": repo.id, "modelId": repo.id, **kept}


def _search(hub: Hub, query: Mapping[str, str], lists: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    words = query.get("search", "").lower().split()
    tags = [tag for item in lists.get("filter", []) for tag in item.split(",")]
    found = [
        repo
        for repo in hub.repos.values()
        if not repo.private and all(word in repo.id.lower() for word in words) and all(tag in repo.tags for tag in tags)
    ]
    found.sort(key=lambda repo: -repo.downloads)
    answers = [_model_info(repo, query, lists) for repo in found[: int(query.get("limit", 1000))]]
    if "expand" not in lists and query.get("full", "").lower() != "true":
        for answer in answers:
            answer.pop("siblings", None)
    return answers
