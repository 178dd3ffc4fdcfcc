"""Model text in a real JupyterLab: nothing in it runs, nothing is fetched, and it can be read."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Dialog

from tests.browser.conftest import OpenNotebook
from tests.browser.jupyter import NotebookPage

REMOTE = "http://evil.example"

#: Every line of it tries to run something, to fetch something, or to look like something else.
HOSTILE = rf"""# Title <script>window.hacked = 'heading'</script>

<script>window.hacked = 'script'</script>
<script src="{REMOTE}/a.js"></script>
<img src=x onerror="window.hacked = 'img'"><svg onload="window.hacked = 'svg'"></svg>
<iframe srcdoc="<script>parent.hacked = 'iframe'</script>"></iframe>
<style>body {{ display: none }} @import url({REMOTE}/a.css);</style>
<link rel=stylesheet href="{REMOTE}/b.css"><meta http-equiv=refresh content="0;url={REMOTE}">
<details open ontoggle="window.hacked = 'toggle'"><input autofocus onfocus="window.hacked = 'focus'">
<button data-commandlinker-command="terminal:create-new">button</button>
<a href="javascript:window.hacked = 'html link'">html link</a>

[md link](javascript:window.hacked='md') [entity](java&#9;script:window.hacked='entity') <javascript:window.hacked='auto'>
[data](data:text/html,<script>1</script>) [here](/lab?reset) [ref link][r]

![remote image]({REMOTE}/p.png) ![ref image][i] ![js](javascript:window.hacked='image')

[r]: javascript:window.hacked='ref'

[i]: {REMOTE}/q.png

\(\href{{javascript:window.hacked='maths'}}{{click}}\) $\href{{javascript:window.hacked='dollar'}}{{click}}$
\(\require{{html}}\style{{position:fixed;background:url({REMOTE}/m.png)}}{{x}}\) \(\cssId{{jp-main-content-panel}}{{x}}\)

$$
\def\x{{\href{{javascript:window.hacked='def'}}{{y}}}}\x
$$

\begin{{align}}\href{{javascript:window.hacked='align'}}{{z}}\end{{align}}

| <img src=x onerror="window.hacked='cell'"> | $\unicode{{x41}}$ |
|---|---|
| <script>window.hacked = 'td'</script> | `<b>code</b>` |

```html
<script>window.hacked = 'fence'</script>
```

{chr(27)}[31mred{chr(27)}[0m invoice{chr(0x202E)}fdp.exe

Safe maths \(a^2 + b^2\) and שלום עולם. THE END
"""

SETUP = """
import json, threading, time
from llama_magic.inference.results import Chunk, Completion, Sample, Timings
from llama_magic.engine.protocol import Progress
from llama_magic.notebook.views import Footer, make_view

FOOTER = Footer("<img src=x onerror=window.hacked='footer'>", "CPU", 57.3, 0.21, 64, ("<script>window.hacked=1</script>",))

def completion(text, **more):
    return Completion(text, tuple(range(len(text) // 4)), more.pop("finish_reason", "stop"), Timings(), **more)

def stream(text, format="markdown", seconds=0.0, size=4, finish=True, **options):
    view = make_view(format, shell=get_ipython(), **options)
    view.progress(Progress("loading", 0.4, "<img src=x onerror=window.hacked='progress'>"))
    for at in range(0, len(text), size):
        view.add(Chunk(text[at:at + size], (1,)))
        time.sleep(seconds)
    if finish:
        view.finish(completion(text), FOOTER, metadata={"llama_magic": {"seed": 1}})
    else:
        view.fail()
"""


def notebook_of(open_notebook: OpenNotebook, *cells: str) -> NotebookPage:
    notebook = open_notebook([f"{SETUP}\nHOSTILE = json.loads({json.dumps(HOSTILE)!r})", *cells])

    def on_dialog(dialog: Dialog) -> None:
        notebook.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    notebook.page.on("dialog", on_dialog)
    assert notebook.run(0) == ""
    return notebook


def assert_harmless(notebook: NotebookPage) -> None:
    """Nothing ran, nothing was fetched, and what could be clicked goes to the web only."""
    page = notebook.page
    page.wait_for_timeout(300)
    assert page.evaluate("() => window.hacked ?? null") is None
    assert not [error for error in notebook.errors if error.startswith("dialog")]
    hosts = {urlsplit(url).hostname for url in notebook.requests if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}
    bad = """() => [...document.querySelectorAll('.jp-OutputArea-output')].flatMap((area) => [
        ...area.querySelectorAll('script, img, svg, object, embed, link, meta, style, input, button, form'),
        ...[...area.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) =>
            a.name.startsWith('on') || a.name.startsWith('data-commandlinker') || (a.name !== 'srcdoc' && /javascript:/i.test(a.value)))),
        ...[...area.querySelectorAll('a, [href]')].filter((e) => !/^https?:/.test(e.getAttribute('href') ?? '')),
        ...[...area.querySelectorAll('[id]')].filter((e) => !e.closest('mjx-container')),
    ].map((e) => e.outerHTML))"""
    assert page.evaluate(bad) == []


def typeset(notebook: NotebookPage, number: int) -> Any:
    return notebook.output(number).locator("mjx-container")


def test_hostile_text_is_harmless_while_streaming_and_after(open_notebook: OpenNotebook) -> None:
    notebook = notebook_of(open_notebook, "stream(HOSTILE, seconds=0.004)", "stream(HOSTILE, finish=False)")
    notebook.start(1)
    notebook.wait_for_text(1, "window.hacked = 'script'")
    assert_harmless(notebook)
    notebook.wait_idle()
    typeset(notebook, 1).first.wait_for()
    assert_harmless(notebook)

    assert len(notebook.outputs(1)) == 1
    assert notebook.outputs(1)[0]["metadata"] == {"llama_magic": {"seed": 1}}
    text = notebook.text(1)
    for words in (
        "<script>window.hacked = 'script'</script>",
        "[md link](javascript:window.hacked='md')",
        "[image: remote image]",
        r"\(\href{javascript:window.hacked='maths'}{click}\)",
        r"\begin{align}\href",
        "␛[31mred␛[0m invoice[U+202E]fdp.exe",
        "THE END",
        "<img src=x onerror=window.hacked='footer'> · CPU · 57.3 tok/s",
    ):
        assert words in text
    assert typeset(notebook, 1).count() == 1, "the one formula that is safe"

    notebook.run(2)
    assert "THE END" in notebook.text(2)
    assert_harmless(notebook)


def test_links_and_images_are_only_links(open_notebook: OpenNotebook) -> None:
    notebook = notebook_of(open_notebook, "stream(HOSTILE)")
    notebook.run(1)
    links = notebook.output(1).locator("a").evaluate_all("all => all.map(a => [a.href, a.rel, a.target])")
    assert [href for href, _, _ in links] == [f"{REMOTE}/p.png", f"{REMOTE}/q.png"]
    assert all("noopener" in rel and target == "_blank" for _, rel, target in links)


def test_every_format_is_harmless(open_notebook: OpenNotebook) -> None:
    kinds = ("text", "json", "code", "math", "html")
    text = "HOSTILE.replace('```html', '').replace('```', '')"
    notebook = notebook_of(open_notebook, *(f"stream({text}, {kind!r}, seconds=0.001)" for kind in kinds))
    for number, kind in enumerate(kinds, 1):
        notebook.run(number)
        if kind != "html":
            assert "window.hacked" in notebook.text(number)
    frame = notebook.output(5).locator("iframe")
    assert frame.get_attribute("sandbox") == ""
    frame.content_frame.get_by_text("THE END").wait_for(state="attached")
    assert_harmless(notebook)


def test_samples_and_probabilities_are_harmless(open_notebook: OpenNotebook) -> None:
    notebook = notebook_of(
        open_notebook,
        """
samples = tuple(Sample(HOSTILE, (1,), "stop") for _ in range(3))
view = make_view(shell=get_ipython(), samples=3)
for at in range(0, len(HOSTILE), 20):
    for index in range(3):
        view.add(Chunk(HOSTILE[at:at + 20], (1,), index=index))
view.finish(completion(HOSTILE, samples=samples), FOOTER, metadata={})
""",
        """
from llama_magic.inference.results import Candidate, TokenLogprob
entries = tuple(TokenLogprob(i, text, -0.5 * i, (Candidate(-1, text + '" onmouseover="window.hacked=1', -1.0),))
                for i, text in enumerate(HOSTILE.split("\\n")))
view = make_view(shell=get_ipython(), logprobs=1)
for entry in entries:
    view.add(Chunk(entry.text, (entry.id,), (entry,)))
view.finish(completion(HOSTILE, logprobs=entries), FOOTER, metadata={})
""",
    )
    notebook.run(1)
    assert notebook.text(1).count("THE END") == 3
    notebook.run(2)
    notebook.output(2).locator("span[title]").nth(3).hover()
    # A tooltip may hold any text: it is never read as markup.
    page = notebook.page
    assert page.evaluate("() => window.hacked ?? null") is None
    assert notebook.output(2).locator("[onmouseover]").count() == 0


def test_a_long_answer_streams_within_the_outputs_that_are_shown(open_notebook: OpenNotebook) -> None:
    source = "text = '\\n\\n'.join(f'word{i} ' * 12 for i in range(1500))"
    notebook = notebook_of(
        open_notebook, f"{source}\nstream(text, size=400, seconds=0.012, finish=False)", "stream(text)"
    )
    notebook.run(1)
    count = """() => document.querySelectorAll('.jp-OutputArea-child').length"""
    assert notebook.page.evaluate(count) < 50
    words = notebook.text(1).split()
    assert words == [f"word{i}" for i in range(1500) for _ in range(12)]
    notebook.run(2)
    assert len(notebook.outputs(2)) == 1
    assert "word1499" in notebook.text(2)


def test_it_looks_right_in_both_themes(open_notebook: OpenNotebook) -> None:
    answer = (
        "## Sorting\n\n**Bold**, `code`, $n \\log n$ for $5.\n\n```python\ndef f(x):\n    return 'a'  # note\n```\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\nשלום עולם\n"
    )
    notebook = notebook_of(open_notebook, f"stream({answer!r})")
    notebook.run(1)
    typeset(notebook, 1).first.wait_for()
    seen = {}
    for theme in ("light", "dark"):
        notebook.set_theme(theme)
        assert notebook.screenshot(f"answer-{theme}", cell=1).stat().st_size > 5000
        script = """(area) => [area.querySelector('pre span'), area.querySelector('p'), area.querySelector('small')]
            .map((e) => getComputedStyle(e).color)"""
        seen[theme] = notebook.output(1).evaluate(script)
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))
    notebook.page.set_viewport_size({"width": 480, "height": 900})
    overflow = (
        "(area) => Math.max(...[...area.querySelectorAll('.llama-magic')].map((e) => e.scrollWidth - e.clientWidth))"
    )
    assert notebook.output(1).evaluate(overflow) <= 0
