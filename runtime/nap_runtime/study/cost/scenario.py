"""What is decoded: model shape, canvas, sync and workers, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, DType, SyncPolicy, at_least, one_of
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.shapes import SHAPES, shape_config
from nap_runtime.storage import Storage, Stored
from nap_runtime.values import known_keys

ITEM_BYTES: Mapping[str, int] = {"bfloat16": 2, "float32": 4, "float64": 8}
_MASK, _HEADER, _END = 0, 1, 2  # ids do not matter to what a decode costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One decode of layout `nap` with rule `parallel-forced`, every slot committed.

    Args:
        shape: a named shape, or a checkpoint folder.
        paths, path_tokens, summary_tokens, prompt_tokens: the canvas; `header_tokens` of each header.
        steps: T (None: one token a step).
        workers: W, at most `paths`.
        batch: canvases decoded together.
        threads: threads of each worker, which share the compute of a CPU; 1 on a GPU.
        weights, kv: numbers of the layers' matrices, and of keys and values (`Storage`).

    Raises:
        UsageError: a value is out of range or unknown.
    """

    shape: str = "llada-8b"
    paths: int = 3
    path_tokens: int = 330
    summary_tokens: int = 32
    prompt_tokens: int = 128
    header_tokens: int = 4
    steps: int | None = None
    workers: int = 1
    batch: int = 1
    threads: int = 1
    dtype: DType = "bfloat16"
    weights: Stored = "native"
    kv: Stored = "native"
    sync: SyncPolicy = field(default_factory=SyncPolicy)

    def __post_init__(self) -> None:
        for name in ("path_tokens", "summary_tokens", "prompt_tokens", "header_tokens", "workers", "batch", "threads"):
            at_least(name, getattr(self, name), 1)
        one_of("dtype", self.dtype, tuple(ITEM_BYTES))
        Storage(weights=self.weights, kv=self.kv)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Scenario:
        """From parsed JSON or YAML.

        Raises:
            UsageError: a key is unknown or a value wrong.
        """
        kwargs = known_keys(cls, values, "")
        if isinstance(kwargs.get("sync"), Mapping):
            kwargs["sync"] = SyncPolicy(**known_keys(SyncPolicy, kwargs["sync"], "sync."))
        return cls(**kwargs)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values; `from_mapping` is its inverse."""
        values = asdict(self)
        values["sync"] = {key: value for key, value in values["sync"].items() if key != "_"}
        return values

    @property
    def model(self) -> ModelConfig:
        """The network's shape."""
        if self.shape in SHAPES:
            return shape_config(self.shape)
        if not Path(self.shape).is_dir():
            known = ", ".join(SHAPES)
            raise UsageError(f"shape: {self.shape} is neither a folder nor one of {known}", field="shape")
        return ModelConfig.from_dir(self.shape)

    @property
    def storage(self) -> Storage:
        """How a worker holds numbers."""
        return Storage(weights=self.weights, kv=self.kv)

    @property
    def config(self) -> DecodeConfig:
        """How it decodes."""
        return DecodeConfig(
            paths=self.paths,
            path_tokens=self.path_tokens,
            summary_tokens=self.summary_tokens,
            steps=self.steps,
            sync=self.sync,
        )

    @property
    def plan(self) -> Plan:
        """The plan, on a canvas whose ids do not matter."""
        header = (_HEADER,) * self.header_tokens
        layout = CanvasLayout(
            kind="nap",
            prompt_tokens=self.prompt_tokens,
            headers=(header,) * self.paths,
            budgets=(self.path_tokens,) * self.paths,
            summary_header=header,
            summary_budget=self.summary_tokens,
            end_ids=((_END,),) * (self.paths + 1),
            mask_id=_MASK,
            fill_id=_END,
        )
        return Plan.of(layout, self.config, Assignment.even(self.paths, self.workers))
