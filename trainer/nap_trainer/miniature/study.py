"""The study as data: sizes, seeds, grid, and every unit of work in the order of its worth.

A unit is one training or one decode. Its name is its file; what is on disk is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from nap_runtime.errors import UsageError
from nap_runtime.job import DTYPES, one_of
from nap_runtime.yaml_files import read_yaml
from nap_trainer.miniature.arms import Arm, Geometry, arm_of
from nap_trainer.miniature.decoding import Setting
from nap_trainer.miniature.problems import Split

SEARCH_SEED = 0
TWINS = ("nap", "cot-clamped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One training: an arm and a seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """`nap-s0`."""
        return f"{self.arm}-s{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """One decode.

    Args:
        stage: `screen` and `search` (development set), `test` (once, with the chosen setting), `order` (fixed
            settings, for ARness and ablations).
        model: the weights; `canvas` the arm whose canvas they fill, usually the same.
        setting: how.
        split, count: which problems, from the first on.
    """

    stage: str
    model: Model
    canvas: str
    setting: Setting
    split: Split
    count: int

    @property
    def name(self) -> str:
        """The unit's path in the run's folder: `test/nap-s0/pf-e0-k4`, with `@canvas` where it is another arm's."""
        canvas = "" if self.canvas == self.model.arm else f"@{self.canvas}"
        return f"{self.stage}/{self.model.name}{canvas}/{self.setting.name}"

    @property
    def arm(self) -> Arm:
        """The arm of the canvas."""
        return arm_of(self.canvas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything that is fixed before a run.

    Args:
        source, trainer: `module:factory` of the problem set and of the training function.
        problem_set, training: settings handed to these factories as they are.
        path_tokens, summary_tokens, prompt_tokens: see `Geometry`.
        train, dev, test, order, screen: numbers of problems; `order` counts from the test set, `screen` from dev.
        data_seed: of the problem set.
        seeds: trainings of each arm, in order of priority.
        per_step: tokens a step, in order of priority; `order_per_step` those of the order settings.
        rules, blocks, eos: the search grid.
        order_rules: settings of the order stage, without their tokens a step.
        keep: settings that go from screening to the whole development set.
        crossed: (weights, canvas) pairs of the order stage beyond each arm on its own canvas.
        batch, dtype: canvases decoded at once, and the precision of decoding.
        resamples: of each bootstrap.
    """

    source: str = "nap_trainer.miniature.words:source"
    trainer: str = "nap_trainer.miniature.training:trainer"
    problem_set: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    path_tokens: int = 40
    summary_tokens: int = 8
    prompt_tokens: int | None = None
    train: int = 1_000_000
    dev: int = 512
    test: int = 5120
    order: int = 1024
    screen: int = 128
    data_seed: int = 1
    seeds: Mapping[str, int] = field(
        default_factory=lambda: {"nap": 5, "cot-clamped": 5, "cot": 2, "nap-free": 2, "short": 2, "nap-2": 2}
    )
    per_step: tuple[int, ...] = (4, 1, 2, 8)
    order_per_step: tuple[int, ...] = (1, 4)
    rules: tuple[str, ...] = ("pf", "ao", "l2r", "block")
    blocks: tuple[int, ...] = (8, 16, 32)
    eos: tuple[float, ...] = (0.0, 0.25, 1.0)
    order_rules: tuple[str, ...] = ("ao-e0", "pf-e0", "random", "l2r", "block32-e0", "ao-e1")
    keep: int = 4
    crossed: tuple[tuple[str, str], ...] = (("cot-clamped", "nap"),)
    batch: int = 1024
    dtype: str = "bfloat16"
    resamples: int = 10_000

    def __post_init__(self) -> None:
        for name in ("train", "dev", "test", "order", "screen", "keep", "batch", "resamples", "path_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}: {value!r} is not an integer of at least 1", field=name)
        for name in [*self.seeds, *(arm for pair in self.crossed for arm in pair)]:
            arm_of(name)
        if not all(isinstance(count, int) and count >= 1 for count in self.seeds.values()):
            raise UsageError("seeds: every arm needs at least one", field="seeds")
        for setting in (*self._grid(1), *(Setting.parse(f"{rule}-k1") for rule in self.order_rules)):
            assert setting.name  # parsed and checked by itself
        one_of("dtype", self.dtype, DTYPES)
        if self.order > self.test or self.screen > self.dev:
            raise UsageError("order: at most `test`; screen: at most `dev`", field="order")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from parsed YAML; UsageError for an unknown key or a value of a wrong type."""
        known = {f.name: f for f in fields(cls)}
        checked: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"{key}: unknown key; known are {', '.join(sorted(known))}", field=str(key))
            checked[key] = _typed(key, str(known[key].type), value)
        return cls(**checked)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file; UsageError if it is malformed."""
        values = read_yaml(path, field="config") or {}
        if not isinstance(values, dict):
            raise UsageError(f"config: {path} must hold keys and values", field="config")
        return cls.from_mapping(values)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values; `from_mapping` is its inverse."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: dict(values[name]) for name in ("problem_set", "training", "seeds")}
        values |= {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        values["crossed"] = [list(pair) for pair in self.crossed]
        return values

    @property
    def geometry(self) -> Geometry:
        """The size of every canvas."""
        return Geometry(
            path_tokens=self.path_tokens, summary_tokens=self.summary_tokens, prompt_tokens=self.prompt_tokens
        )

    # -- units, most wanted first ---------------------------------------------------------------------------------

    def models(self) -> list[Model]:
        """First seeds of all arms, then the twins' other seeds, then the rest."""
        first = [Model(arm=arm, seed=SEARCH_SEED) for arm in self.seeds]
        rest = [Model(arm=arm, seed=seed) for arm, count in self.seeds.items() for seed in range(1, count)]
        rest.sort(key=lambda model: (model.arm not in TWINS, model.seed))
        return [*first, *rest]

    def grid(self, arm: Arm, per_step: int) -> list[Setting]:
        """What an arm may choose from: the same grid for all, less the rules its layout lacks."""
        return [setting for setting in self._grid(per_step) if setting.fits(arm)]

    def _grid(self, per_step: int) -> Iterator[Setting]:
        for rule in self.rules:
            if rule in ("l2r", "random"):
                yield Setting(rule=rule, per_step=per_step)
                continue
            for block in self.blocks if rule == "block" else (None,):
                for eos in self.eos:
                    yield Setting(rule=rule, per_step=per_step, block=block, eos=eos)

    def screens(self, arm: str, per_step: int) -> list[Decode]:
        """The whole grid on the first development problems."""
        return [self._dev("screen", arm, setting, self.screen) for setting in self.grid(arm_of(arm), per_step)]

    def searches(self, arm: str, settings: list[Setting]) -> list[Decode]:
        """The settings that screening kept, on the whole development set."""
        return [self._dev("search", arm, setting, self.dev) for setting in settings]

    def _dev(self, stage: str, arm: str, setting: Setting, count: int) -> Decode:
        model = Model(arm=arm, seed=SEARCH_SEED)
        return Decode(stage=stage, model=model, canvas=arm, setting=setting, split="dev", count=count)

    def test_of(self, model: Model, setting: Setting) -> Decode:
        """The one test decode of a model at its arm's chosen setting."""
        return Decode(stage="test", model=model, canvas=model.arm, setting=setting, split="test", count=self.test)

    def orders(self) -> list[Decode]:
        """The fixed settings on the first test problems: every arm's first seed, then crossed weights and canvases."""
        pairs = [(arm, arm) for arm in self.seeds] + [pair for pair in self.crossed if pair[0] in self.seeds]
        return [
            self._order(arm, canvas, Setting.parse(f"{rule}-k{per_step}"))
            for rule in self.order_rules
            for per_step in self.order_per_step
            for arm, canvas in pairs
            if Setting.parse(f"{rule}-k{per_step}").fits(arm_of(canvas))
        ]

    def _order(self, arm: str, canvas: str, setting: Setting) -> Decode:
        model = Model(arm=arm, seed=SEARCH_SEED)
        return Decode(stage="order", model=model, canvas=canvas, setting=setting, split="test", count=self.order)


def _typed(key: str, kind: str, value: Any) -> Any:
    """A YAML value as the field's type."""
    if value is None and kind.endswith("None"):
        return None
    wanted: tuple[type, ...] = (str,)
    if kind.startswith("int"):
        wanted = (int,)
    elif kind.startswith("tuple"):
        wanted = (list, tuple)
    elif kind.startswith("Mapping"):
        wanted = (dict,)
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise UsageError(f"{key}: {value!r} is not of type {kind}", field=key)
    if not isinstance(value, (list, tuple)):
        return value
    try:
        return _items(kind, value)
    except (TypeError, ValueError):
        raise UsageError(f"{key}: {value!r} is not of type {kind}", field=key) from None


def _items(kind: str, values: Any) -> tuple[Any, ...]:
    if kind.startswith("tuple[tuple"):
        return tuple((str(one), str(other)) for one, other in values)
    of = {"int": int, "flo": float, "str": str}[kind[6:9]]
    return tuple(of(value) for value in values)
