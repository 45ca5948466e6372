from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import MAX_PATTERN_LENGTH, check_pattern, extract_answer

reproducible = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.mark.parametrize(
    ("answer_format", "pattern", "field"),
    [
        ("box", None, "answer_format"),
        ("", None, "answer_format"),
        ("boxed", "x", "answer_pattern"),
        ("number", "", "answer_pattern"),
        ("regex", None, "answer_pattern"),
        ("regex", "", "answer_pattern"),
        ("regex", "(", "answer_pattern"),
        ("regex", "a" * (MAX_PATTERN_LENGTH + 1), "answer_pattern"),
        ("regex", "(?x)a", "answer_pattern"),
        ("json", None, "answer_pattern"),
        ("json", "a..b", "answer_pattern"),
        ("json", "a" * (MAX_PATTERN_LENGTH + 1), "answer_pattern"),
    ],
)
def test_an_unfit_format_or_pattern_is_refused_by_name(
    answer_format: str, pattern: str | None, field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        check_pattern(answer_format, pattern)
    with pytest.raises(ValueError, match=field):
        extract_answer("text", answer_format, pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "((a{1000}){1000}){1000}",
        "a{99999999}",
        "(?x)((a{1 0 0 0}){10#\n00})",
        "(((a{99}){99}){99})",
    ],
)
def test_a_pattern_that_would_compile_to_gigabytes_is_refused(pattern: str) -> None:
    """The regex package expands repeat counts: 23 characters took 2 GB before this bound."""
    with pytest.raises(ValueError, match="answer_pattern"):
        check_pattern("regex", pattern)


@pytest.mark.parametrize(
    "pattern", [r"answer: (\w+)", "a" * MAX_PATTERN_LENGTH, r"[0-9a-f]{8}-([0-9a-f]{4}-){3}\w{12}"]
)
def test_an_ordinary_pattern_is_allowed(pattern: str) -> None:
    check_pattern("regex", pattern)


@reproducible
@given(
    st.lists(
        st.sampled_from(["(", ")", "[", "]", "a", "1", "*", "+", "?", "|", "{9}", "{2,}", "\\d"])
        | st.sampled_from(
            ["(?:", "(?=", "(?R)", "(?P<n>", "\\1", "{e<=1}", "^", "$", "(?i)", "\\"]
        ),
        max_size=12,
    ).map("".join)
)
def test_any_client_pattern_is_either_refused_or_safe_to_use(pattern: str) -> None:
    try:
        check_pattern("regex", pattern)
    except ValueError as error:
        assert "answer_pattern" in str(error)
        return
    assert isinstance(extract_answer("ab1 " * 50, "regex", pattern, time_limit_s=0.005), str)
