"""`%%llama` and every subcommand of `%llama`, in the order of the help."""

from __future__ import annotations

from llama_magic.notebook.lines import (
    backends,
    compare,
    convert,
    doctor,
    evaluate,
    fit,
    imatrix,
    library,
    measure,
    models,
    panel,
    quantize,
    serve,
    session,
)
from llama_magic.notebook.parsers import Parser

__all__ = ["CELL", "SUBCOMMANDS"]

#: `%%llama`, and `%llama` where the line holds a prompt.
CELL = Parser(
    "", "%%llama [flags] [model]", "ask a model; the prompt is the cell's body",
    groups=("model", "loading", "prompt", "chat", "compare", "sampling", "output"), words=1, complete="model",
    examples=(
        "%%llama\nWhat is a llama?",
        "%%llama --temp 0 -n 64 --out answer\nName three colours.",
        "%%llama -cnv\nAnd why is that?",
    ),
)  # fmt: skip

#: The subcommands of `%llama`, in the order of the help.
SUBCOMMANDS: dict[str, Parser] = {
    parser.name: parser
    for parser in (
        *session.PARSERS,
        *library.PARSERS,
        *models.PARSERS,
        *fit.PARSERS,
        *quantize.PARSERS,
        *imatrix.PARSERS,
        *convert.PARSERS,
        *backends.PARSERS,
        *measure.PARSERS,
        *doctor.PARSERS,
        *evaluate.PARSERS,
        *compare.PARSERS,
        *serve.PARSERS,
        *panel.PARSERS,
    )
}
