"""Read what a build says: how far it is, and why it failed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llama_magic.units import format_seconds

__all__ = ["BuildProgress", "explain", "last_lines"]

_NINJA = re.compile(r"\[(\d+)/(\d+)\] (.*)")
_MAKE = re.compile(r"\[ *(\d+)%\] (.*)")
_FILE = re.compile(r"([\w.+-]+\.(?:cpp|cu|cc|c|mm|m|comp|hip|S))(?:\.o(?:bj)?)?\b")
_ERROR = re.compile(r"(?:fatal )?error:|CMake Error|FAILED:|undefined reference|ninja: error|\*\*\* ", re.IGNORECASE)

#: What a line of a failed build means, and what helps. The first that fits is said.
_CAUSES = (
    (r"No space left on device|Disk quota exceeded",
     "the disk is full: free some space, or let LLAMA_MAGIC_HOME name another"),
    (r"Killed signal terminated|out of memory|virtual memory exhausted",
     "the compiler ran out of memory: --jobs 1 needs less"),
    (r"LayerSetting|VK_EXT_layer_settings", "the Vulkan headers are too old for this ggml: 1.3.272 is needed"),
    (r"Unsupported gpu architecture '?(\S+?)'?$",
     "this CUDA toolkit does not know {}: -DCMAKE_CUDA_ARCHITECTURES=… names others"),
    (r"unsupported GNU version|unsupported clang version",
     "the CUDA toolkit needs an older C++ compiler: -DCMAKE_CUDA_HOST_COMPILER=g++-12"),
    (r"Could NOT find (\w+)", "{} was not found"),
    (r'Could not find a package configuration file provided by "(\w[\w-]*)"', "{} was not found"),
    (r"fatal error: (\S+): No such file", "the header {} was not found"),
    (r"cannot find -l(\S+)", "the library {} was not found"),
)  # fmt: skip


class BuildProgress:
    """How far a build is, by the lines it prints.

    Attributes
    ----------
    fraction
        From 0 to 1; None before the first step.
    message
        The step, and about how long it still takes.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.fraction: float | None = None
        self.message = f"{what}: configuring"

    def read(self, line: str, seconds: float) -> bool:
        """Take a line, `seconds` after the compilers started; returns whether something changed."""
        line = line.lstrip()  # pip indents what it passes on
        ninja, make = _NINJA.match(line), _MAKE.match(line)
        if ninja and int(ninja[2]):
            done, total, doing = int(ninja[1]), int(ninja[2]), ninja[3]
            self.fraction, step = done / total, f"step {done} of {total}"
        elif make:
            self.fraction, doing = int(make[1]) / 100, make[2]
            step = f"{make[1]} %"
        else:
            return False
        file = _FILE.search(doing)
        left = ""
        if 0 < self.fraction < 1 and seconds > 3:
            left = f", about {format_seconds(seconds / self.fraction - seconds)} left"
        self.message = f"{self.what}: {step}{f', {file[1]}' if file else ''}{left}"
        return True


def explain(lines: Sequence[str]) -> str:
    """Return why a build failed, empty where that can not be told."""
    for pattern, words in _CAUSES:
        for line in lines:
            match = re.search(pattern, line)
            if match:
                return words.format(*(group.strip('"') for group in match.groups() or ("",)))
    return ""


def last_lines(lines: Sequence[str], most: int = 6) -> tuple[str, ...]:
    """Return the lines that matter at the end of a failed build: from the first error on, else the last ones."""
    told = [line.rstrip() for line in lines if line.strip()]
    first = next((place for place, line in enumerate(told) if _ERROR.search(line)), None)
    chosen = told[-most:] if first is None else told[first : first + most]
    return tuple(line[:300] for line in chosen)
