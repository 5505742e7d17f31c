"""What to decode next: a list by worth, in which the search decides what the test decodes.

For each number of tokens a step, most wanted first: the twins' search and test, then the other arms'. The fixed order
settings come after the first two numbers, the remaining numbers last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from nap_trainer.miniature.decoding import Setting
from nap_trainer.miniature.store import Store
from nap_trainer.miniature.study import TWINS, Decode, Model, Study

Score = Callable[[Decode], float]
_BEFORE_ORDERS = 2


class Schedule:
    """Yields the decodes of a study that are not on disk yet.

    Args:
        score: accuracy of a development decode that is on disk.
        arms: the weights to decode with (None: all), so that several processes can share a study.

    A yielded unit must be on disk when the next is asked for; units of models that are not trained are left out.
    """

    def __init__(self, study: Study, store: Store, score: Score, arms: Collection[str] | None = None) -> None:
        self._study, self._store, self._score = study, store, score
        self._arms = [arm for arm in study.seeds if arms is None or arm in arms]

    def units(self) -> Iterator[Decode]:
        """Everything that can run now, by worth."""
        per_step = self._study.per_step
        for number in per_step[:_BEFORE_ORDERS]:
            yield from self._number(number)
        yield from self._open(unit for unit in self._study.orders() if unit.model.arm in self._arms)
        for number in per_step[_BEFORE_ORDERS:]:
            yield from self._number(number)

    def _number(self, per_step: int) -> Iterator[Decode]:
        twins = [arm for arm in self._arms if arm in TWINS]
        for group in (twins, [arm for arm in self._arms if arm not in TWINS]):
            for arm in group:
                yield from self._search(arm, per_step)
            yield from self._open(self._tests(group, per_step))

    def _tests(self, arms: list[str], per_step: int) -> list[Decode]:
        return [unit for unit in chosen_tests(self._study, self._store) if unit.canvas in arms and _k(unit) == per_step]

    def _search(self, arm: str, per_step: int) -> Iterator[Decode]:
        """Screen the grid, search what was kept, note the choice."""
        model = self._study.screens(arm, per_step)[0].model
        if (arm, per_step) in self._store.choices() or not self._store.trained(model):
            return
        screens = self._study.screens(arm, per_step)
        yield from self._open(screens)
        searches = self._study.searches(arm, self._best(screens)[: self._study.keep])
        yield from self._open(searches)
        best = self._best(searches)[0]
        self._store.note_choice(self._choice(arm, per_step, best, screens, searches))

    def _best(self, units: list[Decode]) -> list[Setting]:
        """Settings by accuracy, the grid's order among equals."""
        return [unit.setting for unit in sorted(units, key=lambda unit: -self._score(unit))]

    def _choice(
        self, arm: str, per_step: int, best: Setting, screens: list[Decode], searches: list[Decode]
    ) -> dict[str, object]:
        scores = {"screen": screens, "search": searches}
        return {
            "arm": arm,
            "per_step": per_step,
            "setting": best.name,
            **{stage: {u.setting.name: round(self._score(u), 4) for u in units} for stage, units in scores.items()},
        }

    def _open(self, units: Iterable[Decode]) -> Iterator[Decode]:
        for unit in units:
            if self._store.trained(unit.model) and not self._store.decode(unit).exists():
                yield unit


def chosen_tests(study: Study, store: Store) -> list[Decode]:
    """Every test decode whose setting has been chosen, whether it has run or not."""
    choices = store.choices()
    return [
        study.test_of(model, choices[model.arm, per_step])
        for per_step in study.per_step
        for model in sorted(study.models(), key=_twins_first)
        if (model.arm, per_step) in choices
    ]


def _twins_first(model: Model) -> bool:
    return model.arm not in TWINS


def _k(unit: Decode) -> int:
    return unit.setting.per_step
