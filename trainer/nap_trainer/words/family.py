"""What a family of word problems is: number domains, wordings, the answer and several ways to it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nap_trainer.words.pools import POOLS, fill
from nap_trainer.words.text import count_tokens
from nap_trainer.words.trace import ImpossibleError, Num, Slip, Trace

Domain = Sequence[int] | Callable[..., Sequence[int]]
"""The values a number may take: fixed, or worked out from the numbers drawn before it."""

MAX_PATH_TOKENS = 38
STEPS = range(2, 6)
_SLOT = re.compile(r"\{(\w+)\}")
_ERROR_TRIES = 8


def steps(low: int, high: int, by: int = 1) -> range:
    """``range`` with its upper end included, as number domains read best."""
    return range(low, high + 1, by)


@cache
def exact(percent: int, high: int) -> Sequence[int]:
    """List the numbers from 20 to ``high`` of which ``percent`` is a whole number."""
    return [number for number in steps(20, high) if number * percent % 100 == 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One worked solution: its text, its equations and the number it ends with."""

    method: str
    text: str
    equations: tuple[str, ...]
    result: int
    wrong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of word problem.

    ``numbers`` names the drawn numbers in order. ``answer`` and every method take them in that order, as
    plain integers and as traced ``Num`` values. ``methods`` maps the words that open a path to the method.
    """

    name: str
    numbers: Mapping[str, Domain]
    asks: tuple[str, ...]
    answer: Callable[..., int]
    methods: Mapping[str, Callable[..., Num]]

    def draw(self, rng: random.Random) -> tuple[int, ...] | None:
        """Draw one number tuple, or None where the first numbers leave no room for a later one."""
        drawn: tuple[int, ...] = ()
        for domain in self.numbers.values():
            values = domain(*drawn) if callable(domain) else domain
            if not values:
                return None
            drawn = (*drawn, values[int(rng.random() * len(values))])
        return drawn

    def every(self, drawn: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
        """List every number tuple that ``draw`` could return."""
        if len(drawn) == len(self.numbers):
            yield drawn
            return
        domain = list(self.numbers.values())[len(drawn)]
        for value in domain(*drawn) if callable(domain) else domain:
            yield from self.every((*drawn, value))

    def work(self, numbers: tuple[int, ...], method: str, slip: Slip | None = None) -> Path:
        """Follow one method; raises ``ImpossibleError`` where its arithmetic leaves the rules."""
        trace = Trace(slip)
        result = self.methods[method](*[Num(number, trace) for number in numbers])
        text = f"{method} : {' . '.join(trace.equations)} ."
        if count_tokens(text) > MAX_PATH_TOKENS or len(trace.equations) not in STEPS:
            raise ImpossibleError("path too long")
        equations = tuple(trace.equations)
        return Path(method=method, text=text, equations=equations, result=int(result), wrong=slip is not None)

    def solve(self, numbers: tuple[int, ...]) -> dict[str, Path] | None:
        """Follow every method without error; None where one does not suit the numbers or nothing is left."""
        try:
            solved = {method: self.work(numbers, method) for method in self.methods}
        except ImpossibleError:
            return None
        return solved if self.answer(*numbers) > 0 else None

    def spoil(self, numbers: tuple[int, ...], right: Path, rng: random.Random) -> Path:
        """Redo a path with one slip that reaches its end; the right path where none could be found."""
        for _ in range(_ERROR_TRIES):
            slip = Slip(step=rng.randrange(len(right.equations)), rng=rng)
            try:
                path = self.work(numbers, right.method, slip)
            except ImpossibleError:
                continue
            if path.result != right.result:
                return path
        return right

    def ask(self, numbers: tuple[int, ...], wording: str, words: Mapping[str, str]) -> str:
        """Word the question: one of ``asks`` with its numbers and slot words filled in."""
        return wording.format(**dict(zip(self.numbers, numbers, strict=True)), **words)

    def ask_any(self, numbers: tuple[int, ...], rng: random.Random) -> str:
        """Word the question with a random wording and random slot words."""
        wording = rng.choice(self.asks)
        slots = [slot for slot in _SLOT.findall(wording) if slot in POOLS]
        return self.ask(numbers, wording, fill(dict.fromkeys(slots), rng))
