"""llama-bench's own output: the same columns, in Markdown, CSV and JSON (tools/llama-bench/llama-bench.cpp)."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from llama_magic.evaluation.bench import BenchResult, BenchRow
from llama_magic.models.options import FLASH_ATTENTION, LoadOptions

__all__ = ["as_json", "comma_separated", "fields_of", "markdown", "varying"]

#: Columns of Markdown by llama-bench's names, and the width it gives them; negative for text.
_WIDTHS = {
    "model": -30, "size": 10, "params": 10, "backend": -10, "ngl": 3, "n_cpu_moe": 10, "threads": 7, "n_batch": 7,
    "n_ubatch": 8, "type_k": 6, "type_v": 6, "sm": 6, "nkvo": 10, "fa": 3, "dev": -12, "lm": 10, "test": 15,
    "t/s": 20,
}  # fmt: skip


def _load_mode(options: LoadOptions) -> str:
    if options.direct_io:
        return "dio"
    modes = {(True, False): "auto", (True, True): "mmap+mlock", (False, False): "none", (False, True): "mlock"}
    return modes[options.use_mmap, options.use_mlock]


def _devices(options: LoadOptions) -> str:
    if not options.devices:
        return "auto"
    names = [name for name in options.devices if name.lower() not in ("cpu", "none")]
    return "/".join(names) or "none"


def _layers(options: LoadOptions) -> int:
    layers = options.n_gpu_layers
    return layers if isinstance(layers, int) else -1


def _places(options: LoadOptions) -> str:
    return ";".join(f"{pattern}={name}" for pattern, name in options.override_tensor) or "none"


def fields_of(row: BenchRow) -> dict[str, Any]:
    """Return a row under llama-bench's names and in its order, every repetition at the end."""
    options, facts = row.options, row.facts
    return {
        "build_commit": facts.build_commit if facts else "",
        "build_number": 0,  # known to llama.cpp's tools only
        "cpu_info": facts.cpu_info if facts else "",
        "gpu_info": facts.gpu_info if facts else "",
        "backends": facts.backends if facts else "",
        "model_filename": row.path,
        "model_type": facts.model_type if facts else "",
        "model_size": facts.model_size if facts else 0,
        "model_n_params": facts.model_n_params if facts else 0,
        "n_batch": options.n_batch,
        "n_ubatch": options.n_ubatch,
        "n_threads": row.n_threads,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 50,
        "type_k": options.cache_type_k,
        "type_v": options.cache_type_v,
        "n_gpu_layers": _layers(options),
        "n_cpu_moe": options.n_cpu_moe,
        "split_mode": options.split_mode,
        "main_gpu": options.main_gpu,
        "no_kv_offload": not options.offload_kqv,
        "flash_attn": FLASH_ATTENTION[options.flash_attn],
        "devices": _devices(options),
        "tensor_split": "/".join(f"{share:.2f}" for share in options.tensor_split) or "0.00",
        "tensor_buft_overrides": _places(options),
        "load_mode": _load_mode(options),
        "lazy_mode": options.lazy_mode,
        "embeddings": False,
        "no_op_offload": int(not options.op_offload),
        "no_host": options.no_host,
        "repack": options.repack,
        "fit_target": 0,
        "fit_min_ctx": 0,
        "n_prompt": row.test.n_prompt,
        "n_gen": row.test.n_gen,
        "n_depth": row.test.n_depth,
        "test_time": row.test_time,
        "avg_ns": row.avg_ns,
        "stddev_ns": row.stddev_ns,
        "avg_ts": row.avg_ts,
        "stddev_ts": row.stddev_ts,
        "samples_ns": list(row.samples_ns),
        "samples_ts": list(row.samples_ts),
    }


def as_json(result: BenchResult) -> str:
    """Return the measured rows as llama-bench's JSON."""
    return json.dumps([fields_of(row) for row in _measured(result)], indent=2)


def comma_separated(result: BenchResult) -> str:
    """Return the measured rows as llama-bench's CSV."""
    out = io.StringIO()
    rows = [fields_of(row) for row in _measured(result)]
    names = [name for name in (rows[0] if rows else ()) if not name.startswith("samples_")]
    out.write(",".join(names) + "\n")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([_cell(row[name]) for name in names] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _measured(result: BenchResult) -> list[BenchRow]:
    return [row for row in result.rows if row.samples_ns]


def _size(size: int) -> str:
    return f"{size / 2**20:.2f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _params(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count < 1e9 else f"{count / 1e9:.2f} B"


def varying(rows: list[BenchRow]) -> dict[str, list[Any]]:
    """Return the columns whose values differ between rows or from llama-bench's defaults, by its short names."""
    plain = LoadOptions()
    table: dict[str, tuple[list[Any], Any]] = {
        "n_cpu_moe": ([row.options.n_cpu_moe for row in rows], 0),
        "n_batch": ([row.options.n_batch for row in rows], plain.n_batch),
        "n_ubatch": ([row.options.n_ubatch for row in rows], plain.n_ubatch),
        "type_k": ([row.options.cache_type_k for row in rows], "f16"),
        "type_v": ([row.options.cache_type_v for row in rows], "f16"),
        "sm": ([row.options.split_mode for row in rows], "layer"),
        "nkvo": ([int(not row.options.offload_kqv) for row in rows], 0),
        "fa": ([FLASH_ATTENTION[row.options.flash_attn] for row in rows], -1),
        "dev": ([_devices(row.options) for row in rows], "auto"),
        "lm": ([_load_mode(row.options) for row in rows], "auto"),
    }
    return {name: values for name, (values, usual) in table.items() if any(value != usual for value in values)}


def markdown(result: BenchResult) -> str:
    """Return llama-bench's table. Columns that are the same everywhere and as by default are left out, as there."""
    rows = _measured(result)
    if not rows:
        return "nothing was measured"
    known = [row.facts for row in rows]
    processor = all(facts is None or not facts.gpu_info for facts in known)
    columns: dict[str, list[Any]] = {
        "model": [facts.model_type if facts else "" for facts in known],
        "size": [_size(facts.model_size if facts else 0) for facts in known],
        "params": [_params(facts.model_n_params if facts else 0) for facts in known],
        "backend": [facts.backends if facts else "" for facts in known],
    }
    if not processor:
        columns["ngl"] = [_layers(row.options) for row in rows]
    columns["threads"] = [row.n_threads for row in rows]
    columns |= varying(rows)
    columns["test"] = [row.test.name for row in rows]
    columns["t/s"] = [f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}" for row in rows]

    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(cells) + " |"

    def pad(name: str, value: Any) -> str:
        width = _WIDTHS[name]
        return str(value).ljust(-width) if width < 0 else str(value).rjust(width)

    head = line([pad(name, name) for name in columns])
    marks = [("-" * (abs(_WIDTHS[name]) - 1)) + (":" if _WIDTHS[name] > 0 else "-") for name in columns]
    body = [line([pad(name, values[at]) for name, values in columns.items()]) for at in range(len(rows))]
    commit = next((facts.build_commit for facts in known if facts), "")
    return "\n".join([head, line(marks), *body, "", f"build: {commit} (0)"])
