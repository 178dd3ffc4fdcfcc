"""Model text to HTML: what an attacker may try, and what must still look right."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_magic.notebook import maths
from llama_magic.notebook.markdown import render_markdown
from llama_magic.safe_text import neutralise, neutralise_code

TAGS = frozenset(
    """
    a blockquote br code div em h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul
    """.split()
)
ATTRIBUTES = frozenset({"class", "dir", "href", "rel", "start", "style", "target"})
CLASSES = frozenset({"jp-toc-ignore", "mathjax_process tex2jax_process"})
#: Only what is written in llama_magic itself may be in a style; `url(` and the like can not be.
STYLE_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;#%()-")


class Page(HTMLParser):
    """Reads a page back and keeps tags, attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.opened: list[str] = []
        self.maths: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("br", "hr"):
            is_maths = ("class", "mathjax_process tex2jax_process") in attrs
            self.opened.append("maths" if is_maths else tag)
            if is_maths:
                self.maths.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened
        assert self.opened.pop() in (tag, "maths"), f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)
        if "maths" in self.opened:
            self.maths[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def links(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "href"]


def read(text: str) -> Page:
    """Render, and check what must hold for every text there is."""
    page = Page(render_markdown(text))
    assert not page.opened
    assert set(page.tags) <= TAGS
    for tag, name, value in page.attributes:
        assert name in ATTRIBUTES, (tag, name, value)
        if name == "href":
            assert tag == "a"
            assert value.lower().startswith(("http://", "https://", "mailto:")), value
        elif name == "class":
            assert value in CLASSES
        elif name == "style":
            assert set(value) <= STYLE_SIGNS
            assert "url" not in value
        elif name == "start":
            assert value.isdigit()
    for tex in page.maths:
        assert tex[:2] in ("\\(", "\\[")
        assert maths.safe_tex(tex[2:-2]) == tex[2:-2]
    return page


@pytest.mark.parametrize(
    "text",
    [
        "<script>window.hacked = 1</script>",
        "<img src=x onerror=alert(1)>",
        "a <img src=x onerror=alert(1)> b",
        "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
        "<svg onload=alert(1)><animate onbegin=alert(1)></svg>",
        "<style>body{display:none}</style>",
        "<div>\n<b onclick=alert(1)>x</b>\n</div>",
        "<a href='javascript:alert(1)'>x</a>",
        "<button data-commandlinker-command='terminal:create-new'>x</button>",
        "<!-- comment --><![CDATA[ x ]]><?php x ?>",
        "<p id=jp-main class=jp-Notebook>x</p>",
        "<math><mtext><style><img src=x onerror=alert(1)></style></mtext></math>",
        "<h1\nonmouseover=alert(1)>x",
        "**<img src=x onerror=alert(1)>**",
        "| <img src=x onerror=alert(1)> |\n|---|\n| <script>alert(1)</script> |",
        "# <script>alert(1)</script>",
        "- <object data=x></object>",
    ],
)
def test_html_is_text(text: str) -> None:
    page = read(text)
    words = [word for word in text.replace("|", " ").split() if word.startswith("<") and "-->" not in word]
    for word in words:
        assert word.strip("*") in page.text


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](java\tscript:alert(1))",
        "[x](java&#9;script:alert(1))",
        "[x](java&NewLine;script:alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x](javascript&colon;alert(1))",
        "[x](\x01javascript:alert(1))",
        "[x](<javascript:alert(1)>)",
        "[x](<java\\\nscript:alert(1)>)",
        "[x](vbscript:msgbox(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "[x](data:image/png;base64,AAAA)",
        "[x](file:///etc/passwd)",
        "[x](blob:http://a/b)",
        "[x](//evil.example/x)",
        "[x](/lab?reset)",
        "[x](../../api/contents)",
        "[x](#top)",
        "[x](?token)",
        "[x](http:/lab)",
        "[x](https:)",
        "[x](view-source:http://a)",
        "<javascript:alert(1)>",
        "<data:text/html,x>",
        "[x][r]\n\n[r]: javascript:alert(1)",
        "[r]\n\n[r]: <data:text/html,x> 'title'",
        "![x](javascript:alert(1))",
        "![x][r]\n\n[r]: data:image/svg+xml,<svg/onload=alert(1)>",
    ],
)
def test_link_stays_text(text: str) -> None:
    page = read(text)
    assert "a" not in page.tags
    assert "x" in page.text or "r" in page.text or ":" in page.text


