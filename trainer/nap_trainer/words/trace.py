"""Arithmetic that writes itself down, and can be made to slip once.

A solution method is ordinary Python arithmetic over ``Num`` values. Each operation adds one equation to the
``Trace`` it belongs to, so the text of a path and its result cannot disagree. A trace may carry a ``Slip``:
the result of one step is then wrong, and every later step goes on from the wrong number as a person would.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LIMIT = 1000
_ROUND_NUMBERS = {20, 25, 30, 40, 50, 60, 70, 80, 90, 100}
EASY = frozenset(range(13)) | _ROUND_NUMBERS
"""Numbers that may be a factor or a divisor: a tiny model reading single digits can learn these tables."""


class ImpossibleError(Exception):
    """A step would leave the arithmetic that the model is taught (negative, inexact, too large, too hard)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """One wrong step: which step, and the source of the wrong number."""

    step: int
    rng: random.Random


class Num:
    """A non-negative integer whose operations are written to its trace."""

    __slots__ = ("trace", "value")

    def __init__(self, value: int, trace: Trace) -> None:
        self.value = value
        self.trace = trace

    def __int__(self) -> int:
        return self.value

    def __add__(self, other: Num | int) -> Num:
        return self.trace.step(self, "+", other)

    def __radd__(self, other: int) -> Num:
        return self.trace.step(other, "+", self)

    def __sub__(self, other: Num | int) -> Num:
        return self.trace.step(self, "-", other)

    def __rsub__(self, other: int) -> Num:
        return self.trace.step(other, "-", self)

    def __mul__(self, other: Num | int) -> Num:
        return self.trace.step(self, "*", other)

    def __rmul__(self, other: int) -> Num:
        return self.trace.step(other, "*", self)

    def __floordiv__(self, other: Num | int) -> Num:
        """Divide exactly; an inexact division is ``ImpossibleError`` (``divmod`` writes the remainder)."""
        return self.trace.step(self, "/", other)

    def __rfloordiv__(self, other: int) -> Num:
        return self.trace.step(other, "/", self)

    def __divmod__(self, other: Num | int) -> tuple[Num, Num]:
        return self.trace.divide(self, other)


def of(percent: Num, whole: Num) -> Num:
    """Take a percentage: writes ``20 % of 50 = 10``."""
    return percent.trace.step(percent, "% of", whole)


class Trace:
    """The equations of one path, in the order in which its method worked them out."""

    __slots__ = ("_slip", "equations")

    def __init__(self, slip: Slip | None = None) -> None:
        self.equations: list[str] = []
        self._slip = slip

    def step(self, left: Num | int, sign: str, right: Num | int) -> Num:
        """Work out one equation, write it down and return its (possibly wrong) result."""
        a, b = int(left), int(right)
        result = _work_out(a, sign, b)
        if (slip := self._slip_now()) is not None:
            result = mistake(a, sign, b, result, slip.rng)
        self.equations.append(f"{a} {sign} {b} = {result}")
        return Num(result, self)

    def divide(self, left: Num | int, right: Num | int) -> tuple[Num, Num]:
        """Divide with a remainder: writes ``23 / 4 = 5 left 3``; a slip spoils one of the two."""
        a, b = int(left), int(right)
        if b == 0 or b not in EASY:
            raise ImpossibleError("hard divisor")
        quotient, rest = divmod(a, b)
        if (slip := self._slip_now()) is not None:
            if slip.rng.random() < 0.5:
                quotient = mistake(a, "/", b, quotient, slip.rng)
            else:
                rest = mistake(a, "/", b, rest, slip.rng)
        self.equations.append(f"{a} / {b} = {quotient} left {rest}")
        return Num(quotient, self), Num(rest, self)

    def _slip_now(self) -> Slip | None:
        return self._slip if self._slip is not None and self._slip.step == len(self.equations) else None


def _add(a: int, b: int) -> int:
    return a + b


def _sub(a: int, b: int) -> int:
    return a - b


def _mul(a: int, b: int) -> int:
    if a not in EASY and b not in EASY:
        raise ImpossibleError("hard product")
    return a * b


def _div(a: int, b: int) -> int:
    if b == 0 or b not in EASY or a % b:
        raise ImpossibleError("hard divisor or inexact division")
    return a // b


def _percent(a: int, b: int) -> int:
    if a % 5 or a * b % 100:
        raise ImpossibleError("odd or inexact percentage")
    return a * b // 100


_WORK: dict[str, Callable[[int, int], int]] = {"+": _add, "-": _sub, "*": _mul, "/": _div, "% of": _percent}


def _work_out(a: int, sign: str, b: int) -> int:
    result = _WORK[sign](a, b)
    if not 0 <= result < LIMIT:
        raise ImpossibleError("result out of range")
    return result


def mistake(a: int, sign: str, b: int, right: int, rng: random.Random) -> int:
    """Draw a wrong result of the kind people write: near by, a digit off, or another operation's."""
    while True:
        wrong = rng.choice(_MISTAKES)(a, sign, b, right, rng)
        if 0 <= wrong < LIMIT and wrong != right:
            return wrong


def _off_by(size: int) -> Callable[[int, str, int, int, random.Random], int]:
    return lambda a, sign, b, right, rng: right + rng.choice((-size, size))


def _wrong_digit(a: int, sign: str, b: int, right: int, rng: random.Random) -> int:
    digits = list(str(right))
    digits[rng.randrange(len(digits))] = rng.choice("123456789")
    return int("".join(digits))


def _wrong_operation(a: int, sign: str, b: int, right: int, rng: random.Random) -> int:
    return rng.choice((a + b, abs(a - b), a * b))


_MISTAKES = (_off_by(1), _off_by(10), _wrong_digit, _wrong_operation)
