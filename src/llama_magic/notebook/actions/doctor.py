"""The subcommand that looks for what is wrong."""

from __future__ import annotations

import json

from llama_magic.api.doctor import doctor as examine
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments


def doctor(context: Context, arguments: Arguments) -> object:
    """``%llama doctor``."""
    report = examine(progress=context.on_progress)
    return json.dumps(report.to_dict(), indent=1, ensure_ascii=False) if arguments.get("json") else report
