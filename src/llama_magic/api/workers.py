"""Whether and when a worker waits for the next job."""

from __future__ import annotations

from llama_magic.engine.spare import keep_spare, not_now, prepare_soon

__all__ = ["keep_spare", "not_now", "prepare_soon"]
