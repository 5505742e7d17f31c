"""Thousands of canvases through the runtime itself, as arrays.

Ids and order are the product's own: the same `BlockWorker`, plan and rules that `nap decode` runs, on one inline worker
with sync `exact`. Only the record is left out: a `CanvasDelta` per canvas and step would cost far more than the decode.

Shapes: n canvases, S slots in canvas order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import DataError, UsageError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, Rule, Scope
from nap_runtime.models.files import atomic_path
from nap_runtime.models.transformer import Attend, DiffusionTransformer
from nap_runtime.worker import Denoiser, Outcome, Task
from nap_trainer.miniature.arms import Arm, Geometry, Tags
from nap_trainer.miniature.problems import Array

RULES: dict[str, tuple[Rule, Scope]] = {
    "pf": ("parallel-forced", "path"),
    "ao": ("confidence", "canvas"),
    "block": ("blockwise", "path"),
    "l2r": ("left-to-right", "canvas"),
    "random": ("random", "canvas"),
}
_ONE_ORDER = 64
_WITHOUT_CONFIDENCE = ("l2r", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a canvas is decoded.

    Args:
        rule: `pf` (parallel-forced: confidence within each path, all paths at once, then the summary), `ao` (the most
            confident slots of the whole canvas), `block` (blocks of `block` slots from left to right within each path
            or region), `l2r`, `random`.
        per_step: tokens a step; T = ⌈slots / per_step⌉.
        block: block length (`block` only).
        eos: weight of end-of-text candidates (rules that use confidence).
    """

    rule: str
    per_step: int
    block: int | None = None
    eos: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"rule: unknown rule '{self.rule}'; use one of {', '.join(RULES)}", field="rule")
        if self.per_step < 1:
            raise UsageError(f"per_step: {self.per_step} is less than 1", field="per_step")
        if (self.block is None) == (self.rule == "block"):
            raise UsageError("block: give a block length with the rule 'block', and with no other", field="block")
        if (self.eos is None) != (self.rule in _WITHOUT_CONFIDENCE):
            raise UsageError(f"eos: give a weight with rules that use confidence, not '{self.rule}'", field="eos")

    @property
    def method(self) -> str:
        """The setting's name without its tokens a step, as in file names: `pf-e0.25`, `block16-e0`, `l2r`."""
        weight = "" if self.eos is None else f"-e{self.eos:g}"
        return f"{self.rule}{self.block or ''}{weight}"

    @property
    def name(self) -> str:
        """The whole setting, as in file names: `pf-e0.25-k4`."""
        return f"{self.method}-k{self.per_step}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Inverse of `name`; UsageError if it is none."""
        try:
            head, *rest = name.split("-")
            rule = head.rstrip("0123456789") if head.startswith("block") else head
            marks = {part[0]: part[1:] for part in rest}
            eos = float(marks["e"]) if "e" in marks else None
            block = int(head[len(rule) :]) if rule == "block" else None
            return cls(rule=rule, block=block, eos=eos, per_step=int(marks["k"]))
        except (KeyError, ValueError, IndexError) as error:
            raise UsageError(f"setting: '{name}' is none, e.g. pf-e0-k4 ({error})", field="setting") from error

    def fits(self, arm: Arm) -> bool:
        """Whether the arm's layout has this rule: `pf` needs think-blocks."""
        return arm.clamped or self.rule != "pf"

    def config(self, arm: Arm, geometry: Geometry, *, slots: int, seed: int = 0) -> DecodeConfig:
        """The runtime's configuration; T never exceeds the slots."""
        rule, scope = RULES[self.rule]
        sizes: dict[str, Any] = {"layout": "plain", "gen_length": geometry.rows}
        if arm.clamped:
            sizes = {"layout": "nap", "paths": arm.blocks, "summary_tokens": geometry.summary_tokens}
            sizes |= {"path_tokens": geometry.budgets(arm), "headers": "nap"}
        return DecodeConfig(
            **sizes,
            rule=rule,
            scope=scope,
            block_length=self.block,
            eos_weight=self.eos,
            steps=-(-slots // self.per_step),
            seed=seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What a decode leaves of n canvases.

    Attributes:
        ids_nS: final ids of the slots; uint16.
        step_mS: step at which each slot got its id, of the first m ≤ n canvases; int16, −1 where it never did.
        committed_mS: whether it was committed, not filled.
    """

    ids_nS: Array
    step_mS: Array
    committed_mS: Array

    def save(self, path: Path) -> None:
        """Write a compressed npz, whole or not at all."""
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, ids_nS=self.ids_nS, step_mS=self.step_mS, committed_mS=self.committed_mS)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; DataError if the file is another."""
        try:
            with np.load(path) as arrays:
                return cls(**{name: arrays[name] for name in ("ids_nS", "step_mS", "committed_mS")})
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: not a decode ({error})") from error

    def first(self, count: int) -> Self:
        """The same with the order of the first `count` canvases only."""
        return type(self)(ids_nS=self.ids_nS, step_mS=self.step_mS[:count], committed_mS=self.committed_mS[:count])


class Compiled:
    """A denoiser whose rows go through torch.compile: one graph for every batch size and canvas."""

    def __init__(self, network: DiffusionTransformer) -> None:
        self.config, self.logits = network.config, network.logits
        self._rows = torch.compile(network.forward_rows, dynamic=True)

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Attend) -> Tensor:
        """See `Denoiser`."""
        hidden_BRD: Tensor = self._rows(ids_BR, rows_R, attend)
        return hidden_BRD


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A model on a device, and how many canvases it takes at once."""

    model: Denoiser
    dtype: torch.dtype
    device: torch.device
    batch: int

    def run(
        self, prompts: Sequence[tuple[int, ...]], arm: Arm, geometry: Geometry, tags: Tags, setting: Setting
    ) -> Decoded:
        """Decode every prompt on an arm's canvas; results are in the order of the prompts.

        Canvases of one prompt length share a layout. Long questions are batched with long ones, so that a batch whose
        canvases close early ends early.
        """
        slots = geometry.layout(arm, tags, 1).n_slots
        ids_nS = np.zeros((len(prompts), slots), dtype=np.uint16)
        step_nS, committed_nS = np.zeros((len(prompts), slots), np.int16), np.zeros((len(prompts), slots), np.bool_)
        for index, seed in self._batches(prompts, tags, setting):
            layout = geometry.layout(arm, tags, len(prompts[index[0]]))
            config = setting.config(arm, geometry, slots=slots, seed=seed)
            outcome = self._outcome(layout, config, [prompts[i] for i in index])
            ids_nS[index], step_nS[index], committed_nS[index] = outcome.ids, outcome.step, outcome.committed
        return Decoded(ids_nS=ids_nS, step_mS=step_nS, committed_mS=committed_nS)

    def _batches(
        self, prompts: Sequence[tuple[int, ...]], tags: Tags, setting: Setting
    ) -> Iterator[tuple[list[int], int]]:
        """Indices of prompts of one length that decode together, and the seed of their noise.

        The runtime draws the rule `random` by seed, position and step, so one seed is one order for all canvases: here
        every `_ONE_ORDER` prompts get their own, whatever the batch.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        by_question = sorted(range(len(prompts)), key=lambda i: sum(token != tags.eos_id for token in prompts[i]))
        for index in by_question:
            seed = index // _ONE_ORDER if setting.rule == "random" else 0
            groups.setdefault((len(prompts[index]), seed), []).append(index)
        for (_, seed), group in groups.items():
            for at in range(0, len(group), self.batch):
                yield group[at : at + self.batch], seed

    def _outcome(self, layout: CanvasLayout, config: DecodeConfig, prompts: list[tuple[int, ...]]) -> Outcome:
        plan = Plan.of(layout, config, Assignment.even(layout.n_paths, 1))
        executor = InlineExecutor(self.model, dtype=self.dtype, device=self.device)
        task = Task(plan=plan, prompts=tuple(prompts))
        (outcome,) = executor.run(task, on_report=None, cancelled=lambda: False)
        if outcome.slots.tolist() != list(layout.slots):
            raise DataError("decode: the worker answers for other slots than the layout's")
        return outcome
