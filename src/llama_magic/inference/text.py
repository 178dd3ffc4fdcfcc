"""Bytes of tokens to text: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["TextAssembler"]


class TextAssembler:
    """Puts text together from the bytes of tokens.

    A token may end in the middle of a character, and a stop string may begin in one token
    and end in another: such text is held back until it is clear what it is.

    Parameters
    ----------
    stop
        Strings that end the text.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._bytes: list[bytes] = []  # not decoded yet; only where no stop string has to be looked for
        self._held = ""
        self._pending: list[str] = []
        self._parts: list[str] = []
        self.stopped = False

    def feed(self, data: bytes) -> None:
        """Add the bytes of one token; sets `stopped` when a stop string is complete."""
        if not self._stop:
            self._bytes.append(data)
            return
        if self.stopped:
            return
        self._held += self._decoder.decode(data)
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._release(min(found))
            self._held = ""
        else:
            self._release(len(self._held) - self._overlap())

    def _overlap(self) -> int:
        """Return how many characters at the end of the held text may begin a stop string."""
        held, most = self._held, 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(held)), most, -1):
                if held.endswith(stop[:length]):
                    most = length
                    break
        return most

    def _release(self, count: int) -> None:
        if count > 0:
            self._pending.append(self._held[:count])
            self._held = self._held[count:]

    def take(self) -> str:
        """Return the text that became certain since the last call."""
        if self._bytes:
            self._pending.append(self._decoder.decode(b"".join(self._bytes)))
            self._bytes.clear()
        text = "".join(self._pending)
        self._pending.clear()
        if text:
            self._parts.append(text)
        return text

    def finish(self) -> str:
        """Return what is left when no token follows; half a character becomes U+FFFD."""
        text = self.take()
        if self.stopped:
            return text
        self._held += self._decoder.decode(b"", final=True)
        self._release(len(self._held))
        return text + self.take()

    @property
    def text(self) -> str:
        """All text taken so far."""
        return "".join(self._parts)
