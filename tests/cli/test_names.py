"""Names of models and prompt sets."""

from pathlib import Path

import pytest

from opdprobe.cli.names import resolve_model, resolve_prompts, resolve_teachers
from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.grade import grade_math
from opdprobe.rollout.prompt_files import save_prompts
from opdprobe.testing.testbed.members import MEMBERS, ZooError
from opdprobe.testing.testbed.problems import grader, problems


@pytest.mark.parametrize("name", list(MEMBERS))
def test_a_zoo_name_is_a_model_directory(name):
    path = Path(resolve_model(f"zoo:{name}"))
    assert path.name == name
    assert (path / "config.json").is_file()


@pytest.mark.parametrize("name", ["owner/name", "./models/mine", "model.gguf", "sft-small"])
def test_any_other_model_name_is_left_alone(name):
    assert resolve_model(name) == name


def test_one_teacher_or_several_by_name():
    assert resolve_teachers(["owner/name"], None) == "owner/name"
    found = resolve_teachers(["math=zoo:rl-small", "code=owner/a=b"], "domain")
    assert {name: Path(model).name for name, model in found.items()} == {
        "math": "rl-small", "code": "a=b"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "by", "message"),
    [
        (["a", "b"], None, "2 teachers; expected one, or --teacher NAME=MODEL for each"),
        (["a=b", "c"], "domain", "--teacher 'c' with --teacher-by domain; expected NAME=MODEL"),
        (["a=", "c=d"], "domain", "--teacher 'a='"),
        (["a=b", "a=c"], "domain", "--teacher 'a=c' .* each of them once"),
    ],
)
def test_teachers_without_a_name_of_their_own(given, by, message):
    with pytest.raises(ConfigError, match=message):
        resolve_teachers(given, by)


def test_an_unknown_zoo_model_is_an_error():
    with pytest.raises(ZooError, match="no zoo model 'huge'"):
        resolve_model("zoo:huge")


@pytest.mark.parametrize(("limit", "n"), [(None, 2048), (3, 3), (0, 0)])
def test_a_zoo_split_comes_with_its_grader(limit, n):
    prompts, grade = resolve_prompts("zoo:train", limit)
    assert prompts == problems(n, split="train")
    assert grade is grader


@pytest.mark.parametrize(
    ("rows", "limit", "grade"),
    [
        (['{"prompt": "1+1=", "answer": "2"}', '{"prompt": "?"}'], None, None),
        (['{"prompt": "1+1=", "answer": "2"}', '{"prompt": "?"}'], 1, grade_math),
        (['{"prompt": "1+1=", "answer": 2}'], None, grade_math),
    ],
)
def test_a_file_is_graded_as_mathematics_if_every_prompt_has_an_answer(
    tmp_path, rows, limit, grade
):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(rows) + "\n")
    prompts, found = resolve_prompts(str(file), limit)
    assert len(prompts) == (limit or len(rows))
    assert found is grade


def test_a_file_is_read_as_told(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("question,solution\n1+1=,2\n1+2=\n")
    columns = {"prompt_column": "question", "answer_column": "solution"}
    (prompt,), found = resolve_prompts(str(file), **columns, on_error="skip")
    assert (prompt.text, prompt.answer) == ("1+1=", "2")
    assert found is grade_math
    with pytest.raises(PromptError, match="1 of 2 rows cannot be used"):
        resolve_prompts(str(file), **columns)


def test_a_file_of_the_testbeds_prompts_is_graded_as_they_are(tmp_path):
    file = tmp_path / "chosen.jsonl"
    save_prompts(problems(3, split="train"), file)
    prompts, grade = resolve_prompts(str(file))
    assert prompts == problems(3, split="train")
    assert grade is grader
    with file.open("a") as lines:
        lines.write('{"prompt": "1+1=", "answer": "2"}\n')
    assert resolve_prompts(str(file))[1] is grade_math


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(PromptError, match="no such file"):
        resolve_prompts(str(tmp_path / "absent.parquet"))
