from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import extract_answer

reproducible = settings(derandomize=True, deadline=None, max_examples=300)


def field_in(text: str) -> str:
    return extract_answer(text, "json", "answer")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('Result: {"answer": 5}', "5"),
        ('{ "answer" : 5 }', "5"),
        ('{\n"answer": 5}', "5"),
        ('{"answer": 1} then {"answer": "two "}', "two"),
        ('[{"answer": 1}, {"answer": 2}]', "2"),
        ('{"answer": 5, "inner": {"answer": 6}}', "5"),
        ('{"inner": {"answer": 6}}', "6"),
        ('{"answer": 1.50}', "1.50"),
        ('{"answer": true}', "true"),
        ('{"answer": [1, {"b": null}]}', '[1, {"b": null}]'),
        ('{"answer": ["1", 1.50, true]}', '["1", 1.50, true]'),
        ('{"answer": {"y": [1e400], "x": {"z": -0}}}', '{"x": {"z": -0}, "y": [1e400]}'),
        ('{"answer": 2} {"answer": ' + "[" * 5000 + "]" * 5000 + "}", "2"),
        ('{"other": 5}', ""),
        ('{"answer": null}', ""),
        ('{"answer": 5', ""),
        ('{"answer": 4} and {"answer": 5', "4"),
        ('{"answer": 4} and {"other": 5}', "4"),
        ('{"answer": 3} ' + "{x}" * 500, "3"),
    ],
)
def test_the_last_complete_object_with_the_field_is_read(text: str, answer: str) -> None:
    assert field_in(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"answer": "{"} and {x}', "{"),
        ('set { x } and { "answer": "}" } or }', "}"),
        ('It is {"hint": "put } at the end", "answer": 8} OK', "8"),
        ('First {"answer": 1}, last {"answer": 8, "hint": "one { only"}', "8"),
        ('{"hint": "{{{", "answer": 8}', "8"),
        ('{"hint": "a: \\"b\\", {c", "answer": 8}', "8"),
        ('Let S = {1, 2. So {"answer": 8}', "8"),
        ('He said "well. {"answer": 8}', "8"),
        ("It's {\"answer\": 8}, isn't it", "8"),
        ('{{"answer": 8}}', "8"),
        ('{"answer": 8}}', "8"),
    ],
)
def test_braces_and_quotes_around_and_in_strings_do_not_matter(text: str, answer: str) -> None:
    assert field_in(text) == answer


@pytest.mark.parametrize(
    "latex",
    [
        *(
            r"\sqrt{2}",
            r"\frac{1}{2}",
            r"3 \times 10^8",
            r"\beta",
            r"\nu",
            r"\neq",
            r"\theta",
            r"\tan x",
        ),
        *(
            r"\rho",
            r"\right)",
            r"\text{no}",
            r"\underline{x}",
            r"\(2\)",
            r"\{1\}",
            r"1{,}\!000",
            r"\%",
        ),
    ],
)
def test_latex_is_read_with_one_backslash_or_two(latex: str) -> None:
    assert field_in(f'{{"answer": "{latex}"}}') == latex
    assert field_in(json.dumps({"answer": latex})) == latex


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r'{"answer": "a\nb"}', "a\nb"),
        (r'{"answer": "a\tb"}', "a\tb"),
        (r'{"answer": "say \"x\""}', 'say "x"'),
        (r'{"answer": "\u00e9"}', "\u00e9"),
        ('{"answer": "a\nb"}', "a\nb"),
        ('{"answer": 5,}', "5"),
        ('{"answer": [1, 2,],}', "[1, 2]"),
        ('{"a": {"b": 1,}, "answer": 3,\n}', "3"),
        ('{"answer": "1,}"}', "1,}"),
        ("{'answer': 5}", "5"),
        ("{'answer': 'a \"b\"'}", 'a "b"'),
        (r"{'answer': 'it\'s'}", "it's"),
    ],
)
def test_the_usual_slips_of_json_are_read(text: str, answer: str) -> None:
    assert field_in(text) == answer


def test_the_field_may_be_a_dotted_path() -> None:
    assert extract_answer('{"result": {"value": 4}}', "json", "result.value") == "4"
    assert extract_answer('{"result": 4}', "json", "result.value") == ""


@reproducible
@given(
    st.text(alphabet="{}\",:[]' xy", max_size=12),
    st.text(alphabet="{}\",:[]' xy", max_size=12),
)
def test_a_valid_object_is_read_whatever_its_strings_hold(answer: str, note: str) -> None:
    text = "So " + json.dumps({"note": note, "answer": answer})
    assert field_in(text) == answer.strip()


@reproducible
@given(st.text(alphabet="{}\"\\,:[]'1 \n", max_size=30))
def test_broken_json_gives_an_answer_or_none_but_no_error(text: str) -> None:
    assert isinstance(field_in('{"answer": ' + text), str)


def test_a_text_full_of_broken_objects_is_parsed_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = []
    decode = json.JSONDecoder.decode

    def counted(decoder: json.JSONDecoder, text: str) -> object:
        attempts.append(text)
        return decode(decoder, text)

    monkeypatch.setattr(json.JSONDecoder, "decode", counted)
    assert field_in('{"answer": 1} ' + '{"answer": !}' * 1000) == ""
    assert 0 < len(attempts) <= 100
    attempts.clear()
    nested = '{"answer":' * 1000 + "!" + "}" * 1000
    assert field_in(nested) == ""
    assert 0 < sum(map(len, attempts)) <= 5 * len(nested)
