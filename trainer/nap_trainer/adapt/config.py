"""The configuration of a run: a YAML file, checked; unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from nap_runtime.errors import UsageError
from nap_runtime.yaml_files import read_yaml
from nap_trainer.settings import NaturalInt, ObjectiveSection, PositiveInt, Section, Share
from nap_trainer.zero.config import OptimizerConfig, ZeroConfig

Start = Literal["pretrained", "random"]
Logits = Literal["shifted", "unshifted"]


class DecodeSection(Section):
    """How the held-out questions are decoded at each point: confidence order over the whole region (AO).

    Args:
        tokens_per_step: slots committed a step.
        last_tokens_per_step: what the last point is decoded at besides.
        eos_weight: factor on the confidence of end-of-text candidates; at 0 they are committed last.
        batch_size: canvases of one decode.
        dtype: of the weights and the K/V store while decoding.
    """

    tokens_per_step: PositiveInt = 1
    last_tokens_per_step: tuple[PositiveInt, ...] = (4,)
    eos_weight: Annotated[float, Field(ge=0)] = 0.0
    batch_size: PositiveInt = 128
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"


class AdaptConfig(Section):
    """Four trainings that differ in start and shift only.

    Args:
        starts, logits: the arms are all pairs of them.
        points: optimizer steps after which every arm is measured, ascending; the last one ends the run.
        global_batch, micro_batch: canvases of a step and of a forward.
        warmup, decay, floor: the learning rate's course over the last point's steps (see `ScheduleSection`).
        seed: of random weights, masks and row order, the same in every arm.
        compile: torch.compile of the training step.
        head_chunk: rows that go through the vocabulary's head at once.
        states: keep training state at every point, so that an interrupted arm goes on from there and not from its
            start (12 bytes a weight and arm on disk).
        models: keep every arm's model at the last point, for `nap decode --model`.
        held_batch: canvases of one forward of the held-out loss.
    """

    starts: tuple[Start, ...] = ("pretrained", "random")
    logits: tuple[Logits, ...] = ("shifted", "unshifted")
    points: tuple[NaturalInt, ...] = (0, 8, 30, 120, 480)
    global_batch: PositiveInt = 64
    micro_batch: PositiveInt = 64
    warmup: Annotated[float, Field(ge=0)] = 0.05
    decay: Literal["cosine", "linear", "constant"] = "linear"
    floor: Share = 0.1
    seed: NaturalInt = 0
    compile: bool = False
    head_chunk: PositiveInt = 16384
    states: bool = False
    models: bool = False
    held_batch: PositiveInt = 64
    decode: DecodeSection = Field(default_factory=DecodeSection)
    objective: ObjectiveSection = Field(default_factory=lambda: ObjectiveSection(weighting="constant"))
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=5e-4))
    zero: ZeroConfig = Field(default_factory=ZeroConfig)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.points or list(self.points) != sorted(set(self.points)) or self.points[-1] < 1:
            raise ValueError("`points` must ascend and end with at least one step")
        for name in ("starts", "logits"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"`{name}` must name each value once, and at least one")
        if self.objective.topology != "full" or self.objective.staleness:
            raise ValueError("`objective`: a canvas with one region has no topology or staleness; leave them out")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of every arm."""
        return self.points[-1]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from parsed YAML; UsageError names the first wrong key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"]) or "config"
            what = (
                "unknown key" if first["type"] == "extra_forbidden" else str(first["msg"]).removeprefix("Value error, ")
            )
            raise UsageError(f"{name}: {what}", field=name) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file; UsageError if it is malformed."""
        values = read_yaml(path, field="config")
        if not isinstance(values, dict):
            raise UsageError(f"config: {path} must hold keys and values", field="config")
        return cls.from_mapping(values)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values; `from_mapping` is its inverse."""
        return self.model_dump(mode="json")
