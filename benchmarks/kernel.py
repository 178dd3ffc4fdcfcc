"""A real kernel, and every message that it sends to front ends."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Cell", "Kernel", "Message"]

_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message: seconds since the cell was sent, its kind, its size on the wire, and the HTML it shows."""

    at_s: float
    kind: str
    size: int
    html: str


@dataclass(frozen=True, slots=True)
class Cell:
    """What one cell sent."""

    messages: tuple[Message, ...]

    @property
    def size(self) -> int:
        """Bytes of all its messages."""
        return sum(message.size for message in self.messages)

    @property
    def shown(self) -> list[Message]:
        """The messages that put something on the page."""
        return [message for message in self.messages if message.html]


class Kernel:
    """A fresh kernel of this Python, ended by leaving the context; it keeps no history."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._manager = KernelManager()
        spec = self._manager.kernel_spec
        assert spec is not None
        spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self._manager.start_kernel(env={**os.environ, "IPYTHONDIR": self._folder.name}, cwd=self._folder.name)
        client = self._manager.client()
        assert isinstance(client, BlockingKernelClient)
        self._client = client
        client.start_channels()
        client.wait_for_ready(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Process id of the kernel."""
        return int(getattr(self._manager.provisioner, "pid", 0))

    def run(self, code: str) -> Cell:
        """Run a cell and return what it sent; raises where it failed."""
        channel: Any = self._client.iopub_channel
        session: Any = self._client.session
        start = time.perf_counter()
        number = self._client.execute(code)
        messages = []
        while time.perf_counter() - start < _TIMEOUT_S:
            if not channel.socket.poll(1000):
                if not self._manager.is_alive():
                    raise RuntimeError("the kernel died")
                continue
            frames = channel.socket.recv_multipart()
            at = time.perf_counter() - start
            message = session.deserialize(session.feed_identities(frames)[1])
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "error":
                raise RuntimeError(f"{content['ename']}: {content['evalue']}")
            html = content.get("data", {}).get("text/html", "") if "display" in kind else ""
            messages.append(Message(at, kind, sum(map(len, frames)), html))
            if kind == "status" and content["execution_state"] == "idle":
                return Cell(tuple(messages))
        raise TimeoutError(f"the cell did not end within {_TIMEOUT_S:.0f} s")
