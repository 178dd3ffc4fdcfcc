"""What an unfinished importance matrix leaves behind, so that the next call can go on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_magic.errors import InvalidRequestError
from llama_magic.models.metadata import ModelMetadata
from llama_magic.quantization.imatrix_file import Entry

__all__ = ["Likelihood", "State", "model_digest", "read_state", "write_state"]

#: Files up to this size are hashed as a whole, larger ones by samples.
_WHOLE = 16 << 20
_SAMPLES, _SAMPLE = 128, 1 << 16


@dataclass(slots=True)
class Likelihood:
    """Sums of the negative log-likelihood of tokens, and of its square."""

    nll: float = 0.0
    nll2: float = 0.0
    count: int = 0

    @property
    def perplexity(self) -> float | None:
        """Exp of the mean, None before the first token."""
        return math.exp(self.nll / self.count) if self.count else None

    @property
    def error(self) -> float | None:
        """Standard error of the perplexity, as llama-imatrix computes it; None where it can not be told."""
        if self.count < 2:
            return None
        mean = self.nll / self.count
        variance = self.nll2 / self.count - mean * mean
        return math.sqrt(variance / (self.count - 1)) * math.exp(mean) if variance > 0 else None


@dataclass(slots=True)
class State:
    """How far a collection is: chunks read, what was collected, and the likelihood of what was read."""

    done: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    likelihood: Likelihood = field(default_factory=Likelihood)


def write_state(path: Path, temporary: Path, fingerprint: str, state: State) -> None:
    """Write the state; it is there as a whole or not at all. `temporary` is its name meanwhile, in the same folder.

    Raises
    ------
    InvalidRequestError
        It can not be written.
    """
    likelihood = state.likelihood
    facts = {
        "fingerprint": fingerprint,
        "done": state.done,
        "names": list(state.entries),
        "likelihood": [likelihood.nll, likelihood.nll2, likelihood.count],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    for number, entry in enumerate(state.entries.values()):
        arrays[f"sums{number}"], arrays[f"counts{number}"] = entry.sums, entry.counts
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InvalidRequestError(f"{str(path)!r} can not be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path: Path, fingerprint: str) -> State | None:
    """Return what `write_state` wrote; None where there is nothing, or something of another call, or damaged."""
    # A damaged archive makes zipfile and numpy raise almost anything; whatever it is, the work starts over.
    with contextlib.suppress(Exception), path.open("rb") as file:
        held = np.load(file, allow_pickle=False)
        facts = json.loads(held["facts"].tobytes())
        if facts["fingerprint"] != fingerprint:
            return None
        entries = {
            name: Entry(held[f"sums{number}"], held[f"counts{number}"]) for number, name in enumerate(facts["names"])
        }
        nll, nll2, count = facts["likelihood"]
        return State(int(facts["done"]), entries, Likelihood(nll, nll2, count))
    return None


def model_digest(metadata: ModelMetadata) -> str:
    """Return a hash that two models do not share: of the whole of small files, of samples of large ones."""
    digest = hashlib.sha256()
    for name in metadata.parts or (metadata.path,):
        path = Path(name)
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            # the header lies in the first sample, or in the first ones
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
