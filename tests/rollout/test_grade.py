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
        ("Answer: x = -1,450", "-1450"),
        (r"\boxed{x = 12,345.5}", "12345.5"),
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
        ("Answer: x = 1, 450", "1450"),
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
    monkeypatch.setattr("opdprobe.rollout.same_answer._SECONDS", 1)
    assert grade_math(r"\boxed{9^{9^{9^9}}}", "3") is False


def test_off_the_main_thread():
    found = []
    cases = [(r"\boxed{142}", "142.00"), (r"\boxed{141}", "142.00")]
    thread = threading.Thread(target=lambda: found.extend(grade_math(*case) for case in cases))
    thread.start()
    thread.join(60)
    assert found == [True, False]


WORKING = "First 8 + 9 = 17, then 17 * 3 = 51.\nSo 51 is **the sum so far**.\n\n---\n\n"
ENDINGS = [
    "Answer: {} apples",
    "Answer: The answer is {}.",
    "Answer: {}, as computed above",
    "Answer: {} mod 50",
    "Answer: ${}$ (mod 50)",
    r"Answer: ${} \pmod{{50}}$",
    "Answer: ${}$ apples",
    "Answer: There are {} apples left",
    "Answer: $n = {}$ is the smallest such number.",
    "Answer: m+n = {}",
    "Answer: {} out of 80",
    "Answer: {} cm^2",
    "Answer: {}°",
    "Answer: ≈ {}",
    r"Answer: \(\mathbf{{{}}}\)",
    r"Answer: \[{}\]",
    "Answer: (C) {}",
    "Answer: {}\n\nThis answer is correct. Ask me 5 more!",
    "So the answer is: {}.",
    "the answer is therefore **{}**.",
    "The answer (in cm) is {}.",
    "**Final Answer: {} apples are left.**",
    "✅ Final Answer: **{}**",
    "### Final Answer\n\n**{}**",
    "### Final Answer\n\nThe number of apples is **{}**.",
    "**Final Answer**\n\\[\n{}\n\\]",
    "Final Answer\n------------\n$$\n{}\n$$",
    "Answer:\n- {}",
    "<answer>It is ${}$</answer>",
    r"\boxed{{{}}}. This is the number in \boxed{{}}.",
    r"\boxed{{{}}}, and then \boxed{{ \text{{}} }} and \boxed{{?}}",
    r"\boxed{{\text{{The answer is }} {}}}",
    r"\boxed{{{}\ \text{{apples}}}}",
    r"\fbox{{{}}}",
    r"Answer: {}, and \boxed{{}}",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_words_round_the_answer(ending):
    assert grade_math(WORKING + ending.format(46), "46") is True
    assert grade_math(WORKING + ending.format(45), "46") is False
    assert grade_math(WORKING + ending.format(46), "51") is False


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 5 boys and 3 girls", "5"),
        ("Answer: 46 million", "46"),
        ("Answer: less than 46", "46"),
        ("Answer: the square root of 46", "46"),
        ("Answer: 46 or 47", "46"),
        ("Answer: $46$ or $47$", "46"),
        ("Answer: 3 hours 20 minutes", "3"),
        ("Answer: not 46", "46"),
        (r"\boxed{46 + \foo}", "46"),
        (r"\boxed{46} or \boxed{}, no: \boxed{47}", "46"),
    ],
)
def test_words_that_change_the_answer(response, answer):
    assert grade_math(response, answer) is False


