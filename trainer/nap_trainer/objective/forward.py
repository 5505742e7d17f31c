"""The forward process: which slots of a canvas are hidden, and at what rate.

A pattern says which t each block of a canvas gets; together they show the model what decoding will show it:

    uniform       one t for all slots
    independent   a t of its own for every block
    paths         the summary hidden, one t for all paths
    per-path      the summary hidden, a t of its own for every path, at times 0 or 1
    summary       the paths clean, the summary with t
    paths-hidden  the paths hidden, the summary with t
    structured    the released NAP trainer's `structured_masking`: tags never, paths at 0.9 t, the summary wholly where
                  1 − t < 0.8, else at clamp(r (1 + z)), r = 0.9 t, z from 0 to 1 over its slots
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy.typing as npt
import torch
from torch import Tensor

from nap_trainer.batches.collate import HostBatch
from nap_trainer.objective.draws import Draws, Use
from nap_trainer.objective.weights import slot_weights
from nap_trainer.settings import ObjectiveSection, Pattern

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
EXTREME = 0.15
"""How often a path of pattern `per-path` is wholly clean, and how often wholly hidden."""
THINK_RATE, SUMMARY_HIDDEN = 0.9, 0.8  # of the released trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """A `HostBatch` on the training device: the same fields as tensors (ids and blocks int64)."""

    ids_BN: Tensor
    block_BN: Tensor
    header_BN: Tensor
    owner_BN: Tensor
    text_BN: Tensor
    index_B: Tensor
    blocks: int
    summary: bool
    full: bool

    @classmethod
    def of(cls, batch: HostBatch, device: torch.device) -> DeviceBatch:
        """Copy a batch without making the host wait."""

        def moved(array: npt.NDArray[Any]) -> Tensor:
            tensor = torch.from_numpy(array)
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

        return cls(
            ids_BN=moved(batch.ids_BN).long(),
            block_BN=moved(batch.block_BN).long(),
            header_BN=moved(batch.header_BN).long(),
            owner_BN=moved(batch.owner_BN).long(),
            text_BN=moved(batch.text_BN),
            index_B=moved(batch.index_B),
            blocks=batch.blocks,
            summary=batch.summary,
            full=batch.full,
        )

    @property
    def real_BN(self) -> Tensor:  # noqa: N802
        """Positions inside a canvas."""
        return self.owner_BN >= -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Canvases as the model sees them.

    Attributes:
        noisy_BN: ids with the mask where slots are hidden.
        hidden_BN: those slots: the loss is taken there.
        weight_BN: their weights (float32, 0 elsewhere), `aside` included, not yet divided by anything.
        block_BN: 1 + the block of every slot that may be hidden, else 0.
        slots_B: slots of each canvas that may be hidden (LLaDA's answer length, padding included).
    """

    noisy_BN: Tensor
    hidden_BN: Tensor
    weight_BN: Tensor
    block_BN: Tensor
    slots_B: Tensor


