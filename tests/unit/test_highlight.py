"""Code in colours: nothing of the text is lost, and Jinja is told apart."""

from __future__ import annotations

import html
import re

import pytest

from llama_magic.notebook.highlight import highlight

TEMPLATE = """{# who speaks #}{%- for m in messages if not m.hidden -%}
<|{{ m['role'] | trim }}|>{{ m.content | default("it's \\"none\\"") }} {not code} {{ 3.5 + x.if }}
{%- endfor %}{{ '<script>' }}{% generation %}{{ unclosed"""


@pytest.mark.parametrize("language", ["jinja", "python", "no-such-language", ""])
def test_nothing_is_lost(language: str) -> None:
    shown = highlight(TEMPLATE, language)
    assert html.unescape(re.sub(r"<[^>]+>", "", shown)) == TEMPLATE
    assert "<script" not in shown


def looks(shown: str, text: str) -> str:
    found = re.search(rf'<span style="([^"]*)">{re.escape(html.escape(text))}\s*</span>', shown)
    return found.group(1) if found else ""


def test_jinja() -> None:
    shown = highlight(TEMPLATE, "jinja")
    assert "italic" in looks(shown, "{# who speaks #}")
    assert "600" in looks(shown, "for")
    assert "600" in looks(shown, "if not")
    assert "var(--s)" in looks(shown, "'role'")
    assert "var(--n)" in looks(shown, "3.5")
    assert "var(--d)" in looks(shown, " trim")
    assert "not code" not in "".join(re.findall(r"<span[^>]*>([^<]*)</span>", shown))
    assert looks(shown, ".if") == "", "an attribute is no statement"
