"""Subcommands that measure speed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from llama_magic.api.bench import bench as measure
from llama_magic.api.tune import forget, tune_spec
from llama_magic.evaluation.bench import BenchResult
from llama_magic.markup import Html, join, page
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments

_OWN = "n_prompt n_gen pg n_depth repetitions backends warmup".split()
_GRID = "devices n_threads n_batch n_ubatch n_gpu_layers n_cpu_moe flash_attn cache_type_k cache_type_v".split()


@dataclass(frozen=True, slots=True, repr=False)
class PrintedBench(BenchResult):
    """A result that is shown as llama-bench would print it."""

    shown: str = ""

    def __repr__(self) -> str:
        return self.shown

    def _repr_html_(self) -> str:
        # Notebooks wrap plain text, which would break the table's lines.
        style = "white-space:pre;overflow-x:auto;margin:0;padding:0;background:none;color:inherit"
        return page(Html(f'<pre style="{style}">{join(self.shown)}</pre>'))


def bench(context: Context, arguments: Arguments) -> object:
    """``%llama bench [REF …]``."""
    given: dict[str, Any] = {name: arguments.get(name) for name in (*_OWN, *_GRID) if name in arguments.values}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    result = measure(
        _refs(context, arguments),
        force=arguments.get("force", False),
        progress=context.on_progress,
        **given,
        **arguments.group("loading"),
    )
    shape = arguments.get("format")
    if shape is None:
        return result
    printed = {"md": result.to_markdown, "csv": result.to_csv, "json": result.to_json}[shape]()
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    return PrintedBench(**values, shown=printed.rstrip("\n"))


def tune(context: Context, arguments: Arguments) -> object:
    """``%llama tune [REF]``."""
    session, loading = context.session, arguments.group("loading")
    spec = session.spec(arguments.get("ref", arguments.word), loading, context.on_progress, tuned=False)
    if arguments.get("reset"):
        count = forget(spec.path)
        return f"Forgotten: {spec.ref} is loaded with the defaults." if count else f"{spec.ref} was not tuned here."
    return tune_spec(
        spec,
        said=session.said(loading) - {"n_ctx", "memory_budget"},
        quick=arguments.get("quick", False),
        allow_kv_quant=arguments.get("allow_kv_quant", False),
        backends=arguments.get("backends", ()),
        progress=context.on_progress,
    )


def _refs(context: Context, arguments: Arguments) -> list[str]:
    """Return the models to measure: those named, else the current one, else the default."""
    named: list[Any] = [*arguments.words, *filter(None, [arguments.get("ref")])]
    if named:
        return [str(ref) for ref in named]
    current = context.session.model
    return [context.session.default_model if current is None else current.path]
