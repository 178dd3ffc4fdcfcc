"""Model text made harmless for a terminal or a page, before any markup is looked at."""

from __future__ import annotations

import re

__all__ = ["neutralise", "neutralise_code", "quoted"]

# U+202D and U+202E force a direction on what follows; no language needs them, spoofing does.
_OVERRIDES = re.compile("[\u202d\u202e]")
# In code every change of direction hides what it does (CVE-2021-42574), isolates included.
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_CONTROLS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def neutralise(text: str) -> str:
    r"""Return the text with control characters as visible signs and no direction overrides.

    Terminal escapes lose their ESC (shown as ␛), lone carriage returns become newlines, and
    right-to-left writing stays as it is.

    >>> neutralise("\x1b[31mred")
    '␛[31mred'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)
    return _OVERRIDES.sub(_name, text)


def neutralise_code(text: str) -> str:
    """Return code with every control character and every change of direction visible."""
    return _DIRECTIONS.sub(_name, neutralise(text))


def quoted(text: str) -> str:
    """Return a token's text in quotes, with its line ends and tabs as signs."""
    return "“" + neutralise(text).replace("\n", "⏎").replace("\t", "⇥") + "”"


def _name(match: re.Match[str]) -> str:
    return f"[U+{ord(match.group()):04X}]"
