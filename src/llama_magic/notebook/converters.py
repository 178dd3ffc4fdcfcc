"""Converters of flag values: text in, value out.

Each raises `ValueError` whose message completes the sentence "-n takes …".
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llama_magic.backends.known import parse_backends
from llama_magic.errors import InvalidRequestError

__all__ = [
    "backend_names",
    "choice",
    "devices",
    "hub_reference",
    "identifier",
    "integer",
    "inverse",
    "layers",
    "load_mode",
    "logit_bias",
    "names_of",
    "number",
    "numbers",
    "several",
    "text_file",
    "unescape",
]


def integer(
    least: int, words: str, special: Mapping[str, int | None] | None = None, *, most: int = 2**31 - 1
) -> Callable[[str], Any]:
    """Make a converter for whole numbers from `least` to `most`; `special` maps further words to values."""

    def convert(text: str) -> Any:
        if special and text in special:
            return special[text]
        try:
            value = int(text)
        except ValueError:
            raise ValueError(words) from None
        if not least <= value <= most:
            raise ValueError(words)
        return value

    return convert


def number(words: str, least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """Make a converter for finite numbers between `least` and `most`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(words) from None
        if not math.isfinite(value) or not least <= value <= most:
            raise ValueError(words)
        return value

    return convert


def inverse(text: str) -> float:
    """Read a factor above 0 and return 1 divided by it."""
    factor: float = number("a number above 0", 5e-324)(text)
    return 1 / factor


def choice(*known: str, **aliases: str) -> Callable[[str], str]:
    """Make a converter for a word out of `known`."""

    def convert(text: str) -> str:
        word = aliases.get(text, text)
        if word not in known:
            raise ValueError(f"{', '.join(known[:-1])} or {known[-1]}")
        return word

    return convert


def identifier(text: str) -> str:
    """Check that `text` can name a Python variable."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError("the name of a Python variable")
    return text


def text_file(text: str) -> str:
    """Read a text file, as llama-cli does: without its last line end."""
    path = Path(text).expanduser()
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except FileNotFoundError:
        raise InvalidRequestError(f"no such file: {text!r}") from None
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{text!r} is not UTF-8 text") from None
    except OSError as error:
        raise InvalidRequestError(f"{text!r} can not be read: {error.strerror}") from None


def unescape(text: str) -> str:
    r"""Read ``\n \r \t \' \" \\`` and ``\xHH`` as llama-cli does; other backslashes stay."""
    plain = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}

    def replace(match: re.Match[str]) -> str:
        return plain[match.group(1)] if match.group(1) else chr(int(match.group(2), 16))

    return re.sub(r"\\(?:([nrt'\"\\])|x([0-7][0-9A-Fa-f]))", replace, text)


def logit_bias(text: str) -> tuple[int | str, float]:
    """Read ``15043+1``, ``15043-inf`` or, with the text of a token, ``" Hello"+1``."""
    match = re.fullmatch(r"(.+?)=?([+-](?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+|inf))", text, re.DOTALL)
    if match is None:
        raise ValueError("TOKEN+BIAS or TOKEN-BIAS, for example 15043+1 or 15043-1")
    token = match.group(1)
    bias = max(-1e9, min(1e9, float(match.group(2))))
    return (int(token) if token.isdecimal() else token, bias)


def layers(text: str) -> int | str:
    """Read ``-ngl``: a number, auto or all."""
    if text in ("auto", "-1"):
        return "auto"
    if text in ("all", "-2"):
        return "all"
    value: int = integer(0, "a number of layers, auto or all")(text)
    return value


def devices(text: str) -> tuple[str, ...]:
    """Read ``-dev``: names separated by commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError("names of devices separated by commas (see %llama devices)")
    return names


def backend_names(text: str) -> str:
    """Read ``--backend``: names separated by commas, as `LoadOptions.backend` has them."""
    names = parse_backends(text)
    return "default" if names is None else ",".join(names) or "cpu"


_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")


def numbers(text: str) -> tuple[int, ...]:
    """Read llama-bench's numbers: ``512``, ``1,2,4``, ``1-4``, ``128-512+128`` or ``128-2048*2``."""
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError("numbers: 512, or 128,512, or first-last, first-last+step, first-last*factor")
        value, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        while value <= last:
            found.append(value)
            following = value * step if match[3] == "*" else value + step
            if following <= value:
                raise ValueError(f"a range that grows; {part} does not")
            value = following
    return tuple(found)


def several(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Make a converter for one or more values separated by commas."""
    return lambda text: tuple(convert(part.strip()) for part in text.split(","))


def load_mode(text: str) -> dict[str, bool]:
    """Read ``-lm``: how the file gets into memory."""
    modes = {"auto": (1, 0), "mmap": (1, 0), "none": (0, 0), "mlock": (0, 1), "mmap+mlock": (1, 1), "dio": (0, 0)}
    if text not in modes:
        raise ValueError(f"{', '.join(list(modes)[:-1])} or dio")
    use_mmap, use_mlock = map(bool, modes[text])
    return {"use_mmap": use_mmap, "use_mlock": use_mlock, "direct_io": text == "dio"}


def hub_reference(text: str) -> str:
    """Read ``-hf owner/repo[:quant]``."""
    if not re.fullmatch(r"(?:hf:)?[^/\s]+/[^/\s]+(?:/\S+)?", text):
        raise ValueError("owner/repo or owner/repo:quant")
    return text if text.startswith("hf:") else f"hf:{text}"


def names_of(text: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError("names separated by commas, for example Q8_0,Q4_0")
    return names
