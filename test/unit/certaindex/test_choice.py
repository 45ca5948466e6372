from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import extract_answer

reproducible = settings(derandomize=True, deadline=None, max_examples=200)


def choice_in(text: str) -> str:
    return extract_answer(text, "choice")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C).", "C"),
        ("answer is (b)", "B"),
        ("Answer: b", "B"),
        ("the answer is a.", "A"),
        ("THE CORRECT ANSWER IS D. B is incorrect.", "D"),
        ("The answer is C) 5", "C"),
        ("Answer: C - 42", "C"),
        ("Answer: B - a car", "B"),
        ("Answer = B", "B"),
        ("The answer must be D.", "D"),
        ("The best answer would be D, since A fails.", "D"),
        ("So the answer to the question is C.", "C"),
        ("The answer is choice (E).", "E"),
        ("The correct option is D, unlike (A).", "D"),
        ("The correct choice is: **D**", "D"),
        ("Hence the option is (d).", "D"),
        ("The answer is C. Option D is wrong, (A) too.", "C"),
        ("It means A is big. Answer: C", "C"),
        ("<answer>B</answer>", "B"),
        ('{"answer": "B"}', "B"),
        ("My final answer: I pick D.", "D"),
        ("I choose D", "D"),
        ("I would select B \u2014 a sure choice.", "B"),
        ("So I would go with E.", "E"),
        ("Thus C is the correct answer, and D is not.", "C"),
    ],
)
def test_a_stated_choice_is_read(text: str, letter: str) -> None:
    assert choice_in(text) == letter


@pytest.mark.parametrize("letter", ["B", "A", "I"])
@pytest.mark.parametrize(
    "dress",
    [
        *("%s", "(%s)", "[%s]", "**%s**", '"%s"', "'%s'", "$%s$", r"\(%s\)", r"\[%s\]", "\n%s"),
        *(r"$\text{%s}$", r"$\text{(%s)}$", r"$\mathbf{%s}$", r"\boxed{%s}", r"\boxed{\text{%s}}"),
    ],
)
def test_the_dress_of_a_letter_does_not_matter(letter: str, dress: str) -> None:
    for cue in ("Answer: ", "**Answer:** ", "**Answer**: "):
        assert choice_in(cue + dress % letter) == letter


@pytest.mark.parametrize(
    "text",
    [
        *("B", "b", "B.", "b)", "(b)", "b. 4", "B) 4", "B: osmosis", "B, because it flows", "$B$"),
        *("B \u2013 osmosis", "**B**\n\nThat is why.", "first (A), rather (B)", "It's (b).", "B\n"),
        *("It is B!", "It\u2019s B.", "Clearly B, no doubt", "It must be B"),
    ],
)
def test_a_letter_without_a_cue_is_read_where_it_stands_out(text: str) -> None:
    assert choice_in(text) == "B"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B because a bus moves.", "B"),
        ("Answer: A square has four sides. The correct option is (C).", "C"),
        ("A square has four sides, hence (C).", "C"),
        ("the answer is a triangle", ""),
        ("the answer is a car.", ""),
        ("the answer is a given", ""),
        ("Let A be a matrix.", ""),
        ("The answer is I think B.", "B"),
        ("Answer: A", "A"),
        ("The answer is A because it fits.", "A"),
        ("I'd say A's cat", ""),
        ("The answer is B-cell.", ""),
        ("i.e. nothing", ""),
        ("answer: e.g. nothing", ""),
    ],
)
def test_articles_pronouns_and_parts_of_words_are_no_choice(text: str, letter: str) -> None:
    assert choice_in(text) == letter


@pytest.mark.parametrize(
    "formula",
    [
        *(
            r"\boxed{\langle H\rangle \ll E}",
            r"\boxed{E = mc^2}",
            r"\boxed{A + B}",
            r"\boxed{F(x)}",
        ),
        *(
            r"\boxed{A \cup B}",
            r"\boxed{\text{Cat}}",
            r"\boxed{D_2}",
            "answer: E = mc^2, or",
            "f(A) = 3",
        ),
        *(
            "P(A) = 1/2",
            "A + B.",
            "$E = mc^2$",
            "answer: c/2",
            r"answer: $a \cdot b$",
            "answer: d^2",
        ),
    ],
)
def test_letters_of_a_formula_are_no_choice(formula: str) -> None:
    assert choice_in(formula) == ""
    assert choice_in(f"{formula}\n\n**Answer: D**") == "D"
    assert choice_in(f"{formula} (D)") == "D"


