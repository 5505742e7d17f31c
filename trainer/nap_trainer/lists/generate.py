r"""Endless list problems, each with three paths that write the same list in three ways.

    from the front : 1 oak 2 elm 3 ash : oak elm ash .
    from the back : 3 ash 2 elm 1 oak : oak elm ash .
    as it is : oak elm ash .

With a choice (``shuffle``) all paths of a row make the same one: a row shows one answer, not three. A wrong path has
two places of its answer swapped, or one of them doubled where a swap would be right too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, get_args

from nap_runtime.errors import UsageError
from nap_trainer.lists.operations import OPERATIONS, WORDS, Items

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
METHODS = ("from the front", "from the back", "as it is")
LENGTHS = range(3, 9)
TEST_SHARE = 8
"""One list, with its operation and arguments, in this many goes to test."""


def split_of(operation: str, arguments: Items, items: Items) -> Split:
    """Tell the split of a problem; the same on every machine and in every run."""
    key = "\0".join((operation, *arguments, "", *items))
    return "test" if int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % TEST_SHARE == 0 else "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListProblem:
    """A list, what is to be done to it, and paths that do it. `answer` is one right answer."""

    operation: str
    arguments: Items
    items: Items
    answer: Items
    paths: tuple[str, ...]
    methods: tuple[str, ...]
    wrong: tuple[bool, ...]

    @property
    def question(self) -> str:
        """The prompt."""
        return OPERATIONS[self.operation].ask.format(*self.arguments, list=" ".join(self.items))

    @property
    def summary(self) -> str:
        """The closing text; it has a right answer even where every path is wrong."""
        return f"the list is \\boxed{{{' '.join(self.answer)}}}"

    def accepts(self, answer: str | None) -> bool:
        """Whether a text holds a right answer: for a choice there are several."""
        if answer is None:
            return False
        return OPERATIONS[self.operation].accepts(self.items, self.arguments, tuple(answer.split()))

    def to_json(self) -> dict[str, Any]:
        """A row of NAP data; the keys after `wrong` are this set's own."""
        return {
            "question": self.question,
            "paths": {str(number): path for number, path in enumerate(self.paths, start=1)},
            "summary": self.summary,
            "answer": " ".join(self.answer),
            "wrong": list(self.wrong),
            "operation": self.operation,
            "kind": OPERATIONS[self.operation].kind,
            "arguments": list(self.arguments),
            "items": list(self.items),
            "methods": list(self.methods),
        }


def generate(
    split: Split, *, seed: int, operations: Sequence[str] | None = None, error_rate: float = 0.15
) -> Iterator[ListProblem]:
    """Generate problems of one split without end, operations and lengths uniformly, the same ones for the same seed.

    Raises:
        UsageError: an unknown split or operation, or a rate that is none.
    """
    if split not in SPLITS:
        raise UsageError(f"split: unknown value '{split}'; use one of {', '.join(SPLITS)}", field="split")
    chosen = tuple(OPERATIONS) if operations is None else tuple(operations)
    for name in chosen or ("",):
        if name not in OPERATIONS:
            known = ", ".join(OPERATIONS)
            raise UsageError(f"operations: unknown operation '{name}'; use some of {known}", field="operations")
    if not 0 <= error_rate <= 1:
        raise UsageError(f"error_rate: {error_rate} is not from 0 to 1", field="error_rate")
    return _generate(split, random.Random(f"lists/{split}/{seed}"), chosen, error_rate)


def _generate(split: Split, rng: random.Random, operations: Items, error_rate: float) -> Iterator[ListProblem]:
    while True:
        name = rng.choice(operations)
        items = tuple(rng.sample(WORDS, rng.choice(LENGTHS)))
        arguments = OPERATIONS[name].draw(items, rng)
        if split_of(name, arguments, items) == split:
            yield _problem(name, items, arguments, rng, error_rate)


def _problem(name: str, items: Items, arguments: Items, rng: random.Random, error_rate: float) -> ListProblem:
    operation = OPERATIONS[name]
    answer = operation.solve(items, arguments, rng)
    methods = tuple(rng.sample(METHODS, len(METHODS)))
    said = [_spoiled(name, items, arguments, answer, rng) if rng.random() < error_rate else answer for _ in methods]
    return ListProblem(
        operation=name,
        arguments=arguments,
        items=items,
        answer=answer,
        paths=tuple(path_text(method, one) for method, one in zip(methods, said, strict=True)),
        methods=methods,
        wrong=tuple(not operation.accepts(items, arguments, one) for one in said),
    )


def _spoiled(name: str, items: Items, arguments: Items, answer: Items, rng: random.Random) -> Items:
    """The answer with two places swapped, or where that is right too, one written over its neighbour."""
    one, other = rng.sample(range(len(answer)), 2)
    swapped, doubled = list(answer), list(answer)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    doubled[one] = doubled[other]
    right = OPERATIONS[name].accepts(items, arguments, tuple(swapped))
    return tuple(doubled if right else swapped)


def path_text(method: str, answer: Items) -> str:
    """One path: the places in the order of its method, then the list."""
    places = [f"{place} {item}" for place, item in enumerate(answer, start=1)]
    by_method = {METHODS[0]: places, METHODS[1]: places[::-1], METHODS[2]: []}[method]
    return " : ".join(filter(None, (method, " ".join(by_method), " ".join(answer)))) + " ."
