"""Models: everything known, the facts of one, whether it fits, what is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_magic.api import library
from llama_magic.api.fit import fit_options
from llama_magic.api.inspect import inspect
from llama_magic.errors import LlamaMagicError
from llama_magic.models.card import clean, file_name, rows
from llama_magic.models.fit import FitReport
from llama_magic.models.library import ModelList, SearchResults
from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.options import LoadOptions, ModelInfo
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.progress import Progress
from llama_magic.units import format_bytes, format_count

__all__ = ["ModelSection", "describe", "known_models"]

Report = Callable[[Progress], None]


class ModelSection(Section):
    """Find, look at, load and unload models."""

    name = "model"

    def start(self) -> None:
        """Read the models on this machine."""
        self.set(catalogue=_catalogue(), hub=self.get("hub"), chosen=self.get("chosen"))
        self._show_session()
        self._list()
        self._status()

    def changed(self, what: str) -> None:
        """Show another model, or what the worker holds now."""
        if what == "model":
            self._show_session()
            self._status()

    def ended(self, job: Job) -> None:
        """Answering loads a model too, and a download brings one."""
        if job.lane in ("chat", "model"):
            self._show_session()
            self._status()
        if job.lane in ("model", "quantize"):
            self._list()

    # -- what is known ---------------------------------------------------------------------

    def _list(self) -> None:
        self.bench.run("", "library", "reading the list of models", lambda *_: library.models(), self._listed)

    def _listed(self, found: ModelList) -> None:
        self.set(local=known_models(found), free=format_bytes(found.free))

    def _show_session(self) -> None:
        info = self.session.info
        if info is not None:
            self.set(current=_resident(info))

    def _status(self) -> None:
        """Ask the worker what it holds; it answers when it is done with what it does."""
        self.bench.run("", "status", "asking the worker", lambda *_: self.session.loaded(), self._loaded)

    def _loaded(self, infos: tuple[ModelInfo, ...]) -> None:
        self.set(loaded=[_resident(info) for info in reversed(infos)])
        if self.session.info is None:  # a question loads a model without making it the current one
            self.set(current=_resident(infos[-1]) if infos else None)

    # -- actions ---------------------------------------------------------------------------

    def do_refresh(self, _panel: str) -> None:
        """Read the list of models again."""
        self._list()
        self._status()

    def do_search(self, panel: str, words: str) -> None:
        """Search the Hub."""

        def work(_job: Job, report: Report) -> SearchResults:
            return library.search(words, progress=report)

        self.bench.run(panel, "hub", f"searching the Hub for “{words}”", work, self._found)

    def _found(self, results: SearchResults) -> None:
        hits = [
            {
                "ref": hit.repo, "place": "Hub", "size": format_bytes(hit.size) if hit.size else "",
                "params": format_count(hit.n_params) if hit.n_params else "", "ftype": ", ".join(hit.quants[:6]),
                "licence": clean(hit.licence, 40), "note": f"{format_count(hit.downloads)} downloads",
            }
            for hit in results
        ]  # fmt: skip
        self.set(hub={"words": results.words, "rows": hits})

    def do_choose(self, panel: str, ref: str, options: dict[str, Any] | None = None) -> None:
        """Show the facts of a model and what it would take."""
        if self.bench.runner.busy("look"):
            self.bench.runner.stop("look")
            self.set(next_look=[panel, ref, options])
            return
        if (self.get("chosen") or {}).get("ref") != ref:
            self.set(chosen={"ref": ref, "facts": None, "fit": None})

        def work(_job: Job, report: Report) -> tuple[ModelMetadata, FitReport | str]:
            metadata = inspect(ref, progress=report)
            self.bench.post(lambda: self._inspected(ref, metadata))
            try:
                return metadata, fit_options(ref, LoadOptions.from_keywords(**_loading(options)), report)
            except LlamaMagicError as exc:
                return metadata, str(exc)

        self.bench.run(panel, "look", f"reading {ref}", work, lambda found: self._fits(ref, *found))

    def _inspected(self, ref: str, metadata: ModelMetadata) -> None:
        chosen = self.get("chosen") or {}
        if chosen.get("ref") == ref:
            self.set(chosen={**chosen, "facts": describe(metadata)})

    def _fits(self, ref: str, metadata: ModelMetadata, report: FitReport | str) -> None:
        chosen = self.get("chosen") or {}
        if chosen.get("ref") == ref:
            shown = {"error": report} if isinstance(report, str) else _fit(report)
            self.set(chosen={"ref": ref, "facts": describe(metadata), "fit": shown})
        waiting = self.get("next_look")
        if waiting:
            self.set(next_look=None)
            self.do_choose(*waiting)

    def do_load(self, panel: str, ref: str, options: dict[str, Any] | None = None, force: bool = False) -> None:
        """Load a model, downloading it where it is not here."""
        loading = _loading(options)

        def work(_job: Job, report: Report) -> ModelInfo:
            return self.session.load(ref, loading, force=force, on_progress=report)

        self.bench.run(panel, "model", f"loading {ref}", work)

    def do_unload(self, panel: str, ref: str | None = None) -> None:
        """Give a model's memory back; all where none is named."""

        def work(_job: Job, _report: Report) -> tuple[str, ...]:
            return self.session.unload(ref)

        self.bench.run(panel, "model", f"unloading {ref or 'all models'}", work)


