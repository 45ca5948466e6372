from __future__ import annotations

import pytest

from sglang_dynasor.certaindex import extract_answer


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na = 1\n```\nor\n```\nif a:\n    b()\n```\nDone.", "if a:\n    b()"),
        ("```\ndone\n```\n```python\ncut off", "done"),
        ("```\ncut off\n```python\ndone\n```", "done"),
        ("no fence", ""),
        ("```\n\n  x\n\n```", "  x"),
        ("```\r\na\r\nb\r\n```\r\n", "a\nb"),
        ("```c++\nint x;\n``` \n", "int x;"),
        ('``` python title="a"\nx\n```', "x"),
        ("use ```x``` here\n```\ny\n```", "y"),
        ("```x```\n```\ny\n```", "y"),
    ],
)
def test_the_last_closed_block_is_the_code(text: str, code: str) -> None:
    assert extract_answer(text, "code") == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\ns = '```'\n```", "s = '```'"),
        ("~~~\na\n~~~", "a"),
        ("~~~python\n```\na\n```\n~~~", "```\na\n```"),
        ("```\n~~~\n```", "~~~"),
        ("```\na\n````", "a"),
        ("````\na\n```\nb\n````", "a\n```\nb"),
        ("````md\n```py\na\n```\n````", "```py\na\n```"),
        ('```py\na = """\n``` no fence\n"""\n```', 'a = """\n``` no fence\n"""'),
    ],
)
def test_a_block_ends_at_a_fence_of_its_kind_that_is_as_long(text: str, code: str) -> None:
    assert extract_answer(text, "code") == code


@pytest.mark.parametrize(
    "text",
    [
        "```\ndef f():\n    return 2\n```",
        "    ```\n    def f():\n        return 2\n    ```",
        "\t```\n\tdef f():\n\t    return 2\n\t```",
        "2. So:\n   ```python\n   def f():\n       return 2\n   ```",
        "- ```python\n  def f():\n      return 2\n  ```",
        "3) ~~~\n   def f():\n       return 2\n   ~~~",
    ],
)
def test_the_indentation_of_the_fence_is_no_part_of_the_code(text: str) -> None:
    assert extract_answer(text, "code") == "def f():\n    return 2"


def test_a_line_less_indented_than_its_fence_keeps_its_text() -> None:
    assert extract_answer("   ```\n x\n   y\n   ```", "code") == "x\ny"
