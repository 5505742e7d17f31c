"""Gradients in one flat buffer, the optimizers, and the learning rate's way to zero."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nap_runtime.models.transformer import DiffusionTransformer
from nap_trainer.ranks import Ranks
from nap_trainer.settings import TrainConfig


class FlatGradients:
    """Every parameter's gradient is a view of one buffer: one all-reduce, one norm, one scaling."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        total = sum(p.numel() for p in params)
        self.flat = torch.zeros(total, device=params[0].device, dtype=params[0].dtype)
        at = 0
        for param in params:
            param.grad = self.flat[at : at + param.numel()].view_as(param)
            at += param.numel()

    def clip(self, limit: float) -> Tensor:
        """Scale down to the limit; returns the norm before, on the device."""
        norm: Tensor = torch.linalg.vector_norm(self.flat)
        self.flat.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm


def make_optimizers(model: DiffusionTransformer, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the layers' matrices if chosen. Embedding, head and norms never decay."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    held = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in held]
    groups = [{"params": others, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=config.muon_lr,
                weight_decay=config.muon_weight_decay,
                momentum=config.muon_momentum,
            )
        )
    else:
        groups.append({"params": matrices, "weight_decay": config.adam_weight_decay})
    optimizers.append(torch.optim.AdamW(groups, lr=config.adam_lr, betas=config.adam_betas, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def rate_factor(step: int, progress: float, config: TrainConfig) -> float:
    """Share of the peak rate: up over the warm-up steps, and down to 0 at progress 1."""
    left = max(0.0, 1.0 - progress)
    if config.decay == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    return left * min(1.0, (step + 1) / max(1, config.warmup_steps))


class Pace:
    """How far the run is, from 0 to 1, the same on every rank.

    By the clock, progress counts from the end of the first step (which compiles) and reaches 1 when
    `max_seconds` have passed since `started`; rank 0's clock is asked every `pace_every` steps.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        started: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.ranks, self.started, self.clock = config, ranks, started, clock
        self._first: float | None = None
        self._progress = 0.0

    def progress(self, step: int) -> float:
        """Progress before this step (0-based); called once for each, on every rank."""
        if self.config.max_steps is not None:
            return step / self.config.max_steps
        if step and (step == 1 or step % self.config.pace_every == 0):
            self._progress = self.ranks.agreed(self._by_clock())
        return self._progress

    def _by_clock(self) -> float:
        now = self.clock()
        if self._first is None:
            self._first = now
        total = self.started + (self.config.max_seconds or 0.0) - self._first
        return 1.0 if total <= 0 else (now - self._first) / total


class Average:
    """An exponential moving average of the weights (decay 0: the weights themselves)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.params: list[Tensor] = [p.detach() for p in model.parameters()]
        self.mean = [p.clone() for p in self.params] if decay else self.params

    def update(self, step: int) -> None:
        """Take in the weights after a step; early steps count less."""
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.mean, self.params, 1 - decay)

    def swap(self) -> None:
        """Exchange the weights and their average; call it twice to undo it."""
        if self.decay:
            for mean, param in zip(self.mean, self.params, strict=True):
                held = mean.clone()
                mean.copy_(param)
                param.copy_(held)
