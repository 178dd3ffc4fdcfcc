r"""Which LaTeX from a model may be typeset.

JupyterLab hands the text of HTML outputs to MathJax, and MathJax's macros reach the page: ``\href``
makes links, ``\style``, ``\class`` and ``\cssId`` set attributes, ``\require`` loads code, ``\def``
builds any of them. So everything is closed to MathJax, and only what consists of the macros named
here is opened again.
"""

from __future__ import annotations

import html
import re

__all__ = ["ENVIRONMENTS", "MACROS", "find_display_end", "find_inline", "safe_tex", "typeset"]

#: Longest formula that is typeset, in characters.
MAX_LENGTH = 4000
_MAX_DEPTH = 60

MACROS: frozenset[str] = frozenset(
    """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa varkappa lambda mu nu xi omicron pi
    varpi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega digamma Gamma Delta Theta Lambda Xi Pi Sigma
    Upsilon Phi Psi Omega aleph beth gimel hbar hslash ell imath jmath wp Re Im partial nabla infty emptyset
    varnothing angle measuredangle triangle square Box Diamond diamond lozenge star bigstar prime backprime degree
    sum prod coprod int iint iiint oint bigcup bigcap bigsqcup bigvee bigwedge bigoplus bigotimes bigodot biguplus
    pm mp times div cdot ast circ bullet cap cup setminus smallsetminus wr oplus ominus otimes oslash odot dagger
    ddagger amalg uplus sqcap sqcup vee wedge lor land lnot neg top bot bigcirc ltimes rtimes boxplus boxtimes
    leq le geq ge neq ne lt gt leqslant geqslant ll gg lll ggg equiv sim simeq approx approxeq cong propto asymp
    doteq models vdash dashv Vdash vDash prec succ preceq succeq subset supset subseteq supseteq subsetneq supsetneq
    sqsubseteq sqsupseteq in ni notin owns mid nmid parallel nparallel perp not coloneqq triangleq because therefore
    forall exists nexists complement lhd rhd unlhd unrhd bowtie between
    leftarrow rightarrow leftrightarrow Leftarrow Rightarrow Leftrightarrow longleftarrow longrightarrow
    longleftrightarrow Longleftarrow Longrightarrow Longleftrightarrow uparrow downarrow updownarrow Uparrow
    Downarrow Updownarrow mapsto longmapsto hookleftarrow hookrightarrow to gets iff implies impliedby nearrow
    searrow swarrow nwarrow rightharpoonup rightharpoondown leftharpoonup leftharpoondown rightleftharpoons leadsto
    rightsquigarrow twoheadrightarrow xrightarrow xleftarrow
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth exp log ln lg lim limsup liminf sup inf max min
    arg det dim gcd hom ker deg Pr bmod pmod mod pod operatorname limits nolimits
    frac dfrac tfrac cfrac binom dbinom tbinom sqrt root over choose atop stackrel overset underset substack
    overline underline overbrace underbrace overrightarrow overleftarrow overleftrightarrow
    hat widehat check tilde widetilde acute grave dot ddot dddot breve bar vec mathring boxed cancel bcancel xcancel
    mathrm mathbf mathit mathsf mathtt mathcal mathscr mathfrak mathbb mathnormal boldsymbol bm pmb rm bf it cal
    text textbf textit textrm textsf texttt textnormal mbox operatorname displaystyle textstyle scriptstyle
    scriptscriptstyle mathop mathbin mathrel mathord mathopen mathclose mathpunct mathinner
    left right middle big Big bigg Bigg bigl bigr bigm Bigl Bigr Bigm biggl biggr biggm Biggl Biggr Biggm
    lbrace rbrace lbrack rbrack langle rangle lfloor rfloor lceil rceil vert Vert lvert rvert lVert rVert backslash
    lgroup rgroup ulcorner urcorner llcorner lrcorner uparrow downarrow
    quad qquad enspace thinspace medspace thickspace negthinspace space nobreakspace phantom hphantom vphantom
    ldots cdots vdots ddots dots dotsc dotsb dotsm dotsi dotso colon And S P
    begin end hline nonumber notag color textcolor qed blacksquare checkmark copyright pounds
    """.split()
)

ENVIRONMENTS: frozenset[str] = frozenset(
    """
    equation align aligned alignat alignedat gather gathered multline split cases dcases rcases array subarray matrix
    pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix
    """.split()
)

