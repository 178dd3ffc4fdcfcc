"""Ask the person at the notebook."""

from __future__ import annotations

from llama_magic.errors import InvalidRequestError

__all__ = ["agreed"]


def agreed(question: str, otherwise: str) -> bool:
    """Ask a question that y answers; where nobody can answer, `InvalidRequestError` says what to do instead."""
    try:
        answer = input(question)
    except (EOFError, NotImplementedError, RuntimeError) as exc:
        raise InvalidRequestError(f"nobody can be asked here; {otherwise}") from exc
    return answer.strip().lower() in ("y", "yes")
