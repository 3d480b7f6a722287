"""Grading: what counts as the final answer, and as equal."""

import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.grade import grade_math
from opdprobe.rollout.prompt_files import Prompt, load_prompts

DATA = Path(os.environ.get("OPDPROBE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{142}", "142.0"),
        (r"\boxed{142.0}", "142"),
        (r"\boxed{204}", r"\boxed{204}"),
        (r"so $x = \boxed{\dfrac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{0.5}", r"\frac12"),
        (r"\boxed{-2, 1}", "1,-2"),
        (r"\boxed{5}", "x=5"),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}"),
        (r"\boxed{Yes}", "Yes"),
        ("Adding up.\nAnswer: 34", "34"),
        ("Adding up.\n**Answer:** $34$.", "34"),
        ("Answer: 3\nNo, wait.\nanswer: 34\n", "34"),
        (r"Answer: \frac{1}{2}", "0.5"),
        (r"Answer: 3, or rather \boxed{34}", "34"),
        (r"\boxed{3} is too small; \boxed{34}", "34"),
        ("The answer is 34", "34"),
        ("It is $34$", "34"),
    ],
)
def test_correct(response, answer):
    assert grade_math(response, answer) is True
    assert grade_math(response, Prompt("0", text="?", answer=answer)) is True


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", "3"),
        ("I do not know.", "3"),
        (r"\boxed{}", "3"),
        (r"\boxed{3", "4"),
        (r"\boxed{34} or else \boxed{3}", "34"),
        ("Answer: 34\nAnswer: 3", "34"),
        (r"\boxed{\frac{1}{3}}", "0.3"),
        (r"\boxed{No}", "Yes"),
        (r"\boxed{1}", "1,-2"),
    ],
)
def test_incorrect(response, answer):
    assert grade_math(response, answer) is False


@settings(deadline=None, max_examples=50)
@given(st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_integers(x, y):
    assert grade_math(rf"\boxed{{{x}}}", str(y)) is (x == y)
    assert grade_math(f"Answer: {x}", f"{y}.0") is (x == y)


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_any_text_is_graded(text):
    assert isinstance(grade_math(text, "3"), bool)


def test_an_endless_power_is_incorrect(monkeypatch):
    monkeypatch.setattr("opdprobe.rollout.grade._SECONDS", 1)
    assert grade_math(r"\boxed{9^{9^{9^9}}}", "3") is False


def test_off_the_main_thread():
    found = []
    cases = [(r"\boxed{142}", "142.00"), (r"\boxed{141}", "142.00")]
    thread = threading.Thread(target=lambda: found.extend(grade_math(*case) for case in cases))
    thread.start()
    thread.join(60)
    assert found == [True, False]


@pytest.mark.parametrize("answer", ["", "  ", Prompt("p7", text="?")])
def test_no_reference(answer):
    with pytest.raises(PromptError, match="nothing to grade against"):
        grade_math(r"\boxed{3}", answer)


def test_without_math_verify(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install 'opdprobe\[math\]'"):
        grade_math(r"\boxed{3}", "3")


@pytest.mark.skipif(
    not (DATA / "MATH-500.parquet").is_file(),
    reason="needs the public prompt files: set OPDPROBE_DATA to their directory",
)
@pytest.mark.parametrize("name", ["MATH-500", "AIME24", "AIME25", "AMC23"])
def test_benchmark_answers_equal_themselves_only(name):
    prompts = load_prompts(DATA / f"{name}.parquet")
    for prompt in prompts:
        answer = prompt.answer
        assert grade_math(answer if "boxed" in answer else rf"\boxed{{{answer}}}", prompt), answer
        assert not grade_math(r"\boxed{-987654.25}", prompt), answer
