"""How a server is shown: its address, lines to copy, and what to know of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from llama_magic.markup import Html, badge, details, facts, heading, note, page

__all__ = ["ServerFacts", "curl_line", "mask", "python_lines", "server_page", "server_text"]

_HOW_KEY = "llama_magic.servers()[{place}].api_key"
_BEYOND = (
    "Others can reach this address. The key protects it, but nothing encrypts what is sent: put a proxy with TLS in "
    "front of it, or serve on 127.0.0.1 and use an SSH tunnel."
)
_LOCAL = "Only this machine reaches it, but every user and program of it does."


@dataclass(frozen=True, slots=True, repr=False)
class ServerFacts:
    """What is shown of a server.

    Attributes
    ----------
    model
        What the model is called.
    url
        The address.
    running, local
        Whether it still serves, and only this machine reaches it.
    mask
        The key, as it may be shown; empty where there is none.
    place
        Which of the kernel's servers it is, from 0.
    """

    model: str
    url: str
    running: bool
    local: bool
    mask: str = ""
    place: int = 0

    @property
    def key_code(self) -> str:
        """Python that gives the key, in the same kernel."""
        return _HOW_KEY.format(place=self.place)


def mask(key: str | None) -> str:
    """Return a key so that it can be shown: enough to tell two apart, not to use it."""
    if not key:
        return ""
    return f"{key[:3]}…{key[-4:]}" if len(key) >= 16 else "…"


def curl_line(told: ServerFacts) -> str:
    """Return a line for a shell; the key comes from its environment."""
    key = ' -H "Authorization: Bearer $LLAMA_API_KEY"' if told.mask else ""
    return (
        f"curl {told.url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        """-d '{"messages": [{"role": "user", "content": "Hello"}]}'"""
    )


def python_lines(told: ServerFacts) -> str:
    """Return a program for the openai package."""
    key = told.key_code if told.mask else '"none"'
    top = "import llama_magic\n" if told.mask else ""
    return (
        f"{top}from openai import OpenAI\n\n"
        f'client = OpenAI(\n    base_url="{told.url}/v1",\n    api_key={key},\n)\n'
        f"answer = client.chat.completions.create(\n    model={json.dumps(told.model, ensure_ascii=False)},\n"
        '    messages=[{"role": "user", "content": "Hello"}],\n)\n'
        "print(answer.choices[0].message.content)"
    )


def server_text(told: ServerFacts) -> str:
    """Return what a terminal shows."""
    if not told.running:
        return f"The server of {told.model} at {told.url} has stopped."
    key = f"\nAPI key {told.mask}, in full: {told.key_code}" if told.mask else ""
    return (
        f"Serving {told.model} at {told.url}/v1{key}\n"
        f"  {curl_line(told)}\n"
        f"{_LOCAL if told.local else 'WARNING: ' + _BEYOND} It ends with this kernel, or with %llama stop."
    )


def _lines(text: str) -> Html:
    """Return text to copy: a click selects all of it."""
    from html import escape

    return Html(
        '<pre style="margin:.3em 0;padding:.5em .7em;overflow-x:auto;user-select:all;white-space:pre-wrap;'
        "background:var(--jp-layout-color2,#8881);color:var(--jp-content-font-color1,inherit);border-radius:3px;"
        f'font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:12px">{escape(text)}</pre>'
    )


def server_page(told: ServerFacts) -> str:
    """Return what a notebook shows."""
    state = badge("serving", "good") if told.running else badge("stopped", "warning")
    rows: list[tuple[object, object]] = [("model", told.model), ("address", f"{told.url}/v1")]
    if told.mask:
        rows.append(("API key", f"{told.mask}, in full: {told.key_code}"))
    top = heading("server", state)
    if not told.running:
        return page(top, facts(rows))
    return page(
        top,
        facts(rows),
        _lines(curl_line(told)),
        details("Python, with the openai package", _lines(python_lines(told)), open_=True),
        note(_LOCAL) if told.local else note(_BEYOND, "warning"),
        note("It ends with this kernel, or with %llama stop."),
    )
