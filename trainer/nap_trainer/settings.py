"""The configuration of a training: a YAML file, checked; unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from nap_runtime.errors import UsageError
from nap_trainer.objective import Weighting, check_mix

_CHOICES = {
    "optimizer": ("muon", "adamw"),
    "decay": ("linear", "cosine"),
    "weighting": ("constant", "original", "linear"),
}
_POSITIVE = ("n_layers", "d_model", "n_heads", "d_ff", "paths", "path_tokens", "summary_tokens", "samples")
_POSITIVE_TOO = ("eval_samples", "batch_size", "log_every", "eval_every", "eval_batch", "pace_every")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train a bundled-size model on the procedural word problems.

    Args:
        n_layers, d_model, n_heads, d_ff: shape of the model.
        paths, path_tokens, summary_tokens: shape of the canvas, and its decode defaults.
        samples, eval_samples, error_rate: problems generated, held out, and paths with an error.
        unknown: share of prompt words replaced by the unknown token in training.
        processes: generating processes of one rank (0: all cores, shared among the ranks).
        patterns, weighting, aside_weight: see `nap_trainer.objective`.
        batch_size: canvases of one rank's step.
        optimizer: `muon` (hidden matrices; AdamW for the rest) or `adamw`.
        muon_lr, muon_weight_decay, muon_momentum: for hidden matrices under `muon`.
        adam_lr, adam_weight_decay, adam_betas: for everything else.
        warmup_steps, decay: the learning rate rises, then falls to zero.
        max_seconds, max_steps: the whole run by the clock, data and compilation included, or by steps.
        clip: limit of the gradient's norm; ema: decay of averaged weights (0: none).
        bf16, compile: bfloat16 autocast, and torch.compile.
        log_every, eval_every, pace_every: steps; checkpoint_seconds: between saved models.
        eval_batch, eval_tokens_per_step: canvases of one evaluation, tokens its decode commits a step.
        max_bytes: limit of the exported folder (0: none).
        seed: of weights, data and masks.
    """

    n_layers: int = 9
    d_model: int = 256
    n_heads: int = 4
    d_ff: int = 768
    paths: int = 3
    path_tokens: int = 40
    summary_tokens: int = 12
    samples: int = 2_000_000
    eval_samples: int = 4096
    error_rate: float = 0.15
    unknown: float = 0.03
    processes: int = 0
    patterns: Mapping[str, float] = field(default_factory=lambda: {"uniform": 1.0})
    weighting: Weighting = "constant"
    aside_weight: float = 0.25
    batch_size: int = 1024
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_lr: float = 0.02
    muon_weight_decay: float = 0.02
    muon_momentum: float = 0.95
    adam_lr: float = 2e-3
    adam_weight_decay: float = 0.01
    adam_betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 200
    decay: Literal["linear", "cosine"] = "linear"
    max_seconds: float | None = None
    max_steps: int | None = None
    clip: float = 1.0
    ema: float = 0.0
    bf16: bool = True
    compile: bool = True
    log_every: int = 50
    eval_every: int = 1000
    pace_every: int = 10
    checkpoint_seconds: float = 120.0
    eval_batch: int = 1024
    eval_tokens_per_step: int = 6
    max_bytes: int = 16_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*_POSITIVE, *_POSITIVE_TOO):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} is less than 1", field=name)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(allowed)
                raise UsageError(f"{name}: unknown value '{getattr(self, name)}'; use {known}", field=name)
        if (self.max_seconds is None) == (self.max_steps is None):
            raise UsageError("max_seconds: give it or max_steps, one of the two", field="max_seconds")
        if self.d_model % self.n_heads:
            raise UsageError(f"n_heads: {self.n_heads} does not divide d_model {self.d_model}", field="n_heads")
        check_mix(self.patterns)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from parsed YAML.

        Raises:
            UsageError: a key is unknown or a value is wrong.
        """
        known = {f.name: f for f in fields(cls)}
        checked = {}
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"{key}: unknown key; known are {', '.join(sorted(known))}", field=str(key))
            checked[key] = _coerced(key, str(known[key].type), value)
        return cls(**checked)

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
        """Read a YAML file, then apply `KEY=VALUE` changes; UsageError if either is malformed."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"config: {path}: {str(error).splitlines()[0]}", field="config") from None
        if not isinstance(values, dict):
            raise UsageError(f"config: {path} must hold keys and values", field="config")
        for change in changes:
            key, equals, text = change.partition("=")
            if not equals:
                raise UsageError(f"set: {change!r} is not KEY=VALUE", field="set")
            values[key] = yaml.safe_load(text)
        return cls.from_mapping(values)


def _coerced(key: str, kind: str, value: Any) -> Any:
    """A YAML value as the field's type; UsageError if it is of another."""
    kinds: tuple[type, ...] = (str,)
    if kind.startswith("bool"):
        kinds = (bool,)
    elif kind.startswith("int"):
        kinds = (int,)
    elif kind.startswith("float"):
        kinds = (int, float)
    elif kind.startswith("tuple"):
        kinds = (list, tuple)
    elif kind.startswith("Mapping"):
        kinds = (dict,)
    if value is None and kind.endswith("None"):
        return None
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds != (bool,)):
        raise UsageError(f"{key}: {value!r} is not of type {kind}", field=key)
    return tuple(value) if isinstance(value, list) else value
