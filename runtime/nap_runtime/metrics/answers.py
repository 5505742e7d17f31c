r"""Answers: read out of a text, brought into one form, compared.

A summary's answer is its last `\boxed{…}` alone (`extract_boxed`). In worked solutions of any origin `find_answer` also
takes what follows the last `####`, the number after the last "answer is", the last number.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BOX = re.compile(r"\\boxed\s*\{")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_IN_TEXT = re.compile(rf"(?<![\w.,])-?\$?{_NUMBER}(?:/\d+)?|(?<=[-+*/=×])\$?{_NUMBER}")
_STATED = re.compile(rf"answer(?:\s+is|\s*:|\s*=)[\s*:$\\(]*(-?\$?{_NUMBER}(?:/\d+)?)", re.IGNORECASE)
_MARK = "####"
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_MARKUP = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}|\\[!,;: ]|\\(?=[$%])|[$%]|\\(?:left|right)\b")
_VALUE = re.compile(rf"(?:[a-z]\s*=\s*)?(-?{_NUMBER})(?:/(\d+))?(?:\s+[a-z][a-z ./-]*)?")
_LONGEST = 200


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
    boxed = extract_boxed(text)
    if boxed is not None:
        return boxed
    if _MARK in text:
        lines = text.rpartition(_MARK)[2].strip().splitlines()
        if lines:
            return lines[0].strip()
    stated = _STATED.findall(text)
    found = stated or _IN_TEXT.findall(text)
    return str(found[-1]).replace("$", "") if found else None


def same_answer(one: str | None, other: str | None) -> bool:
    """Whether two answers are one: equal numbers (1,000 = 1000.0 = $1000), or equal texts; None is no answer."""
    if one is None or other is None:
        return False
    return canonical(one) == canonical(other)


def canonical(answer: str) -> str:
    """One spelling of an answer: a number as a fraction in lowest terms, other texts without case, spaces, markup."""
    plain = _MARKUP.sub(lambda match: match[1] or "", _FRACTION.sub(r"\1\2/\3", answer)).strip().rstrip(".").casefold()
    number = _value(plain.strip())
    return str(number) if number is not None else "".join(plain.split())


def _value(text: str) -> Fraction | None:
    found = _VALUE.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    below = int(found[2] or 1)
    return Fraction(found[1].replace(",", "")) / below if below else None