def test_links_that_may_be() -> None:
    page = read('[a](https://example.org/x?y=1&z=2) <mailto:a@b.example> [b](HTTP://example.org "tit\'le")')
    assert page.links == ["https://example.org/x?y=1&z=2", "mailto:a@b.example", "HTTP://example.org"]
    for name, wanted in (("rel", "noopener noreferrer nofollow"), ("target", "_blank")):
        assert [value for _, attribute, value in page.attributes if attribute == name] == [wanted] * 3
    assert "title" not in {name for _, name, _ in page.attributes}


def test_quotes_in_links_and_titles_do_not_end_the_attribute() -> None:
    page = read('[a](https://example.org/"onmouseover="alert(1) "x\\" onclick=\\"alert(1)")')
    assert {name for _, name, _ in page.attributes} <= {"href", "rel", "target"}
    page = read('[a](<https://example.org/" onmouseover="alert(1)>)')
    assert {name for _, name, _ in page.attributes} <= {"href", "rel", "target"}


@pytest.mark.parametrize(
    "text", ["![cat](https://evil.example/p.png)", "![cat][r]\n\n[r]: https://evil.example/p.png 'title'"]
)
def test_image_becomes_a_link(text: str) -> None:
    page = read(text)
    assert page.links == ["https://evil.example/p.png"]
    assert page.text.strip() == "[image: cat]"


def test_image_in_a_link_makes_no_link_in_a_link() -> None:
    page = read("[![cat](https://a.example/p.png)](https://b.example)")
    assert page.links == ["https://b.example"]


@pytest.mark.parametrize(
    "tex",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\url{javascript:alert(1)}",
        r"\style{position:fixed}{x}",
        r"\class{jp-Notebook}{x}",
        r"\cssId{jp-main}{x}",
        r"\data{commandlinker-command=terminal:create-new}{x}",
        r"\htmlData{a=b}{x}",
        r"\htmlId{a}{x}",
        r"\require{html}\href{a}{b}",
        r"\def\x{\href{javascript:alert(1)}{y}}\x",
        r"\newcommand{\x}[1]{#1}",
        r"\let\x=\href",
        r"\unicode{x41}",
        r"\mmlToken{mi}[href=javascript:alert(1)]{x}",
        r"\bbox[url(x)]{y}",
        r"\begin{x}\end{x}",
        r"\begin{html}",
        r"\csname href\endcsname{a}{b}",
        r"\label{jp-main}",
        r"\tag{x}",
        r"\ref{x}",
        r"\color{red;background:url(//evil)}{x}",
        r"\rule{9999em}{9999em}",
        r"\hspace{9999em}",
        r"\\[9999em]",
        r"\text{\href{javascript:alert(1)}{x}}",
        "\\frac\\hre\\f{a}{b}",
        "\\hr%\nef{a}{b}",
        "{a",
        "a}",
        "}a{",
        "a $ b",
        "a` b",
        "{" * 100 + "}" * 100,
        "x" * 5000,
        " ",
        "\\",
    ],
)
def test_tex_that_is_not_typeset(tex: str) -> None:
    assert maths.safe_tex(tex) is None
    signs = (("$", "$"), ("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("$$\n", "\n$$"), ("\\[\n", "\n\\]"))
    for opening, closing in signs:
        assert not [m for m in read(f"a\n\n{opening}{tex}{closing}\n\nb").maths if tex.strip() and tex in m]


def test_dangerous_maths_is_shown_as_it_was_written() -> None:
    assert read(r"see \(\href{javascript:alert(1)}{*x*}\)").text.strip() == r"see \(\href{javascript:alert(1)}{*x*}\)"
    assert read("\\[\n\\style{a}{b}\n- c\n\\]").text.strip() == "\\[\n\\style{a}{b}\n- c\n\\]"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$x_1*y*z_2$", [r"\(x_1*y*z_2\)"]),
        (r"\(a<b\) and \(c\)", [r"\(a<b\)", r"\(c\)"]),
        ("$$\na\n- b\n+ c\n$$", ["\\[a\n- b\n+ c\\]"]),
        ("1. item\n   \\[\n   x = 1\n   \\]\n", [r"\[x = 1\]"]),
        ("\\begin{align}\na &= b\\\\\nc\n\\end{align}", ["\\[\\begin{align}\na &= b\\\\\nc\n\\end{align}\\]"]),
        ("$50\\%$ and $x = 5%$", [r"\(50\%\)", r"\(x = 5\%\)"]),
        ("$$E = mc^2$$ where", [r"\[E = mc^2\]"]),
        (r"$\text{rate} \leq \frac{1}{2}$", [r"\(\text{rate} \leq \frac{1}{2}\)"]),
    ],
)
def test_maths_is_typeset(text: str, wanted: list[str]) -> None:
    assert read(text).maths == wanted


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "It costs $5-$10.",
        "US$5 (or 5$)",
        "$5 for one, or two for 9$ then",
        "from $1,000 to $2,000",
        "a $ b $ c",
        "$PATH and $HOME1 are set",
        "`$x$`",
        "```\n$x$ \\(y\\)\n```",
        r"\$x$",
    ],
)
def test_money_and_code_are_not_maths(text: str) -> None:
    page = read(text)
    assert not page.maths
    assert "$" in page.text


