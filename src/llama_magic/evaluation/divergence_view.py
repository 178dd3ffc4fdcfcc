"""How a `Divergence` looks: tokens by KL divergence and by rank lost, a strip to jump along, and both top lists.

Links, folds and tooltips do it without a script, so a saved page works as a fresh one does. Model text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from llama_magic.evaluation.requests import short_name
from llama_magic.markup import Html, details, heading, join, note, page, table, text_table
from llama_magic.safe_text import neutralise, quoted
from llama_magic.svg import BLUE, RED, line, svg, text
from llama_magic.units import format_probability, format_seconds

if TYPE_CHECKING:
    from llama_magic.evaluation.divergence import Divergence, ForcedToken, ForcedTokens

__all__ = ["compared_html", "html_of", "place_html", "summary", "text_of"]

#: From a value on: words for the legend, and the look. Underlines say the same as colours.
_Levels = Sequence[tuple[float, str, str]]
_BY_KLD: _Levels = (
    (1.0, "1 and more", "background:rgba(229,40,60,.42);text-decoration:underline double"),
    (0.5, "0.5 to 1", "background:rgba(244,100,30,.36);text-decoration:underline solid"),
    (0.2, "0.2 to 0.5", "background:rgba(255,152,0,.28);text-decoration:underline dashed"),
    (0.05, "0.05 to 0.2", "background:rgba(255,193,7,.18);text-decoration:underline dotted"),
    (0.0, "below 0.05", ""),
)
_BY_RANK: _Levels = (
    (21, "below 20th", _BY_KLD[0][2]),
    (6, "6th to 20th", _BY_KLD[1][2]),
    (3, "3rd to 5th", _BY_KLD[2][2]),
    (2, "2nd", _BY_KLD[3][2]),
    (0, "likeliest", ""),
)
_COMMON = "text-underline-offset:.22em;text-decoration-thickness:1px;border-radius:2px"
_BLOCK = (
    "white-space:pre-wrap;overflow-wrap:anywhere;margin:.4em 0;padding:.5em .7em;line-height:1.75;"
    "border:1px solid var(--jp-border-color2,#8884);border-radius:4px"
)
_LINK = "color:var(--jp-content-link-color,#1565c0)"
_WIDTH, _STRIP = 680, 66
#: A box for many rows, of which so many are seen at once.
_SCROLLING = "max-height:24em;overflow-y:auto;border-bottom:1px solid var(--jp-border-color2,#8884)"
_SHOWN = 4
#: Tokens of text before a disagreement that its row shows.
_CONTEXT = 8
#: Least KL divergence that is a bar of full height, in nats: a good quantization has low bars.
_LEAST_FULL = 0.2


def _look(levels: _Levels, value: float) -> str:
    return next((look for least, _, look in levels if value >= least), "")


def summary(found: Divergence, place: int) -> str:
    """Return in a sentence how far a model is from the reference."""
    one, apart = found.models[place], found.disagreements(place)
    count = len(one.tokens)
    said = f"mean KLD {max(one.mean_kld, 0):.4f} · "
    if not apart:
        return said + f"the same token likeliest at all {count:,} places"
    return said + f"{len(apart):,} of {count:,} tokens disagree, the first at token {apart[0] + 1:,}"


def _title(found: Divergence) -> str:
    return f"{len(found.tokens):,} tokens of {short_name(found.base.model)} forced through"


# -- text --------------------------------------------------------------------------------------------------------------


def text_of(found: Divergence) -> str:
    """Return a divergence as text: the disagreements of each model with the likeliest tokens of both."""
    lines = [f"{_title(found)} {', '.join(short_name(one.model) for one in found.models)}", neutralise(found.text)]
    for place, one in enumerate(found.models):
        lines += ["", f"{short_name(one.model)}: {summary(found, place)}"]
        rows = [
            (str(at + 1), quoted(found.texts[at]), _list(found.base.tokens[at], 3), _list(one.tokens[at], 3),
             f"{one.tokens[at].kld:.3f}", str(one.tokens[at].rank))
            for at in found.disagreements(place)
        ]  # fmt: skip
        if rows:
            lines.append(
                text_table(("token", "text", "reference", short_name(one.model), "KLD", "rank"), rows, "rlllrr")
            )
    return "\n".join([*lines, *found.notes])


def _list(token: ForcedToken, most: int = 20, between: str = "  ") -> str:
    return between.join(f"{quoted(other.text)} {format_probability(other.logprob)}" for other in token.top[:most])


# -- HTML --------------------------------------------------------------------------------------------------------------


def html_of(found: Divergence) -> str:
    """Return a divergence as HTML."""
    origin = "a given text" if found.given else "its own likeliest text"
    parts: list[object] = [heading(_title(found), f"{origin} · {format_seconds(found.seconds)}")]
    parts.append(_block(Html(escape(neutralise(found.prompt)))) if found.prompt else "")
    for place in range(len(found.models)):
        parts += _section(found, place)
    parts.append(_legend("KL divergence in nats", _BY_KLD))
    parts.append(
        note(
            "A raised number counts the places where the model finds another token likeliest: it leads to both lists, "
            "and there to the next one. Point at any token to see its lists."
        )
    )
    parts += [note(words) for words in found.notes]
    return page(*parts)


def _section(found: Divergence, place: int) -> list[object]:
    one, apart = found.models[place], found.disagreements(place)
    by_kld = _tokens(found, place, _BY_KLD, lambda token: token.kld, linked=True)
    by_rank = _tokens(found, place, _BY_RANK, lambda token: token.rank, linked=False)
    parts: list[object] = [heading(short_name(one.model), summary(found, place)), _strip(found, place), by_kld]
    if apart:
        # open, since a link does not open a fold in JupyterLab; and in a box, since there may be many
        rows = Html(f'<div style="{_SCROLLING}">{_rows(found, place)}</div>')
        many = f"{len(apart):,} disagreements" if len(apart) > 1 else "1 disagreement"
        more = "; scroll for more" if len(apart) > _SHOWN else ""
        parts.append(details(f"{many}, with both lists{more}", rows, open_=True))
    parts.append(details("Coloured by rank lost", by_rank, _legend("rank of the text's token", _BY_RANK)))
    return parts


def _id(found: Divergence, place: int, at: int, what: str) -> str:
    return f"llama-magic-{found.key}-{place}-{what}{at}"


def _block(inner: Html) -> Html:
    return Html(f'<div dir="auto" style="{_BLOCK};opacity:.75">{inner}</div>')


def _tokens(found: Divergence, place: int, levels: _Levels, value: Callable[[Any], float], *, linked: bool) -> Html:
    one, numbers = found.models[place], {at: number for number, at in enumerate(found.disagreements(place), 1)}
    spans = []
    for at, (words, token) in enumerate(zip(found.texts, one.tokens, strict=True)):
        look = _look(levels, value(token))
        style = f' style="{look};{_COMMON}"' if look else ""
        shown = escape(neutralise(words)) or "⋯"
        told = escape(_tooltip(found, one, at))
        if at not in numbers:
            spans.append(f'<span{style} title="{told}">{shown}</span>')
            continue
        number = f"<sup>{numbers[at]}</sup>"
        if linked:
            own, row = _id(found, place, at, "t"), _id(found, place, at, "r")
            number = f'<a href="#{row}" style="{_LINK};text-decoration:none">{number}</a>'
            spans.append(f'<span id="{own}"{style} title="{told}">{shown}</span>{number}')
        else:
            spans.append(f'<span{style} title="{told}">{shown}</span>{number}')
    return Html(f'<div dir="auto" style="{_BLOCK}">{"".join(spans)}</div>')


def _tooltip(found: Divergence, one: ForcedTokens, at: int) -> str:
    base, token = found.base.tokens[at], one.tokens[at]
    return "\n".join(
        [
            f"{quoted(found.texts[at])}  KLD {token.kld:.3f}, rank {token.rank:,}",
            f"{short_name(found.base.model)}:",
            _list(base, between="\n"),
            f"{short_name(one.model)}:",
            _list(token, between="\n"),
        ]
    )


def _strip(found: Divergence, place: int) -> Html:
    """Draw a bar for each token, as high as its KL divergence; triangles lead to the disagreements."""
    one, apart = found.models[place], found.disagreements(place)
    count = len(one.tokens)
    full = max(_LEAST_FULL, *(other.kld for each in found.models for other in each.tokens))
    wide, floor, top = _WIDTH / count, _STRIP - 16, 2
    parts = [line(0, floor, _WIDTH, floor, "stroke:currentColor;stroke-opacity:.4")]
    for at, token in enumerate(one.tokens):
        tall = (floor - top) * math.sqrt(max(token.kld, 0.0) / full)
        told = escape(f"token {at + 1}: {quoted(found.texts[at])}, KLD {token.kld:.3f}, rank {token.rank:,}")
        parts.append(
            f'<rect x="{at * wide:.2f}" y="{floor - tall:.2f}" width="{max(wide - 0.6, 0.6):.2f}" '
            f'height="{max(tall, 0.5):.2f}" style="fill:{RED if at in apart else BLUE}"><title>{told}</title></rect>'
        )
    parts += [text(0, _STRIP - 3, "1", "start"), text(_WIDTH, _STRIP - 3, f"token {count:,}", "end")]
    parts.append(
        text(_WIDTH / 2, _STRIP - 3, f"KL divergence, up to {full:.2g} nats (square root); ▼ jumps to a disagreement")
    )
    drawn = svg(_WIDTH, _STRIP, f"KL divergence of {count} tokens, {len(apart)} disagreements", parts)
    # JupyterLab fails on links inside of an SVG, so they stand above it
    links = "".join(
        f'<a href="#{_id(found, place, at, "t")}" title="{escape(_jump(found, number, at))}" style="position:absolute;'
        f'left:{100 * (at + 0.5) / count:.2f}%;transform:translateX(-50%);color:{RED};text-decoration:none">▼</a>'
        for number, at in enumerate(apart, 1)
    )
    row = f'<div style="position:relative;height:1.1em;font-size:11px;line-height:1.1">{links}</div>'
    return Html(f'<div style="max-width:{_WIDTH}px">{row}{drawn}</div>')


def _jump(found: Divergence, number: int, at: int) -> str:
    return f"disagreement {number} at token {at + 1}: {quoted(found.texts[at])}"


def _rows(found: Divergence, place: int) -> Html:
    apart, one = found.disagreements(place), found.models[place]
    rows = []
    for number, at in enumerate(apart):
        own = f'<b id="{_id(found, place, at, "r")}">{number + 1}</b>'
        following = apart[number + 1] if number + 1 < len(apart) else apart[0]
        links = (
            f'<a style="{_LINK}" href="#{_id(found, place, at, "t")}" title="in the text">↑ {at + 1:,}</a> '
            f'<a style="{_LINK}" href="#{_id(found, place, following, "r")}" title="next disagreement">next ↓</a>'
        )
        before = neutralise("".join(found.texts[max(0, at - _CONTEXT) : at]))
        rows.append(
            (
                Html(own),
                Html(f'<span style="white-space:nowrap">{links}</span>'),
                join("…", before, " ", Html("<b>"), quoted(found.texts[at]), Html("</b>")),
                compared_html(found.base.tokens[at]),
                compared_html(one.tokens[at]),
                f"{one.tokens[at].kld:.3f}",
                f"{one.tokens[at].rank:,}",
            )
        )
    head = ("", "token", "the text here", short_name(found.base.model), short_name(one.model), "KLD", "rank")
    return table(head, rows, "rlllLrr".lower())


def compared_html(token: ForcedToken) -> Html:
    """Return the likeliest tokens of a place, one in a line."""
    rows = "<br>".join(escape(f"{quoted(other.text)} {format_probability(other.logprob)}") for other in token.top)
    return Html(f'<span style="white-space:nowrap">{rows}</span>')


def place_html(found: Divergence, place: int, at: int) -> str:
    """Return one place of the text as HTML: what is around it, and both lists.

    Parameters
    ----------
    place
        Number of the model.
    at
        Number of the token.
    """
    one = found.models[place]
    token = one.tokens[at]
    around = [escape(neutralise("".join(found.texts[max(0, at - 40) : at])))]
    around.append(f"<mark>{escape(neutralise(found.texts[at])) or '⋯'}</mark>")
    around.append(escape(neutralise("".join(found.texts[at + 1 : at + 20]))))
    said = "disagree" if at in found.disagreements(place) else "agree"
    rows = [(compared_html(found.base.tokens[at]), compared_html(token))]
    return page(
        heading(f"token {at + 1:,} of {len(found.tokens):,}", f"{said} · KLD {token.kld:.3f} · rank {token.rank:,}"),
        _block(Html("".join(around))),
        table((short_name(found.base.model), short_name(one.model)), rows),
    )


def _legend(what: str, levels: _Levels) -> Html:
    items = " · ".join(
        f'<span style="white-space:nowrap;{look};{_COMMON}">{escape(words)}</span>'
        for _, words, look in reversed(levels)
    )
    return Html(f'<div style="margin:.3em 0;color:var(--jp-ui-font-color2,#6b6b6b)">{escape(what)}: {items}</div>')
