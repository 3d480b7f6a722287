r"""Find the final answer in a response to a mathematics problem.

The answer is the content of the last ``\boxed{}`` that is not empty; without one, what
``<answer>`` tags hold; without those, what follows the last "Answer:", "Final answer" or "the
answer is".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Longer answers are compared as text alone: the parser's time grows faster than the text.
MAX_LENGTH = 2_000

_BOX = re.compile(r"\\f?boxed\s*|\\fbox\s*")
# What models put into a box that they do not fill.
_BLANK = re.compile(
    r"(?:[\s.?_~…\-*$]|\\(?:ldots|dots|cdots|square|quad|qquad|[,;!: ])|\\(?:text|phantom)\{\s*\}"
    r"|\{\s*\})*"
)

_DECORATION = r"[\s*_#>`~✅✔️🎯•\-]*"
_NAME = r"(?:final\s+(?:answer|result|solution)|answer|ans)\b"
_MARKS = r"[ \t*_`.)\]]*"
# "Answer: 34" and "So the answer to the problem is: 34"; also in bold and as a heading.
_COLON = re.compile(
    rf"^(?P<before>[^\n:=$\\]{{0,80}}?)\b{_NAME}[^\n:=.$\\\d]{{0,60}}?{_MARKS}[:=→：](?P<rest>[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
# "Final Answer" alone on its line.
_HEADING = re.compile(
    rf"^{_DECORATION}(?:\d+\.\s*)?(?:(?:the|my|our)\s+)?(?:correct\s+)?{_NAME}(?:\s+is)?"
    r"[ \t*_`#.]*$",
    re.IGNORECASE | re.MULTILINE,
)
_IS = re.compile(
    rf"\b{_NAME}[^\n:=.$\\\d]{{0,60}}?\b(?:is|are|equals)\b(?P<rest>[^\n]*)", re.IGNORECASE
)
_RULE = re.compile(r"[\s*_\-=`]*")

_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_VERB = re.compile(r"\b(?:is|are|was|be|equals?|has|have|gives?|there)\b", re.IGNORECASE)
_REASON = re.compile(
    r"\b(?:since|because|as|which|where|when|for|so|with|after|by|if|out\s+of|in|from|on|at|rounded|modulo|rather|not)\b"
    r"|\\[bp]?mod\b|\bmod\b",
    re.IGNORECASE,
)
# Words that change the number beside them: "73 million", "the root of 73", "less than 73".
_CHANGE = re.compile(
    r"(?<!\\)\b(?:not|minus|negative|plus|times|to|over|divided|multiplied|squared?|cubed?|roots?|power"
    r"|factorial|half|halves|thirds?|quarters?|dozens?|hundreds?|thousands?|millions?|billions?"
    r"|trillions?|less|fewer|more|least|most|greater|larger|smaller|between|under|above|below"
    r"|before|past|double|twice|thrice|arc\w+|degrees\s+\d|choose|the\s+reciprocal)\b",
    re.IGNORECASE,
)
_OPTION = re.compile(r"^\s*(?:option|choice)?\s*\(?[A-H][).:]\s*(?=[\d\\$.\-])", re.IGNORECASE)
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|rm|it)|mbox|underline|boldsymbol|bf)\s*"
    r"\{([^{}]*)\}"
)
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|infty|frac)(?![a-z]))"
    r"[A-Za-z]{2,}(?:\^\{?-?\d+\}?|[²³])?|(?<=\s)[aI](?=\s)"
)
_VALUE = re.compile(r"\d|\\(?:frac|sqrt|pi|infty)")
# A number in a line of words that ends in an exclamation mark: "73!", "x = -1,450!", "= 50%!".
_EXCLAIMED = re.compile(
    r"(?P<said>(?:[^\W\d_]|[\s,:=≈’'])*(?:[-+−]|\\?\$)*\d[\d,.]*(?:/\d+)?\s*(?:\\?%)?)\s*!+"
)


def find_answer(response: str, *, factorial: bool = False) -> str | None:
    """Return the final answer's text as the response writes it.

    Parameters
    ----------
    response : str
        The student's text.
    factorial : bool
        Whether "Answer: 5!" is a factorial. It is an exclamation otherwise; in a box, in tags and
        in formulas, the mark is always a factorial's.

    Returns
    -------
    str or None
        The answer, LaTeX delimiters and words included; None if the response marks none.
    """
    for content in _boxes_from_last(response):
        if not _BLANK.fullmatch(content):
            return content.strip()
    end = response.rfind("</answer>")
    if (start := response.rfind("<answer>", 0, max(end, 0))) >= 0:
        content = response[start + len("<answer>") : end].strip()
        if content:
            return content
    answer = _marked_answer(response)
    exclaimed = None if factorial or answer is None else _EXCLAIMED.fullmatch(answer)
    if exclaimed and "factorial" not in exclaimed["said"].lower():
        return exclaimed["said"]
    return answer


def _boxes_from_last(text: str) -> Iterator[str]:
    for match in reversed(list(_BOX.finditer(text))):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            yield rest.split(maxsplit=1)[0].strip("$.,") if rest.strip() else ""
            continue
        depth = 0
        for position, character in enumerate(rest):
            # an escaped brace is a set's, and sets' braces come in pairs as well
            depth += (character == "{") - (character == "}")
            if depth == 0:
                yield rest[1:position]
                break
        else:
            yield rest[1:].split("\n")[0].strip(" $.")  # cut off before the box was closed


def _marked_answer(response: str) -> str | None:
    marks = [
        (match.start(), _clean(_following(response, match.start("rest"))))
        for match in _COLON.finditer(response)
        if len(match["before"].split()) <= 8
    ]
    marks += [
        (match.start(), _clean(_following(response, match.end())))
        for match in _HEADING.finditer(response)
    ]
    marks = [(start, text) for start, text in marks if text]
    if marks:
        return max(marks)[1]
    for match in reversed(list(_IS.finditer(response))):
        text = _clean(match["rest"])
        if _VALUE.search(text) or _MATH.search(text):  # not "the answer is an integer"
            return text
    return None


def _following(response: str, start: int) -> str:
    """Return the rest of the line at `start`, or of the next one that says something."""
    for line in re.finditer(r"[^\n]*", response[start:]):
        if not _RULE.fullmatch(line[0]):
            text = line[0].strip("*_` \t")
            for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
                if text.startswith(opening) and closing not in text[2:]:  # display over lines
                    whole = response[start + line.start() :].strip("*_` \t")
                    return whole[: max(whole.find(closing, 2), 0) + 2]
            return re.sub(r"^\s*[-*•]\s+", "", line[0]) if line.start() else line[0]
    return ""


def _clean(text: str) -> str:
    text = re.sub(r"\*\*|__|`|(?<!\w)\*|\*(?!\w)", "", text) if "\\" not in text else text
    text = re.sub(r"<\|[^|\n]*\|>|\\boxed\s*\{\s*\}", "", text).strip().strip("*`").strip()
    return text.rstrip(".✅✔️ \t") if not re.search(r"(\.\.|\\\.)$", text) else text


def without_words(answer: str) -> str | None:
    """Return the one value in an answer that has words, delimiters or a modulus round it.

    Parameters
    ----------
    answer : str
        What `find_answer` returned.

    Returns
    -------
    str or None
        The value's text; None if it has none or several, or a word such as "million" that
        changes it.

    Examples
    --------
    >>> without_words("The number is $73$ (mod 100)")
    '73'
    >>> without_words("73 residents, as shown")
    '73'
    >>> without_words("5 boys and 3 girls") is None
    True
    """
    if len(answer) > MAX_LENGTH:
        return None
    answer = _OPTION.sub("", answer)
    segments = list(_MATH.finditer(answer))
    if segments:
        verbs = [m.end() for m in _VERB.finditer(_MATH.sub(lambda m: " " * len(m[0]), answer))]
        after = [s for s in segments if verbs and s.start() >= verbs[-1]] or segments
        values = [_value(next(part for part in s.groups() if part)) for s in after]
        if len(values) > 1 and re.fullmatch(
            r"[\s,;]*(?:and|or)?[\s,]*", answer[after[0].end() : after[1].start()]
        ):
            return ",".join(values) if all(values) else None
        return values[0] or None
    plain = _STYLE.sub(r" \1 ", answer)
    verbs = [m for m in _VERB.finditer(plain) if _VALUE.search(plain[m.end() :])]
    if verbs:
        plain = plain[verbs[-1].end() :]
    return _value(plain) or None


def _value(text: str) -> str:
    text = _STYLE.sub(r" \1 ", text)
    if (reason := _REASON.search(text)) and _VALUE.search(text[: reason.start()]):
        text = text[: reason.start()]
    if _CHANGE.search(text):
        return ""
    pieces = [piece for piece in _WORD.split(text) if _VALUE.search(piece)]
    if len(pieces) > 1:
        return ""
    value = pieces[0] if pieces else ("" if _WORD.search(text) else text)
    value = re.sub(r"[^\w\s\\{}()\[\]+\-*/^.,:;=<>!%|&'≤≥≠√π∞°±×·−]", "", value)
    value = re.sub(r"^(?:[\s=≈~]|\\(?:approx|sim|simeq)(?![a-z]))+", "", value).strip(" \t\n.,;:*")
    while value and (value[-1] in "([-+" or value.count(")") > value.count("(") == 0):
        value = value[:-1].rstrip(" ,;:.")
    return value.strip()
