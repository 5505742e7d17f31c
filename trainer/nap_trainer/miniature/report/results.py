"""Everything that has run, by what it is: test decodes by arm, seed and tokens a step; order decodes by setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nap_trainer.miniature import stats
from nap_trainer.miniature.driver import Driver
from nap_trainer.miniature.problems import Array
from nap_trainer.miniature.records import Grader, Record
from nap_trainer.miniature.schedule import chosen_tests
from nap_trainer.miniature.stats import Interval
from nap_trainer.miniature.store import Store
from nap_trainer.miniature.study import Study

TestKey = tuple[str, int, int]  # arm, seed, tokens a step
OrderKey = tuple[str, str, str, int]  # weights, canvas, setting's method, tokens a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A run's records.

    Attributes:
        tests, orders: records of the decodes that have run.
        names: their units, with the number of problems of each.
        missing: trainings, searches and decodes that the study asks for and that have not run.
    """

    study: Study
    store: Store
    tests: dict[TestKey, Record]
    orders: dict[OrderKey, Record]
    names: dict[str, int]
    missing: tuple[str, ...]

    @classmethod
    def collect(cls, driver: Driver, *, processes: int) -> Results:
        """Grade what has not been graded, and load everything."""
        study, store = driver.study, driver.store
        tests: dict[TestKey, Record] = {}
        orders: dict[OrderKey, Record] = {}
        names: dict[str, int] = {}
        missing = [f"training {model.name}" for model in study.models() if not store.trained(model)]
        searched = store.choices()
        wanted = [(arm, per_step) for per_step in study.per_step for arm in study.seeds]
        missing += [f"search {arm}, {k} a step (and its tests)" for arm, k in wanted if (arm, k) not in searched]
        with Grader(driver, processes=processes) as grader:
            for unit in [*chosen_tests(study, store), *study.orders()]:
                record = grader.record(unit)
                if record is None:
                    missing.append(unit.name)
                    continue
                names[unit.name] = len(record)
                if unit.stage == "test":
                    tests[unit.model.arm, unit.model.seed, unit.setting.per_step] = record
                else:
                    orders[unit.model.arm, unit.canvas, unit.setting.method, unit.setting.per_step] = record
        return cls(study=study, store=driver.store, tests=tests, orders=orders, names=names, missing=tuple(missing))

    @property
    def arms(self) -> list[str]:
        """The study's arms, in its order."""
        return list(self.study.seeds)

    @property
    def numbers(self) -> list[int]:
        """Tokens a step, ascending."""
        return sorted(self.study.per_step)

    def seeds(self, arm: str, per_step: int) -> list[int]:
        """Seeds of an arm that have been tested."""
        return [seed for name, seed, number in sorted(self.tests) if (name, number) == (arm, per_step)]

    def common(self, one: str, other: str, *numbers: int) -> list[int]:
        """Seeds that both arms were tested with, at all of these tokens a step."""
        sets = [set(self.seeds(arm, number)) for arm in (one, other) for number in numbers]
        return sorted(set.intersection(*sets)) if sets else []

    def right(self, arm: str, per_step: int, seeds: list[int]) -> Array:
        """Right summaries, float64 [s, n]."""
        return stats.stacked([self.tests[arm, seed, per_step].right_n for seed in seeds])

    def accuracy(self, arm: str, per_step: int) -> tuple[Interval, int, int] | None:
        """Mean accuracy with its interval (seeds and problems; Wilson's for one seed), seeds, problems."""
        seeds = self.seeds(arm, per_step)
        if not seeds:
            return None
        right_sn = self.right(arm, per_step, seeds)
        if len(seeds) == 1:
            return stats.wilson(int(right_sn.sum()), right_sn.shape[1]), 1, right_sn.shape[1]
        interval = stats.two_level_bootstrap(right_sn, resamples=self.study.resamples)
        return interval, len(seeds), right_sn.shape[1]

    def arness(self, arm: str, per_step: int, figure: str) -> Interval | None:
        """An ARness figure of the first seed's test decode."""
        seeds = self.seeds(arm, per_step)
        return stats.mean_interval(self.tests[arm, seeds[0], per_step].figure(figure)) if seeds else None

    def notes(self) -> dict[str, dict[str, Any]]:
        """What each training left, by model."""
        return {model.name: self.store.model_note(model) for model in self.study.models()}


def order_of_heat(record: Record) -> Array:
    """Share of each slot's commits in each time bin, float64 [S, Q]."""
    counts = record.heat_SQ.astype(np.float64)
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))
