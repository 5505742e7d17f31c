"""What becomes of a step's hidden states: candidates, what the rule picks of them, commits.

Shapes: B canvases, R computed rows, S slots, D d_model, V vocabulary, K values of a candidate. With guidance the
network runs on 2B canvases, the second half with a masked prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nap_runtime.decoding import confidence, rules
from nap_runtime.decoding.machine import Plan, Step
from nap_runtime.decoding.schedule import block_of
from nap_runtime.decoding.state import CanvasState, Region
from nap_runtime.distributed.consensus import consensus
from nap_runtime.models import invariant
from nap_runtime.models.transformer import accumulate_dtype
from nap_runtime.numerics import Numerics
from nap_runtime.traits import answer_slots, weight_argument
from nap_runtime.worker.denoiser import Denoiser
from nap_runtime.worker.resources import Resources


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of each slot the id it would get, how sure that is (a weighed logarithm), and for `prophet` the gap to the next.

    With `p2` the score of a committed slot is what it is ranked by. All [B, S].
    """

    ids: Tensor
    scores: Tensor
    gaps: Tensor | None = None

    def split(self, widths: Sequence[int]) -> list[Candidates]:
        """By consecutive slots."""
        gaps = [None] * len(widths) if self.gaps is None else self.gaps.split(widths, -1)
        parts = zip(self.ids.split(widths, -1), self.scores.split(widths, -1), gaps, strict=True)
        return [Candidates(*part) for part in parts]


