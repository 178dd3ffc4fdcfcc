"""How a `TuneResult` looks, as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterator

from llama_magic.evaluation.bench_svg import Bar, bars_svg
from llama_magic.evaluation.tune import TuneCheck, TuneResult, TuneTrial
from llama_magic.markup import badge, details, facts, heading, note, page, table, text_table
from llama_magic.models.card import clean
from llama_magic.units import format_seconds

__all__ = ["html", "text"]

_TRIALS = ("setting", "tried", "tok/s", "times as fast", "")
_CHECKS = ("last check", "test", "defaults, tok/s", "tuned, tok/s", "times as fast")
_METHOD = (
    "Each setting is tried in short trials whose repetitions take turns with what was best until then; what was "
    "clearly slower after two rounds is dropped. A setting is kept where it is faster beyond the noise (the 95 % "
    "interval of the paired ratios, in brackets, lies above 1), no test became slower, and a second measurement "
    "confirms it. The last check measures defaults and tuned settings in turns once more, in contexts as load makes "
    "them: a prompt and an answer as in a cell that stands alone, and a follow-up in a conversation. All times "
    "together are weighted to a prompt of 512 tokens, an answer of 128 and a follow-up."
)


def _speeds(trial: TuneTrial) -> str:
    return ", ".join(f"{name} {speed:,.1f}" for name, speed in zip(trial.tests, trial.speeds, strict=True) if speed)


def _trials(result: TuneResult) -> Iterator[tuple[str, str, str, str, str]]:
    before = ""
    for trial in result.trials:
        knob = "" if trial.knob == before else trial.knob
        before = trial.knob
        gain = "" if trial.gain is None else str(trial.gain)
        yield knob, clean(trial.flags), _speeds(trial), gain, clean(trial.verdict)


def _check(check: TuneCheck) -> tuple[str, str, str, str, str]:
    return check.what, check.test, f"{check.default_ts:,.1f}", f"{check.tuned_ts:,.1f}", str(check.gain)


def _pairs(result: TuneResult) -> list[tuple[str, str]]:
    pairs = [("machine", clean(result.machine)), ("backends", clean(result.backend)), ("defaults", result.defaults)]
    if result.stored:
        pairs.append(("kept in", f"{clean(result.stored)} (%llama tune {clean(result.ref)} --reset forgets it)"))
    return pairs


def text(result: TuneResult) -> str:
    """Return the result as plain text."""
    lines = [f"{clean(result.ref)}: {result.verdict}"]
    if result.checks:
        lines.append(text_table(_CHECKS, map(_check, result.checks), "llrrl"))
    if result.gain is not None:
        lines.append(f"all together: {result.gain} times as fast")
    if result.trials:
        lines.append(text_table(_TRIALS, _trials(result), "lllll"))
    lines += [clean(line) for line in result.notes]
    lines += [f"{name}: {value}" for name, value in _pairs(result)]
    return "\n".join([*lines, format_seconds(result.seconds)])


def html(result: TuneResult) -> str:
    """Return the result as HTML: the answer, the last check with bars, and every trial."""
    tone = "good" if result.stored else "info"
    parts: list[object] = [
        heading(f"tuning {clean(result.ref)}", format_seconds(result.seconds)),
        note(result.verdict, tone),
    ]
    if result.checks:
        groups = {
            f"{check.what}, {check.test}": [
                Bar("defaults", check.default_ts, 0.0, 1), Bar("tuned", check.tuned_ts, 0.0, 1)
            ]
            for check in result.checks
        }  # fmt: skip
        parts += [bars_svg(groups), table(_CHECKS, map(_check, result.checks), "llrrl")]
    if result.gain is not None:
        parts.append(note(f"all together: {result.gain} times as fast"))
    parts += [note(clean(line), "warning") for line in result.notes]
    if result.trials:
        rows = [
            (knob, flags, speeds, gain, badge(verdict, "good") if verdict == "kept" else verdict)
            for knob, flags, speeds, gain, verdict in _trials(result)
        ]
        parts.append(table(_TRIALS, rows, "lllll", caption="what was tried, in order"))
    parts.append(facts(_pairs(result)))
    parts.append(details("How it was decided", note(_METHOD)))
    return page(*parts)
