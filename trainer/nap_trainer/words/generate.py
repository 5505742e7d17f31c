"""Endless word problems, and the few that documentation shows."""

from __future__ import annotations

import random
from collections.abc import Iterator

from nap_trainer.words.families import FAMILIES
from nap_trainer.words.family import Family, Path
from nap_trainer.words.problem import Problem
from nap_trainer.words.split import RESERVED, Split, split_of

MAX_PATHS = min(len(family.methods) for family in FAMILIES.values())
"""How many paths every family can give without repeating a method."""


def generate(split: Split, *, seed: int, paths: int = 3, error_rate: float = 0.15) -> Iterator[Problem]:
    """Generate problems of one split without end, families uniformly, the same ones for the same seed."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    if not 1 <= paths <= MAX_PATHS:
        raise ValueError(f"paths must be 1 to {MAX_PATHS}, not {paths}")
    if not 0 <= error_rate <= 1:
        raise ValueError(f"error_rate must be 0 to 1, not {error_rate}")
    return _generate(split, random.Random(f"{split}/{seed}"), paths, error_rate)


def solve_by(family: str, numbers: tuple[int, ...], method: str) -> Path:
    """Follow one named method of one family without error."""
    return FAMILIES[family].work(numbers, method)


def _generate(split: Split, rng: random.Random, paths: int, error_rate: float) -> Iterator[Problem]:
    families = tuple(FAMILIES.values())
    while True:
        family = rng.choice(families)
        numbers, solved = _draw(family, split, rng)
        chosen = rng.sample(list(solved.values()), paths)
        written = [family.spoil(numbers, path, rng) if rng.random() < error_rate else path for path in chosen]
        yield _problem(family, numbers, family.ask_any(numbers, rng), written)


def _draw(family: Family, split: Split, rng: random.Random) -> tuple[tuple[int, ...], dict[str, Path]]:
    while True:
        numbers = family.draw(rng)
        if numbers is None or split_of(family.name, numbers) != split:
            continue
        solved = family.solve(numbers)
        if solved is not None:
            return numbers, solved


def _problem(family: Family, numbers: tuple[int, ...], question: str, paths: list[Path]) -> Problem:
    return Problem(
        family=family.name,
        numbers=numbers,
        question=question,
        paths=tuple(path.text for path in paths),
        methods=tuple(path.method for path in paths),
        wrong=tuple(path.wrong for path in paths),
        answer=family.answer(*numbers),
    )


def _showcase() -> Iterator[Problem]:
    for (name, numbers), words in RESERVED.items():
        family = FAMILIES[name]
        paths = [family.work(numbers, method) for method in family.methods]
        yield _problem(family, numbers, family.ask(numbers, family.asks[0], words), paths[:MAX_PATHS])


SHOWCASE: tuple[Problem, ...] = tuple(_showcase())
"""The reserved problems, worded for documentation, without errors."""
