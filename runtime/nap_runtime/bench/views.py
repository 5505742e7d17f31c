"""One device under the sync policy of m workers: a view a path, all views computed as one batch.

What m workers with a path each would hold and commit, without anything that travels: a sync copies keys and values, or
tokens, from view to view. Where all views are the same (the first step, and after a `tokens` sync) they are computed
once. This is what a speed-up of m devices has to be held against: policy and devices apart.

Policies `tokens`, `kv` and `none`, without warm-up or overlap; rule `parallel-forced` at temperature 0; paths of one
size. Shapes: M views, R rows, S slots of a path, C slots that the head runs on, N positions, V vocabulary.
"""

from __future__ import annotations

import time
from itertools import accumulate

import torch
from torch import Tensor

from nap_runtime.bench.roofline import wait
from nap_runtime.decoding import confidence
from nap_runtime.decoding.machine import Coordination, Finish, Plan, Rows, Step, Summarise, Sync, rows_of
from nap_runtime.decoding.rules import pick
from nap_runtime.decoding.state import CanvasState, Kind, Region
from nap_runtime.errors import UsageError
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.quantised import PackedAttention, PackedStore, store_of
from nap_runtime.models.transformer import Attend, accumulate_dtype
from nap_runtime.worker import Denoiser
from nap_runtime.worker.caches import ScatterAttention

_HEAD_BUCKET = 32


def check_views(plan: Plan) -> None:
    """Whether views can decode a plan.

    Raises:
        UsageError: they cannot.
    """
    layout, config = plan.layout, plan.config
    policy = config.sync
    if policy.mode not in ("tokens", "kv", "none") or policy.warmup or policy.overlap or policy.summary != "gather":
        raise UsageError("views: they take tokens, kv or none, without warmup, overlap or summaries", field="sync")
    if policy.sees != "full":
        raise UsageError("views: they take topology full", field="topology")
    if config.picks_by != "parallel-forced" or config.temperature or config.cfg or config.confidence != "max-prob":
        raise UsageError("views: they take rule parallel-forced at temperature 0, without guidance", field="rule")
    if len(set(layout.budgets)) > 1 or len({len(header) for header in layout.headers}) > 1:
        raise UsageError("views: all paths must be of one size", field="path_tokens")
    if plan.assignment.worker_of != tuple(range(layout.n_paths)):
        raise UsageError("views: each path has a view of its own", field="assignment")


