"""Quantizing: a type, what it would give, a mixer of types by kind of tensor, and making the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_magic.api.locate import locate
from llama_magic.api.quantize import ftypes, plan, quantize
from llama_magic.notebook.panel.runner import Job
from llama_magic.notebook.panel.workbench import Section
from llama_magic.progress import Progress
from llama_magic.quantization.ftypes import QUANTIZABLE
from llama_magic.quantization.results import QuantizePlan, QuantizeResult
from llama_magic.quantization.sources import output_name
from llama_magic.units import format_bytes, format_seconds

__all__ = ["KINDS", "QuantizeSection"]

Report = Callable[[Progress], None]

#: Kinds of tensors that the mixer sets: what it is called, its part of the tensors' names, and a pattern for it.
KINDS: tuple[tuple[str, str, str], ...] = (
    ("attention, query", "attn_q", r"attn_q\."),
    ("attention, key", "attn_k", r"attn_k\."),
    ("attention, value", "attn_v", r"attn_v\."),
    ("attention, output", "attn_output", r"attn_output\."),
    ("feed-forward, gate", "ffn_gate", r"ffn_gate(_exps|_shexp)?\."),
    ("feed-forward, up", "ffn_up", r"ffn_up(_exps|_shexp)?\."),
    ("feed-forward, down", "ffn_down", r"ffn_down(_exps|_shexp)?\."),
    ("token embedding", "token_embd", "token_embedding_type"),
    ("output", "output", "output_tensor_type"),
)

#: Types on a slider of the mixer, from the fewest bits to the most; an importance matrix is not needed for them.
MIXER = tuple(
    name for name in ("Q2_K", "Q3_K", "IQ4_NL", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0", "F16")
    if name in QUANTIZABLE
)  # fmt: skip


class QuantizeSection(Section):
    """Plan, mix and make."""

    name = "quantize"

    def start(self) -> None:
        """Offer the table of types."""
        self.set(
            types=[
                {
                    "name": ftype.name, "bits": round(ftype.bits, 4), "family": ftype.family, "imatrix": ftype.imatrix,
                    "use": ftype.use, "loss": ftype.loss, "writable": ftype.writable,
                }
                for ftype in ftypes()
            ],
            mixer=list(MIXER),
            kinds=[[label, key] for label, key, _ in KINDS],
            plan=self.get("plan"),
            made=self.get("made", []),
        )  # fmt: skip

    def do_plan(self, panel: str, **wanted: Any) -> None:
        """Tell what quantizing would give; only the last of several wishes counts."""
        if self.bench.runner.busy("plan"):
            self.set(waiting=[panel, wanted])
            return
        self.bench.run(panel, "plan", "planning", lambda _job, report: _plan(wanted, report), self._planned)

    def _planned(self, found: dict[str, Any]) -> None:
        self.set(plan=found)

    def ended(self, job: Job) -> None:
        """Plan what was wished for meanwhile."""
        waiting = self.get("waiting")
        if job.lane == "plan" and waiting:
            self.set(waiting=None)
            self.bench.post(lambda: self.do_plan(waiting[0], **waiting[1]))

    def do_run(
        self, panel: str, source: str, ftype: str, mix: dict[str, str] | None = None, imatrix: str = "",
        pure: bool = False, requantize: bool = False, place: str = "", force: bool = False,
    ) -> None:  # fmt: skip
        """Make the file."""

        def work(_job: Job, report: Report) -> QuantizeResult:
            return quantize(
                source, ftype, place or None, imatrix or None, force=force, progress=report, pure=pure,
                allow_requantize=requantize, **_overrides(mix),
            )  # fmt: skip

        self.bench.run(panel, "quantize", f"quantizing to {ftype}", work, self._made)

    def _made(self, result: QuantizeResult) -> None:
        row = {
            "ftype": result.ftype, "path": str(result.path), "name": result.path.name,
            "size": format_bytes(result.size), "bits": f"{result.bits_per_weight:.2f}",
            "seconds": format_seconds(result.seconds), "notes": [*result.warnings, *result.notes],
        }  # fmt: skip
        others = [made for made in self.get("made", []) if made["path"] != row["path"]]
        self.set(made=[row, *others][:12])


def _overrides(mix: dict[str, str] | None) -> dict[str, Any]:
    """Return the settings of `quantize` that a mix means."""
    patterns = {key: pattern for _, key, pattern in KINDS}
    chosen = {key: value for key, value in (mix or {}).items() if value and key in patterns}
    types = {patterns[key]: value for key, value in chosen.items() if not patterns[key].endswith("_type")}
    whole = {patterns[key]: value for key, value in chosen.items() if patterns[key].endswith("_type")}
    return {**({"tensor_types": types} if types else {}), **whole}


def _plan(wanted: dict[str, Any], report: Report) -> dict[str, Any]:
    source, ftype = wanted["source"], wanted["ftype"]
    found = plan(
        source, ftype, imatrix=wanted.get("imatrix") or None, progress=report, pure=bool(wanted.get("pure")),
        **_overrides(wanted.get("mix")),
    )  # fmt: skip
    return {**_outcome(found), "source": source, "ftype": ftype, "mix": wanted.get("mix") or {},
            "target": _target(source, ftype, report)}  # fmt: skip


def _target(source: str, ftype: str, report: Report) -> str:
    """Return where the file goes where no other place is named, as `quantize` decides."""
    path = Path(locate(source, report))
    folder = path.parent if Path(source).expanduser().exists() else Path.cwd()
    return str(folder / output_name(str(path), ftype))


def _outcome(found: QuantizePlan) -> dict[str, Any]:
    reasons = Counter((tensor.wanted, tensor.type, tensor.reason) for tensor in found.fallbacks)
    kinds: dict[str, Counter[str]] = {key: Counter() for _, key, _ in KINDS}
    for tensor in found.tensors:
        key = _kind(tensor.name)
        if key:
            kinds[key][tensor.type] += 1
    return {
        "size": found.size,
        "words": format_bytes(found.size),
        "source_size": found.source_size,
        "source_words": format_bytes(found.source_size),
        "bits": f"{found.bits_per_weight:.2f}",
        "tensors": len(found.tensors),
        "fallbacks": len(found.fallbacks),
        "reasons": [[wanted, got, why, count] for (wanted, got, why), count in reasons.most_common()],
        "types": [[name, count] for name, count in found.types.items()],
        "kinds": {key: ", ".join(name for name, _ in counts.most_common(2)) for key, counts in kinds.items() if counts},
        "needs_imatrix": found.needs_imatrix,
        "requantizes": found.requantizes,
        "notes": [*found.warnings, *found.notes],
    }


def _kind(name: str) -> str:
    """Return the kind of the mixer that a tensor belongs to, empty where none sets it."""
    if name == "output.weight":
        return "output"
    part = name.removeprefix("blk.").partition(".")[2] if name.startswith("blk.") else name
    stem = part.removesuffix(".weight")
    return next((key for _, key, _ in KINDS if key != "output" and stem in (key, f"{key}_exps", f"{key}_shexp")), "")