@pytest.mark.parametrize(
    ("content", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        (r"\text{(C)}", "C"),
        (r"\mathrm{C}", "C"),
        (r"\text{C: diffusion}", "C"),
        (r"\textbf{(C) } 42", "C"),
        (r"\textbf{(C)}\ 42", "C"),
        (r"\text{C. } \frac{1}{2}", "C"),
        ("C) 42", "C"),
        (r"\text{Option C}", "C"),
        (r"C \text{ diffusion}", "C"),
    ],
)
def test_a_boxed_letter_may_come_with_its_option(content: str, letter: str) -> None:
    assert choice_in(rf"\boxed{{{content}}}, so not option A") == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Option A is wrong.", ""),
        ("Option A is wrong. Option C is correct.", "C"),
        ("A is incorrect. B is correct.", "B"),
        ("(A) is wrong. (B) is right. (C) is wrong.", "B"),
        ("(A) is near it, yet (B) is correct.", "B"),
        ("A) is out. I choose D.", "D"),
        ("The answer is not A, but B.", "B"),
        ("The answer isn't C.", ""),
        ("Right answer: B. Wrong answers: A, C, D", "B"),
        ("The answer cannot be A. So C.", "C"),
        ("The answer is neither A nor B.", ""),
        ("It is C, not A.", "C"),
        ("The answer is (C) or (D)? I say (D).", "D"),
        ("We rule out A and B. It is C.", "C"),
        ("I choose C over option B.", "C"),
        ("Answer: D is correct because A is not", "D"),
        ("Antwort A ist falsch, also ist Antwort C richtig.", "C"),
        ("选项A错误\uff0c选项B正确。", "B"),
        ("Aは間違いで、Cが正解", "C"),
    ],
)
def test_an_option_called_wrong_is_not_the_answer(text: str, letter: str) -> None:
    assert choice_in(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Antwort:\n\nAntwort: D", "D"),
        ("Antwort: D, weil A falsch ist.", "D"),
        ("Die richtige Antwort ist D.", "D"),
        ("Die Antwort lautet D", "D"),
        ("Richtig ist D, denn A passt nicht.", "D"),
        ("La respuesta correcta es D", "D"),
        ("La respuesta es la opción D.", "D"),
        ("La opción correcta es la D.", "D"),
        ("Respuesta: d", "D"),
        ("Respuesta: a) 5", "A"),
        ("La respuesta a la pregunta es D.", "D"),
        ("La réponse est D", "D"),
        ("Réponse : D", "D"),
        ("RÉPONSE : D", "D"),
        ("La bonne réponse est la D.", "D"),
        ("La réponse correcte est D, car A est faux.", "D"),
        ("La réponse à la question est D.", "D"),
        ("La réponse A est correcte", "A"),
        ("La réponse est A car il est bon", "A"),
        ("答案是D", "D"),
        ("答案\uff1aD", "D"),
        ("正确答案是 D", "D"),
        ("答案应该是 D\uff0c因为A错误", "D"),
        ("所以选D。", "D"),
        ("正确的是D。", "D"),
        ("选择\uff08D\uff09", "D"),
        ("答案是\uff24", "D"),
        ("正解はDです", "D"),
        ("答え: D", "D"),
        ("答え\uff1a\uff08\uff24\uff09", "D"),
        ("答えはDで、Aは誤り", "D"),
        ("Dが正解です。", "D"),
        ("選択肢Dが正しい", "D"),
    ],
)
def test_answers_in_other_languages_are_read(text: str, letter: str) -> None:
    assert choice_in(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A. 3\nB. 4\nC. 5\n\nThe answer is B.", "B"),
        ("A. 3\nB. 4\nC. 5\n\nSo I choose (B).", "B"),
        ("B. 4\n\nA would be too small.", "B"),
    ],
)
def test_a_list_of_the_options_is_no_choice(text: str, letter: str) -> None:
    assert choice_in(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        *("The answer is A and C.", "Answer: C, A", r"\boxed{A, C}", r"\boxed{A} and \boxed{C}"),
        "The answer is either A or C.",
    ],
)
def test_several_letters_are_one_answer(text: str) -> None:
    assert choice_in(text) == "A, C"


@reproducible
@given(
    st.sampled_from("BCDEFGH"),
    st.lists(st.sampled_from(["We add a and b.", "A bus is big.", "I think so.", "Let f(A) = 2."])),
)
def test_prose_before_the_answer_changes_nothing(letter: str, prose: list[str]) -> None:
    assert choice_in(" ".join([*prose, f"The answer is {letter}."])) == letter
