r"""Exact arithmetic of short LaTeX expressions: `\frac{\sqrt{20}}{4}` and `\sqrt5/2` become one text.

An expression is a sum of terms with rational coefficients; a term is a product of powers of atoms: letters, π, roots
of whole numbers. Nothing is rounded. What the grammar does not know (functions, absolute values, unknown commands)
raises `NotAlgebraError`, and the caller compares texts instead. Quotients are not simplified beyond division by one
term: (x² − 1)/(x − 1) is not x + 1 here.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import isqrt

Term = tuple[tuple[str, int], ...]  # (atom, exponent), sorted by atom
Sum = dict[Term, Fraction]

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\[a-z]+)|(?P<sign>[-+*/^(){}\[\]a-z∞]))")
_FRACTIONS = ("\\frac", "\\dfrac", "\\tfrac", "\\cfrac")
_TIMES, _OVER = ("*", "\\cdot", "\\times"), ("/", "\\div")
_GREEK = {
    f"\\{n}" for n in ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "omega", "phi", "sigma", "rho")
}
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_MAX_EXPONENT, _MAX_SUM_POWER, _MAX_TERMS = 400, 12, 400
_MAX_ROOT, _MAX_BITS = 10**9, 4096


class NotAlgebraError(ValueError):
    """The text is no expression of this grammar."""


def simplify(text: str) -> str:
    """One spelling of an expression in lower case: `3/4` for a number, else its terms in a fixed order.

    Raises:
        NotAlgebraError: the text is no expression that is understood, or too large.
    """
    return show(parse(text))


def parse(text: str) -> Sum:
    """The expression as a sum of terms; NotAlgebraError if it is none."""
    parser = _Parser(text)
    value = parser.sum()
    parser.end()
    return value


def show(value: Sum) -> str:
    """The fixed spelling of a sum."""
    if all(term == () for term in value):
        return str(value.get((), Fraction(0)))
    return "+".join(_show_term(term, value[term]) for term in sorted(value))


def monic(value: Sum) -> Sum:
    """The sum divided by its first coefficient: an equation `value = 0` in one form."""
    if not value:
        return value
    first = value[min(value)]
    return {term: factor / first for term, factor in value.items()}


def subtract(one: Sum, other: Sum) -> Sum:
    """one − other."""
    return _add(one, other, -1)


def _show_term(term: Term, factor: Fraction) -> str:
    atoms = [atom if power == 1 else f"{atom}^{power}" for atom, power in term]
    return "*".join([*([str(factor)] if factor != 1 or not atoms else []), *atoms])


# -- arithmetic ------------------------------------------------------------------------------------


def _number(value: Fraction | int) -> Sum:
    return {(): Fraction(value)} if value else {}


def _atom(name: str) -> Sum:
    return {((name, 1),): Fraction(1)}


def _add(one: Sum, other: Sum, sign: int = 1) -> Sum:
    result = dict(one)
    for term, factor in other.items():
        total = result.pop(term, Fraction(0)) + sign * factor
        if total:
            result[term] = total
    return result


def _multiply(one: Sum, other: Sum) -> Sum:
    if len(one) * len(other) > _MAX_TERMS:
        raise NotAlgebraError("too many terms")
    result: Sum = {}
    for left, x in one.items():
        for right, y in other.items():
            factor, term = _product(left, right)
            result = _add(result, {term: factor * x * y})
    return result


def _product(left: Term, right: Term) -> tuple[Fraction, Term]:
    """Two terms' product: exponents add up, square roots merge into one, i² is −1."""
    powers: dict[str, int] = {}
    for atom, power in (*left, *right):
        powers[atom] = powers.get(atom, 0) + power
    factor, under = Fraction(1), 1
    for atom in [atom for atom in powers if atom.startswith("√") and atom[1:].isdigit()]:
        power = powers.pop(atom)
        factor *= Fraction(int(atom[1:])) ** ((power - power % 2) // 2)
        under *= int(atom[1:]) if power % 2 else 1
    outside, inside = _square_free(under)
    factor *= outside
    if inside != 1:
        powers[f"√{inside}"] = 1
    if "i" in powers:
        power = powers.pop("i") % 4
        factor *= -1 if power > 1 else 1
        powers["i"] = power % 2
    return factor, tuple(sorted((atom, power) for atom, power in powers.items() if power))


def _square_free(n: int) -> tuple[int, int]:
    """(a, b) with n = a²·b and b free of squares."""
    if n > _MAX_ROOT:
        root = isqrt(n)
        if root * root == n:
            return root, 1
        raise NotAlgebraError("a root too large to simplify")
    outside, divisor = 1, 2
    while divisor * divisor <= n:
        while n % (divisor * divisor) == 0:
            n //= divisor * divisor
            outside *= divisor
        divisor += 1
    return outside, n


def _inverse(value: Sum) -> Sum:
    if not value:
        raise NotAlgebraError("a division by zero")
    if len(value) > 1:
        first = value[min(value)]
        return {((f"1/({show(monic(value))})", 1),): 1 / first}
    ((term, factor),) = value.items()
    return _multiply(_number(1 / factor), {tuple((atom, -power) for atom, power in term): Fraction(1)})


def _power(base: Sum, exponent: Sum) -> Sum:
    value = exponent.get((), Fraction(0)) if all(term == () for term in exponent) else None
    if value is not None and value == Fraction(1, 2):
        return _root(base, 2)
    if value is None or value.denominator != 1 or abs(value) > (_MAX_SUM_POWER if len(base) > 1 else _MAX_EXPONENT):
        return _atom(f"({show(base)})^({show(exponent)})")
    if (
        max((max(abs(x.numerator), x.denominator).bit_length() for x in base.values()), default=0) * abs(value)
        > _MAX_BITS
    ):
        raise NotAlgebraError("a power too large")
    factor = _inverse(base) if value < 0 else base
    result = _number(1)
    for _ in range(abs(int(value))):
        result = _multiply(result, factor)
    return result


def _root(value: Sum, degree: int) -> Sum:
    if all(term == () for term in value):
        inside = value.get((), Fraction(0))
        if degree == 2 and inside >= 0:
            outside, free = _square_free(inside.numerator * inside.denominator)
            return _multiply(
                _number(Fraction(outside, inside.denominator)), _atom(f"√{free}") if free > 1 else _number(1)
            )
        if degree == 2:
            return _multiply(_atom("i"), _root(_number(-inside), 2))
        exact = _whole_root(inside.numerator, degree), _whole_root(inside.denominator, degree)
        if exact[0] is not None and exact[1]:
            return _number(Fraction(exact[0], exact[1]))
    return _atom(f"root{degree}({show(value)})" if degree != 2 else f"√({show(value)})")


def _whole_root(n: int, degree: int) -> int | None:
    if abs(n) > _MAX_ROOT**2 or degree > 64 or (n < 0 and degree % 2 == 0):
        return None
    guess = round(abs(n) ** (1 / degree))
    found = next((near for near in (guess - 1, guess, guess + 1) if near**degree == abs(n)), None)
    return None if found is None else (-found if n < 0 else found)


# -- grammar ---------------------------------------------------------------------------------------


class _Parser:
    r"""sum = [±] product (± product)*; product = power ((·|/|nothing) power)*; power = base [^ exponent]."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at, text = 0, text.strip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise NotAlgebraError(f"{text[at]!r} is not understood")
            self._tokens.append(match[0].strip())
            at = match.end()
        if not self._tokens:
            raise NotAlgebraError("it is empty")
        self._at = 0

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise NotAlgebraError(f"{self._tokens[self._at]!r} is not expected")

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def sum(self) -> Sum:
        sign = -1 if self._signs() else 1
        value = _add({}, self._product(), sign)
        while self._peek() in ("+", "-"):
            sign = -1 if self._signs() else 1
            value = _add(value, self._product(), sign)
        return value

    def _signs(self) -> bool:
        """Take plus and minus signs; whether they are a minus together."""
        minus = False
        while self._peek() in ("+", "-") and self._peek():
            minus ^= self._take() == "-"
        return minus

    def _product(self) -> Sum:
        value = self._powered()
        while (token := self._peek()) and token not in ("+", "-", ")", "]", "}"):
            if token in _TIMES or token in _OVER:
                self._take()
                minus = self._signs()
                factor = self._powered()
                factor = _inverse(factor) if token in _OVER else factor
                value = _multiply(value, _multiply(_number(-1 if minus else 1), factor))
            elif token[0].isdigit() or token[0] == ".":
                raise NotAlgebraError("a number after a factor")
            else:
                value = _multiply(value, self._powered())
        return value

    def _powered(self) -> Sum:
        base = self._base()
        if self._peek() != "^":
            return base
        self._take()
        minus = self._signs()
        exponent = self._powered()
        return _power(base, _add({}, exponent, -1 if minus else 1))

    def _base(self) -> Sum:
        token = self._take()
        if token and (token[0].isdigit() or token[0] == "."):
            return self._mixed(token)
        if token in _CLOSING:
            return self._group(token)
        if token in _FRACTIONS:
            above = self._argument()
            return _multiply(above, _inverse(self._argument()))
        if token == "\\sqrt":
            return self._root()
        if token in ("\\pi", "\\infty", "∞") or token in _GREEK:
            return _atom(token.lstrip("\\"))
        if len(token) == 1 and token.isalpha():
            return _atom(token)
        raise NotAlgebraError(f"{token!r} is not understood")

    def _group(self, opening: str) -> Sum:
        value = self.sum()
        if self._take() != _CLOSING[opening]:
            raise NotAlgebraError("brackets do not match")
        return value

    def _mixed(self, token: str) -> Sum:
        r"""A number; a whole one before a proper fraction, `1\frac{4}{5}`, is a mixed number."""
        value = _number(Fraction(token))
        if not token.isdigit() or self._peek() not in _FRACTIONS:
            return value
        start = self._at
        self._take()
        above, below = self._argument(), self._argument()
        n, d = above.get((), Fraction(0)), below.get((), Fraction(0))
        plain = all(set(part) <= {()} for part in (above, below)) and n.denominator == d.denominator == 1
        if plain and 0 < n < d:
            return _number(Fraction(token) + n / d)
        self._at = start
        return value

    def _argument(self) -> Sum:
        r"""A group, or as LaTeX reads it one sign: `\frac43` is four thirds."""
        token = self._peek()
        if token == "{":
            return self._group(self._take())
        if token.isdigit() and len(token) > 1:
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        if self._peek().isdigit():
            return _number(int(self._take()))
        return self._base()

    def _root(self) -> Sum:
        degree = 2
        if self._peek() == "[":
            self._take()
            token = self._take()
            if not token.isdigit() or int(token) < 2 or self._take() != "]":
                raise NotAlgebraError("a root's degree is not understood")
            degree = int(token)
        if self._peek().isdigit():
            return _root(_number(int(self._take())), degree)
        return _root(self._argument(), degree)
