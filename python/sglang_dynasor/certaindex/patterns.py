"""Answer formats, and the check of the pattern that comes with one."""

from __future__ import annotations

import re
from functools import lru_cache

import regex

ANSWER_FORMATS = ("boxed", "number", "choice", "regex", "json", "code", "text")
MAX_PATTERN_LENGTH = 256

# The regex package compiles x{1000} into 1,000 copies of x, and nested counts multiply: sixteen
# characters can take gigabytes. Pattern length times counts bounds the copies (about 10 MB).
_MAX_PATTERN_EXPANSION = 100_000
_REPEAT_COUNT = re.compile(r"\{([0-9]+)")
# Verbose mode lets blanks and comments split a count, which would hide it from the bound.
_VERBOSE_FLAG = re.compile(r"\(\?[A-Za-z0-9-]*x")


def check_pattern(answer_format: str, pattern: str | None) -> None:
    """Raise ValueError where `answer_format` is unknown or `pattern` does not fit it.

    regex needs a pattern that compiles, of at most MAX_PATTERN_LENGTH characters; json needs a
    field name or dotted path; the other formats take none.
    """
    if answer_format not in ANSWER_FORMATS:
        allowed = ", ".join(ANSWER_FORMATS)
        raise ValueError(f"answer_format must be one of {allowed}, not {answer_format!r}")
    if answer_format not in ("regex", "json"):
        if pattern is not None:
            raise ValueError(f"answer_pattern must be absent for answer_format {answer_format!r}")
        return
    if not pattern or len(pattern) > MAX_PATTERN_LENGTH:
        what = "a regular expression" if answer_format == "regex" else "a field name or dotted path"
        raise ValueError(
            f"answer_pattern must be {what} of 1 to {MAX_PATTERN_LENGTH} characters "
            f"for answer_format {answer_format!r}"
        )
    if answer_format == "regex":
        compiled_pattern(pattern)
    elif not all(pattern.split(".")):
        raise ValueError(f"answer_pattern must be a field name or dotted path, not {pattern!r}")


@lru_cache(maxsize=64)
def compiled_pattern(pattern: str) -> regex.Pattern[str]:
    """Compile a client's regular expression; raises ValueError where that is no good idea."""
    expansion = len(pattern)
    for count in _REPEAT_COUNT.findall(pattern):
        expansion *= max(int(count), 1)
    if expansion > _MAX_PATTERN_EXPANSION:
        raise ValueError("answer_pattern must not repeat so often: lower its {n} counts")
    if _VERBOSE_FLAG.search(pattern):
        raise ValueError("answer_pattern must not switch on verbose mode (?x)")
    try:
        return regex.compile(pattern, cache_pattern=False)
    except (regex.error, ValueError, RecursionError) as error:
        raise ValueError(f"answer_pattern must be a regular expression: {error}") from error
