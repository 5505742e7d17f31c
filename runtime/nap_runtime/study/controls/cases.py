"""Problems with right and wrong path texts to give to a model.

A wrong path is a right one that slips at its last step: its last number is another. That works for any set whose paths
end with their answer, and leaves all of the path's work standing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nap_runtime.errors import DataError
from nap_runtime.study.problems import Problem, check_count, file_rows

_NUMBER = re.compile(r"(?<![\d.])\d+(?![\d.]*\d)")  # whole numbers that are no part of a decimal
_TRIES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A problem and right texts of its paths, as many as the canvas has paths."""

    problem: Problem
    right: tuple[str, ...]

    def wrong_answers(self, n: int, *, seed: int = 0) -> tuple[str, ...]:
        """So many different wrong answers, each of as many digits as the right one; in no path and not asked about.

        Raises:
            DataError: the right answer is no whole number, or there are not that many.
        """
        gold = self.problem.gold
        if not gold.isdigit():
            raise DataError(f"problem {self.problem.id}: its answer '{gold}' is no whole number; slips need one")
        return strange_numbers(gold, n, known=(self.problem.question, *self.right), seed=f"{seed}/{self.problem.id}")

    def slipped(self, path: int, answer: str) -> str:
        """A right path that ends with another answer.

        Raises:
            DataError: the path does not end with the right answer.
        """
        text, gold = self.right[path], self.problem.gold
        found = [match for match in _NUMBER.finditer(text) if match[0] == gold]
        changed = text if not found else text[: found[-1].start()] + answer + text[found[-1].end() :]
        if self.problem.read_path(changed) != answer:
            raise DataError(f"problem {self.problem.id}: path {path + 1} does not end with its answer {gold}")
        return changed


def strange_numbers(like: str, n: int, *, known: Sequence[str], seed: str) -> tuple[str, ...]:
    """Different numbers with as many digits as `like` that stand in none of the `known` texts; the same for a seed.

    Raises:
        DataError: there are not that many.
    """
    taken = {like, *(number for text in known for number in _NUMBER.findall(text))}
    rng, found = random.Random(seed), list[str]()
    low = 10 ** (len(like) - 1) if len(like) > 1 else 1
    for _ in range(_TRIES * n):
        number = str(rng.randrange(low, 10 ** len(like)))
        if number not in taken:
            taken.add(number)
            found.append(number)
        if len(found) == n:
            return tuple(found)
    raise DataError(f"there are no {n} numbers like {like} that do not stand in the problem")


def intermediate(case: Case, path: int) -> str | None:
    """A number that a path works out on the way, neither asked about nor the answer; None where there is none.

    The first that another right path works out too, since that path has a place for it; else the first.
    """
    known = {*_NUMBER.findall(case.problem.question), case.problem.gold}
    found = [number for number in _NUMBER.findall(case.right[path]) if number not in known]
    others = [text for at, text in enumerate(case.right) if at != path]
    shared = [number for number in found if any(mentions(text, number) for text in others)]
    return next(iter(shared or found), None)


def replaced(text: str, old: str, new: str) -> str:
    """A text with a whole number in place of another, everywhere."""
    return _NUMBER.sub(lambda match: new if match[0] == old else match[0], text)


def mentions(text: str, number: str) -> bool:
    """Whether a whole number stands in a text."""
    return number in _NUMBER.findall(text)


# -- where they come from --------------------------------------------------------------------------


def read_cases(*, n: int, paths: int, seed: int = 0, data: Path | None = None) -> list[Case]:
    """The first `n` cases: held-out word problems worked without error, or rows of NAP data whose paths are right.

    Args:
        paths: right paths that each needs; rows of a file with fewer are passed over.
        data: JSONL or parquet of NAP data (None: `words`, which has three paths a problem).

    Raises:
        UsageError: there is no such file, or `n` is below 1 or beyond what is generated at once.
        DataError: a row is malformed, or no row has so many right paths.
    """
    check_count(n, generated=data is None)
    found = list(islice(_from_file(data, paths) if data is not None else _from_words(paths, seed), n))
    if not found:
        raise DataError(f"{data}: no row has {paths} paths that state its answer")
    return found


def _from_words(paths: int, seed: int) -> Iterator[Case]:
    from nap_trainer.words import MAX_PATHS, generate

    if paths > MAX_PATHS:
        raise DataError(f"word problems have {MAX_PATHS} paths, not {paths}; give a file of NAP data")
    for at, item in enumerate(generate("test", seed=seed, paths=paths, error_rate=0.0)):
        yield Case(problem=_problem(at, item.question, str(item.answer)), right=item.paths)


def _from_file(data: Path, paths: int) -> Iterator[Case]:
    from nap_trainer.data.schema import FieldError, NapExample

    for number, row in enumerate(file_rows(data), start=1):
        try:
            example = NapExample.from_mapping(_mapping(row))
        except FieldError as error:
            raise DataError(f"{data}: row {number}: {error}") from None
        problem = _problem(number - 1, example.question, example.answer)
        right = [text for text in example.paths if problem.is_right(problem.read_path(text))]
        if len(right) >= paths:
            yield Case(problem=problem, right=tuple(right[:paths]))


def _mapping(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def _problem(index: int, question: str, gold: str) -> Problem:
    return Problem(index=index, id=str(index), question=question, gold=gold, kind="words")
