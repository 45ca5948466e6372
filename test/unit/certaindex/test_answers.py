from __future__ import annotations

import json

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
        ("boxed", r"So \boxed{42}.", "42"),
        ("boxed", r"\boxed{1} no: \boxed{2}", "2"),
        ("boxed", r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("boxed", r"\boxed{7} and then \boxed{8", "7"),
        ("boxed", r"\boxed{7 and then \boxed{8}", "8"),
        ("boxed", r"\boxed{x = \boxed{5}}", "5"),
        ("boxed", r"\fbox{3}", "3"),
        ("boxed", r"\boxed {3}", "3"),
        ("boxed", r"\boxed{9}, as asked in \boxed{}", "9"),
        ("boxed", "\\boxed{a\n  b}", "a b"),
        ("boxed", r"} stray } \boxed{3}", "3"),
        ("boxed", "no box, 42", ""),
        ("number", "first 3, then 4.", "4"),
        ("number", "It costs $1,234.50 in all.", "1,234.50"),
        ("number", "the sum is -7", "-7"),
        ("number", "the sum is \u22127", "\u22127"),
        ("number", "between 10-20", "20"),
        ("number", "odds of 3/4.", "3/4"),
        ("number", r"equals -\frac{3}{4}$", r"-\frac{3}{4}"),
        ("number", "about .5 of them", ".5"),
        ("number", "one of 1,2,3", "3"),
        ("number", "6.02e23 of x2 and H2O", "6.02e23"),
        ("number", "none", ""),
        ("choice", "The answer is (C).", "C"),
        ("choice", "**Answer:** B", "B"),
        ("choice", "answer is (b)", "B"),
        ("choice", r"The answer is $\text{(D)}$", "D"),
        ("choice", r"\boxed{\text{(C)}}, so not option A", "C"),
        ("choice", "The answer is C. Option D is wrong, (A) too.", "C"),
        ("choice", "The correct option is D, unlike (A).", "D"),
        ("choice", "first (A), rather (E)", "E"),
        ("choice", "C.", "C"),
        ("choice", "B", "B"),
        ("choice", "the answer is a triangle", ""),
        ("choice", "I'd say A's cat", ""),
        ("regex", "id 17, id 23", "23"),
        ("regex", "nothing", ""),
        ("json", 'Result: {"answer": 5}', "5"),
        ("json", '{"answer": 1} then {"answer": "two "}', "two"),
        ("json", '{"answer": 5, "inner": {"answer": 6}}', "5"),
        ("json", '{"answer": 1.50}', "1.50"),
        ("json", '{"answer": true}', "true"),
        ("json", '{"answer": [1, {"b": null}]}', '["1", {"b": null}]'),
        ("json", '{"answer": "{"} and {x}', "{"),
        ("json", 'set { x } and { "answer": "}" } or }', "}"),
        ("json", '{"answer": 3} ' + "{x}" * 500, "3"),
        ("json", '{"other": 5}', ""),
        ("json", '{"answer": null}', ""),
        ("json", '{"answer": 5', ""),
        ("code", "```python\na = 1\n```\nor\n```\nif a:\n    b()\n```\nDone.", "if a:\n    b()"),
        ("code", "```\ndone\n```\n```python\ncut off", "done"),
        ("code", "```\ncut off\n```python\ndone\n```", "done"),
        ("code", "no fence", ""),
        ("text", "  as it is \n", "as it is"),
    ],
)
def test_the_last_answer_in_the_format_is_extracted(
    answer_format: str, text: str, answer: str
) -> None:
    assert answer_of(text, answer_format) == answer


@pytest.mark.parametrize(
    ("answer_format", "text", "answer"),
    [
        ("boxed", r"\boxed{1}</think>It is \boxed{2}", "2"),
        ("boxed", r"\boxed{1}</think>It is 2", "1"),
        ("boxed", r"\boxed{1}</think>\boxed{2}</think>\boxed{3}", "3"),
        ("number", "maybe 7</think>It is 8", "8"),
        ("number", "It is 8 </think> as said", "8"),
        ("choice", "answer is (A)</think>(B)", "B"),
        ("regex", "7</think>8", "8"),
        ("json", '{"answer": 1}</think>{"answer": 2}', "2"),
        ("code", "```\na\n```\n</think>\n```\nb\n```", "b"),
        ("text", "thought</think> said ", "said"),
        ("text", "thought</think>", ""),
    ],
)
def test_what_follows_the_thought_goes_before_what_is_in_it(
    answer_format: str, text: str, answer: str
) -> None:
    assert answer_of(text, answer_format) == answer


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
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


def test_a_json_field_may_be_a_dotted_path() -> None:
    assert extract_answer('{"result": {"value": 4}}', "json", "result.value") == "4"
    assert extract_answer('{"result": 4}', "json", "result.value") == ""


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(?:a*)*b|(?R)"])
def test_a_catastrophic_client_pattern_gives_no_answer(pattern: str) -> None:
    assert extract_answer("a" * 50_000 + "c", "regex", pattern, time_limit_s=0.01) == ""


@pytest.mark.parametrize(
    ("answer_format", "unit"),
    [
        *(("boxed", unit) for unit in ("\\boxed{", "{", "\\boxed" + " " * 99, "\\", "}")),
        *(("number", unit) for unit in ("1", "1,111", "1 /", "-", "\\frac{", "1e", "a1", "1.")),
        *(("choice", unit) for unit in ("answer ", "A ", "(", "answer is (\\text{", "A'", " ")),
        *(("json", unit) for unit in ("{", '{"a":', "{}", '{"', '{"a": 1,', '"\\"', "{ ")),
        *(("code", unit) for unit in ("```\n", "`", "```a", "\n")),
        *(("text", unit) for unit in (" ", "a")),
        *(("regex", unit) for unit in ("1", "1a")),
    ],
)
def test_a_hostile_text_of_a_hundred_thousand_characters_is_read(
    answer_format: str, unit: str
) -> None:
    """Guards against superlinear extraction: a quadratic one would run for minutes."""
    text = unit * (100_000 // len(unit))
    answer_of(text, answer_format)
    answer_of(text + "}" * 20_000, answer_format)


def test_a_text_full_of_broken_objects_is_parsed_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = []
    decode = json.JSONDecoder.decode

    def counted(decoder: json.JSONDecoder, text: str) -> object:
        attempts.append(text)
        return decode(decoder, text)

    monkeypatch.setattr(json.JSONDecoder, "decode", counted)
    assert answer_of('{"answer": 1} ' + '{"answer": !}' * 1000, "json") == ""
    assert 0 < len(attempts) <= 100


@reproducible
@given(
    st.sampled_from(ANSWER_FORMATS),
    st.lists(
        st.sampled_from(
            ["\\boxed{", "{", "}", "\\", '"answer":', '"', "1", "A", "(", ")", " ", "\n", "```"]
        )
        | st.sampled_from(
            ["</think>", "answer is", ".", ",", "/", "-", "\\frac{1}{2}", "\u00e9", "[", "]"]
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
