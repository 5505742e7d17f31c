"""What is done to a list, and which lists are right afterwards."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Items = tuple[str, ...]
Kind = Literal["places", "together", "choice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation.

    Args:
        kind: `places`: each place of the answer follows from the question alone; `together`: it follows from all of
            the list; `choice`: several answers are right, and places must agree on one.
        draw: its arguments, as they stand in the question, for a list.
        ask: the question's words; `{list}` and the arguments by number.
        solve: one right answer, of a list, arguments and (for a choice) a source of it.
        right: whether an answer is right (None: it must equal `solve`'s).
    """

    kind: Kind
    draw: Callable[[Items, random.Random], Items]
    ask: str
    solve: Callable[[Items, Items, random.Random], Items]
    right: Callable[[Items, Items, Items], bool] | None = None

    def accepts(self, items: Items, arguments: Items, answer: Items) -> bool:
        """Whether a list is a right answer."""
        if self.right is not None:
            return self.right(items, arguments, answer)
        return answer == self.solve(items, arguments, random.Random(0))


def _nothing(items: Items, rng: random.Random) -> Items:
    return ()


def _place(items: Items, rng: random.Random) -> Items:
    return (str(rng.randrange(len(items)) + 1),)


def _two_places(items: Items, rng: random.Random) -> Items:
    first, second = sorted(rng.sample(range(1, len(items) + 1), 2))
    return (str(first), str(second))


def _turn(items: Items, rng: random.Random) -> Items:
    return (str(rng.randrange(1, len(items))),)


def _member(items: Items, rng: random.Random) -> Items:
    return (rng.choice(items),)


def _place_and_stranger(items: Items, rng: random.Random) -> Items:
    strangers = sorted(set(WORDS) - set(items))
    return (*_place(items, rng), rng.choice(strangers))


def _swap(items: Items, arguments: Items, rng: random.Random) -> Items:
    one, other = (int(argument) - 1 for argument in arguments)
    changed = list(items)
    changed[one], changed[other] = changed[other], changed[one]
    return tuple(changed)


def _replace(items: Items, arguments: Items, rng: random.Random) -> Items:
    at = int(arguments[0]) - 1
    return (*items[:at], arguments[1], *items[at + 1 :])


def _insert(items: Items, arguments: Items, rng: random.Random) -> Items:
    at = int(arguments[0]) - 1
    return (*items[:at], arguments[1], *items[at:])


def _shuffle(items: Items, arguments: Items, rng: random.Random) -> Items:
    while True:
        answer = tuple(rng.sample(items, len(items)))
        if answer != items:
            return answer


def _replace_any(items: Items, arguments: Items, rng: random.Random) -> Items:
    return _replace(items, (str(rng.randrange(len(items)) + 1), *arguments), rng)


def _is_shuffled(items: Items, arguments: Items, answer: Items) -> bool:
    return Counter(answer) == Counter(items) and answer != items


def _replaced_one(items: Items, arguments: Items, answer: Items) -> bool:
    if len(answer) != len(items):
        return False
    changed = [new for old, new in zip(items, answer, strict=True) if old != new]
    return changed == [arguments[0]]


_ALL = "ash bay cob dew elm fig gem hay ivy jet kit log map nut oak pea rye sap tea urn vat wax yak zip"
WORDS = tuple(_ALL.split())
"""What stands in lists; their alphabetical order is this one."""

OPERATIONS: Mapping[str, Operation] = {
    "copy": Operation(kind="places", draw=_nothing, ask="copy {list}", solve=lambda i, a, r: i),
    "reverse": Operation(kind="places", draw=_nothing, ask="reverse {list}", solve=lambda i, a, r: i[::-1]),
    "rotate": Operation(
        kind="places",
        draw=_turn,
        ask="move the first {0} of {list} to the end",
        solve=lambda i, a, r: i[int(a[0]) :] + i[: int(a[0])],
    ),
    "swap": Operation(kind="places", draw=_two_places, ask="swap places {0} and {1} of {list}", solve=_swap),
    "replace": Operation(kind="places", draw=_place_and_stranger, ask="put {1} in place {0} of {list}", solve=_replace),
    "insert": Operation(
        kind="together", draw=_place_and_stranger, ask="insert {1} before place {0} of {list}", solve=_insert
    ),
    "remove": Operation(
        kind="together",
        draw=_member,
        ask="remove {0} from {list}",
        solve=lambda i, a, r: tuple(item for item in i if item != a[0]),
    ),
    "sort": Operation(kind="together", draw=_nothing, ask="sort {list}", solve=lambda i, a, r: tuple(sorted(i))),
    "shuffle": Operation(kind="choice", draw=_nothing, ask="shuffle {list}", solve=_shuffle, right=_is_shuffled),
    "replace-any": Operation(
        kind="choice",
        draw=lambda items, rng: (_place_and_stranger(items, rng)[1],),
        ask="put {0} in some place of {list}",
        solve=_replace_any,
        right=_replaced_one,
    ),
}