_SYMBOLS = frozenset(" \n\t,;:!>{}|\\_&%#'\"^~`=.-+/@$")
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.|\n|\Z)|[{}$%`]", re.DOTALL)
_ENVIRONMENT = re.compile(r"\s*\{([A-Za-z]+)\*?\}")
_COLOUR = re.compile(r"\s*\{(?:[A-Za-z]{1,20}|#[0-9A-Fa-f]{3,8})\}")
_ROW_GAP = re.compile(r"\s*\[(?!\s*-?\d{0,2}(?:\.\d+)?\s*(?:em|ex|pt|mm|px)\s*\])")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_WINDOW = 2000


def safe_tex(tex: str) -> str | None:
    r"""Return the formula as it may be given to MathJax, or None where it may not.

    Every macro and environment must be a known one, braces must pair, and nothing in it may
    open or close maths. A bare ``%`` (to TeX a comment) is escaped.

    >>> safe_tex(r"\frac{1}{2}")
    '\\frac{1}{2}'
    >>> safe_tex(r"\href{javascript:alert(1)}{x}") is None
    True
    """
    tex = tex.strip()
    if not tex or len(tex) > MAX_LENGTH:
        return None
    depth = 0
    percents: list[int] = []
    for match in _TOKEN.finditer(tex):
        sign = match.group()
        if sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
        elif sign == "%":
            percents.append(match.start())
        elif not _known(sign, tex, match.end()):
            return None
        if not 0 <= depth <= _MAX_DEPTH:
            return None
    if depth:
        return None
    for at in reversed(percents):
        tex = f"{tex[:at]}\\{tex[at:]}"
    return tex


def _known(sign: str, tex: str, end: int) -> bool:
    if sign in "$`" or len(sign) < 2:
        return False
    name = sign[1:]
    if not name[0].isascii() or not name[0].isalpha():
        if name == "\\" and _ROW_GAP.match(tex, end):
            return False
        return name in _SYMBOLS
    if name in ("begin", "end"):
        match = _ENVIRONMENT.match(tex, end)
        return match is not None and match.group(1) in ENVIRONMENTS
    if name in ("color", "textcolor"):
        return _COLOUR.match(tex, end) is not None
    return name in MACROS


def typeset(tex: str, *, display: bool) -> str:
    """Return HTML that MathJax typesets; `tex` must come from `safe_tex`."""
    inside = html.escape(tex, quote=False)
    mark = 'class="mathjax_process tex2jax_process"'
    if display:
        return f'<span {mark} style="display:block;overflow-x:auto;overflow-y:hidden">\\[{inside}\\]</span>'
    return f"<span {mark}>\\({inside}\\)</span>"


def find_inline(text: str, start: int, stop: int) -> tuple[str, int, bool] | None:
    r"""Find maths that opens at `start`: its LaTeX, where it ends, and whether it is display maths.

    ``\(…\)`` and ``\[…\]`` are always maths. ``$…$`` is maths by Pandoc's rule, so that amounts of
    money stay text: no space after the first sign nor before the last, and no digit after it. What
    starts with a digit and holds words is money too.
    """
    stop = min(stop, start + _WINDOW)
    pair = text[start : start + 2]
    if pair in ("\\(", "\\["):
        closing = "\\)" if pair == "\\(" else "\\]"
        end = _closing(text, start + 2, stop, closing)
        return None if end < 0 else (text[start + 2 : end], end + 2, pair == "\\[")
    if pair == "$$":
        end = _closing(text, start + 2, stop, "$$")
        return None if end <= start + 2 else (text[start + 2 : end], end + 2, True)
    if pair[:1] != "$" or not pair[1:].strip() or (start and text[start - 1] == "$"):
        return None
    end = _closing(text, start + 1, stop, "$")
    if end < 0 or text[end - 1].isspace() or text[end + 1 : end + 2].isdigit():
        return None
    tex = text[start + 1 : end]
    if "\n\n" in tex or "`" in tex or (tex[0].isdigit() and _PROSE.search(tex)):
        return None
    return tex, end + 1, False


def _closing(text: str, start: int, stop: int, closing: str) -> int:
    """Return where `closing` stands, stepping over escaped characters; -1 where it does not."""
    at = start
    if text.find(closing, start, stop) < 0:
        return -1
    while at < stop:
        if text.startswith(closing, at) and at + len(closing) <= stop:
            return at
        at += 2 if text[at] == "\\" else 1
    return -1


def find_display_end(line: str) -> tuple[str, str] | None:
    r"""Return what opens and what closes display maths that starts this line, or None.

    An environment's own ``\begin`` and ``\end`` are part of the formula, the other signs are not.
    """
    if line.startswith("$$"):
        return "$$", "$$"
    if line.startswith("\\["):
        return "\\[", "\\]"
    if line.startswith("\\begin"):
        match = _ENVIRONMENT.match(line, len("\\begin"))
        if match and match.group(1) in ENVIRONMENTS:
            return "", "\\end" + match.group().strip()
    return None
