from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import ANSWER_FORMATS, extract_answer

reproducible = settings(derandomize=True, deadline=None, max_examples=300)
PATTERNS = {"regex": r"(\d+)", "json": "answer"}


def answer_of(text: str, answer_format: str) -> str:
    return extract_answer(text, answer_format, PATTERNS.get(answer_format))


@pytest.mark.parametrize(
    ("answer_format", "text", "answer"),
    [
        ("boxed", r"\boxed{1}</think>It is \boxed{2}", "2"),
        ("boxed", r"\boxed{1}</think>It is 2", "1"),
        ("boxed", r"\boxed{1}</think>\boxed{2}</think>\boxed{3}", "3"),
        ("boxed", r"\boxed{1}</think>\boxed{2}</think>It is 3", "2"),
        ("number", "maybe 7</think>It is 8", "8"),
        ("number", "It is 8 </think> as said", "8"),
        ("number", r"\boxed{7}</think>It is 8", "8"),
        ("choice", "answer is (A)</think>(B)", "B"),
        ("regex", "7</think>8", "8"),
        ("json", '{"answer": 1}</think>{"answer": 2}', "2"),
        ("code", "```\na\n```\n</think>\n```\nb\n```", "b"),
        ("text", "  as it is \n", "as it is"),
        ("text", "thought</think> said ", "said"),
        ("text", "thought</think>", ""),
    ],
)
def test_what_follows_the_thought_goes_before_what_is_in_it(
    answer_format: str, text: str, answer: str
) -> None:
    assert answer_of(text, answer_format) == answer


@pytest.mark.parametrize(
    ("answer_format", "draft"),
    [
        ("boxed", r"Maybe \boxed{3}. Hmm, no"),
        ("number", "Maybe 3. Hmm"),
        ("choice", "The answer is C. Hmm"),
        ("regex", "3"),
        ("json", '{"answer": 3}'),
        ("code", "```\na\n```"),
        ("text", "so far"),
    ],
)
def test_a_thought_that_was_never_closed_is_a_draft(answer_format: str, draft: str) -> None:
    concluded = answer_of(draft, answer_format)
    assert concluded
    assert answer_of(f"<think>{draft}", answer_format) == ""
    assert answer_of(f"<think>a</think><think>{draft}", answer_format) == ""
    assert answer_of(f"<think>{draft}<think>", answer_format) == ""
    assert answer_of(f"<think>a</think>{draft}<think>{draft}", answer_format) == concluded


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        ("id ([0-9]+)", "id 17, id 23", "23"),
        ("id ([0-9]+)", "nothing", ""),
        (r"x=(\d+)", "x=1 x=2", "2"),
        (r"x=\d+", "x=1 x=2", "x=2"),
        (r"x=(\d)?y", "x=1y x=y", "1"),
        (r"\d*", "12 a", "12"),
    ],
)
def test_a_client_pattern_gives_its_first_group_or_the_whole_last_match(
    pattern: str, text: str, answer: str
) -> None:
    assert extract_answer(text, "regex", pattern) == answer


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(?:a*)*b|(?R)"])
def test_a_catastrophic_client_pattern_gives_no_answer(pattern: str) -> None:
    assert extract_answer("a" * 50_000 + "c", "regex", pattern, time_limit_s=0.01) == ""


HOSTILE_UNITS = {
    "boxed": [
        *("\\boxed{", "{", "\\boxed" + " " * 99, "\\", "}", "x}", "\\boxed 2", "\\boxed{1}"),
        *("\\boxed{1} and ", "not ", "\\boxed\\frac{", "{}"),
    ],
    "number": [
        *(
            "1",
            "1,111",
            " 111",
            "'000",
            "1 /",
            "-",
            "\\frac{",
            "\\sqrt{",
            "1e",
            "a1",
            "1.",
            "1.111",
        ),
        *("12{,}", "1 1/", "2^{", "^{", "-$", "=- ", "\\,", "1:", "1_", "####", "#### 1", "\u03c0"),
    ],
    "choice": [
        *("answer ", "A ", "A, ", "A and ", "A is ", "(", "answer is (\\text{", "A'", " ", "\n"),
        *("answer: ", "best option ", "\u7b54\u6848\u662f", "B.\n", "\\boxed{A}", "$"),
    ],
    "json": [
        *(
            "{",
            '{"a":',
            "{}",
            '{"',
            '{"a": 1,',
            '"\\"',
            "{ ",
            '"',
            "'",
            "\\",
            ",",
            '": ',
            '{"a": "',
        ),
        *('{"a": 1}', '{"answer": "\\f"', '", ', ': "a", '),
    ],
    "code": ["```\n", "`", "```a", "\n", "~~~\n", "~", "- ", " ", "- ```\n"],
    "text": [" ", "a"],
    "regex": ["1", "1a"],
}


@pytest.mark.parametrize(
    ("answer_format", "unit"),
    [(answer_format, unit) for answer_format, units in HOSTILE_UNITS.items() for unit in units],
)
def test_a_hostile_text_of_fifty_thousand_characters_is_read(answer_format: str, unit: str) -> None:
    """Guards against superlinear extraction: a quadratic one takes minutes, a linear one 0.1 s."""
    text = unit * (50_000 // len(unit))
    started = process_time()
    answer_of(text, answer_format)
    answer_of(text[:40_000] + "}" * 10_000, answer_format)
    assert process_time() - started < 3


@pytest.mark.parametrize(
    ("answer_format", "answer", "spelling"),
    [
        ("boxed", "4", r"\boxed{4}"),
        ("number", "4", "4"),
        ("choice", "D", "The answer is D."),
        ("json", "4", '{"answer": 4}'),
        ("code", "a", "\n```\na\n```\n"),
    ],
)
def test_the_end_of_a_text_without_end_is_read(
    answer_format: str, answer: str, spelling: str
) -> None:
    assert answer_of("I see. " * 300_000 + spelling, answer_format) == answer


@reproducible
@given(
    st.sampled_from(ANSWER_FORMATS),
    st.lists(
        st.sampled_from(
            ["\\boxed{", "{", "}", "\\", '"answer":', '"', "1", "A", "(", ")", " ", "\n", "```"]
        )
        | st.sampled_from(
            ["</think>", "<think>", "answer is", ".", ",", "/", "-", "\\frac{1}{2}", "[", "]"]
        )
        | st.sampled_from(
            ["\\boxed 2", "####", "^", "\u00e9", "\uff21", "\u7b54\u6848", "'", "~~~"]
        ),
        max_size=25,
    ).map("".join)
    | st.text(max_size=40),
)
def test_every_text_gives_an_answer_without_blanks_at_its_ends(
    answer_format: str, text: str
) -> None:
    answer = answer_of(text, answer_format)
    assert answer_format == "code" or answer == answer.strip()