class ForwardProcess:
    """Hides slots of batches.

    Args:
        settings: the objective.
        global_batch: G, canvases over which t and patterns are spread.
        learn_padding: whether end-of-text padding may be hidden.
        mask_id: the mask.
        seed: of every draw.
    """

    def __init__(
        self, settings: ObjectiveSection, *, global_batch: int, learn_padding: bool, mask_id: int, seed: int
    ) -> None:
        self.settings, self.global_batch, self.seed = settings, global_batch, seed
        self.learn_padding, self.mask_id = learn_padding, mask_id
        self._edges = pattern_edges(settings.patterns)

    def __call__(self, batch: DeviceBatch, step: int | Tensor) -> Masked:
        """Hide slots of a batch at a step."""
        draws, settings = Draws(self.seed, step), self.settings
        block_BN = self._maskable(batch)
        pattern_B = self._patterns(batch, draws)
        t_BK, aside_BK = self._rates(batch, pattern_B, draws)
        at_BN = (block_BN - 1).clamp(min=0)
        t_BN = t_BK.gather(1, at_BN)
        rate_BN = self._structured(batch, t_BN, pattern_B)
        hidden_BN = (draws.slots(batch.index_B, t_BN.shape[1], Use.HIDE) < rate_BN) & (block_BN > 0)
        weight_BN = slot_weights(settings.weighting, t_BN, hidden_BN, batch.real_BN, cart_p=settings.cart_p)
        aside_BN = aside_BK.gather(1, at_BN) & hidden_BN
        return Masked(
            noisy_BN=batch.ids_BN.masked_fill(hidden_BN, self.mask_id),
            hidden_BN=hidden_BN,
            weight_BN=torch.where(aside_BN, settings.aside, weight_BN),
            block_BN=block_BN,
            slots_B=(block_BN > 0).sum(1),
        )

    def _maskable(self, batch: DeviceBatch) -> Tensor:
        """1 + the block of every slot that may be hidden, [B, N]."""
        block_BN = batch.block_BN
        if not self.learn_padding:
            block_BN = block_BN.masked_fill(~batch.text_BN, 0)
        return block_BN + batch.header_BN if self.settings.headers == "learn" else block_BN

    def _patterns(self, batch: DeviceBatch, draws: Draws) -> Tensor:
        """Index into `PATTERNS` of each canvas, in the mix's shares. Shape [B]."""
        share_B = draws.spread(batch.index_B, self.global_batch, Use.PATTERN, kind="stratified")
        if self._edges.device != share_B.device:  # once: a copy makes the device wait
            self._edges = self._edges.to(share_B.device)
        return torch.searchsorted(self._edges, share_B, right=True).clamp(max=len(PATTERNS) - 1)

    def _rates(self, batch: DeviceBatch, pattern_B: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """t of every block, [B, K], and the blocks that a pattern only hides: they weigh `aside`."""
        size, index_B, kind = self.global_batch, batch.index_B, self.settings.t
        one_BK = draws.spread(index_B, size, Use.T, kind=kind)[:, None].expand(-1, batch.blocks)
        each = range(batch.blocks)
        own_BK = torch.stack([draws.spread(index_B, size, Use.T + 1 + k, kind=kind) for k in each], 1)
        dice_BK = torch.stack([draws.canvases(index_B, Use.EXTREME + k) for k in each], 1)
        one_BK, own_BK = (self.settings.min_t + (1 - self.settings.min_t) * t for t in (one_BK, own_BK))
        extreme_BK = own_BK.masked_fill(dice_BK < EXTREME, 0.0).masked_fill(dice_BK >= 1 - EXTREME, 1.0)
        last_K = torch.arange(batch.blocks, device=index_B.device) == batch.blocks - 1
        summary_K = last_K if batch.summary else torch.zeros_like(last_K)
        chosen = {name: (pattern_B == i)[:, None] for i, name in enumerate(PATTERNS)}
        t_BK = torch.where(chosen["per-path"], extreme_BK, torch.where(chosen["independent"], own_BK, one_BK))
        hidden_BK = ((chosen["paths"] | chosen["per-path"]) & summary_K) | (chosen["paths-hidden"] & ~summary_K)
        clean_BK = chosen["summary"] & ~summary_K
        if not batch.summary:  # one region: only `uniform` and `independent` mean anything
            return one_BK, torch.zeros_like(hidden_BK)
        return t_BK.masked_fill(hidden_BK, 1.0).masked_fill(clean_BK, 0.0), hidden_BK

    def _structured(self, batch: DeviceBatch, t_BN: Tensor, pattern_B: Tensor) -> Tensor:
        """Rates at which slots are hidden: t, but for canvases of pattern `structured`. Shape [B, N]."""
        if "structured" not in self.settings.patterns or not batch.summary:
            return t_BN
        summary_BN = batch.block_BN == batch.blocks
        place_BN = summary_BN.cumsum(1) - 1
        z_BN = place_BN / (summary_BN.sum(1, keepdim=True) - 1).clamp(min=1)
        rate_BN = THINK_RATE * t_BN
        ramp_BN = torch.where(1 - t_BN < SUMMARY_HIDDEN, 1.0, (rate_BN * (1 + z_BN)).clamp(max=1.0))
        rate_BN = torch.where(summary_BN, ramp_BN, rate_BN)
        rate_BN = rate_BN.masked_fill(self._tags(batch), 0.0)
        return torch.where((pattern_B == PATTERNS.index("structured"))[:, None], rate_BN, t_BN)

    @staticmethod
    def _tags(batch: DeviceBatch) -> Tensor:
        """The end tag of each block: the last of its text. Shape [B, N]."""
        after = torch.nn.functional.pad(batch.text_BN, (0, 1))[:, 1:]
        same = torch.nn.functional.pad(batch.block_BN, (0, 1))[:, 1:] == batch.block_BN
        return batch.text_BN & ~(after & same)


def pattern_edges(mix: Mapping[Pattern, float]) -> Tensor:
    """Upper edges of the patterns' shares of [0, 1), float32."""
    shares = torch.tensor([mix.get(name, 0.0) for name in PATTERNS], dtype=torch.float64)
    return (shares / shares.sum()).cumsum(0).float()


def with_unknown(batch: DeviceBatch, share: float, words_V: Tensor, unknown_id: int, draws: Draws) -> DeviceBatch:
    """Prompt words become the unknown token with probability `share`; digits and signs never do."""
    chance_BN = draws.slots(batch.index_B, batch.ids_BN.shape[1], Use.UNKNOWN)
    hit_BN = (chance_BN < share) & (batch.owner_BN == -1) & words_V[batch.ids_BN]
    return replace(batch, ids_BN=batch.ids_BN.masked_fill(hit_BN, unknown_id))
