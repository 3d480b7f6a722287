"""Decide whether two answers are equal as mathematics.

math-verify reads the answers, and compares what is not a number. It compares numbers to an
absolute bound of about 1e-15 and decimals to six places; here they are compared exactly where they
are rational, to 100 digits where they are not, also as parts of lists, intervals and equations.

Importing this module needs math-verify.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath
import sympy
from latex2sympy2_extended.logic import And as UnsortedAnd
from math_verify import LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException
from math_verify.utils import timeout
from sympy.core.relational import Relational

from opdprobe.errors import shown
from opdprobe.rollout.final_answer import MAX_LENGTH

logger = logging.getLogger("opdprobe")

# Limits the time for a response that math-verify cannot finish; its own default.
_SECONDS = 5

# Larger numbers (in bits) are compared by the way they are written: 10^(10^10) has no room.
_MAX_BITS = 200_000
_DIGITS = 100  # to which irrational numbers are compared

_DOTS = re.compile(r"\\(?:[lc]?dots[cbo]?)(?![a-z])|…|\.\.\.+")
_RATIO = re.compile(r"[0-9]{1,50}(?:\.[0-9]{1,50})?(?::[0-9]{1,50}(?:\.[0-9]{1,50})?)+")
_REPEATING = re.compile(r"(?<![\d.])(\d{0,50})\.(\d{0,50})\\(?:overline|bar|dot)\s*\{(\d{1,50})\}")
# One number after an equals sign, which would be read as a list: x = -1,450
_THOUSANDS = re.compile(r"(?<==)\s*[-+−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*$")
_BARE = re.compile(r"(?<![\\A-Za-z_{])(sin|cos|tan|cot|ln|log|pi)(?![A-Za-z])")
_PRIME = re.compile(r"(?<=[A-Za-z0-9)}])(?:'+|\^\{?(?:\\prime\s*)+\}?)")
_LIMITS = (sympy.factorial, sympy.factorial2, sympy.gamma, sympy.binomial)
_CLOSED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


_said: set[str] = set()  # kinds of failure that were reported


class Answer(NamedTuple):
    """An answer as text, and as the expressions that math-verify read in it."""

    text: str
    parsed: tuple[Any, ...]


class _TooLargeError(Exception):
    pass


def read_answer(text: str) -> Answer:
    r"""Read one answer, without ``\boxed{}`` round it."""
    if len(text) > MAX_LENGTH:
        return Answer(_plain(text), ())
    text = _REPEATING.sub(_as_fraction, text).replace("°", r"^\circ")
    text = re.sub(r"(?<=\d)\\[,!;: ]\s*(?=\d{3}(?!\d))", "", text)  # 1\,000
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"^(-?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    if not re.search(r"\\(?:text|math|operatorname)", text):
        text = _BARE.sub(r"\\\1 ", text)
    # Without first_match math-verify takes a number from inside what it cannot read as a whole.
    parsed = parse(
        rf"\boxed{{{text}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        extraction_mode="first_match",
        parsing_timeout=_time_limit(),  # pyright: ignore[reportArgumentType] None = no limit
    )
    return Answer(_plain(text), tuple(parsed))


def _as_fraction(match: re.Match[str]) -> str:
    whole, once, period = match.groups()
    scale = 10 ** len(once)
    value = Fraction(int(whole + once or "0"), scale)
    value += Fraction(int(period), scale * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def read_response(response: str) -> Answer:
    """Read the last expression that math-verify finds in a response that marks no answer."""
    parsed = parse(response, parsing_timeout=_time_limit())  # pyright: ignore[reportArgumentType]
    return Answer(_plain(parsed[-1]) if parsed else "", tuple(parsed))


def same_answer(gold: Answer, answer: Answer) -> bool:
    """Return whether an answer equals the reference `gold` as mathematics."""
    if gold.text and gold.text == answer.text:
        return True
    if max(len(gold.text), len(answer.text)) > MAX_LENGTH:
        return False
    written = _same_notation(gold.text, answer.text)
    if written is not None:
        return written
    seconds = _time_limit()
    gold_value, value = _expression(gold), _expression(answer)
    if gold_value is None or value is None:
        return verify(list(gold.parsed), list(answer.parsed), timeout_seconds=seconds)
    try:
        if _too_large(gold_value) or _too_large(value):
            return bool(gold_value == value)
        known = timeout(seconds)(_same)(gold_value, value)
    except TimeoutException:
        return False
    except Exception as error:  # sympy raises anything on what it was not made for
        _say_once(type(error).__name__, gold.text, answer.text)
        known = None
    return verify([gold_value], [value], timeout_seconds=seconds) if known is None else known


def _say_once(kind: str, gold: str, answer: str) -> None:
    """Report the first failure of each kind; a run grades thousands of answers."""
    level = logging.DEBUG if kind in _said else logging.WARNING
    _said.add(kind)
    logger.log(
        level,
        "Comparing the answers %s and %s failed (%s), so math-verify alone decides; further "
        "failures of this kind are logged as debug messages.",
        *(shown(gold), shown(answer), kind),
    )


def _time_limit() -> int | None:
    # math-verify keeps time with SIGALRM: main thread and POSIX only.
    signals = os.name == "posix" and threading.current_thread() is threading.main_thread()
    return _SECONDS if signals else None


def _expression(answer: Answer) -> Any:
    expressions = [part for part in answer.parsed if not isinstance(part, str)]
    return expressions[0] if expressions else None


# --- notations that math-verify does not read


def _plain(text: str) -> str:
    text = _DOTS.sub(r"\\ldots ", re.sub(r"""^(['"])(.*)\1$""", r"\2", text))
    text = re.sub(r"\\(?:text(?:bf|it|rm)?|mbox|mathrm)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;:! ]|\\\$|\$|~", "", text)
    return re.sub(r"\s+", "", re.sub(r"\\[dtc]frac", r"\\frac", text)).rstrip(".")


def _same_notation(gold: str, answer: str) -> bool | None:
    """Compare lists with dots, times, ratios, bases and primes; None where neither has these."""
    if any(r"\ldots" in text and "," in text for text in (gold, answer)):
        return _same_dots(gold, answer)
    ratios = [_RATIO.fullmatch(text) for text in (gold, answer)]
    if all(ratios):
        return _same_ratio(gold, answer)
    if any(ratio and ratio[0].count(":") > 1 for ratio in ratios):
        return False
    lists = [text.split(",") for text in (gold, answer)]
    if all(re.fullmatch(r"-?\d+(?:,-?\d+)+", text) for text in (gold, answer)) and any(
        len(set(parts)) < len(parts) for parts in lists
    ):
        return sorted(lists[0]) == sorted(lists[1])  # math-verify counts no repetition
    bases = [re.fullmatch(r"-?\w*?_\{?(\d+)\}?", text) for text in (gold, answer)]
    if all(bases) and gold[0].isalnum() and re.match(r"-?\d", gold) and re.match(r"-?\d", answer):
        return re.sub(r"[{}]", "", gold) == re.sub(r"[{}]", "", answer)
    # math-verify deletes quotes, and with them f' and minutes of arc
    primes = [
        [len(mark.replace("prime", "").replace("^", "")) for mark in _PRIME.findall(text)]
        for text in (gold, answer)
    ]
    lettered = any(re.search(r"[A-Za-z)}]'", text) for text in (gold, answer))
    angles = all(re.search(r"\\circ|°|'", text) for text in (gold, answer))
    return False if primes[0] != primes[1] and (lettered or angles) else None


def _same_dots(gold: str, answer: str) -> bool:
    """Compare lists such as 1, 2, ..., n: the parts round the dots, where both give them."""
    sides = [[_elements(part) for part in text.split(r"\ldots")] for text in (gold, answer)]
    if len(sides[0]) != len(sides[1]):
        return False
    for index, (left, right) in enumerate(zip(*sides, strict=True)):
        shorter = min(len(left), len(right))
        if len(left) != len(right) and (shorter < 2 or index > 0):
            return False  # 1, 2, ..., n and 1, 2, 3, ..., n begin alike
        for one, other in zip(left, right, strict=False):
            if one != other and not same_answer(read_answer(one), read_answer(other)):
                return False
    return True


def _elements(text: str) -> list[str]:
    return [part for part in re.split(r"[,;](?![^({\[]*[)}\]])", text) if part]


def _same_ratio(gold: str, answer: str) -> bool:
    sides = [[Fraction(part) for part in text.split(":")] for text in (gold, answer)]
    if all(re.fullmatch(r"\d{1,2}(:[0-5]\d){1,2}", text) for text in (gold, answer)):
        return sides[0] == sides[1]  # times of day
    if len(sides[0]) != len(sides[1]):
        return False
    (a, *left), (b, *right) = sides
    return (a == 0) == (b == 0) and all(a * y == b * x for x, y in zip(left, right, strict=True))


# --- numbers


def _rational(expression: Any) -> Fraction | None:
    """Return a number's exact value, None if it is irrational or no number."""
    if isinstance(expression, sympy.Float):
        value = Decimal(str(expression))  # as it was written, not its nearest binary number
        return Fraction(value) if value.is_finite() and abs(value.adjusted()) < 60_000 else None
    if isinstance(expression, sympy.Rational):
        return Fraction(int(expression.p), int(expression.q)) if expression.q else None
    if not isinstance(expression, (sympy.Add, sympy.Mul, sympy.Pow, sympy.factorial)):
        return None
    values = [_rational(part) for part in expression.args]
    exact = [value for value in values if value is not None]
    if isinstance(expression, sympy.Pow):
        return _power(*values)
    if len(exact) < len(values):
        return None
    if isinstance(expression, sympy.factorial):
        (n,) = exact
        if n.denominator > 1 or n < 0:
            return None
        _check_size(math.lgamma(min(n, _MAX_BITS) + 1) / math.log(2))
        return Fraction(math.factorial(int(n)))
    total = Fraction(isinstance(expression, sympy.Mul))
    for value in exact:
        total = total + value if isinstance(expression, sympy.Add) else total * value
        _check_size(_bits(total))
    return total


def _power(base: Fraction | None, exponent: Fraction | None) -> Fraction | None:
    if exponent is None or (base is None and exponent.denominator > 1):
        return None
    if base is None:
        _check_size(abs(exponent))  # a surd's power, which sympy would multiply out
        return None
    if (base == 0 and exponent < 0) or exponent.denominator > 1:
        return None
    if base in (0, 1, -1):
        return base if exponent % 2 or base == 0 != exponent else Fraction(1)
    _check_size(_bits(base) * abs(exponent))
    return base ** int(exponent)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _check_size(bits: float | Fraction) -> None:
    if bits > _MAX_BITS:
        raise _TooLargeError


def _too_large(expression: Any) -> bool:
    """Return whether a part is a number too large to compute."""
    if not isinstance(expression, sympy.Basic):
        return any(map(_too_large, expression)) if hasattr(expression, "__iter__") else False
    try:
        for part in sympy.preorder_traversal(expression):
            if isinstance(part, sympy.Pow) and part.base in (sympy.E, sympy.pi):
                continue  # these are computed as floating-point numbers
            if isinstance(part, (sympy.Pow, sympy.factorial, sympy.Integer)):
                value = _rational(part)
                if value is not None:
                    _check_size(_bits(value))
    except _TooLargeError:
        return True
    return False


def _same_number(gold: Any, answer: Any) -> bool | None:
    """Compare two numbers; None if either is no number, or if they cannot be told apart."""
    if any(part.has(sympy.core.expr.UnevaluatedExpr) for part in (gold, answer)):
        return None  # a percentage: 9 % is taken for 0.09 and for 9
    left, right = _rational(gold), _rational(answer)
    if left is not None and right is not None:
        if left == right:
            return True
        return None if _rounded(gold, answer, left, right) else False
    a, b = _numeric(gold), _numeric(answer)
    if a is None or b is None:
        return None
    with mpmath.workdps(_DIGITS):
        scale, gap = max(abs(a), abs(b)), abs(a - b)
        if gap <= scale * mpmath.mpf(10) ** (15 - _DIGITS):
            return True
        return None if _rounded(gold, answer, a, b) else False


def _numeric(expression: Any) -> Any:
    """Return a number's value to `_DIGITS` digits, None if it is no number or cannot be had."""
    exact = _rational(expression)
    with mpmath.workdps(_DIGITS):
        if exact is not None:
            return mpmath.mpc(exact.numerator) / exact.denominator
        expression = expression.subs({s: sympy.I for s in expression.free_symbols if s.name == "i"})
        if expression.free_symbols or expression.has(*_CLOSED, *_LIMITS[1:]):
            return None
        try:  # strict: a sum that cancels to nothing has no digits
            value = expression.evalf(_DIGITS, maxn=10 * _DIGITS, strict=True)
            real, imaginary = value.as_real_imag()
            if not (real.is_Number and imaginary.is_Number and value.is_finite):
                return None
            return mpmath.mpc(real._to_mpmath(400), imaginary._to_mpmath(400))
        except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
            return None


def _rounded(gold: Any, answer: Any, left: Any, right: Any) -> bool:
    """Return whether one may be the other, rounded or cut to its digits."""
    scale, gap = max(abs(left), abs(right)), abs(left - right)
    coarsest, close = (0, 0, 0), False
    for side, value in ((gold, left), (answer, right)):
        for number in side.atoms(sympy.Float):
            written = Decimal(str(number)).normalize()
            if written:
                unit = Fraction(10) ** int(written.as_tuple().exponent) / abs(Fraction(written))
                if isinstance(value, mpmath.mpc):
                    unit = mpmath.mpf(unit.numerator) / unit.denominator
                digits = len(written.as_tuple().digits)
                coarsest = max(coarsest, (unit, abs(value) * unit, digits))
                close |= 10 <= digits <= 17  # computed: 0.30000000000000004
    _, last_place, digits = coarsest
    return bool((digits >= 4 and gap < last_place) or (close and gap * 10**9 <= scale))


# --- what numbers are part of


def _same(gold: Any, answer: Any) -> bool | None:
    """Compare the numbers in the same places of two expressions.

    Returns
    -------
    bool or None
        False if they differ, True if both are numbers and equal, None if math-verify is to decide.
    """
    gold, answer = _without_name(gold, answer)
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return _same_parts(gold.flat(), answer.flat()) if gold.shape == answer.shape else None
    if isinstance(gold, sympy.Tuple) and isinstance(answer, sympy.Tuple):
        return _same_parts(gold.args, answer.args)
    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        found = [[_same(one, other) for other in answer.args] for one in gold.args]
        unmatched = any(set(row) == {False} for row in [*found, *zip(*found, strict=True)])
        return False if unmatched else None
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        return _same_parts((gold.start, gold.end), (answer.start, answer.end))
    if isinstance(gold, UnsortedAnd) and isinstance(answer, UnsortedAnd):
        return _same_parts(gold.args, answer.args)
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        return _same_parts([gold.rhs], [answer.rhs]) if gold.lhs == answer.lhs else None
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _same_expression(gold, answer)
    return None


def _without_name(gold: Any, answer: Any) -> tuple[Any, Any]:
    """Return the value of x = 5 where the other side is a value alone."""
    sides = [gold, answer]
    for index, (side, other) in enumerate(((gold, answer), (answer, gold))):
        named = isinstance(side, sympy.Eq) and isinstance(side.lhs, sympy.Symbol)
        if named and isinstance(other, (sympy.Expr, sympy.MatrixBase)):
            sides[index] = side.rhs
    return sides[0], sides[1]


def _same_parts(gold: Any, answer: Any) -> bool | None:
    if len(gold) != len(answer):
        return None
    return (
        False
        if any(_same(one, other) is False for one, other in zip(gold, answer, strict=True))
        else None
    )


def _same_expression(gold: Any, answer: Any) -> bool | None:
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=lambda symbol: symbol.name)
    if all(symbol.name == "i" for symbol in symbols):
        return _same_number(gold, answer)
    if gold.free_symbols != answer.free_symbols:
        return None
    # Two equal expressions have equal values at any point.
    point = {
        symbol: sympy.Rational(index + 2, 2 * index + 7) for index, symbol in enumerate(symbols)
    }
    values = gold.subs(point), answer.subs(point)
    if not all(isinstance(value, sympy.Expr) for value in values):
        return None
    return None if _same_number(*values) is not False else False
