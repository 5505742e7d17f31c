"""An arm's training, by the project's own trainer: the seam's other side.

All arms of a seed begin with the same weights and see the same problems in the same order; they differ in how the
traces stand on the canvas, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from nap_runtime.errors import UsageError
from nap_runtime.models.shapes import shape_config
from nap_trainer.loop import Trainer
from nap_trainer.miniature.arms import Arm, arm_data, segments
from nap_trainer.miniature.seam import TrainArm, TrainingSet
from nap_trainer.prepare import Prepared, prepare
from nap_trainer.ranks import Ranks
from nap_trainer.settings import ObjectiveSection, PositiveInt, ScheduleSection, Section, TrainConfig
from nap_trainer.zero.config import OptimizerConfig, ZeroConfig

_SHAPE = "nap-tiny"


class ArmTraining(Section):
    """What every arm's training shares; see `TrainConfig` for the sections.

    Args:
        overrides: fields of the shape `nap-tiny` that are replaced.
        compile: torch.compile of model and loss.
        log_every: steps between figures.
    """

    overrides: dict[str, int] = Field(default_factory=dict)
    objective: ObjectiveSection = Field(default_factory=lambda: ObjectiveSection(weighting="constant"))
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    zero: ZeroConfig = Field(default_factory=ZeroConfig)
    schedule: ScheduleSection
    compile: bool = False
    log_every: PositiveInt = 100


def trainer(values: Mapping[str, Any]) -> TrainArm:
    """The trainer of a study's `training` settings; UsageError for an unknown key or a wrong value."""
    try:
        training = ArmTraining.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(["training", *map(str, first["loc"])])
        raise UsageError(f"{name}: {first['msg']}", field=name) from None
    return ArmTrainer(training)


class ArmTrainer:
    """Trains arms one after another in this process; a compiled step is compiled once for each canvas shape."""

    def __init__(self, training: ArmTraining) -> None:
        self.training = training
        # One entry for each kind of canvas; the default limit would fall back to eager in silence.
        torch._dynamo.config.recompile_limit = 64

    def __call__(self, arm: Arm, seed: int, table: TrainingSet, folder: Path) -> Path:
        """See `TrainArm`."""
        torch.set_float32_matmul_precision("high")
        ranks = Ranks.of_environment()
        ranks.connect()
        settings = arm_config(self.training, arm, seed, table, folder)
        trainer = Trainer(settings, ranks, _prepared(settings, ranks, table))
        if trainer.loader.dropped:
            raise UsageError(f"path_tokens: {trainer.loader.dropped} rows do not fit; all arms need the same rows")
        trainer.fit()
        trainer.engine.close()
        return folder / "model"


def arm_config(training: ArmTraining, arm: Arm, seed: int, table: TrainingSet, folder: Path) -> TrainConfig:
    """The whole training of an arm in the trainer's own words."""
    overrides = {"max_positions": 512, **training.overrides}
    shape_config(_SHAPE, **overrides)  # a wrong name is a clear error here
    assert len(set(table.geometry.budgets(arm))) == 1, f"{arm.name}: the trainer's blocks have one budget"
    return TrainConfig.from_mapping(
        {
            "model": {"shape": _SHAPE, "tokenizer": "words-study", "overrides": overrides, "seed": seed},
            "data": arm_data(arm, table.geometry) | {"seed": seed},
            "objective": training.objective.model_dump(),
            "optimizer": training.optimizer.model_dump(),
            "zero": training.zero.model_dump(),
            "schedule": training.schedule.model_dump(),
            "run": {
                "out": str(folder),
                "seed": seed,
                "compile": training.compile,
                "log_every": training.log_every,
                "tensorboard": False,
                "export_dtype": "bfloat16",
            },
        }
    )


def _prepared(settings: TrainConfig, ranks: Ranks, table: TrainingSet) -> Prepared:
    return prepare(settings, ranks.device, segments(table.problems))
