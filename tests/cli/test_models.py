"""What a command estimates before it reads its models."""

import pytest

from opdprobe import Prompt, TeacherContext
from opdprobe.cli.models import longest_prompt, longest_teacher_prompt

ROWS = [
    Prompt("a", text="x" * 10, meta={"solution": "y" * 90}),
    Prompt("b", text="x" * 20, meta={}),
]


def test_prompts_are_at_most_their_characters_and_a_template():
    assert longest_prompt(ROWS, 1024) == 20 + 32
    assert longest_prompt(ROWS, 40) == 40


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        # A row without the column is left out, or refused, when the prompts are encoded.
        (TeacherContext(prompt="{question}{solution}"), 10 + 90 + 32),
        # The student's limit is none of the teacher's; where the wording is the student's, it is.
        (TeacherContext(template="own"), 40),
        (TeacherContext(system_prompt="s" * 7), 40 + 7),
    ],
)
def test_the_teachers_may_be_longer_than_the_students(context, expected):
    assert longest_teacher_prompt(ROWS, context, 40) == expected


def test_what_a_row_has_of_its_own_counts():
    assert longest_teacher_prompt(ROWS, TeacherContext(), 40) is None
    own = Prompt("c", text="x", teacher=({"role": "user", "content": "z" * 200},))
    assert longest_teacher_prompt([*ROWS, own], TeacherContext(), 40) == 200 + 32
