"""Held-out questions through the runtime, as arrays: the worker of `nap decode --layout plain`, without a record.

Shapes: Q questions, S slots.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import DataError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.prompting import build_layout
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.worker import Outcome, Task
from nap_trainer.adapt.config import DecodeSection
from nap_trainer.miniature.decoding import Decoded


def decode_config(settings: DecodeSection, *, gen_length: int, per_step: int) -> DecodeConfig:
    """The runtime's configuration of one decode."""
    return DecodeConfig(
        layout="plain",
        rule="confidence",
        gen_length=gen_length,
        steps=-(-gen_length // per_step),
        eos_weight=settings.eos_weight,
    )


def decode_questions(
    model: DiffusionTransformer,
    card: ModelCard,
    prompts: Sequence[tuple[int, ...]],
    settings: DecodeSection,
    *,
    gen_length: int,
    per_step: int,
) -> Decoded:
    """Decode every prompt; results are in the order of the prompts.

    The model stays as it is: a copy in the decode's dtype does the work. Prompts of one length share a layout and so a
    batch; no prompt is padded.
    """
    device = model.embed.weight.device
    dtype: torch.dtype = getattr(torch, settings.dtype)
    runner = copy.deepcopy(model).requires_grad_(False).to(dtype).eval()
    executor = InlineExecutor(runner, dtype=dtype, device=device)
    config = decode_config(settings, gen_length=gen_length, per_step=per_step)
    card = replace(card, config=model.config)
    shape = (len(prompts), gen_length)
    ids_QS, step_QS, committed_QS = np.zeros(shape, np.int32), np.zeros(shape, np.int16), np.zeros(shape, np.bool_)
    for index in batches(prompts, settings.batch_size):
        layout = build_layout(card, config, len(prompts[index[0]]))
        plan = Plan.of(layout, config, Assignment.even(1, 1))
        outcome = _outcome(executor, Task(plan=plan, prompts=tuple(prompts[i] for i in index)))
        ids_QS[index], step_QS[index], committed_QS[index] = outcome.ids, outcome.step, outcome.committed
    return Decoded(ids_nS=ids_QS, step_mS=step_QS, committed_mS=committed_QS)


def batches(prompts: Sequence[tuple[int, ...]], size: int) -> list[list[int]]:
    """Indices of prompts of one length, `size` at most in each batch."""
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(index)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _outcome(executor: InlineExecutor, task: Task) -> Outcome:
    (outcome,) = executor.run(task, on_report=None, cancelled=lambda: False)
    if outcome.slots.tolist() != list(task.plan.layout.slots):
        raise DataError("decode: the worker answers for other slots than the layout's")
    return outcome
