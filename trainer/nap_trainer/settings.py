"""The configuration of a training: a YAML file, checked; unknown keys are errors.

Sections: `model`, `data`, `objective`, `optimizer`, `zero`, `schedule`, `evaluate`, `lora`, `run`. Sizes are in tokens
or canvases, rates are per optimizer step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nap_runtime.errors import UsageError
from nap_runtime.job import MAX_PATHS
from nap_runtime.yaml_files import read_yaml, yaml_value
from nap_trainer.lora import LoraConfig
from nap_trainer.zero.config import OptimizerConfig, ZeroConfig

Weighting = Literal["constant", "original", "linear", "cart"]
Pattern = Literal["uniform", "independent", "paths", "per-path", "summary", "paths-hidden", "structured"]
Format = Literal["nap", "long-cot", "single", "text"]
Topology = Literal["full", "hub", "isolated", "mixed"]

PositiveInt = Annotated[int, Field(ge=1)]
NaturalInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Budget = PositiveInt | tuple[PositiveInt, PositiveInt]


class Section(BaseModel):
    """A frozen section of the file that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class ModelSection(Section):
    """Where the network comes from.

    Args:
        init: a model folder to go on from; its configuration and tokenizer are used.
        shape: instead, a named shape with random weights, its fields replaced by `overrides`.
        tokenizer: of a new shape: `words`, `words-study` (built from the vocabulary of that set), or a model folder.
        seed: of random weights.
    """

    init: str | None = None
    shape: str | None = None
    overrides: dict[str, int | float | bool] = Field(default_factory=dict)
    tokenizer: str | None = None
    seed: NaturalInt = 0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.init is None) == (self.shape is None):
            raise ValueError("give `init` or `shape`, one of the two")
        if self.init is not None and (self.overrides or self.tokenizer):
            raise ValueError("`overrides` and `tokenizer` belong to `shape`; `init` brings its own")
        return self


class DataSection(Section):
    """What canvases are made of.

    Args:
        train: a file of NAP rows, of prompt/response rows (format `text`), or a procedural set: `words`, `words-study`.
        format: `nap` (one block a path), `long-cot` (the same paths as one chain), `single` (one path), `text`.
        answer: `clamped` puts paths and summary behind fixed headers (layout nap); `free` writes tags and all into one
            region (layout plain).
        paths: m of a batch, up to 6; of several, each batch draws one. A row with fewer paths than m is left out of it.
        path_tokens, summary_tokens: slots of a block, or [low, high] to vary them from batch to batch.
        gen_length: slots of the region where `answer` is free.
        max_prompt: longer prompts are dropped, and counted.
        padding: whether end-of-text after a text is learnt or left alone.
        shuffle_paths: draw which of a row's paths stand where.
        unknown: share of prompt words replaced by the unknown token (word tokenizers only).
        samples: rows of a procedural set.
        options: further settings of a procedural set.
        processes: that make the set `words` (0: one per core); `words-study` needs one only.
        seed: of the set, and of the order of rows.
    """

    train: str
    format: Format = "nap"
    answer: Literal["clamped", "free"] = "clamped"
    paths: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_PATHS)], ...], Field(min_length=1)] = (3,)
    path_tokens: Budget = 330
    summary_tokens: Budget = 32
    gen_length: PositiveInt = 1024
    max_prompt: PositiveInt = 1024
    padding: Literal["learn", "ignore"] = "learn"
    shuffle_paths: bool = False
    unknown: Share = 0.0
    samples: PositiveInt = 100_000
    options: dict[str, Any] = Field(default_factory=dict)
    processes: NaturalInt = 0
    seed: NaturalInt = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.format in ("single", "text") and self.paths != (1,):
            raise ValueError(f"`paths` must be [1] for format '{self.format}'")
        if (self.format == "long-cot" or self.plain) and len(self.paths) != 1:
            raise ValueError("`paths`: texts made of several paths need one number of them")
        if self.format == "text" and self.answer != "free":
            raise ValueError("format 'text' has no summary of its own: set `answer: free`")
        for name in ("path_tokens", "summary_tokens"):
            budget = getattr(self, name)
            if isinstance(budget, tuple) and budget[0] > budget[1]:
                raise ValueError(f"`{name}`: {budget[0]} is above {budget[1]}")
        return self

    @property
    def plain(self) -> bool:
        """Whether canvases have layout plain."""
        return self.answer == "free"