NOT_EQUAL = [
    # numbers
    (r"\frac{1}{60!}", r"\frac{1}{61!}"),
    (r"3^{-70}", r"3^{-71}"),
    ("10^{-30}", "0"),
    (r"1 - 10^{-30}", r"1 - 10^{-31}"),
    ("e^{-60}", "e^{-61}"),
    (r"\sqrt{2} \cdot 10^{-25}", r"\sqrt{3} \cdot 10^{-25}"),
    (r"\sqrt{10^{30} + 1}", "10^{15}"),
    ("9007199254740993", "9007199254740992"),
    ("99999999999999999999.5", "99999999999999999999.4"),
    ("0.0000431", "0.0000432"),
    ("0.1234567", "0.1234568"),
    (r"6.6\times10^{-34}", r"6.7\times10^{-34}"),
    ("0.33", r"\frac13"),
    ("2.236", r"\sqrt{5}"),
    ("2,345", "2.345"),
    ("2+5i", "2-5i"),
    ("4i", "4"),
    # parts of others
    ("(0, 10^{-30})", "(0, 10^{-31})"),
    (r"\{1, 10^{-30}\}", r"\{1, 10^{-31}\}"),
    ("x > 10^{-30}", "x > 10^{-31}"),
    (r"y = \frac{x}{60!}", r"y = \frac{x}{61!}"),
    (r"\frac{x}{60!}", r"\frac{x}{61!}"),
    (r"\begin{pmatrix} 10^{-30} & 1 \end{pmatrix}", r"\begin{pmatrix} 10^{-31} & 1 \end{pmatrix}"),
    # notations
    ("14:30", "7:15"),
    ("8:05", "8:50"),
    ("9:00 AM", "9:00 PM"),
    ("2:3:4", "2:3:5"),
    ("31_7", "31_8"),
    ("2,2,5", "2,5,5"),
    ("f'(x)", "f(x)"),
    (r"20^\circ", "20'"),
    (r"2, 4, \ldots, 2n", r"2, 4, \ldots, 2^n"),
    (r"1, 2, 3, \dots", r"1, 2, 4, \dots"),
    (r"3, \ldots, 9", r"3, \ldots, 8"),
    # ends, signs, sides
    ("[2, 5)", "(2, 5]"),
    ("[2, 5]", "(2, 5)"),
    ("x < 7", "x > 7"),
    (r"x \le 7", "x < 7"),
    ("y = 4x - 1", "y = 4x + 1"),
    ("5x + y = 2", "5x + y = 3"),
    ("x - y", "y - x"),
    (r"70^\circ", r"7^\circ"),
    (r"\begin{pmatrix} 1 \\ 6 \end{pmatrix}", r"\begin{pmatrix} 6 \\ 1 \end{pmatrix}"),
]


@pytest.mark.parametrize(("one", "other"), NOT_EQUAL)
def test_near_misses(one, other):
    assert grade_math(rf"\boxed{{{one}}}", other) is False
    assert grade_math(rf"\boxed{{{other}}}", one) is False
    assert grade_math(rf"\boxed{{{one}}}", one) is True
    assert grade_math(rf"\boxed{{{other}}}", other) is True


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{1}{60!}", r"\frac{61}{61!}"),
        (r"3^{-70}", r"\frac{1}{3^{70}}"),
        (r"\frac{x}{60!}", r"\frac{61x}{61!}"),
        ("10^{-9}", "0.000000001"),
        (r"6.5\times10^{-34}", r"65\times10^{-35}"),
        (r"\sqrt{5 + 2\sqrt{6}}", r"\sqrt{2} + \sqrt{3}"),
        (r"e^{i\pi}", "-1"),
        (r"\frac{1}{1+i}", r"\frac{1-i}{2}"),
        (r"\sin^2 1 + \cos^2 1", "1"),
        (r"\frac{2}{3}", "0.666667"),
        (r"\frac{2}{3}", r"0.\overline{6}"),
        ("0.3", "0.30000000000000004"),
        (r"\frac{1}{7}", "0.142857142857143"),
        (r"1, 2, \ldots, n", r"1,2,3,\dots,n"),
        ("3:4", "6 : 8"),
        ("9:00 PM", r"9\!:\!00\text{ PM}"),
        ("2,5,2", "2, 2, 5"),
        ("52_{8}", "52_8"),
        (r"2\,000\,000", "2,000,000"),
        (r"1\frac12", "1 1/2"),
        ("sin(x) + 2", r"\sin x + 2"),
        (r"10^{10^{10}}", r"10^{10^{10}}"),
    ],
)
def test_equal_however_written(one, other):
    assert grade_math(rf"\boxed{{{one}}}", other) is True
    assert grade_math(rf"\boxed{{{other}}}", one) is True


