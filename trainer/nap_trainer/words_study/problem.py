"""One study problem as text, and the readable front end: it words the rows that `table` turns into ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from nap_runtime.errors import UsageError
from nap_runtime.models.detokenise import BOXED
from nap_trainer.words_study.config import StudyConfig
from nap_trainer.words_study.drawing import BLOCK, Group, draw_block
from nap_trainer.words_study.numbers import TIMES, Ints
from nap_trainer.words_study.render import back_pass
from nap_trainer.words_study.split import Split, check_split
from nap_trainer.words_study.vocabulary import METHODS, NAMES

_SIGNS = ("+", "-", "*")
_MOVES = ("up", "down", "times")
_VERBS = ("beats", "trails")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProblem:
    """A question, three paths, what each states, and the right answer.

    `given` and `operations` (`("+05", "*02")`, in the order of the chain) are what the split is decided by.
    """

    question: str
    paths: tuple[str, ...]
    answer: int
    depth: int
    path_answers: tuple[int, ...]
    methods: tuple[str, ...]
    given: int
    operations: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The closing text; it has the right answer even where every path is wrong."""
        return f"the answer is {BOXED}{self.answer:02}}}"

    @property
    def wrong(self) -> tuple[bool, ...]:
        """Which paths state another answer."""
        return tuple(stated != self.answer for stated in self.path_answers)

    @property
    def wrong_majority(self) -> bool:
        """Whether fewer than two of the paths state the right answer."""
        return sum(self.wrong) >= 2

    def to_json(self) -> dict[str, Any]:
        """A row of NAP data; the keys after `answer` are this set's own, but for `wrong`."""
        return {
            "question": self.question,
            "paths": {str(number): path for number, path in enumerate(self.paths, start=1)},
            "summary": self.summary,
            "answer": str(self.answer),
            "wrong": list(self.wrong),
            "depth": self.depth,
            "methods": list(self.methods),
            "given": self.given,
            "operations": list(self.operations),
        }


def generate(split: Split, *, seed: int, config: StudyConfig | None = None, start: int = 0) -> Iterator[StudyProblem]:
    """Generate problems without end, from number `start` on; the rows of `make_table` in words.

    Raises:
        UsageError: an unknown split, a negative seed or start.
    """
    check_split(split)
    for name, value in (("seed", seed), ("start", start)):
        if value < 0:
            raise UsageError(f"{name}: {value} is negative; use 0 or more", field=name)
    return _generate(split, seed, config or StudyConfig(), start)


def _generate(split: Split, seed: int, config: StudyConfig, start: int) -> Iterator[StudyProblem]:
    for block in count(start // BLOCK):
        places: list[tuple[Group, int]] = [None] * BLOCK  # type: ignore[list-item]
        for group in draw_block(split, seed, block, config):
            for i, row in enumerate(group.rows_n):
                places[row] = (group, i)
        for group, i in places[max(0, start - block * BLOCK) :]:
            yield _worded(group, i)


def _worded(group: Group, i: int) -> StudyProblem:
    numbers = group.numbers
    kinds, operands = _row(numbers.kind_nK, i), _row(numbers.operand_nK, i)
    by_method = _paths(group, i)
    order = _row(group.method_nm, i)
    stated = [int(value) for value in group.slips.value_nmV[i, :, -1]]
    return StudyProblem(
        question=_question(group, i),
        paths=tuple(by_method[method] for method in order),
        answer=int(numbers.answer_n[i]),
        depth=numbers.depth,
        path_answers=tuple(stated[method] for method in order),
        methods=tuple(METHODS[method] for method in order),
        given=int(numbers.given_n[i]),
        operations=tuple(f"{_SIGNS[kind]}{operand:02}" for kind, operand in zip(kinds, operands, strict=True)),
    )


def _question(group: Group, i: int) -> str:
    wording, depth = group.wording, group.numbers.depth
    names = [NAMES[name] for name in wording.name_nW[i]]
    kinds = _row(group.numbers.kind_nK, i) + _row(wording.kind_nD, i)
    operands = _row(group.numbers.operand_nK, i) + _row(wording.operand_nD, i)
    others = [*range(depth), *_row(wording.of_nD, i)]
    sentences = [f"{names[0]} starts out with {group.numbers.given_n[i]:02}."]
    for person, (kind, operand, other) in enumerate(zip(kinds, operands, others, strict=True), start=1):
        sentences.append(_sentence(names[person], kind, operand, names[other]))
    return " ".join([*(sentences[place] for place in wording.order_nW[i]), f"how many has {names[depth]}?"])


def _sentence(name: str, kind: int, operand: int, other: str) -> str:
    if kind == TIMES:
        return f"{name} has {operand:02} times {other}."
    return f"{name} {_VERBS[kind]} {other} by {operand:02}."


def _paths(group: Group, i: int) -> tuple[str, str, str]:
    """The paths in the order of METHODS."""
    numbers = group.numbers
    depth, given = numbers.depth, f"{numbers.given_n[i]:02}"
    names = [NAMES[name] for name in group.wording.name_nW[i, : depth + 1]]
    kinds, operands = _row(numbers.kind_nK, i), _row(numbers.operand_nK, i)
    by_steps, by_plan = (_row(group.slips.value_nmV[i], method)[1:] for method in (0, 1))
    steps = [
        f"{_SIGNS[kind]} {operand:02} {name} {value:02}"
        for kind, operand, name, value in zip(kinds, operands, names[1:], by_steps, strict=True)
    ]
    moves = [f"{_MOVES[kind]} {value:02}" for kind, value in zip(kinds, by_plan, strict=True)]
    return (
        f"forward {names[0]} {given} {' '.join(steps)}.",
        f"plan {' '.join(reversed(names))}: {given} {' '.join(moves)}.",
        _back(group, i, names),
    )


def _back(group: Group, i: int, names: list[str]) -> str:
    factor_nV, offset_nV = back_pass(group.numbers, group.slips)
    factors, offsets, given = _row(factor_nV, i), _row(offset_nV, i), int(group.numbers.given_n[i])
    stages = [
        f"{names[k]} {factors[k]} {'-' if offsets[k] < 0 else '+'} {abs(offsets[k]):02}"
        for k in reversed(range(group.numbers.depth))
    ]
    product = factors[0] * given
    return f"back {' '.join(stages)}: {given:02}, {product:02}, {product + offsets[0]:02}."


def _row(values: Ints, i: int) -> list[int]:
    return [int(value) for value in values[i]]
