"""How a `FitReport` looks, as text and as HTML."""

from __future__ import annotations

from llama_magic.markup import bar, details, facts, heading, note, page, table, text_table
from llama_magic.models.card import clean
from llama_magic.models.fit import DeviceFit, FitReport
from llama_magic.units import format_bytes, format_count

__all__ = ["html", "text"]

_HEAD = ("device", "weights", "KV cache", "buffers", "other", "in all", "free", "")
_ALIGN = "lrrrrrrl"


def _cells(device: DeviceFit) -> list[str]:
    sizes = (device.weights, device.kv_cache, device.compute, device.other, device.need, device.free)
    return [device.name, *map(format_bytes, sizes), "fits" if device.fits else "too little"]


def _model(report: FitReport) -> str:
    return (
        f"{report.ftype}, {format_count(report.n_params)} parameters, {report.bits_per_weight:.2f} bits per weight; "
        f"context {report.n_ctx:,} of {report.n_ctx_train:,} tokens"
    )


def text(report: FitReport) -> str:
    """Return the report as plain text."""
    rows = [_cells(device) for device in report.devices]
    lines = [report.verdict, _model(report), text_table(_HEAD, rows, _ALIGN), f"speed: {report.speed}"]
    lines += [f"- {line}" for line in report.advice()]
    return "\n".join(lines)


def html(report: FitReport) -> str:
    """Return the report as HTML."""
    tone = "good" if report.fits else "error"
    rows = []
    for device in report.devices:
        name, *sizes, free, fits = _cells(device)
        need = bar(device.need / device.free if device.free else 1.0, sizes[-1])
        rows.append((name, *sizes[:-1], need, free, fits))
    parts = [
        heading(clean(report.ref), _model(report)),
        note(report.verdict, tone),
        table(_HEAD, rows, _ALIGN),
        facts([("speed", report.speed)]),
        *(note(line) for line in report.advice()),
    ]
    if report.quantizations:
        parts.append(
            details(
                "other quantizations, estimated",
                table(
                    ("ftype", "bits per weight", "weights", "in all", ""),
                    [
                        (
                            q.ftype,
                            f"{q.bits_per_weight:.2f}",
                            format_bytes(q.weights),
                            format_bytes(q.need),
                            "fits" if q.fits else "too little",
                        )
                        for q in report.quantizations
                    ],
                    "lrrrl",
                ),
                open_=not report.fits,
            )
        )
    return page(*parts)
