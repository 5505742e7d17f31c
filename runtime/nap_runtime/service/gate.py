"""Which jobs are accepted: everything that can be known of a job before it is decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nap_runtime.auto import AutoSync
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.distributed.probe import LinkProbe
from nap_runtime.errors import UsageError
from nap_runtime.executor.coordinator import BUCKET
from nap_runtime.job import DecodeConfig
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.policy import SyncPolicy
from nap_runtime.service.configs import asked_of, config_from_proto, sync_to_proto
from nap_runtime.service.settings import GroupSettings, Limits
from nap_runtime.service.v1 import decoder_pb2 as pb

_MAX_NAME, _MAX_GOLD = 256, 4096


class Chooser(Protocol):
    """Chooses a sync for a job: the policy, and one line that says why."""

    def __call__(
        self,
        asked: AutoSync,
        config: DecodeConfig,
        layout: CanvasLayout,
        model: ModelConfig,
        links: Sequence[LinkProbe],
    ) -> tuple[SyncPolicy, str]:
        """`links`: what the groups have measured, none where they were told, or share a process."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A job that was found to fit: everything a worker group needs to know of it.

    Attributes:
        spec: what is kept of the job; the sync that was chosen stands in it.
        chosen: why that one; empty where the job gave a mode.
        config: resolved; layout: of its canvas.
        shape: equal for jobs that can share a batch.
    """

    spec: pb.JobSpec
    chosen: str
    question: str
    gold: str | None
    name: str
    prompt: tuple[int, ...]
    config: DecodeConfig
    layout: CanvasLayout
    shape: Hashable

    @property
    def cost(self) -> int:
        """Slots to fill."""
        return self.layout.n_slots


class Gate:
    """Checks jobs against the server's limits and model, what costs little first.

    Args:
        chooser: chooses the sync of jobs that leave it to the server (None: they are refused).

    Attributes:
        links: what the worker groups have measured so far.
    """

    def __init__(self, card: ModelCard, group: GroupSettings, limits: Limits, chooser: Chooser | None = None) -> None:
        self._card, self._group, self._limits, self._chooser = card, group, limits, chooser
        self.links: Callable[[], Sequence[LinkProbe]] = tuple
        self._defaults = DecodeDefaults.of(card.path)

    def accept(self, spec: pb.JobSpec) -> Accepted:
        """Everything about a job that can be known before it is decoded.

        Raises:
            UsageError: a value is wrong or beyond a limit; NotBuiltError: it is not built yet.
        """
        self._check_frame(spec)
        self._check_prompt(spec.prompt)
        config = resolve(config_from_proto(spec.config), self._defaults)
        self._check_size(config)
        if config.headers not in (None, "nap") and self._card.tokenizer is None:
            raise UsageError("headers: the model has no tokenizer; leave it out", field="headers")
        question, ids = self._prompt(spec.prompt)
        if len(ids) > self._limits.prompt_tokens:
            text = f"prompt: {len(ids)} tokens, at most {self._limits.prompt_tokens} are taken"
            raise UsageError(text, field="prompt")
        layout = build_layout(self._card, config, len(ids))
        if layout.size > self._limits.canvas:
            text = f"prompt: the canvas has {layout.size} positions, at most {self._limits.canvas} are taken"
            raise UsageError(text, field="prompt")
        spec, config, chosen = self._settled(spec, config, layout)
        Plan.of(layout, config, Assignment.even(config.n_paths, self._group.workers))
        bucket = -(-len(ids) // BUCKET)
        shape = hashlib.sha256(json.dumps([config.to_mapping(), bucket], sort_keys=True).encode()).digest()
        gold = spec.gold if spec.HasField("gold") else None
        return Accepted(
            spec=spec,
            chosen=chosen,
            question=question,
            gold=gold,
            name=spec.id,
            prompt=ids,
            config=config,
            layout=layout,
            shape=shape,
        )

    def _settled(
        self, spec: pb.JobSpec, config: DecodeConfig, layout: CanvasLayout
    ) -> tuple[pb.JobSpec, DecodeConfig, str]:
        """With a sync: the one that the job gives, or one chosen for it, once and for all its attempts."""
        asked = asked_of(spec.config)
        if asked is None:
            return spec, config, ""
        if self._chooser is None:
            raise UsageError("sync: this server chooses none; give a mode", field="sync")
        policy, why = self._chooser(asked, config, layout, self._card.config, self.links())
        settled = pb.JobSpec()
        settled.CopyFrom(spec)
        settled.config.sync.CopyFrom(sync_to_proto(policy))
        return settled, resolve(config.with_values(sync=policy), self._defaults), why

    def _check_frame(self, spec: pb.JobSpec) -> None:
        if spec.model not in ("", self._card.name):
            raise UsageError(f"model: this server decodes with '{self._card.name}'", field="model")
        if spec.workers not in (0, self._group.workers):
            text = f"workers: this server's groups have {self._group.workers}; leave it out"
            raise UsageError(text, field="workers")
        if len(spec.id.encode()) > _MAX_NAME:
            raise UsageError(f"id: longer than {_MAX_NAME} bytes", field="id")
        if len(spec.gold.encode()) > _MAX_GOLD:
            raise UsageError(f"gold: longer than {_MAX_GOLD} bytes", field="gold")

    def _check_prompt(self, prompt: pb.Prompt) -> None:
        kind = prompt.WhichOneof("source")
        if kind is None:
            raise UsageError("prompt: it is missing", field="prompt")
        if kind == "text" and len(prompt.text.encode()) > self._limits.prompt_bytes:
            raise UsageError(f"prompt: longer than {self._limits.prompt_bytes} bytes", field="prompt")
        if kind == "token_ids" and not 0 < len(prompt.token_ids.ids) <= self._limits.prompt_tokens:
            raise UsageError(f"prompt: give 1 to {self._limits.prompt_tokens} ids", field="prompt")

    def _check_size(self, config: DecodeConfig) -> None:
        """Bound what a layout and a schedule would allocate."""
        limits, each = self._limits, config.path_tokens
        if config.n_paths > limits.paths:
            raise UsageError(f"paths: {config.n_paths}, at most {limits.paths} are taken", field="paths")
        paths = sum(each) if isinstance(each, tuple) else (each or 0) * config.n_paths
        slots = (config.gen_length or 0) if config.layout == "plain" else paths + (config.summary_tokens or 0)
        if slots > limits.canvas:
            name = "gen_length" if config.layout == "plain" else "path_tokens"
            raise UsageError(f"{name}: {slots} slots, at most {limits.canvas} positions are taken", field=name)
        if (config.steps or 0) > limits.steps:
            raise UsageError(f"steps: {config.steps}, at most {limits.steps} are taken", field="steps")

    def _prompt(self, prompt: pb.Prompt) -> tuple[str, tuple[int, ...]]:
        if prompt.WhichOneof("source") == "text":
            return prompt.text, prompt_ids(self._card, prompt.text)
        ids, model = tuple(prompt.token_ids.ids), self._card.config
        if max(ids) >= model.vocab_size or model.mask_id in ids:
            raise UsageError(f"prompt: an id is the mask, or not below {model.vocab_size}", field="prompt")
        text = "" if self._card.tokenizer is None else self._card.tokenizer.decode(list(ids))
        return text, ids