def test_control_characters_are_visible() -> None:
    assert read("\x1b[31mred\x1b[0m\x07\x00 \x9b31m").text.strip() == "␛[31mred␛[0m␇␀ \ufffd31m"
    assert neutralise("a\r\nb\rc\td") == "a\nb\nc\td"
    assert neutralise("\ud800") == "\ufffd"


def test_direction_overrides_are_visible_and_right_to_left_text_is_kept() -> None:
    assert "[U+202E]" in read("invoice\u202efdp.exe").text
    hebrew = "שלום \u2067עולם\u2069"
    assert read(hebrew).text.strip() == hebrew
    assert 'dir="auto"' in render_markdown(hebrew)
    assert neutralise_code("a\u2066b") == "a[U+2066]b"
    assert "[U+2067]" in read("```\n\u2067x\n```").text
    assert "[U+2067]" in read("`\u2067x`").text


def test_ordinary_markdown() -> None:
    page = read(
        "# T\n\n**b** *i* ~~s~~ `c`\n\n- a\n  - b\n\n3. x\n\n> q\n\n| a | b |\n|--|:-:|\n| 1 | 2 |\n\n---\n"
        "````\n```\nnested\n```\n````\n"
    )
    assert {"h2", "strong", "em", "s", "code", "ul", "ol", "li", "blockquote", "table", "hr", "pre"} <= set(page.tags)
    assert ("ol", "start", "3") in page.attributes
    assert "```\nnested\n```" in page.text


def test_half_markup_is_readable() -> None:
    assert read("```python\nx = 1").tags[:2] == ["pre", "code"]
    assert read("some **half").text.strip() == "some **half"
    assert read("[link](http://exa").text.strip() == "[link](http://exa"


def test_code_is_coloured_by_theme_variables() -> None:
    source = render_markdown("```python\ndef f(): return '<b>'\n```")
    assert "var(--jp-mirror-editor-keyword-color,#008000)" in source
    assert "&lt;b&gt;" in source
    for info in ("nosuchlanguage", '"><script>', "x" * 1000, "../../etc", "python onload=x"):
        assert "<b>" not in read(f"```{info}\n<b>\n```").tags


PIECES = st.sampled_from(
    """<script> </script> <img/src=x/onerror=alert(1)> javascript: data: ![ ]( ) [ ] ( < > " ' & &#106; &colon; $ $$ \\( \\)
    \\[ \\] \\href{ \\style{ } { ` ``` ```` ~~~ * ** _ ~~ # | |-|-| - 1. > http://a.b mailto:a \\ x <!-- --> <a/href= onclick=
    """.split()
) | st.sampled_from(["\n", "\n\n", " ", "    ", "\t", "\r", "\x00", "\x1b", "\u202e", "\ud800", "א", "\u2028"])


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.text(max_size=4), max_size=40).map("".join))
def test_no_text_gets_past_the_allow_list(text: str) -> None:
    read(text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["[", "![", "\\(", "$a ", "*a_", ">", "`a``", "<a", "|a", "- ", "  - a\n", "&"])
def test_long_nonsense_ends(piece: str) -> None:
    read(piece * 3000)
