"""Muon with matrices of one shape stepped together: the arithmetic of `torch.optim.Muon`, a tenth of its launches.

A small model's step is bound by launches: torch's Muon makes some fifty a matrix. Shapes: K matrices of one shape,
R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, batched over matrices of equal shape. State and settings are the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every matrix that has a gradient; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, params, grads, momenta)
            if params:
                self._update(group, params, grads, momenta)

    @staticmethod
    def _update(group: Group, params: list[Tensor], grads: list[Tensor], momenta: list[Tensor]) -> None:
        lr, momentum, decay = (float(group[name]) for name in ("lr", "momentum", "weight_decay"))
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, momenta, momentum) if group["nesterov"] else momenta
        torch._foreach_mul_(params, 1 - lr * decay)
        by_shape: dict[torch.Size, list[int]] = {}
        for index, param in enumerate(params):
            by_shape.setdefault(param.shape, []).append(index)
        for shape, places in by_shape.items():
            flat_KRC = orthogonal(torch.stack([updates[i] for i in places]), group)
            steps = flat_KRC.to(params[0].dtype) * -(lr * max(1.0, shape[0] / shape[1]) ** 0.5)
            torch._foreach_add_([params[i] for i in places], list(steps.unbind()))


def orthogonal(update_KRC: Tensor, group: Group) -> Tensor:
    """Newton-Schulz iterations towards the nearest orthogonal matrix of each update, in bfloat16. Shape [K, R, C]."""
    a, b, c = group["ns_coefficients"]
    tall = update_KRC.shape[1] > update_KRC.shape[2]
    x = update_KRC.bfloat16()
    x = x.transpose(1, 2) if tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
    for _ in range(group["ns_steps"]):
        gram = x @ x.transpose(1, 2)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.transpose(1, 2) if tall else x