class Selector:
    """Commits, on one worker's canvases, what the plan's rule picks.

    Args:
        numerics: `invariant`: candidates and scores of a slot depend on its own logits alone, bit for bit.
    """

    def __init__(
        self,
        plan: Plan,
        denoiser: Denoiser,
        resources: Resources,
        state: CanvasState,
        rank: int,
        numerics: Numerics = "fast",
    ) -> None:
        self._plan, self._layout, self._config = plan, plan.layout, plan.config
        self._denoiser, self._resources, self._state, self._rank = denoiser, resources, state, rank
        self._rule, self._traits = plan.config.picks_by, plan.config.traits
        self._eta = weight_argument(plan.config.rule_args)
        self._several, self._invariant = plan.assignment.workers > 1, numerics == "invariant"

    # -- regions ------------------------------------------------------------------------------------------------

    def paths(self, step: Step, quotas: dict[int, int], hidden_BRD: Tensor) -> None:
        """Commit the quotas of own paths."""
        if not quotas:
            return
        slots = tuple(slot for path in quotas for slot in self._layout.paths[path].slots)
        parts = self._candidates(step, slots, hidden_BRD).split([self._layout.budgets[path] for path in quotas])
        for path, candidates in zip(quotas, parts, strict=True):
            region = self._resources.regions[path]
            self._commit(step.step, region, quotas[path], candidates, block=path, close=[region])

    def summary(self, step: Step, hidden_BRD: Tensor) -> bool:
        """Commit the summary's quota where this worker has a part in it; whether it has."""
        summary, policy = self._layout.summary, self._config.sync
        if summary is None or not step.summary:
            return False
        together = policy.mode in ("exact", "shared")
        if not together and policy.summary != "consensus" and self._rank != 0:
            return False
        gather = self._gathered if together else self._agreed if policy.summary == "consensus" else self._candidates
        candidates, region = gather(step, tuple(summary.slots), hidden_BRD), self._resources.regions[-1]
        self._commit(step.step, region, step.summary, candidates, block=self._layout.n_paths, close=[region])
        return True

    def canvas(self, step: Step, hidden_BRD: Tensor) -> None:
        """Commit the quota of the whole canvas, or with a block cache of the block that is decoded."""
        resources = self._resources
        region = resources.all_slots if step.block is None else resources.block(step.block)
        slots = self._layout.slots if step.block is None else resources.slots_of(step.block)
        candidates = self._gathered(step, slots, hidden_BRD)
        self._commit(step.step, region, step.canvas or 0, candidates, block=None, close=resources.regions)

    def provisional(self, step: Step, hidden_BRD: Tensor) -> Candidates | None:
        """What the summary's slots would get now, without noise; None on a worker that does not know.

        Under `exact` all know, because each tells what it has scored; else the lead does.
        """
        assert self._layout.summary is not None
        slots = tuple(self._layout.summary.slots)
        if self._config.sync.mode == "exact":
            return self._gathered(step, slots, hidden_BRD, temperature=0.0)
        return self._candidates(step, slots, hidden_BRD, temperature=0.0) if self._rank == 0 else None

    # -- picking ------------------------------------------------------------------------------------------------

    def _commit(
        self,
        step: int,
        region: Region,
        quota: int,
        candidates: Candidates,
        *,
        block: int | None,
        close: Sequence[Region],
    ) -> None:
        """Commit what the rule picks of a region, and close the blocks that are done.

        A plain region never closes, nor does one whose slots may be masked again.
        """
        state, at = self._state, region.positions_S
        if self._traits.remasks:
            left = self._plan.schedule.left_after(step, self._layout, block)
            picked_BS, again_BS = rules.replan(candidates.scores, state.masked[:, at], left)
            state.commit(at, picked_BS, candidates.ids, candidates.scores, step)
            state.remask(at, again_BS, self._layout.mask_id, candidates.scores, step)
            return
        picked_BS = self._pick(step, region, quota, candidates)
        state.commit(at, picked_BS, candidates.ids, candidates.scores, step)
        for done in close if self._layout.kind == "nap" else ():
            state.close(done, self._layout.fill_id, step)

    def _pick(self, step: int, region: Region, quota: int, candidates: Candidates) -> Tensor:
        rule, config, at = self._rule, self._config, region.positions_S
        masked_BS = self._state.masked[:, at]
        if self._traits.adaptive:
            open_BS = rules.leftmost_block(masked_BS, config.fast_block)
            sure = rules.pick_above if rule == "threshold" else rules.pick_by_factor
            return sure(candidates.scores, open_BS, config.own_value)
        positions = self._resources.padding.positions(at)
        ranks_BS = rules.rank_scores(rule, candidates.scores, positions=positions, seed=config.seed, step=step)
        picked_BS = rules.pick(ranks_BS, masked_BS, quota, block_length=self._block_length(len(at)))
        if candidates.gaps is None:
            return picked_BS
        sure_B1 = rules.answer_is_sure(candidates.gaps[:, self._answer(len(at))], self._progress(step))
        return torch.where(sure_B1, masked_BS, picked_BS)

    def _block_length(self, slots: int) -> int | None:
        if self._rule == "blockwise":
            return block_of(slots, self._config.block_length)
        return self._config.block_length

    def _answer(self, slots: int) -> slice:
        """`prophet`: the slots of a region that it watches: those asked for, or the canvas's summary, or all."""
        asked = answer_slots(self._config.rule_args)
        if asked is not None:
            return slice(asked.start, asked.stop)
        over_canvas = self._config.picks_over == "canvas" and self._layout.summary is not None
        return slice(slots - self._layout.summary_budget, slots) if over_canvas else slice(0, slots)

    def _progress(self, step: int) -> float:
        """The share of its phase's steps that are done after this one."""
        first, steps = self._plan.path_steps, self._plan.schedule.steps
        if step < first:
            return (step + 1) / first
        return (step - first + 1) / (steps - first)

    # -- candidates ---------------------------------------------------------------------------------------------

    def _guided(self, step: Step, slots: tuple[int, ...], hidden_BRD: Tensor) -> Tensor:
        """Scores of `slots` over the vocabulary, guided in float32: the head runs on their rows only. [B, S, V]."""
        head = self._resources.scored(step, slots).head
        if head.dim() == 1:
            logits = self._denoiser.logits(hidden_BRD.index_select(1, head))
        else:
            at = head.repeat(len(hidden_BRD) // len(head), 1)[..., None].expand(-1, -1, hidden_BRD.shape[-1])
            logits = self._denoiser.logits(hidden_BRD.gather(1, at))
        if not self._config.cfg:
            return logits
        given, without = logits.to(accumulate_dtype(logits.dtype)).chunk(2)
        return without + (self._config.cfg + 1) * (given - without)

    def _allowed(self, logits_BSV: Tensor) -> Tensor:
        """The same in float32 (float64 in float64), without the mask: a commit must unmask."""
        wide_BSV = logits_BSV.to(accumulate_dtype(logits_BSV.dtype))
        wide_BSV[..., self._layout.mask_id] = -torch.inf
        return wide_BSV

    def _candidates(
        self, step: Step, slots: tuple[int, ...], hidden_BRD: Tensor, temperature: float | None = None
    ) -> Candidates:
        """Candidates of slots whose rows this worker has computed."""
        config, scored = self._config, self._resources.scored(step, slots)
        slots_S, logits_BSV = scored.slots_S, self._guided(step, slots, hidden_BRD)
        heat = config.temperature if temperature is None else temperature
        if not self._invariant:
            logits_BSV = self._allowed(logits_BSV)
        ids_BS, scores_BS = self._drawn(logits_BSV, heat, scored.positions, step.step)
        scored_BS = ids_BS
        if config.rule_args.get("score") == "token":
            scored_BS = torch.where(self._state.masked[:, slots_S], ids_BS, self._state.ids[:, slots_S])
            scores_BS = self._scores(logits_BSV, scored_BS)
        gaps_BS = confidence.top_gap(self._allowed(logits_BSV)) if self._rule == "prophet" else None
        return Candidates(ids_BS, self._weighed(slots_S, scored_BS, scores_BS), gaps_BS)

    def _drawn(self, logits_BSV: Tensor, heat: float, positions: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Candidates and their log-confidences."""
        config = self._config
        if not self._invariant:
            ids_BS = confidence.draw(logits_BSV, temperature=heat, seed=config.seed, positions=positions, step=step)
            return ids_BS, self._scores(logits_BSV, ids_BS)
        number = [torch.full((), value, dtype=torch.int64, device=logits_BSV.device) for value in (config.seed, step)]
        noise: dict[str, Any] = {"temperature": heat, "seed": number[0], "positions": positions, "step": number[1]}
        return invariant.candidates(logits_BSV, config.confidence, self._layout.mask_id, **noise)

    def _scores(self, logits_BSV: Tensor, ids_BS: Tensor) -> Tensor:
        kind = self._config.confidence
        if self._invariant:
            return invariant.score(logits_BSV, ids_BS, kind, self._layout.mask_id)
        return confidence.log_confidence(kind, logits_BSV, ids_BS)

    def _weighed(self, slots_S: Tensor, ids_BS: Tensor, scores_BS: Tensor) -> Tensor:
        """Scores with the weight of end-of-text, and with `p2` the η of committed slots."""
        weight = 1.0 if self._config.eos_weight is None else self._config.eos_weight
        scores_BS = confidence.weigh_ends(scores_BS, ids_BS, self._resources.text_ends_E, weight)
        if not self._traits.remasks or self._eta == 1:
            return scores_BS
        return torch.where(self._state.masked[:, slots_S], scores_BS, scores_BS * self._eta)

    def _gathered(
        self, step: Step, slots: tuple[int, ...], hidden_BRD: Tensor, temperature: float | None = None
    ) -> Candidates:
        """Candidates of a region that several workers score."""
        if not self._several or step.step == 0:  # at the first step every worker computes the whole canvas
            return self._candidates(step, slots, hidden_BRD, temperature)
        wanted = set(slots)
        mine = tuple(slot for slot in self._resources.partition[self._rank] if slot in wanted)
        own = self._candidates(step, mine, hidden_BRD, temperature)
        values = [own.ids.double(), own.scores.double()] + ([] if own.gaps is None else [own.gaps.double()])
        ids, *others = self._resources.candidates(slots, len(values)).run(torch.stack(values))
        return Candidates(ids.long(), *others)

    def _agreed(self, step: Step, slots: tuple[int, ...], hidden_BRD: Tensor) -> Candidates:
        """Candidates of the summary on which the workers agree, each with its own view of the paths."""
        if not self._several or step.step == 0:
            return self._candidates(step, slots, hidden_BRD)  # all views are the same
        config, scored = self._config, self._resources.scored(step, slots)
        slots_S = scored.slots_S
        logits_BSV = self._allowed(self._guided(step, slots, hidden_BRD))
        everybodys = self._resources.consensus(len(slots), logits_BSV.shape[-1]).run(logits_BSV)
        ids_BS, scores_BS = consensus(
            everybodys,
            temperature=config.temperature,
            seed=config.seed,
            positions=scored.positions,
            step=step.step,
        )
        return Candidates(ids_BS, self._weighed(slots_S, ids_BS, scores_BS))
