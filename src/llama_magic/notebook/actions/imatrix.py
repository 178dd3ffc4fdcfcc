"""The subcommand that collects importance matrices."""

from __future__ import annotations

from pathlib import Path

from llama_magic.api.imatrix import collect_imatrix
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments

_OWN = "chunks from_chunk output_frequency save_frequency process_output parse_special perplexity force".split()


def imatrix(context: Context, arguments: Arguments) -> object:
    """``%llama imatrix [model] [--text FILE …]``: words after the model are texts, too."""
    words = list(arguments.words)
    ref = arguments.get("ref") or (words.pop(0) if words else None)
    texts = [Path(name) for name in (*arguments.get("text", ()), *words)]
    in_files = arguments.get("in_file", ())
    only_add_up = ref is None and not texts and bool(in_files)
    return collect_imatrix(
        None if only_add_up else context.session.spec(ref, arguments.group("loading"), tuned=False),
        texts or None,
        out=arguments.get("file_out"),
        n_ctx=arguments.get("n_ctx"),
        in_files=in_files,
        progress=context.on_progress,
        **{name: arguments.get(name) for name in _OWN if name in arguments.values},
    )
