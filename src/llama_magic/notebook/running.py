"""One generation, shown while it runs, and what an interrupt or an error does to it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_magic.errors import GenerationInterrupted, JobInterrupted
from llama_magic.notebook.interrupts import OneInterrupt

if TYPE_CHECKING:
    from llama_magic.api.session import Generation
    from llama_magic.inference.results import Completion, Receipt
    from llama_magic.notebook.views import Footer, View

__all__ = ["all_text", "footer_of", "run"]


def run(
    start: Callable[[], Generation], view: View, done: Callable[[Completion], None], *, linger: float = 0.0
) -> None:
    """Start a generation, show it in `view`, and pass the finished completion to `done`.

    A kernel interrupt keeps what was generated: it is recorded, shown and passed on like a whole
    answer, then `GenerationInterrupted` stops the cells that are queued. `linger` is `OneInterrupt`'s.
    """
    with OneInterrupt(linger) as interrupt:
        generation: Generation | None = None
        completion: Completion | None = None
        stopped: JobInterrupted | None = None
        try:
            generation = start()
            generation.stream.on_progress = view.progress
            for chunk in generation.stream:
                view.add(chunk)
            completion = generation.stream.completion
            interrupt.hold()
        except KeyboardInterrupt as exc:
            interrupt.hold()
            interrupt.pending = True
            stopped = exc if isinstance(exc, JobInterrupted) else None  # a download says what it kept
            if generation is not None:
                completion = generation.stream.cancel()
        except Exception:
            view.fail()
            if generation is not None:
                generation.stream.close()
            raise
        if generation is not None and completion is not None:
            completion = generation.finish(completion)
            _show(view, completion)
            done(completion)
        else:
            view.fail()
    if interrupt.pending:
        raise stopped or GenerationInterrupted(completion) from None


def _show(view: View, completion: Completion) -> None:
    receipt = completion.receipt
    metadata = {} if receipt is None else {"llama_magic": _shareable(receipt)}
    view.finish(completion, footer_of(completion), metadata=metadata)


def footer_of(completion: Completion) -> Footer:
    """Return the thin line under an answer."""
    from llama_magic.notebook.views import Footer

    receipt, timings = completion.receipt, completion.timings
    return Footer(
        model=_short(receipt.path) if receipt else "",
        device=(receipt.place or ", ".join(receipt.devices)) if receipt else "",
        tokens_per_second=timings.generation_tps,
        time_to_first_token_s=timings.time_to_first_token_s,
        tokens=timings.generated_tokens or len(completion.tokens),
        notes=(*_ending(completion), *completion.notes),
    )


def _ending(completion: Completion) -> tuple[str, ...]:
    endings: dict[str, str] = {
        "context": "stopped: context full",
        "interrupted": "interrupted",
        "length": "stopped at -n tokens",
    }
    if completion.finish_reason == "length" and completion.receipt is not None:
        return (f"stopped at -n {completion.receipt.params.get('max_tokens')}",)
    ending: Any = endings.get(completion.finish_reason)
    return (ending,) if ending else ()


def _short(path: str) -> str:
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", Path(path).name)


def all_text(completion: Completion) -> str:
    """Return the text of every sample, with an empty line between them."""
    return "\n\n".join(sample.text for sample in completion.samples) or completion.text


def _shareable(receipt: Receipt) -> dict[str, Any]:
    """Return the receipt for the notebook's metadata: notebooks get published, the name of the home folder need not."""
    home, values = str(Path.home()), receipt.to_dict()
    for key in ("model", "path", "llama_cli"):
        if len(home) > 1:
            values[key] = values[key].replace(home + os.sep, "~" + os.sep)
    if lora := values["options"].get("lora"):
        shown = [(path.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else path, scale) for path, scale in lora]
        values["options"] = {**values["options"], "lora": shown}
    return values
