"""The optimizer as one object: AdamW, or Muon for the layers' matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nap_trainer.zero.config import OptimizerConfig
from nap_trainer.zero.muon import StackedMuon

Group = dict[str, Any]


def make_optimizer(module: nn.Module, config: OptimizerConfig, *, device: torch.device) -> torch.optim.Optimizer:
    """An optimizer for everything that trains; the peak rates are its groups' rates.

    `device` is where the optimizer will step: the CPU where its state is offloaded. The layers' matrices (adapters
    included) form a group of their own, because only they decay.
    """
    matrices, others = split_parameters(module)
    plain = {"params": others, "weight_decay": 0.0}
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    muon = bool(matrices) and config.kind == "muon"
    groups = [group for group in ([plain] if muon else [plain, decayed]) if group["params"]]
    # Fused kernels of torch's exist for CPU and CUDA: nothing is compiled.
    fused = device.type in ("cpu", "cuda")
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused) if groups else None
    if not muon:
        assert adamw is not None, "a module without parameters that train"
        return adamw
    hidden = StackedMuon(
        matrices, lr=config.muon_lr, weight_decay=config.muon_weight_decay, momentum=config.muon_momentum
    )
    return Joined([hidden] if adamw is None else [hidden, adamw])


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that train: the layers' matrices, and all others."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in module.named_parameters():
        if param.requires_grad:
            # A partitioned parameter is empty and knows its own shape.
            dims = len(getattr(param, "ds_shape", param.shape))
            (matrices if dims == 2 and f".{name}".find(".layers.") >= 0 else others).append(param)
    return matrices, others


class Joined(torch.optim.Optimizer):
    """Several optimizers over different parameters, as one: their groups are this one's groups."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step each part; a closure is not supported."""
        assert closure is None
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The parts' states, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave, of the same parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading replaces the parts' groups; a rate set here must reach them.
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]


def parameter_states(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Any]]:
    """The state of each parameter, whichever part holds it."""
    parts = optimizer.parts if isinstance(optimizer, Joined) else [optimizer]
    return {param: state for part in parts for param, state in part.state.items()}
