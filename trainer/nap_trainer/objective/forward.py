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

from collections.abc import Mapping, Sequence
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
        fused: whether draws are compiled (`Draws.fused`).
    """

    def __init__(
        self,
        settings: ObjectiveSection,
        *,
        global_batch: int,
        learn_padding: bool,
        mask_id: int,
        seed: int,
        fused: bool = False,
    ) -> None:
        self.settings, self.global_batch, self.seed = settings, global_batch, seed
        self.learn_padding, self.mask_id, self.fused = learn_padding, mask_id, fused
        self._edges = pattern_edges(settings.patterns)
        self._used = [name for name in PATTERNS if settings.patterns.get(name, 0.0) > 0]

    def __call__(self, batch: DeviceBatch, step: int) -> Masked:
        """Hide slots of a batch at a step."""
        draws, settings = Draws(self.seed, step, self.fused), self.settings
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
        if len(self._used) == 1:
            return torch.full_like(batch.index_B, PATTERNS.index(self._used[0]))
        [share_B] = draws.spread(batch.index_B, self.global_batch, [Use.PATTERN], kind="stratified")
        if self._edges.device != share_B.device:  # once: a copy makes the device wait
            self._edges = self._edges.to(share_B.device)
        return torch.searchsorted(self._edges, share_B, right=True).clamp(max=len(PATTERNS) - 1)

    def _ts(self, batch: DeviceBatch, draws: Draws, uses: Sequence[int]) -> Tensor:
        """t of LLaDA's (1 − ε)·u + ε for each use, [B, U]."""
        spread_UB = draws.spread(batch.index_B, self.global_batch, uses, kind=self.settings.t)
        return (self.settings.min_t + (1 - self.settings.min_t) * spread_UB).T

    def _rates(self, batch: DeviceBatch, pattern_B: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """t of every block, [B, K], and the blocks that a pattern only hides: they weigh `aside`."""
        t_BK = self._ts(batch, draws, [Use.T]).expand(-1, batch.blocks)
        aside_BK = torch.zeros_like(t_BK, dtype=torch.bool)
        own = [name for name in ("independent", "per-path") if name in self._used]
        if own:
            own_BK = self._ts(batch, draws, [Use.T + 1 + k for k in range(batch.blocks)])
            is_own = torch.stack([self._is(name, pattern_B) for name in own]).any(0)
            t_BK = torch.where(is_own, self._extremes(batch, own_BK, pattern_B, draws), t_BK)
        if not batch.summary:  # one region has nothing to put aside
            return t_BK, aside_BK
        summary_K = torch.arange(batch.blocks, device=t_BK.device) == batch.blocks - 1
        no_summary = self._is("paths", pattern_B) | self._is("per-path", pattern_B)
        aside_BK = (no_summary & summary_K) | (self._is("paths-hidden", pattern_B) & ~summary_K)
        clean_BK = self._is("summary", pattern_B) & ~summary_K
        return t_BK.masked_fill(aside_BK, 1.0).masked_fill(clean_BK, 0.0), aside_BK

    def _extremes(self, batch: DeviceBatch, t_BK: Tensor, pattern_B: Tensor, draws: Draws) -> Tensor:
        """The same t, but at times 0 or 1 for canvases of pattern `per-path`."""
        if "per-path" not in self._used:
            return t_BK
        uses = [Use.EXTREME + k for k in range(batch.blocks)]
        dice_BK = draws.spread(batch.index_B, self.global_batch, uses, kind="uniform").T
        extreme_BK = t_BK.masked_fill(dice_BK < EXTREME, 0.0).masked_fill(dice_BK >= 1 - EXTREME, 1.0)
        return torch.where(self._is("per-path", pattern_B), extreme_BK, t_BK)

    @staticmethod
    def _is(name: Pattern, pattern_B: Tensor) -> Tensor:
        """Which canvases have a pattern, [B, 1]."""
        return (pattern_B == PATTERNS.index(name))[:, None]

    def _structured(self, batch: DeviceBatch, t_BN: Tensor, pattern_B: Tensor) -> Tensor:
        """Rates at which slots are hidden: t, but for canvases of pattern `structured`. Shape [B, N]."""
        if "structured" not in self._used or not batch.summary:
            return t_BN
        summary_BN = batch.block_BN == batch.blocks
        place_BN = summary_BN.cumsum(1) - 1
        z_BN = place_BN / (summary_BN.sum(1, keepdim=True) - 1).clamp(min=1)
        rate_BN = THINK_RATE * t_BN
        ramp_BN = torch.where(1 - t_BN < SUMMARY_HIDDEN, 1.0, (rate_BN * (1 + z_BN)).clamp(max=1.0))
        rate_BN = torch.where(summary_BN, ramp_BN, rate_BN)
        rate_BN = rate_BN.masked_fill(self._tags(batch), 0.0)
        return torch.where(self._is("structured", pattern_B), rate_BN, t_BN)

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
