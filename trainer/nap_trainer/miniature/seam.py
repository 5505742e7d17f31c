"""Where the harness meets the trainer: what a training is given, and what it must leave.

A trainer is named in the study as `module:factory`. The factory takes the study's `training` settings and returns a
`TrainArm`. Nothing else of the trainer is known here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nap_runtime.errors import UsageError
from nap_trainer.miniature.arms import Arm, ArmTable, Geometry, Tags, fill, padded_prompts
from nap_trainer.miniature.problems import Problems, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """The training problems of a study, the same for all arms.

    Attributes:
        problems: with prompts as they will stand on the canvas (padded on the left where the geometry asks for it).
        geometry, tags: how every arm lays them out.
        tokenizer: the folder of the tokenizer, to be copied beside the weights.
    """

    problems: Problems
    geometry: Geometry
    tags: Tags
    tokenizer: Path

    @classmethod
    def of(cls, problems: Problems, geometry: Geometry, tags: Tags, tokenizer: Path) -> TrainingSet:
        """Pad the prompts and keep the rest."""
        return cls(problems=padded_prompts(problems, geometry, tags), geometry=geometry, tags=tags, tokenizer=tokenizer)

    def canvases(self, arm: Arm) -> ArmTable:
        """Every canvas of an arm with all slots filled in: exactly what its decodes are laid out as."""
        return fill(self.problems, arm, self.geometry, self.tags)


class TrainArm(Protocol):
    """Trains one arm.

    Equal seeds must give equal initial weights and the same problems in the same order, whatever the arm; steps,
    batch and optimizer must be the same for all arms.
    """

    def __call__(self, arm: Arm, seed: int, table: TrainingSet, folder: Path) -> Path:
        """Train, and leave a model that `nap_runtime.models.load_model` reads; returns its folder."""
        ...


def factory(name: str, values: Mapping[str, Any], field: str) -> Any:
    """Call the factory that `module:function` names.

    Raises:
        UsageError: there is no such module or function, or it refuses the values.
    """
    module, colon, function = name.partition(":")
    try:
        if not colon:
            raise AttributeError("write module:function")
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{field}: '{name}' cannot be used ({error})", field=field) from error
    return made(values)


def source_of(name: str, values: Mapping[str, Any]) -> Source:
    """The problem set of a study."""
    made: Source = factory(name, values, "source")
    return made


def trainer_of(name: str, values: Mapping[str, Any]) -> TrainArm:
    """The trainer of a study."""
    made: TrainArm = factory(name, values, "trainer")
    return made
