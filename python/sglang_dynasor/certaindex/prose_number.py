"""Number answers: the number that a text gives as its result."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sglang_dynasor.certaindex.boxed import boxed_answers
from sglang_dynasor.certaindex.numbers import NUMBER_PATTERN, exact_number, plain_spelling

# The last number of a text stands at its end; looking for it costs microseconds a character.
_MAX_PROSE_LENGTH = 20_000  # characters
# Digits in a name (x2, H2O), an exponent, an index or a footnote are no number of the text.
_OUTSIDE_NAMES = r"(?<![A-Za-z0-9_\u00c0-\u04ff^])(?<![A-Za-z0-9]\.)(?<![\w.)]\[)"
_DIGITS = r"[0-9]+(?:\.[0-9]+)?"
_ARGUMENT = r"\{(?:[^{}]|\{[^{}]{0,40}\}){0,40}\}"
_ROOT = (
    rf"(?:\\sqrt(?:\[[0-9]{{1,3}}\])? ?(?:{_ARGUMENT}|[0-9])"
    rf"|\u221a ?(?:{_DIGITS}|\([^()]{{1,40}}\)))"
)
_IRRATIONAL = rf"(?:{_DIGITS} ?)?(?:{_ROOT}|\\pi(?![A-Za-z])|\u03c0)(?: ?/ ?{_DIGITS})?"
# Each of these is kept as it is spelled, since a part of it is another number.
_WHOLES = "|".join(
    (
        rf"(?:{_DIGITS} ?[-+] ?)?{_IRRATIONAL}(?: ?[-+] ?(?:{_IRRATIONAL}|{_DIGITS}))?",
        rf"{_DIGITS}\^(?:\{{[^{{}}0-9-][^{{}}]{{0,40}}\}}|[A-Za-z])",  # a power of unknown size
        r"[0-9]+(?::[0-9]+)+",  # a time or a ratio
        r"[0-9][0-9A-F]*_(?:\{[0-9]+\}|[0-9]+)",  # a number in another base
        rf"{_DIGITS}(?: ?(?:hundred|thousand|million|billion|trillion|dozen)\b|[万萬亿億])",
        r"[0-9]*\.[0-9]+(?:\.\.\.|\u2026| ?\\[lc]?dots)",
        # A decimal comma or a pair, but no thousands.
        r"(?<![0-9],)(?![1-9][0-9]{0,2},[0-9]{3}(?![0-9]))[0-9]+,[0-9]+(?![0-9]|,[0-9])",
    )
)
_CURRENCY = r"(?:(?:US)?\\?[$\u20ac\u00a3\u00a5\u20b9] ?)"
# A bullet of a list is no sign, so only here may a blank follow.
_SPACED_MINUS = r"(?:(?<=[=$({])|(?<== ))-(?= )"
_SIGN = (
    rf"(?:(?P<sign>(?<![A-Za-z0-9_\u00c0-\u04ff)\]}}%])[-+](?! )|{_SPACED_MINUS}) ?{_CURRENCY}?)"
)
_NUMBER = re.compile(
    r"(?=[-+0-9.\\^_\u00bc-\u00be\u2150-\u215e\u221a\u03c0])"
    rf"(?:[\^_]\{{[^{{}}]{{0,40}}\}}"
    rf"|{_SIGN}?(?P<magnitude>{_OUTSIDE_NAMES}(?:{_WHOLES}|{NUMBER_PATTERN})"
    rf"|\\[dtc]?frac ?{_ARGUMENT} ?{_ARGUMENT}))"
)
# Of GSM8K; a heading of the fourth level goes on in words.
_ANSWER_MARK = re.compile(
    r"(?<!#)####(?!#)[ \t*$(:]*(?:(?i:(?:final )?answer)[ \t*$(:]*)?"
    r"(?=[-+\\0-9.$\u00a3\u20ac\u00bc-\u00be\uff10-\uff19\u2013\u2212])(?P<rest>[^\n]*)"
)
_HEADING = re.compile(r"[.):]\s*[^\W\d]")


def last_number(text: str) -> str:
    r"""Return the number that `text` gives, in its spelling, without currency and unit; or "".

    That is the number in its boxes, else behind its last `####`, else the last one of its last
    20,000 characters. What is no
    rational number is returned whole where it shows (`2\sqrt{3}`, `12:00`, `4210_5`, `3,14`).
    """
    boxed = [number for box in boxed_answers(text) if (number := _boxed_number(box))]
    return ", ".join(boxed) or _marked_number(text) or _last_in_prose(text)


def _boxed_number(content: str) -> str:
    result = content.rpartition("=")[2].strip()
    if exact_number(result) is not None:
        return result
    numbers = list(_numbers(result))
    return numbers[0] if len(numbers) == 1 else result if numbers else ""


def _marked_number(text: str) -> str:
    marked = ""
    for mark in _ANSWER_MARK.finditer(text):
        number = next(_numbers(mark["rest"]), "")
        if number and not _HEADING.match(mark["rest"].partition(number)[2]):
            marked = number
    return marked


def _last_in_prose(text: str) -> str:
    for line in reversed(text[-_MAX_PROSE_LENGTH:].splitlines()):
        *_, number = ["", *_numbers(line)]
        if number:
            return number
    return ""


def _numbers(line: str) -> Iterator[str]:
    for match in _NUMBER.finditer(plain_spelling(line)):
        if match["magnitude"]:
            start, end = match.span("magnitude")
            sign = line[slice(*match.span("sign"))] if match["sign"] else ""
            yield sign + line[start:end]
