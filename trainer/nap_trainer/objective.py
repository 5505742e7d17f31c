"""The masked diffusion loss: what is hidden, how much it weighs, how it is averaged.

Only slots are ever masked. A masking pattern says which t each block of a canvas gets; the patterns
together show the model the canvases that decoding will show it:

    uniform       one t for all slots
    paths         the summary hidden, one t for all paths
    per-path      the summary hidden, a t of its own for every path, at times 0 or 1
    summary       the paths clean, the summary with t
    paths-hidden  the paths hidden, the summary with t

Shapes: B canvases, N positions, K = m + 1 blocks (paths, then the summary).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_runtime.errors import UsageError
from nap_trainer.dataset import Batch

Weighting = Literal["constant", "original", "linear"]
Pattern = Literal["uniform", "paths", "per-path", "summary", "paths-hidden"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
MIN_T = 1e-3
EXTREME = 0.15
"""How often a path of pattern `per-path` is wholly clean, and how often wholly hidden."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A batch as the model sees it: noisy_BN, the hidden slots, and each slot's weight in the loss."""

    noisy_BN: Tensor
    hidden_BN: Tensor
    weight_BN: Tensor


def stratified(size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Values in [MIN_T, 1), one in each of `size` equal parts, in random order."""
    shift = torch.rand((), generator=generator, device=device)
    order = torch.randperm(size, generator=generator, device=device)
    return ((order + shift) / size).clamp(min=MIN_T)


def pattern_ts(pattern_B: Tensor, paths: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """t of every block, t_BK, and which blocks the pattern only hides or shows: aside_BK."""
    size, device = len(pattern_B), pattern_B.device
    one_BK = stratified(size, generator, device)[:, None].expand(size, paths + 1)
    own_BK = torch.stack([stratified(size, generator, device) for _ in range(paths + 1)], dim=1)
    dice_BK = torch.rand(own_BK.shape, generator=generator, device=device)
    own_BK = own_BK.masked_fill(dice_BK < EXTREME, 0.0).masked_fill(dice_BK > 1 - EXTREME, 1.0)
    is_summary_K = torch.arange(paths + 1, device=device) == paths
    kind = {name: (pattern_B == i)[:, None] for i, name in enumerate(PATTERNS)}
    t_BK = torch.where(kind["per-path"], own_BK, one_BK)
    summary_aside = (kind["paths"] | kind["per-path"]) & is_summary_K
    paths_hidden = kind["paths-hidden"] & ~is_summary_K
    paths_clean = kind["summary"] & ~is_summary_K
    t_BK = t_BK.masked_fill(summary_aside | paths_hidden, 1.0).masked_fill(paths_clean, 0.0)
    return t_BK, summary_aside | paths_hidden


def weigh(t: Tensor, weighting: Weighting) -> Tensor:
    """Weight of a slot that was masked with probability t."""
    if weighting == "original":
        return 1 / t.clamp(min=MIN_T)
    return 1 - t if weighting == "linear" else torch.ones_like(t)


def check_mix(mix: Mapping[str, float]) -> None:
    """UsageError unless the mix gives known patterns weights of which one is positive."""
    for name, weight in mix.items():
        if name not in PATTERNS:
            raise UsageError(f"patterns: unknown '{name}'; known are {', '.join(PATTERNS)}", field="patterns")
        if weight < 0:
            raise UsageError(f"patterns: {name}: {weight} is negative", field="patterns")
    if sum(mix.values()) <= 0:
        raise UsageError("patterns: give at least one a positive weight", field="patterns")


class Objective:
    """Draws patterns and masks by a fixed mix of patterns.

    Args:
        mix: weight of each pattern.
        weighting: `constant`, `original` (1/t) or `linear` (1 − t).
        aside: factor on slots of blocks that a pattern merely hides.
    """

    def __init__(
        self, *, mix: Mapping[str, float], weighting: Weighting, aside: float, paths: int, mask_id: int
    ) -> None:
        check_mix(mix)
        if weighting not in get_args(Weighting):
            known = ", ".join(get_args(Weighting))
            raise UsageError(f"weighting: unknown '{weighting}'; known are {known}", field="weighting")
        shares = torch.tensor([mix.get(name, 0.0) for name in PATTERNS], dtype=torch.float64)
        self.edges = (shares / shares.sum()).cumsum(0)
        self.weighting, self.aside = weighting, aside
        self.paths, self.mask_id = paths, mask_id

    def draw_patterns(self, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Index into `PATTERNS` for each canvas, in the mix's shares."""
        if self.edges.device != device:  # once: a copy makes the device wait
            self.edges = self.edges.to(device)
        share_B = stratified(size, generator, device).double()
        return torch.searchsorted(self.edges, share_B, right=True).clamp(max=len(PATTERNS) - 1)

    def mask(self, batch: Batch, generator: torch.Generator, pattern_B: Tensor | None = None) -> Masked:
        """Hide slots of a batch."""
        ids_BN, device = batch.ids_BN, batch.ids_BN.device
        if pattern_B is None:
            pattern_B = self.draw_patterns(len(ids_BN), generator, device)
        t_BK, aside_BK = pattern_ts(pattern_B, self.paths, generator)
        weight_BK = torch.where(aside_BK, self.aside, weigh(t_BK, self.weighting))
        block_BN = (batch.region_BN - 1).clamp(min=0)
        slot_BN = batch.region_BN > 0
        chance_BN = torch.rand(ids_BN.shape, generator=generator, device=device)
        hidden_BN = (chance_BN < t_BK.gather(1, block_BN)) & slot_BN
        weight_BN = weight_BK.gather(1, block_BN) * hidden_BN
        return Masked(ids_BN.masked_fill(hidden_BN, self.mask_id), hidden_BN, weight_BN)


def slot_losses(logits_BNV: Tensor, ids_BN: Tensor) -> Tensor:
    """Cross-entropy of every position in float32, [B, N]."""
    flat = F.cross_entropy(logits_BNV.float().flatten(0, 1), ids_BN.flatten(), reduction="none")
    return flat.view(ids_BN.shape)


def normalised(losses_BN: Tensor, masked: Masked) -> Tensor:
    """Weighted sum over the hidden slots, divided by their number."""
    return (losses_BN * masked.weight_BN).sum() / masked.hidden_BN.sum().clamp(min=1)


def region_means(values_BN: Tensor, hidden_BN: Tensor, region_BN: Tensor, paths: int) -> tuple[Tensor, Tensor]:
    """Unweighted means over the hidden slots of the paths and of the summary."""
    path_BN = hidden_BN & (region_BN <= paths)
    summary_BN = hidden_BN & (region_BN > paths)
    values_BN = values_BN.float()
    path = (values_BN * path_BN).sum() / path_BN.sum().clamp(min=1)
    return path, (values_BN * summary_BN).sum() / summary_BN.sum().clamp(min=1)