def _uniform() -> dict[Pattern, float]:
    return {"uniform": 1.0}


class ObjectiveSection(Section):
    """The masked diffusion loss (`nap_trainer.objective`).

    Args:
        weighting: w of a masked slot: `constant` 1, `original` 1/t, `linear` 1 − t, `cart` (Dream, with `cart_p`).
        normalisation: `nap` divides Σ w·CE by the masked slots of the global batch; `llada` divides each canvas's by
            its number of slots, and the sum by the canvases.
        t: how t is drawn over the global batch: `uniform`, `antithetic` pairs, or `stratified` (low discrepancy).
        min_t: ε of LLaDA's (1 − ε)·t + ε.
        patterns: shares of the masking patterns.
        aside: weight of slots that a pattern merely hides.
        headers: `clamp` (decoding does) or `learn` (the released trainer's default).
        topology: who sees whom; `mixed` draws one for each canvas.
        staleness: peers are read as of up to this many of their commits ago.
        stale_share: share of canvases trained that way.
    """

    weighting: Weighting = "cart"
    cart_p: Annotated[float, Field(gt=0, lt=1)] = 0.1
    normalisation: Literal["nap", "llada"] = "nap"
    t: Literal["uniform", "antithetic", "stratified"] = "stratified"
    min_t: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    patterns: dict[Pattern, Annotated[float, Field(ge=0)]] = Field(default_factory=_uniform)
    aside: Annotated[float, Field(ge=0)] = 1.0
    headers: Literal["clamp", "learn"] = "clamp"
    topology: Topology = "full"
    staleness: NaturalInt = 0
    stale_share: Share = 1.0

    @model_validator(mode="after")
    def _some_pattern(self) -> Self:
        if sum(self.patterns.values()) <= 0:
            raise ValueError("`patterns`: give at least one a positive share")
        if "structured" in self.patterns and self.headers == "learn":
            raise ValueError("`headers`: pattern 'structured' never masks tags; use 'clamp'")
        return self


class ScheduleSection(Section):
    """Steps, batches, and the learning rate's course.

    Args:
        global_batch: canvases of one optimizer step, over all ranks and micro-steps.
        micro_batch: canvases of one forward on one rank.
        max_steps, epochs: length of the run, one of the two.
        warmup: steps, or a share of the run below 1.
        decay: what follows the warm-up.
        floor: share of the peak rate at the end.
    """

    global_batch: PositiveInt = 256
    micro_batch: PositiveInt = 1
    max_steps: PositiveInt | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    warmup: Annotated[float, Field(ge=0)] = 0.1
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    floor: Share = 0.0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give `max_steps` or `epochs`, one of the two")
        return self

    def steps(self, rows: int) -> int:
        """Length of the run over a set of `rows`."""
        return self.max_steps or max(1, round((self.epochs or 0) * rows / self.global_batch))

    def accumulation(self, world: int) -> int:
        """Micro-steps of one step on each of `world` ranks.

        Raises:
            UsageError: the global batch does not divide.
        """
        each = self.micro_batch * world
        if self.global_batch % each:
            text = f"{self.global_batch} is no multiple of micro_batch {self.micro_batch} × {world} ranks"
            raise UsageError(f"schedule.global_batch: {text}", field="schedule.global_batch")
        return self.global_batch // each


class EvaluateSection(Section):
    """What is decoded during training.

    Args:
        every: steps between evaluations (0: none).
        data: rows with `question` and `answer` (or `gold`); None: the procedural set's own held-out problems.
        n: problems.
        tokens_per_step: slots committed a step.
        eos_weight: of the decodes.
        batch_size: canvases of one decode.
    """

    every: NaturalInt = 0
    data: str | None = None
    n: PositiveInt = 64
    tokens_per_step: PositiveInt = 1
    eos_weight: Annotated[float, Field(ge=0)] = 1.0
    batch_size: PositiveInt = 64