@given(st.integers(1, 10**40), st.integers(1, 10**40), st.integers(-(10**9), 10**9))
@settings(deadline=None, max_examples=50)
def test_fractions(numerator, denominator, shift):
    response = rf"\boxed{{\frac{{{numerator}}}{{{denominator}}}}}"
    assert grade_math(response, f"{7 * numerator}/{7 * denominator}") is True
    expected = numerator * (denominator + shift) == numerator * denominator
    if denominator + shift > 0:
        assert grade_math(response, f"{numerator}/{denominator + shift}") is expected


@pytest.mark.parametrize(
    "tower",
    [r"2^{2^{2^{2^{2^2}}}}", "10^{10^{10}}", "(10^{10})!", r"\sqrt{2}^{10^{12}}", "1.5^{10^{12}}"],
)
def test_numbers_too_large_to_compute_need_no_time_limit(tower, monkeypatch):
    monkeypatch.setattr("opdprobe.rollout.same_answer._time_limit", lambda: None)
    assert grade_math(rf"\boxed{{{tower}}}", tower) is True
    assert grade_math(rf"\boxed{{{tower}}}", "3") is False
    assert grade_math(rf"\boxed{{{tower} + 1}}", tower) is False


@pytest.mark.parametrize(
    "answer", ["(" * 3000 + "3" + ")" * 3000, "3" + ":3" * 3000, "3" + ",3" * 3000, "3 cm " * 3000]
)
def test_a_very_long_answer_equals_itself_only(answer, monkeypatch):
    monkeypatch.setattr("opdprobe.rollout.same_answer._time_limit", lambda: None)
    assert grade_math(rf"\boxed{{{answer}}}", answer) is True
    assert grade_math(rf"\boxed{{{answer}}}", "3") is False


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
@pytest.mark.slow
def test_benchmark_answers_equal_themselves_only(name):
    prompts = load_prompts(DATA / f"{name}.parquet")
    for prompt in prompts:
        answer = prompt.answer
        assert grade_math(answer if "boxed" in answer else rf"\boxed{{{answer}}}", prompt), answer
        assert not grade_math(r"\boxed{-987654.25}", prompt), answer


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        ("Answer: 73!", "73", True),
        ("**Answer: 73!**", "73", True),
        ("The final answer is therefore 73!!", "73", True),
        ("# Final Answer\n-7!", "-7", True),
        ("Answer: x = 12!", "12", True),
        ("Answer: $73!", "73", True),
        ("Answer: 1/2!", "0.5", True),
        ("Answer: 50%!", "50\\%", True),
        ("Answer: 5!", "120", False),
        ("Answer: 5!", "5!", True),  # the reference has one
        ("Answer: 73!", "73!", True),
        ("Answer: $5!$", "120", True),
        ("Answer: $5!$", "5", False),
        ("Answer: \\(5!\\)", "120", True),
        ("Answer: 3 + 4!", "27", True),
        ("Answer: 3! + 2!", "8", True),
        (r"\boxed{5!}", "120", True),
        (r"\boxed{5!}", "5", False),
        ("<answer>5!</answer>", "120", True),
    ],
)
def test_an_exclamation_after_a_bare_number_is_no_factorial(response, reference, right):
    assert grade_math(response, reference) is right


def test_a_comparison_that_fails_is_reported_once(monkeypatch, caplog):
    from opdprobe.rollout import same_answer

    def fail(gold, answer):
        raise ZeroDivisionError

    monkeypatch.setattr(same_answer, "_same", fail)
    monkeypatch.setattr(same_answer, "_said", set())
    assert grade_math(r"\boxed{0.5}", r"\frac{1}{2}")  # math-verify decides
    assert not grade_math(r"\boxed{0.7}", r"\frac{1}{2}")
    (line,) = caplog.messages
    assert "Comparing the answers" in line
    assert "(ZeroDivisionError), so math-verify alone decides" in line
