r"""One spelling for what is typeset alike: Unicode signs as LaTeX, LaTeX without its dress."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = (
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f\u2071"
)
_SUBSCRIPTS = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089\u208a\u208b"
_RAISED = str.maketrans(_SUPERSCRIPTS, "0123456789+-ni")
_LOWERED = str.maketrans(_SUBSCRIPTS, "0123456789+-")
_RAISED_RUN = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED_RUN = re.compile(f"[{_SUBSCRIPTS}]+")
_VULGAR_FRACTION = re.compile("([0-9])?([\u00bc-\u00be\u2150-\u215e])")
# Of "\u221a23" all digits are under the root, as of a letter all: it has no bar that would say.
_UNICODE_ROOT = re.compile(
    r"([\u221a\u221b\u221c]) ?(?:(?P<radicand>[0-9]+(?:\.[0-9]+)?(?![0-9.]|[\w(\\]| [0-9(\\])"
    r"|[A-Za-z\u0391-\u03c9](?![\w(\\^!']))|(?=[({]))"
)
_ROOT_INDEX = {"\u221a": "", "\u221b": "[3]", "\u221c": "[4]"}

_SIGNS = {
    "\u2212\u2013\u2012\u2010\u2011\ufe63": "-",
    "\u00b7\u22c5\u2219\u2022": r"\cdot ",
    "\u00d7": r"\times ",
    "\u00f7\u2215\u2044": "/",
    "\u2264\u2a7d": r"\le ",
    "\u2265\u2a7e": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u221e": r"\infty ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u2205": r"\emptyset ",
    "\u2216": r"\setminus ",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u2026": r"\ldots ",
    "\u2218": r"\circ ",
    "\u230a": r"\lfloor ",
    "\u230b": r"\rfloor ",
    "\u2308": r"\lceil ",
    "\u2309": r"\rceil ",
    "\u27e8\u3008": r"\langle ",
    "\u27e9\u3009": r"\rangle ",
    "\u2032\u2019": "'",
    "\u00ba": "\u00b0",
    "\u3001\uff0c": ", ",
    "\u200b\u200c\u200d\u2060\ufeff": "",
    "\u2061\u2062\u2063": " ",
    "\u00b5": r"\mu ",
    "\u2206": r"\Delta ",
    "\u03f5": r"\epsilon ",
    "\u03d1": r"\vartheta ",
    "\u03d5": r"\phi ",
    "\u03a9": r"\Omega ",
}
_LATEX_OF = {ord(char): latex for chars, latex in _SIGNS.items() for char in chars}
_LATEX_OF |= {
    ord(char): rf"\mathbb{{{name}}}"
    for char, name in zip("\u211d\u2124\u211a\u2115\u2102", "RZQNC", strict=True)
}
for _code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA)):
    _case, _, _letter = (
        unicodedata.name(chr(_code), "").removeprefix("GREEK ").partition(" LETTER ")
    )
    _letter = _letter.removeprefix("FINAL ").replace("LAMDA", "LAMBDA")
    _LATEX_OF[_code] = rf"\{_letter.capitalize() if _case == 'CAPITAL' else _letter.lower()} "

# Commands that only dress their argument.
_BRACED = r"\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}"
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|sc|md|normal)?|math(?:rm|it|sf|tt|normal|bf)|boldsymbol|bm"
    rf"|mbox|hbox|boxed|fbox|emph|underline) ?{_BRACED}"
)
_DOLLAR = re.compile(r"(?:(?<!\\)\\)?\$")
_COMMAND_BEFORE = re.compile(r"\\[A-Za-z]{1,20}$")
_OPERATOR = re.compile(r"\\operatorname\*? ?\{([a-zA-Z]+)\}")
_SWITCHES = (
    (re.compile(r"\\(?:textcolor|colorbox|color) ?\{[^{}]*\} ?(?=\{)"), r"\\text"),
    (re.compile(r"\{ ?\\color ?\{[^{}]*\}"), r"\\text{"),
    (re.compile(r"\{ ?\\(?:bf|rm|it|sf|tt)(?![A-Za-z])"), r"\\text{"),
    (re.compile(r"\\(?:bf|rm|it|sf|tt) ?(?=\{)"), r"\\text"),
    (re.compile(r"\\color ?\{[^{}]*\}"), ""),
)
# Behind another backslash it is the end of a matrix row and what follows it.
_INVISIBLE = re.compile(
    r"\\(?:left|right|middle)(?![A-Za-z])(?: ?\.)?"
    r"|\\(?:[bB]igg?[lrm]?|(?:display|text|script)style|limits|bf|rm|it|sf|tt)(?![A-Za-z])"
    r"|(?<=[0-9])(?:\{,\}|,\\!|\\,|\{,\}\\!) ?(?=[0-9]{3}(?![0-9]))|(?<!\\)\\[!()\[\]$]"
)
_SPACE = re.compile(r"(?<!\\)\\[,;: >]|\\(?:q?quad|thinspace|space)(?![A-Za-z])|(?<!^)~")
_ENDS = r"[^\[\](),;]+[,;][^\[\](),;]+"  # of an interval, which are open in France as in ]0,1[
_SYNONYMS = tuple(
    (re.compile(synonym), standard)
    for synonym, standard in (
        (r"\\(?:[dtcs]|nice)frac(?![A-Za-z])", r"\\frac"),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\\(?:div|slash)(?![A-Za-z])", "/"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"(?<![A-Za-z\\])(?:[Ii]nfinity|oo|inf(?= ?[,)\]]))(?![A-Za-z])", r"\\infty "),
        (r"\\(?:Bbb ?\{R\}|mathbb R(?![A-Za-z])|R(?![A-Za-z])|reals(?![A-Za-z]))", r"\\mathbb{R}"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"^([^{}]*)\\choose(?![A-Za-z])([^{}]*)$", r"\\binom{\1}{\2}"),
        (
            r"[\[(] ?\\begin ?\{(array|matrix)\} ?(?:\{[clr| ]*\})?(.*)\\end ?\{\1\} ?[\])]",
            r"\\begin{pmatrix}\2\\end{pmatrix}",
        ),
        (r"\\\\ ?\[-?[0-9.]+ ?[a-z]{2}\]|\\cr(?![A-Za-z])", r"\\\\ "),
        (rf"(^|(?:\\in|\\cup|[=\u2208\u222a]) ?)\]({_ENDS})(?=[\[\])])", r"\1(\2"),
        (rf"([\[(]{_ENDS})\[(?= ?(?:$|\\cup|\u222a))", r"\1)"),
        (r"(?<=[A-Za-z0-9)])\*\*(?=[A-Za-z0-9(-])", "^"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\leq(?:slant|q)?(?![A-Za-z])|< ?=", r"\\le "),
        (r"\\geq(?:slant|q)?(?![A-Za-z])|> ?=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|! ?=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:cdots|dots[cbom]?)(?![A-Za-z])", r"\\ldots "),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])", "°"),
        (r"(?<=[0-9}) ])degrees?(?![A-Za-z])|(?<=[0-9]) ?deg(?![A-Za-z])", "°"),
        (r"\^ ?(?:\{ ?\\prime ?\}|\\prime(?![A-Za-z]))", "'"),
        (r"(?<!\\)\\%|(?<=[0-9}) ])per ?cent(?![A-Za-z])", "%"),
        (r"\{,\}", ","),
        (r"\\frac ?([0-9])([0-9])", r"\\frac{\1}{\2}"),
    )
)
_EMPHASIS = re.compile(r"(\*{1,3}|__?|`)(?=[^*_`\s])([^*`]*[^*`\s])\1")


def as_latex(text: str) -> str:
    """Return `text` with Unicode signs as ASCII LaTeX; nothing else changes."""
    if text.isascii():
        return text
    text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", text)
    text = _LOWERED_RUN.sub(lambda run: "_{" + run[0].translate(_LOWERED) + "}", text)
    text = _VULGAR_FRACTION.sub(_written_fraction, text)
    text = _UNICODE_ROOT.sub(_written_root, text)
    text = text.translate(_LATEX_OF)
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def _written_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[2]).partition("\u2044")
    return f"{match[1] or ''}\\frac{{{top}}}{{{bottom}}}"


def _written_root(match: re.Match[str]) -> str:
    root = rf"\sqrt{_ROOT_INDEX[match[1]]}"
    return f"{root}{{{match['radicand']}}}" if match["radicand"] else root


def undressed(text: str) -> str:
    """Return LaTeX without fonts, sizes, colours, spacing and dollars, of synonyms the shortest."""
    text = _DOLLAR.sub("", text)
    for switch, wrapper in _SWITCHES:
        text = switch.sub(wrapper, text)
    text = _OPERATOR.sub(r"\\\1 ", text)
    for _ in range(2):  # \text{\textbf{C}}: two layers occur, deeper ones only on purpose
        text = _WRAPPER.sub(_unwrapped, text)
    text = _INVISIBLE.sub("", text)
    text = _SPACE.sub(" ", text)
    for synonym, standard in _SYNONYMS:
        text = synonym.sub(standard, text)
    return text


def _unwrapped(match: re.Match[str]) -> str:
    glued = _COMMAND_BEFORE.search(match.string, 0, match.start()) and match[1][:1].isalpha()
    return " " * bool(glued) + match[1]


def without_emphasis(text: str) -> str:
    """Return `text` without Markdown emphasis around the whole of it."""
    match = _EMPHASIS.fullmatch(text)
    return match[2] if match is not None else text
