"""Collects importance matrices: the worker's side of `llama_magic.quantization.imatrix`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from llama_magic.backends.host import available_memory
from llama_magic.errors import InvalidModelError, InvalidRequestError, OutOfMemoryError
from llama_magic.models.gguf import read_metadata
from llama_magic.models.loading import model_settings
from llama_magic.models.memory import estimate
from llama_magic.models.metadata import ModelMetadata
from llama_magic.native import LoadCancelled, NativeModel, WorkerTools
from llama_magic.progress import Progress
from llama_magic.quantization.chunk_reader import ChunkReader
from llama_magic.quantization.imatrix import (
    ImatrixRequest,
    ImatrixResult,
    ImatrixStopped,
    resume_path,
    temporary_paths,
)
from llama_magic.quantization.imatrix_file import Entry, ImportanceMatrix, merge, read_imatrix, write_imatrix
from llama_magic.quantization.imatrix_state import Likelihood, State, model_digest, read_state, write_state
from llama_magic.quantization.imatrix_summary import partly_covered, summarize, uncovered
from llama_magic.quantization.texts import read_bytes, read_text
from llama_magic.units import format_bytes, format_seconds

__all__ = ["run"]

#: Own keys in the file, which llama.cpp's tools pass over: what it was made from, and the perplexity.
_MADE_FROM, _PERPLEXITY = "llama_magic.imatrix.made_from", "llama_magic.imatrix.perplexity"
#: Seconds after which the state is kept, however few chunks were read.
_KEEP_S = 30.0


def run(request: ImatrixRequest, tools: WorkerTools) -> ImatrixResult | ImatrixStopped:
    """Do what `ImatrixRequest` says."""
    if request.model is None:
        return _add_up(request)
    return _Collection(request, request.model, tools).run()


def _add_up(request: ImatrixRequest) -> ImatrixResult:
    started = time.perf_counter()
    if not request.in_files:
        raise InvalidRequestError("there is nothing to add up: give a model, or matrices with --in-file")
    if Path(request.out).exists() and not request.force:
        raise InvalidRequestError(f"{request.out} is there already; --force overwrites it, -o names another file")
    matrices = [(path, read_imatrix(path)) for path in request.in_files]
    sizes = {matrix.chunk_size for _, matrix in matrices if not matrix.legacy}
    given = request.options.n_ctx or 512
    total = merge(matrices, sizes.pop() if len(sizes) == 1 and not request.n_ctx_given else given)
    write_imatrix(request.out, total, temporary=temporary_paths(request)[0])
    return _result(request, total, None, Likelihood(), seconds=time.perf_counter() - started)


class _Collection:
    """One run: model, text and settings to a file."""

    def __init__(self, request: ImatrixRequest, path: str, tools: WorkerTools) -> None:
        self.request = request
        self.tools = tools
        self.started = time.perf_counter()
        self.chunk_size = request.options.n_ctx or 512
        self.metadata = read_metadata(path)
        self.text = "\n\n".join(read_text(part) for part in request.texts)
        self.fingerprint = self._fingerprint()
        self.resume = resume_path(request.out)
        self.parts = temporary_paths(request)
        self.notes: list[str] = []
        self.copies: list[str] = []
        if 0 < self.metadata.n_ctx_train < self.chunk_size:
            self.notes.append(
                f"chunks of {self.chunk_size:,} tokens are longer than the {self.metadata.n_ctx_train:,} that the "
                "model was trained for: its activations are not those of its use"
            )

    def run(self) -> ImatrixResult | ImatrixStopped:
        if Path(self.request.out).exists() and (found := self._there_already()) is not None:
            return found
        state = read_state(self.resume, self.fingerprint)
        if state is None:
            if self.resume.exists():
                self.notes.append(f"{self.resume.name} was of another call and was started over")
            matrices = [(path, read_imatrix(path)) for path in self.request.in_files]
            state = State(entries=merge(matrices, self.chunk_size).entries)
        resumed = state.done
        self._check_memory()
        try:
            model = self._load()
        except LoadCancelled:
            return ImatrixStopped(state.done, 0, str(self.resume))
        try:
            with ChunkReader(model, self.text, self.request, self.tools.cancelled) as reader:
                state = self._collect(reader, state)
                chunks = reader.chunks
        finally:
            model.close()
        if state.done < chunks:
            return ImatrixStopped(state.done, chunks, str(self.resume))
        matrix = self._matrix(state.entries, state.likelihood)
        write_imatrix(self.request.out, matrix, temporary=self.parts[0])
        self.resume.unlink(missing_ok=True)
        return _result(
            self.request, matrix, self.metadata, state.likelihood,
            seconds=time.perf_counter() - self.started, resumed=resumed, notes=self.notes, copies=self.copies,
        )  # fmt: skip

    def _collect(self, reader: ChunkReader, state: State) -> State:
        """Read the chunks that are left; returns how far it got."""
        request, began, first = self.request, time.perf_counter(), state.done
        kept_at, kept = began, first
        saved = self._matrix(state.entries).chunk_count
        reader.start(state.entries, state.likelihood)
        while state.done < reader.chunks:
            self._tell(state, reader.chunks, first, began)
            done = reader.read(state.done)
            if done == state.done:
                break
            state = State(done, reader.entries(), reader.likelihood)
            if done == reader.chunks:
                return state
            if request.save_frequency:
                saved = self._save_copy(state.entries, saved)
            now = time.perf_counter()
            if done // request.output_frequency > kept // request.output_frequency or now - kept_at > _KEEP_S:
                write_state(self.resume, self.parts[1], self.fingerprint, state)
                kept, kept_at = done, now
        if state.done > kept:
            write_state(self.resume, self.parts[1], self.fingerprint, state)
        return state

    def _tell(self, state: State, chunks: int, first: int, began: float) -> None:
        message = f"chunk {state.done + 1:,}/{chunks:,}"
        if (perplexity := state.likelihood.perplexity) is not None:
            message += f" · perplexity {perplexity:.2f}"
        if state.done > first:
            left = (time.perf_counter() - began) / (state.done - first) * (chunks - state.done)
            message += f" · {format_seconds(left)} left"
        self.tools.report(Progress("imatrix", state.done / chunks, message))

    def _save_copy(self, entries: Mapping[str, Entry], saved: int) -> int:
        matrix = self._matrix(entries)
        if matrix.chunk_count // self.request.save_frequency > saved // self.request.save_frequency:
            self.copies.append(f"{self.request.out}.at_{matrix.chunk_count}")
            write_imatrix(self.copies[-1], matrix, temporary=self.parts[0])
        return matrix.chunk_count

    def _matrix(self, entries: Mapping[str, Entry], likelihood: Likelihood | None = None) -> ImportanceMatrix:
        datasets = [name for path in self.request.in_files for name in read_imatrix(path).datasets]
        datasets += [part.name for part in self.request.texts]
        matrix = ImportanceMatrix(dict(entries), tuple(datasets), chunk_size=self.chunk_size)
        matrix.chunk_count = matrix.chunks_counted()
        if likelihood is not None:
            matrix.extra = {_MADE_FROM: self.fingerprint}
            if likelihood.count:
                matrix.extra[_PERPLEXITY] = json.dumps([likelihood.nll, likelihood.nll2, likelihood.count])
        return matrix

    # -- before the work -----------------------------------------------------------------------------------------

    def _fingerprint(self) -> str:
        request = self.request
        settings = {
            "model": model_digest(self.metadata),
            "text": hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "names": [part.name for part in request.texts],
            "in_files": [hashlib.sha256(read_bytes(path)).hexdigest() for path in request.in_files],
            "chunk": self.chunk_size,
            "chunks": request.chunks,
            "from": request.from_chunk,
            "output": request.process_output,
            "special": request.parse_special,
            "perplexity": request.perplexity,
            "cache": [request.options.cache_type_k, request.options.cache_type_v],
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _there_already(self) -> ImatrixResult | None:
        """Return what the file holds where the same was asked for before; refuse to overwrite another."""
        request = self.request
        try:
            matrix = read_imatrix(request.out)
        except InvalidModelError:
            matrix = ImportanceMatrix()
        if matrix.extra.get(_MADE_FROM) == self.fingerprint:
            likelihood = Likelihood(*json.loads(matrix.extra.get(_PERPLEXITY, "[0.0, 0.0, 0]")))
            seconds = time.perf_counter() - self.started
            return _result(request, matrix, self.metadata, likelihood, seconds=seconds, reused=True)
        if request.force:
            return None
        raise InvalidRequestError(
            f"{request.out} is there already and was made from another model or text, or with other settings. "
            "--force overwrites it, -o names another file."
        )

    def _check_memory(self) -> None:
        if self.request.force:
            return
        options = self.request.options
        side_by_side = max(1, options.n_batch // self.chunk_size)
        need = estimate(self.metadata, options.replace(n_ctx=self.chunk_size * side_by_side)).total
        # a row of logits for each token of a batch, twice while the perplexity is computed
        need += 8 * min(options.n_ubatch, options.n_batch) * self.metadata.n_vocab
        free = available_memory()
        if need > free:
            raise OutOfMemoryError(
                f"{self.request.ref} needs {format_bytes(need)} to be read through, but {format_bytes(free)} are free. "
                f"What helps: fewer chunks side by side (-b {self.chunk_size} -ub 128), a quantized copy of the model "
                "(Q8_0 gives nearly the same matrix), or --force to try all the same."
            )

    def _load(self) -> NativeModel:
        options, request, tools = self.request.options, self.request, self.tools
        told = time.perf_counter()

        def progress(fraction: float) -> bool:
            nonlocal told
            if time.perf_counter() - told > 0.1:
                told = time.perf_counter()
                tools.report(Progress("load", fraction, request.ref))
            return not tools.cancelled()

        model = NativeModel(self.metadata.path, tools.log, progress, model_settings(options))
        if not model.has_decoder:
            model.close()
            raise InvalidModelError(
                f"{request.ref} only embeds texts: llama.cpp collects importance matrices of models that generate"
            )
        return model


def _result(
    request: ImatrixRequest,
    matrix: ImportanceMatrix,
    metadata: ModelMetadata | None,
    likelihood: Likelihood,
    *,
    seconds: float,
    resumed: int = 0,
    reused: bool = False,
    notes: list[str] | None = None,
    copies: list[str] | None = None,
) -> ImatrixResult:
    return ImatrixResult(
        path=Path(request.out),
        model=request.model or "",
        datasets=matrix.datasets,
        chunks=matrix.chunk_count,
        chunk_size=matrix.chunk_size,
        tokens=matrix.chunk_count * matrix.chunk_size,
        perplexity=likelihood.perplexity,
        perplexity_error=likelihood.error,
        entries=len(matrix.entries),
        uncovered=uncovered(metadata, matrix.entries) if metadata is not None else (),
        partial=partly_covered(matrix.entries),
        kinds=summarize(matrix.entries),
        size=Path(request.out).stat().st_size,
        seconds=seconds,
        resumed=resumed,
        reused=reused,
        copies=tuple(copies or ()),
        notes=tuple(notes or ()),
    )
