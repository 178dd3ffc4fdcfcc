"""Whether a worker waits for the next job."""

from __future__ import annotations

from llama_magic.engine.spare import keep_spare

__all__ = ["keep_spare"]