def _loading(options: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (options or {}).items() if value not in (None, "")}


def _resident(info: ModelInfo) -> dict[str, Any]:
    return {
        "ref": info.ref, "path": info.path, "name": clean(info.name), "ftype": info.ftype, "n_ctx": info.n_ctx,
        "params": format_count(info.n_params), "devices": ", ".join(info.devices) or "CPU",
        "memory": format_bytes(info.memory), "bytes": info.memory, "threads": info.n_threads,
        "template": info.has_chat_template, "n_layer": info.n_layer,
    }  # fmt: skip


def known_models(found: ModelList) -> list[dict[str, Any]]:
    """Return the models on this machine as rows."""
    return [
        {
            "ref": model.ref, "place": model.place, "size": format_bytes(model.size), "ftype": model.ftype,
            "params": format_count(model.n_params) if model.n_params else "", "licence": clean(model.licence, 40),
            "name": clean(model.name or Path(model.ref).name), "note": clean(model.problem), "path": model.path,
        }
        for model in found
    ]  # fmt: skip


def _catalogue() -> list[dict[str, Any]]:
    return [
        {
            "ref": entry.ref, "name": entry.name, "place": "catalogue", "size": format_bytes(entry.size),
            "params": entry.parameters, "licence": entry.licence, "note": entry.remark, "ftype": "",
        }
        for entry in library.catalog()
    ]  # fmt: skip


def describe(metadata: ModelMetadata) -> dict[str, Any]:
    """Return what a view shows of a model's file."""
    return {
        "name": clean(metadata.name),
        "file": file_name(metadata),
        "ftype": metadata.ftype,
        "n_ctx_train": metadata.n_ctx_train,
        "n_layer": metadata.n_layer,
        "rows": [[label, value] for label, value in rows(metadata)],
        "warnings": [clean(text) for text in metadata.warnings],
        "mix": [
            {"type": share.type, "count": share.count, "size": format_bytes(share.size), "share": share.share}
            for share in metadata.mix
        ],
    }


def _fit(report: FitReport) -> dict[str, Any]:
    return {
        "fits": report.fits,
        "verdict": report.verdict,
        "speed": report.speed,
        "n_ctx": report.n_ctx,
        "n_layer": report.n_layer,
        "n_gpu_layers": report.n_gpu_layers,
        "advice": report.advice(),
        "devices": [
            {
                "name": device.name,
                "free": device.free,
                "total": device.total,
                "need": device.need,
                "words": f"{format_bytes(device.need)} of {format_bytes(device.free)} free",
                "parts": [
                    [label, size, format_bytes(size)]
                    for label, size in (
                        ("weights", device.weights),
                        ("KV cache", device.kv_cache),
                        ("buffers", device.compute),
                        ("other", device.other),
                    )
                    if size
                ],
            }
            for device in report.devices
        ],
    }
