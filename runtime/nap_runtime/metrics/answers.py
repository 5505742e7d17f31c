r"""Answers: read out of a text, and compared.

A summary's answer is its last `\boxed{…}` alone (`extract_boxed`). In texts of any origin `read_answer` takes the first
of these that is there: the last closed box; what follows the last `####`; the last `<answer>…</answer>`; the last
"answer is …"; the last `[[…]]`, or brackets that end the text; the last number. The same text always gives the same
answer. `answer_forms` says when two answers are one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nap_runtime.metrics.answer_forms import canonical, same_answer

__all__ = ["Found", "canonical", "extract_boxed", "find_answer", "find_choice", "read_answer", "same_answer"]

Source = Literal["boxed", "mark", "tag", "stated", "brackets", "number"]

_BOX = re.compile(r"\\f?boxed\s*\{")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_IN_TEXT = re.compile(rf"(?<![\w.,])[-−]?[$€£]?{_NUMBER}(?:/\d+)?%?|(?<=[-+*/=×])[$€£]?{_NUMBER}")
_MARK = "####"
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_STATED = re.compile(
    r"\b(?:answer|result)(?:\s+(?:to\s+[^.:=\n]{1,60}\s)?(?:is|are|was)(?![a-z])|\**\s*[:=])\**\s*:?", re.IGNORECASE
)
_MATH = re.compile(r"\$\$?([^$\n]+?)\$\$?(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_LATEX = re.compile(r"[\\^_={}()a-zA-Z+*/]")
_LED = re.compile(
    rf"[\s*:_]*(?:(?:therefore|thus|then|simply|just|about|approximately|a|an|the|option|choice)\s+)*"
    rf"([-−]?[$€£]?\s?{_NUMBER}(?:\s+\d+/\d+|/\d+)?%?(?![\w^\\]|\s*[*+]))",
    re.IGNORECASE,
)
_TERMS = rf"[$€£]?{_NUMBER}%?(?:\s*[-−–+*/×÷]\s*[$€£]?{_NUMBER}%?)"
_WORKED = re.compile(  # a computation with its result: 10 - 3 = 7, 2 * 3 + 1 = 6 + 1 = 7
    rf"[\s*:_]*{_TERMS}+(?:\s*=\s*{_TERMS}*)*\s*=\s*([-−]?[$€£]?\s?{_NUMBER}%?)(?![\w^\\]|\s*[-−–+*/×÷]\s*[$€£]?\d)"
)
_TIME = re.compile(r"[\s*:]*(\d{1,2}:\d{2}(?!\d)(?:\s*[ap]\.?m\b)?)", re.IGNORECASE)
_FRACTION = re.compile(r"[\s*:]*(-?\d*\s*\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d))")
_LETTER = re.compile(r"[\s*:]*(?:(?:option|choice|letter)\s+)?\(?([A-J])\)?(?![\w'’])")
_NONE = re.compile(
    r"[\s*:]*(?:none\b|not?\s+(?:answer|enough)|n/?a\b|unknown|cannot|can't|unclear|i don)", re.IGNORECASE
)
_DOUBLE = re.compile(r"\[\[([^\[\]]+)\]\]")
_ENDING = re.compile(r"\[([^\[\]]+)\][\s.*]*$")
_SENTENCE = re.compile(r"(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s+[A-Z]|\s*$)|\n")


@dataclass(frozen=True, slots=True)
class Found:
    """An answer as it stands in a text, and by which form it was found."""

    text: str
    source: Source


def extract_boxed(text: str) -> str | None:
    r"""What the last closed `\boxed{…}` holds, braces matched, outer whitespace removed; None without one.

    `\{` and `\}` are text, not braces. A box that is never closed (a summary cut short) or holds nothing
    counts as none, and the one before it is read instead.
    """
    for box in reversed(list(_BOX.finditer(text))):
        if held := _until_closed(text, box.end()):
            return held
    return None


def _until_closed(text: str, start: int) -> str | None:
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at].strip()
        at += 1
    return None


def find_answer(text: str) -> str | None:
    """The answer a worked solution ends with; None where it states none."""
    found = read_answer(text)
    return None if found is None else found.text


def read_answer(text: str) -> Found | None:
    """The answer a text states, and in which form; None where it states none, or says that there is none."""
    found = _read(text)
    return None if found is None or not canonical(found.text) else found


def _read(text: str) -> Found | None:
    boxed = extract_boxed(text)
    if boxed is not None:
        return Found(boxed, "boxed")
    lines = text.rpartition(_MARK)[2].strip().splitlines() if _MARK in text else []
    if lines:
        return Found(_tidy(lines[0]), "mark")
    tagged = [held.strip() for held in _TAG.findall(text) if held.strip()]
    if tagged:
        return Found(find_answer(tagged[-1]) or tagged[-1], "tag")
    for match in reversed(list(_STATED.finditer(text))):
        if _NONE.match(text, match.end()):
            return None
        if stated := _stated(text[match.end() :]):
            return Found(stated, "stated")
    return _loose(text)


def _loose(text: str) -> Found | None:
    held = _DOUBLE.findall(text) or _ENDING.findall(text)
    if held:
        return Found(_tidy(held[-1]), "brackets")
    numbers = _IN_TEXT.findall(text)
    return Found(_tidy(numbers[-1]), "number") if numbers else None


def _stated(rest: str) -> str | None:
    """What follows "answer is": mathematics between dollars, a fraction, a result, a time, a number, a bracket, …"""
    end = _SENTENCE.search(rest.lstrip())
    sentence = rest.lstrip()[: end.start()] if end else rest.lstrip()
    math = _MATH.search(sentence)
    if math and (held := next(filter(None, math.groups()), "").strip()) and _is_math(held):
        return held
    for pattern in (_FRACTION, _WORKED, _TIME, _LED):
        if match := pattern.match(sentence):
            return _tidy(match[1])
    if match := re.match(r"[\s*:]*(\[+|\()([^\[\]()]+)(\]+|\))", sentence):
        return match[2].strip() if len(match[2]) == 1 or match[1] != "(" else match[0].strip(" *:")
    if match := _LETTER.match(sentence):
        return match[1]
    numbers = _IN_TEXT.findall(sentence)
    return _tidy(numbers[0]) if numbers else None


def _is_math(held: str) -> bool:
    """Whether what stands between two dollars is mathematics, and not the words between two prices."""
    return bool(re.fullmatch(_NUMBER, held) or _LATEX.search(held)) and not re.search(r"[a-z]{2,} [a-z]{2,}", held)


def _tidy(text: str) -> str:
    return re.sub(r"^([-−]?)[$€£]\s?", r"\1", text.strip().strip("*").strip()).rstrip(".")


def find_choice(text: str, letters: str = "ABCD") -> str | None:
    """The letter of a multiple-choice answer, in upper case; None where the text chooses none.

    What `read_answer` finds counts where it begins with one letter ("(C) 42", "C."); else the last "option is C" or
    "choice is C"; else the last letter that stands alone in brackets.
    """
    found = read_answer(text)
    if found is not None:
        plain = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", found.text).strip(" $*")
        if match := re.match(rf"\(?([{letters}{letters.lower()}])(?![\w'’])", plain):
            return match[1].upper()
        if found.source in ("boxed", "mark", "tag"):
            return None
    named = re.findall(rf"\b(?:option|choice)\s+is\s*:?\s*\**\(?([{letters}])\)?(?![\w'’])", text)
    if named:
        return str(named[-1])
    alone = re.findall(rf"\(([{letters}])\)", text) or re.findall(rf"(?:^|\n)\s*([{letters}])[.):]?\s*$", text)
    return alone[-1] if alone else None