class RunSection(Section):
    """Where the run leaves what, and how it computes.

    Args:
        out: folder for checkpoints, logs and the exported model.
        seed: of masks and of everything drawn in training.
        checkpoint_every: steps between checkpoints (0: only the last); `keep` of them stay.
        log_every: steps between figures.
        compile: torch.compile of model and loss, once for every shape of batch; `parts`: of the layers' element-wise
            parts alone, whatever the shape, which is all that `true` means at ZeRO stage 3.
        gradient_checkpointing: recompute layers in the backward pass.
        head_chunk: rows that go through the vocabulary's head at once.
        tensorboard: write TensorBoard files into `out`.
        export_dtype: of the exported model; `max_bytes` of its folder (0: no limit).
    """

    out: str
    seed: NaturalInt = 0
    checkpoint_every: NaturalInt = 0
    keep: PositiveInt = 2
    log_every: PositiveInt = 10
    compile: bool | Literal["parts"] = False
    gradient_checkpointing: bool = False
    head_chunk: PositiveInt = 8192
    tensorboard: bool = True
    export_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_bytes: NaturalInt = 0


class TrainConfig(Section):
    """A whole training."""

    model: ModelSection
    data: DataSection
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    zero: ZeroConfig = Field(default_factory=ZeroConfig)
    schedule: ScheduleSection
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    lora: LoraConfig | None = None
    run: RunSection

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.data.plain and (self.objective.topology != "full" or self.objective.staleness):
            raise ValueError("objective: a canvas with one region has no topology or staleness; leave them out")
        wrong = [name for name, share in self.objective.patterns.items() if share > 0 and name != "uniform"]
        if self.data.plain and wrong:
            text = f"{wrong[0]!r} is about paths and summary, which a canvas with one region has not; use 'uniform'"
            raise ValueError(f"objective.patterns: {text}")
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from parsed YAML.

        Raises:
            UsageError: a key is unknown or a value is wrong; the first of them is named.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _usage(error) from None

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
        """Read a YAML file, then apply `section.key=value` changes; UsageError if either is malformed."""
        values = read_yaml(Path(path), field="config")
        if not isinstance(values, dict):
            raise UsageError(f"config: {path} must hold sections with keys", field="config")
        for change in changes:
            _apply(values, change)
        return cls.from_mapping(values)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values; `from_mapping` is its inverse."""
        return self.model_dump(mode="json")


def _apply(values: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    *sections, key = path.split(".")
    if not equals or not key:
        raise UsageError(f"set: {change!r} is not section.key=value", field="set")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"set: {path}: '{section}' is no section", field="set")
    try:
        values[key] = yaml_value(text)
    except ValueError:
        raise UsageError(f"set: {path}: {text!r} is not YAML", field="set") from None


_KINDS = ("function-", "constrained", "tuple", "int")  # parts of pydantic's place that name a type, not a key


def _usage(error: ValidationError) -> UsageError:
    """The first complaint of pydantic's as one line of ours."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"] if not str(part).startswith(_KINDS)]
    name = ".".join(place) or "config"
    if first["type"] == "extra_forbidden":
        return UsageError(f"{name}: unknown key; {_known(place)}", field=name)
    if first["type"] == "missing":
        return UsageError(f"{name}: missing", field=name)
    message = str(first["msg"]).removeprefix("Value error, ")
    given = first.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f"{given!r}: "
    return UsageError(f"{name}: {shown}{message[0].lower()}{message[1:]}", field=name)


def _known(place: Sequence[str]) -> str:
    model: type[BaseModel] = TrainConfig
    for part in place[:-1]:
        kind = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return "see examples/train"
        model = kind
    return f"known are {', '.join(sorted(model.model_fields))}"
