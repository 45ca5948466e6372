"""Choice answers: the lettered option that a text picks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sglang_dynasor.certaindex import choice_words as words
from sglang_dynasor.certaindex.boxed import boxed_answers

# Full-width letters and marks.
_PLAIN = {0xFF21 + n: chr(ord("A") + n) for n in range(26)}
_PLAIN |= {0xFF41 + n: chr(ord("a") + n) for n in range(26)}
_PLAIN[0x130] = "I"  # the only letter whose lower case is longer
_PLAIN |= {0xFF08: "(", 0xFF09: ")", 0xFF1A: ":", 0xFF0E: ".", 0xFF0C: ",", 0xFF1D: "="}
_PLAIN |= {0x3002: ".", 0xFF01: "!", 0xFF1F: "?"}

# Each candidate is looked at closely; answers sit among the last few.
_MAX_CANDIDATES = 100

_STOP = r"\w.!?;\\"
_GAP = rf"[^{_STOP}\n]{{0,8}}+"
# Only behind a colon may the letter stand on a line of its own.
_LAST_GAP = rf"[^{_STOP}\n:]{{0,8}}+(?::[^{_STOP}]{{0,12}}+)?"
_TEX_TEXT = r"\\(?:text\w{0,2}|math\w{2}|mbox)\s?\{\s?"
_OPENING = rf"(?:{_TEX_TEXT}|\\[(\[] ?|\(){{0,3}}"
_BRIDGE = rf"(?:{_GAP}{words.FILLER}){{0,6}}+{_LAST_GAP}{_OPENING}"
_WORD_CHARACTER = words.WORD_CHARACTER
# The lookbehinds come last: a search skips what is no such letter.
_LETTER = rf"([%s])(?<![{_WORD_CHARACTER}].)(?<!\w['\u2019].)(?![{_WORD_CHARACTER}]|['\u2019]\w)"
_CAPITAL, _EITHER_CASE = _LETTER % "A-J", _LETTER % "A-Ja-j"
_CLOSING = r"[)\]}*\"'$\u201d\u2019\u300d]{0,4}"

_OPENED = re.compile(
    rf"[\s*_>\"'$(\[]{{0,8}}{_OPENING}{_EITHER_CASE}"
    rf"(?:{_CLOSING}(?:[.):](?! (?:is|was|seems|looks|would|might|may|can)\b)|,(?!\s*[A-J]\b)"
    r"|\s+[-\u2013\u2014]\s)|[^\w\n]*(?:\n|\Z))"
)
_LETTERED_LINE = re.compile(r"^\W{0,6}([A-Ja-j])[.):]", re.MULTILINE)
_BEHIND_CUE = re.compile(rf"(?!(?<=[{_WORD_CHARACTER}])[{_WORD_CHARACTER}]){_BRIDGE}{_EITHER_CASE}")
_ANSWER_CUE, _PICK_CUE, _OPTION_CUE = (
    re.compile(cue) for cue in (words.ANSWER_CUE, words.PICK_CUE, words.OPTION_CUE)
)
_CONFIRMED = re.compile(rf"{_CAPITAL}{_CLOSING}(?:{words.CONFIRMED_AFTER})")
_IN_PARENTHESES = re.compile(rf"\((?<![\w\\].){_CAPITAL}\)")
_SMALL_IN_PARENTHESES = re.compile(rf"\((?<![\w\\].){_EITHER_CASE}\)")
_AT_AN_END = re.compile(rf"{_CAPITAL}(?<![.'\u2019].)(?:[.)*]|\s*+$)")
_NO_CUE = re.compile(rf"[{_WORD_CHARACTER}]{{2}}$|(?i:{words.WRONG})\s.$")
_LONE_CAPITAL = re.compile(_CAPITAL)

_TEX_DRESS = re.compile(r"\\(?:text\w{0,2}|math\w{2}|mbox|q?quad|[ ,:;!])|[{}$*]")
_BOXED = re.compile(
    rf"\s*(?:(?i:option|choice|answer)[\s:]*)?\(?\s*{_EITHER_CASE}"
    r"(?:\s*\)|[.:](?=\s)|\s*\Z|\s+[\u2013\u2014]|\s+(?=[A-Za-z]{2})|(?=\s*,\s*[A-J]))"
)
_FORMULA_BEFORE = re.compile(
    r"(?:[+/^_=\u00d7\u00f7\u00b7<]|(?<!\*)\*|(?<![=-])>|\d-|\w - |\w\("
    r"|\\(?!text|math|mbox|q?quad)[A-Za-z]+[ {]{0,2})[ \t$]*$"
)
_FORMULA_AFTER = re.compile(
    r"[ \t$]*(?:[=+^/<>\u00d7\u00f7\u2264\u2265\u2260\u2248\u2208\u2261\u00b7](?!/)"
    r"|\\(?!text|math|mbox|q?quad)[A-Za-z]|-[ \t](?!a[ \t])[A-Za-z](?![A-Za-z]))"
    r"|-[A-Za-z0-9]|\.[A-Za-z]|\*[A-Za-z0-9]| \* |\([^()]{1,20}\)"
)
_NOUN = re.compile(rf"[ \t]+(?!{words.FUNCTION_WORD}\b)[^\W\d_]+")
_ANOTHER = (
    r"[)\s*]*(?:,|、|&|\b(?:and|or|und|oder|y|o|et|ou)\b|和|或)(?:\s*(?:and|or|und|et|y)\b)?[(\s*]*"
    rf"{_CAPITAL}"
)
_MORE = re.compile(
    rf"(?:{_ANOTHER.replace('([A-J])', '[A-J]')}){{1,9}}(?=[)\s*$}}\]]*(?:[.;\n]|\Z))"
)
_REJECTED_BEFORE = re.compile(
    rf"{words.REJECTED_BEFORE}[ \t(\"'*$]*(?:(?i:the|option|choice|answer|die|la)\s+){{0,2}}"
    r"[ \t(\"'*$]*$"
)
_REJECTED_AFTER = re.compile(rf"{_CLOSING}(?:{words.REJECTED_AFTER})")


def last_choice(text: str) -> str:
    """Return the option that `text` picks, "A" to "J", or "" where it picks none.

    The most explicit statement counts: a box, "the answer is", "I choose", a letter in parentheses,
    a lone letter. Letters of formulas, articles, pronouns and options called wrong are no picks;
    several letters ("A and C") are one answer, "A, C".
    """
    text = text if text.isascii() else text.translate(_PLAIN)
    return (
        _boxed_choice(text)
        or _cued_choice(text, _ANSWER_CUE)
        or _opening_choice(text)
        or _cued_choice(text, _PICK_CUE)
        or _last_pick(text, _CONFIRMED.finditer(text))
        or _cued_choice(text, _OPTION_CUE)
        or _last_pick(text, _IN_PARENTHESES.finditer(text))
        or _last_pick(text, _AT_AN_END.finditer(text))
        or _last_pick(text, _SMALL_IN_PARENTHESES.finditer(text))
        or _only_capital(text)
    )


def _boxed_choice(text: str) -> str:
    contents = [_TEX_DRESS.sub(" ", box) for box in boxed_answers(text)]
    found = ((content, _BOXED.match(content)) for content in contents)
    picks = {_pick(content, match) for content, match in found if match}
    return ", ".join(sorted(picks - {""}))


def _opening_choice(text: str) -> str:
    """The letter that the text begins with, unless it begins by listing the options."""
    match = _OPENED.match(text)
    if match is None or len(set(_LETTERED_LINE.findall(text))) > 1:
        return ""
    return _pick(text, match)


def _cued_choice(text: str, cue: re.Pattern[str]) -> str:
    cues = list(cue.finditer(text.lower()))[-_MAX_CANDIDATES:]
    found = (_BEHIND_CUE.match(text, match.end()) for match in cues if _is_cue(text, match))
    return _last_pick(text, filter(None, found))


def _is_cue(text: str, match: re.Match[str]) -> bool:
    """Whether a match is a word of its own and about the right answer, not a wrong one."""
    before = text[max(0, match.start() - 16) : match.start() + 1]
    return not _NO_CUE.search(before)


def _only_capital(text: str) -> str:
    last_line = text.rstrip().rpartition("\n")[2]
    candidates = list(_LONE_CAPITAL.finditer(last_line))[-_MAX_CANDIDATES:]
    picks = {_pick(last_line, match) for match in candidates} - {"", "I"}
    return picks.pop() if len(picks) == 1 else ""


def _last_pick(text: str, candidates: Iterable[re.Match[str]]) -> str:
    last = reversed(list(candidates)[-_MAX_CANDIDATES:])
    return next(filter(None, (_pick(text, match) for match in last)), "")


def _pick(text: str, match: re.Match[str]) -> str:
    """The letter of `match`, "" where what stands around it makes it none."""
    start, end = match.span(1)
    before, after = text[max(0, start - 32) : start], text[end : end + 64]
    is_bare = match.start() == start
    if _FORMULA_AFTER.match(after) or (is_bare and _FORMULA_BEFORE.search(before)):
        return ""
    if _REJECTED_AFTER.match(after) or _REJECTED_BEFORE.search(before):
        return ""
    more = _MORE.match(after)
    if more is not None:
        return ", ".join(sorted({match[1], *_LONE_CAPITAL.findall(more[0])}))
    may_be_word = match[1] not in "BCDEFGHJ"  # an article, a pronoun
    return "" if may_be_word and _NOUN.match(after) else match[1].upper()