class BatchedViews:
    """One decode, which `run` carries out.

    Attributes:
        rows: rows computed; `steps` at which the network ran.

    Raises:
        UsageError: views cannot decode such a plan.
    """

    def __init__(
        self, denoiser: Denoiser, plan: Plan, prompt: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        check_views(plan)
        self.denoiser, self.plan, self.device = denoiser, plan, device
        self.rows = self.steps = 0
        self._rows_of: dict[Rows, Tensor] = {}
        layout, model = plan.layout, denoiser.config
        views = layout.n_paths
        self._weight = 1.0 if plan.config.eos_weight is None else plan.config.eos_weight
        self._shift = int(model.shifted_logits)
        self._state = CanvasState.start(layout, [layout.initial_ids(prompt)] * views, device)
        self._store = store_of(model, batch=views, positions=layout.size, dtype=dtype, device=device)
        self._slots_MS = torch.tensor([list(block.slots) for block in layout.paths], device=device)
        widest = max(map(len, layout.end_ids))
        padded = [(*ends, *(ends[:1] * (widest - len(ends)))) for ends in layout.end_ids[:-1]]
        self._ends_ME = torch.tensor(padded, device=device)
        self._text_ends = torch.tensor(model.end_ids, device=device)
        self._left = _most_left(plan)
        self._quotas_TM = torch.tensor(plan.schedule.paths, device=device)
        self._rows_R: dict[range, Tensor] = {}

    @property
    def ids(self) -> Tensor:
        """The canvas, each slot as the view that answers for it has it. [N]."""
        return self._merged(self._state.ids)

    @property
    def order(self) -> tuple[Tensor, Tensor]:
        """Step of each position's commit, and whether it was committed and not filled: [N] each."""
        return self._merged(self._state.step), self._merged(self._state.kind) == int(Kind.COMMIT)

    def _merged(self, values_MN: Tensor) -> Tensor:
        merged = values_MN[0].clone()
        for view, slots_S in enumerate(self._slots_MS):
            merged[slots_S] = values_MN[view, slots_S]
        return merged

    @torch.inference_mode()
    def run(self) -> float:
        """Decode; when the first step was done, by `time.perf_counter`. Nothing else waits for the device."""
        machine, first = Coordination(self.plan), 0.0
        while not isinstance(todo := machine.next(), Finish):
            if isinstance(todo, Sync):
                self._copy_keys() if todo.mode == "kv" else self._tell_tokens()
            elif isinstance(todo, Summarise):
                self._tell_tokens()
            else:
                assert isinstance(todo, Step)
                self._step(todo)
                if self.steps == 1:
                    wait(self.device)
                    first = time.perf_counter()
        return first

    def _step(self, step: Step) -> None:
        self.steps += 1
        if step.summary is not None and not step.paths:
            return self._summary_step(step)
        hidden_MRD, rows_MR = self._forward(step)
        self._commit(step, hidden_MRD, rows_MR)
        if step.summary:  # T = 1: everything at once
            self._commit_summary(step, hidden_MRD[:1], 0)

    # -- forward ------------------------------------------------------------------------------------------------

    def _forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Hidden states [M, R, D] of the rows [M, R] of a step."""
        if step.rows is Rows.ALL:
            return self._whole()
        rows_MR = self._rows(step.rows)
        ids_MR = self._state.ids.gather(1, rows_MR)
        self.rows += rows_MR.numel()
        hidden_MRD = self.denoiser.forward_rows(ids_MR, rows_MR, ScatterAttention(self._store, rows_MR))
        return hidden_MRD, rows_MR

    def _whole(self) -> tuple[Tensor, Tensor]:
        """The whole canvas, the same on all views: computed on the first, its keys and values given to the others."""
        size, views = self.plan.layout.size, self.plan.layout.n_paths
        hidden_1RD = self._alone(range(size))
        for half in (self._store.k_LBGNE, self._store.v_LBGNE):
            half[:, 1:] = half[:, :1]
        rows_MR = torch.arange(size, device=self.device).expand(views, -1)
        return hidden_1RD.expand(views, -1, -1), rows_MR

    def _alone(self, rows: range) -> Tensor:
        """Hidden states of rows of the lead's view, [1, R, D]."""
        if rows not in self._rows_R:
            self._rows_R[rows] = torch.tensor(list(rows), device=self.device)
        rows_R = self._rows_R[rows]
        store = type(self._store)(self._store.k_LBGNE[:, :1], self._store.v_LBGNE[:, :1])
        packed = isinstance(store, PackedStore)
        attend: Attend = PackedAttention(store, rows_R) if packed else StoreAttention(store, rows_R)  # type: ignore[arg-type]
        self.rows += len(rows)
        return self.denoiser.forward_rows(self._state.ids[:1, rows_R], rows_R, attend)

    def _rows(self, rows: Rows) -> Tensor:
        if rows not in self._rows_of:
            plan = self.plan
            own = [rows_of(rows, plan.layout, plan.assignment, view) for view in range(self.plan.layout.n_paths)]
            self._rows_of[rows] = torch.tensor(own, device=self.device)
        return self._rows_of[rows]

    # -- syncs --------------------------------------------------------------------------------------------------

    def _copy_keys(self) -> None:
        """Each view's own rows, as it last computed them, into all others."""
        for view in range(self.plan.layout.n_paths):
            own = self.plan.assignment.own_rows(self.plan.layout, view)
            here = slice(own[0], own[-1] + 1)
            for half in (self._store.k_LBGNE, self._store.v_LBGNE):
                half[:, :, :, here] = half[:, view : view + 1, :, here].clone()

    def _tell_tokens(self) -> None:
        for view, slots_S in enumerate(self._slots_MS):
            ids, masked = self._state.ids[view, slots_S], self._state.masked[view, slots_S]
            self._state.ids[:, slots_S], self._state.masked[:, slots_S] = ids, masked

    # -- commits ------------------------------------------------------------------------------------------------

    def _commit(self, step: Step, hidden_MRD: Tensor, rows_MR: Tensor) -> None:
        """Every path's quota on its own view, and the fill of paths that are done."""
        assert step.paths is not None
        if not any(step.paths):
            return
        slots_MS, state = self._slots_MS, self._state
        masked_MS = state.masked.gather(1, slots_MS)
        size = min(-(-self._left[step.step] // _HEAD_BUCKET) * _HEAD_BUCKET, slots_MS.shape[1])
        open_MC = masked_MS.byte().sort(dim=1, descending=True, stable=True).indices[:, :size]
        at_MC = self._first_in(rows_MR) + open_MC
        ids_MC, scores_MC = self._scored(hidden_MRD, at_MC)
        quotas_M1 = self._quotas_TM[step.step, :, None]
        openly_MC = masked_MS.gather(1, open_MC)
        ranks_MC = torch.where(openly_MC, scores_MC, -torch.inf)
        order_MC = ranks_MC.sort(dim=1, descending=True, stable=True).indices
        taken_MC = (torch.arange(size, device=self.device) < quotas_M1).expand_as(order_MC)
        picked_MC = torch.zeros_like(openly_MC).scatter(1, order_MC, taken_MC) & openly_MC
        self._put(slots_MS.gather(1, open_MC), picked_MC, ids_MC, scores_MC, step.step, Kind.COMMIT)
        self._close(step.step)

    def _first_in(self, rows_MR: Tensor) -> Tensor:
        """Where, among a view's rows, the one that predicts its path's first slot stands. [M, 1]."""
        wanted_M1 = self._slots_MS[:, :1] - self._shift
        return (rows_MR == wanted_M1).byte().argmax(1, keepdim=True)

    def _scored(self, hidden_MRD: Tensor, at_MC: Tensor) -> tuple[Tensor, Tensor]:
        hidden_MCD = hidden_MRD.gather(1, at_MC[..., None].expand(-1, -1, hidden_MRD.shape[-1]))
        logits_MCV = self.denoiser.logits(hidden_MCD)
        logits_MCV = logits_MCV.to(accumulate_dtype(logits_MCV.dtype))
        logits_MCV[..., self.plan.layout.mask_id] = -torch.inf
        ids_MC = logits_MCV.argmax(-1)
        scores_MC = confidence.log_confidence("max-prob", logits_MCV, ids_MC)
        return ids_MC, confidence.weigh_ends(scores_MC, ids_MC, self._text_ends, self._weight)

    def _put(self, at_MC: Tensor, where_MC: Tensor, ids_MC: Tensor, scores_MC: Tensor, step: int, kind: Kind) -> None:
        state = self._state
        for target, values in ((state.ids, ids_MC), (state.score, scores_MC.double()), (state.step, step)):
            new_MC = torch.where(where_MC, values, target.gather(1, at_MC)).to(target.dtype)
            target.scatter_(1, at_MC, new_MC)
        kinds_MC = torch.where(where_MC, int(kind), state.kind.gather(1, at_MC)).to(state.kind.dtype)
        state.kind.scatter_(1, at_MC, kinds_MC)
        state.masked.scatter_(1, at_MC, state.masked.gather(1, at_MC) & ~where_MC)

    def _close(self, step: int) -> None:
        """Fill paths whose end id, and every slot before it, are committed."""
        slots_MS, state = self._slots_MS, self._state
        ids_MS, masked_MS = state.ids.gather(1, slots_MS), state.masked.gather(1, slots_MS)
        end_MS = (ids_MS[..., None] == self._ends_ME[:, None, :]).any(-1) & ~masked_MS
        closed_M1 = (end_MS & (masked_MS.cumsum(1) == 0)).any(1, keepdim=True)
        fill_MS = torch.full_like(ids_MS, self.plan.layout.fill_id)
        self._put(slots_MS, masked_MS & closed_M1, fill_MS, torch.zeros_like(ids_MS), step, Kind.FILL)

    # -- summary ------------------------------------------------------------------------------------------------

    def _summary_step(self, step: Step) -> None:
        """The lead alone: its view has every path's tokens by now."""
        summary = self.plan.layout.summary
        assert summary is not None
        rows = range(self.plan.layout.size) if step.rows is Rows.ALL else summary.rows
        hidden_1RD = self._alone(rows)
        if step.summary:
            self._commit_summary(step, hidden_1RD, rows.start)

    def _commit_summary(self, step: Step, hidden_1RD: Tensor, first: int) -> None:
        summary, state = self.plan.layout.summary, self._state
        assert summary is not None
        slots_1S = torch.tensor([list(summary.slots)], device=self.device)
        at_1S = slots_1S - self._shift - first
        ids_1S, scores_1S = self._scored(hidden_1RD, at_1S)
        lead = CanvasState(state.ids[:1], state.masked[:1], state.step[:1], state.kind[:1], state.score[:1])
        picked_1S = pick(scores_1S, lead.masked[:, slots_1S[0]], step.summary or 0)
        lead.commit(slots_1S[0], picked_1S, ids_1S, scores_1S, step.step)
        lead.close(Region.of(summary, self.device), self.plan.layout.fill_id, step.step)


def _most_left(plan: Plan) -> list[int]:
    """For each path step the most slots that any path can still have masked before it."""
    done = [list(accumulate(column, initial=0)) for column in zip(*plan.schedule.paths, strict=True)]
    budgets = plan.layout.budgets
    return [
        max(budget - taken[step] for budget, taken in zip(budgets, done, strict=True))
        for step in range(len(plan.schedule.paths))
    ]
