"""What workers see between syncs, what they send, and what must not change the ids.

The reference runs all workers in lockstep, one canvas, with a dictionary of keys and values for every worker
and layer, and computes every row that a worker may compute at every step: it skips nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.decoding.state import Kind
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.report import staleness
from nap_runtime.metrics.verify import verify

SHAPE_NAMES = ("llada-tiny", "dream-tiny")
BUDGETS = {1: (9,), 2: (7, 5), 3: (6, 9, 4), 4: (5, 7, 3, 6)}
Cache = dict[tuple[int, int], tuple[Tensor, Tensor]]  # (layer, row) → key [G, E], value [G, E]


@dataclass
class DictAttention:
    """Rows of one canvas store their keys and values in a dictionary and see those of `sees[row]`."""

    cache: Cache
    rows: Sequence[int]
    sees: Sequence[Sequence[bool]]

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        for place, row in enumerate(self.rows):
            self.cache[layer, row] = (k_BGRE[0, :, place], v_BGRE[0, :, place])
        out = torch.zeros_like(q_BHRE)
        group = q_BHRE.shape[1] // k_BGRE.shape[1]
        for place, row in enumerate(self.rows):
            known = [r for r, visible in enumerate(self.sees[row]) if visible]
            keys = torch.stack([self.cache[layer, r][0] for r in known]).repeat_interleave(group, dim=1)
            values = torch.stack([self.cache[layer, r][1] for r in known]).repeat_interleave(group, dim=1)
            weights = torch.einsum("he,khe->hk", q_BHRE[0, :, place], keys) / q_BHRE.shape[-1] ** 0.5
            out[0, :, place] = torch.einsum("hk,khe->he", weights.softmax(-1), values)
        return out


class SlowGroup:
    """All workers of one decode, as DESIGN section 3 describes each mode."""

    def __init__(self, model: Any, canvas: Any, config: DecodeConfig, worker_of: Sequence[int]) -> None:
        self.model, self.true, self.config, self.worker_of = model, canvas, config, worker_of
        self.layout: CanvasLayout = canvas.layout
        self.workers = range(max(worker_of) + 1)
        self.sees = self.layout.visible(config.sync.sees).tolist()
        self.shift = int(model.config.shifted_logits)
        self.ids = [list(canvas.ids) for _ in self.workers]
        self.cache: list[Cache] = [{} for _ in self.workers]
        self.path_rows = [list(block.rows) for block in self.layout.paths]
        self.shared = [r for r in range(self.layout.size) if not any(r in rows for rows in self.path_rows)]
        self.under_way: tuple[list[int], list[Cache]] | None = None  # what was sent a step ago, with overlap
        self.provisional: dict[int, list[int]] = {}

    def own(self, worker: int) -> list[int]:
        return [row for path, rows in enumerate(self.path_rows) if self.worker_of[path] == worker for row in rows]

    def compute(self, worker: int, rows: Sequence[int], cache: Cache | None = None) -> dict[int, Tensor]:
        """Logits of rows from what a worker knows."""
        cache = self.cache[worker] if cache is None else cache
        rows = sorted(rows)
        ids = torch.tensor([[self.ids[worker][row] for row in rows]])
        hidden = self.model.forward_rows(ids, torch.tensor(rows), DictAttention(cache, rows, self.sees))
        return dict(zip(rows, self.model.logits(hidden)[0], strict=True))

    def compute_together(self) -> dict[int, Tensor]:
        """The whole true canvas, in one go; every worker then holds all of its keys and values."""
        for ids in self.ids:
            ids[:] = self.true.ids
        logits = self.compute(0, range(self.layout.size))
        for cache in self.cache:
            cache.update(self.cache[0])
        return logits

    def commit(self, step: int, block: int, quota: int, logits: dict[int, Tensor]) -> None:
        slots = [slot for slot in self.layout.blocks[block].slots if slot in self.true.open]
        found = {slot: self.true.candidate(logits[slot - self.shift], slot, step) for slot in slots}
        self.true.commit(block, quota, found, step)

    def due(self, step: int) -> bool:
        sync = self.config.sync
        return sync.mode not in ("exact", "none") and (step - sync.warmup) % sync.period == 0

    def path_step(self, step: int) -> None:
        """Every worker's logits from its own view, then all commits."""
        mode, logits = self.config.sync.mode, []
        if step == 0:
            logits = [self.compute(worker, range(self.layout.size)) for worker in self.workers]
        elif mode == "exact" or step <= self.config.sync.warmup or (mode == "shared" and self.due(step)):
            logits = [self.compute_together()] * len(self.workers)
            if mode == "exact" or step > self.config.sync.warmup:
                self.note_summary(step, logits[0])
        else:
            told = self.exchange(step)
            rows = {"tokens": lambda _: range(self.layout.size), "kv": lambda w: [*self.own(w), *self.shared]}
            pick = rows[mode] if told else self.own
            logits = [self.compute(worker, pick(worker)) for worker in self.workers]
            if told:
                self.note_summary(step, logits[0])
        for path in range(self.layout.n_paths):
            self.commit(step, path, self.true.quota(path, step), logits[self.worker_of[path]])
        if self.true.steps == 1:
            self.commit(step, self.layout.n_paths, self.true.summary_quota(step), logits[0])

    def exchange(self, step: int) -> bool:
        """Tell what is due; whether anything has arrived. With overlap it arrives a step later, as it was sent."""
        self.learn_own_tokens()
        now = (list(self.true.ids), [dict(cache) for cache in self.cache])
        if not self.config.sync.overlap:
            return self.due(step) and self.deliver(*now)
        arrived, self.under_way = self.under_way, now if self.due(step) else None
        return arrived is not None and self.deliver(*arrived)

    def deliver(self, ids: list[int], caches: list[Cache]) -> bool:
        if self.config.sync.mode == "kv":
            self.swap_own_keys(caches)
            return True
        for worker in self.workers:
            mine = self.own(worker)
            self.ids[worker] = [self.true.ids[row] if row in mine else ids[row] for row in range(self.layout.size)]
        return True

    def note_summary(self, step: int, logits: dict[int, Tensor]) -> None:
        """What the summary would be: the likeliest ids, without noise."""
        if self.config.sync.summary == "live":
            mask = self.layout.mask_id
            self.provisional[step] = [
                int(logits[slot - self.shift].index_fill(0, torch.tensor([mask]), -torch.inf).argmax())
                for slot in self.layout.blocks[-1].slots
            ]

    def learn_own_tokens(self) -> None:
        for worker in self.workers:
            for row in self.own(worker):
                self.ids[worker][row] = self.true.ids[row]

    def swap_own_keys(self, before: list[Cache]) -> None:
        for reader in self.workers:
            for source in self.workers:
                own = set(self.own(source))
                if reader != source:
                    self.cache[reader].update({k: kv for k, kv in before[source].items() if k[1] in own})

    def summary_step(self, step: int) -> None:
        """One refresh from the true canvas, then summary rows only, or a refresh at every step."""
        if self.config.sync.summary == "consensus":
            return self.consensus_step(step)
        again = self.config.sync.refreshes_every_step or step == self.true.path_steps
        if again:
            logits = self.compute_together()
        else:
            self.ids[0][:] = self.true.ids
            logits = self.compute(0, list(self.layout.summary.rows))  # type: ignore[union-attr]
        self.commit(step, self.layout.n_paths, self.true.summary_quota(step), logits)

    def consensus_step(self, step: int) -> None:
        """Every worker scores the summary from what it knows; mean log-probabilities of the ids that any names."""
        self.learn_own_tokens()
        summary = self.layout.summary
        views = []
        for worker in self.workers:
            for slot in summary.slots:  # type: ignore[union-attr]
                self.ids[worker][slot] = self.true.ids[slot]
            first = step == self.true.path_steps
            rows = [*self.own(worker), *self.shared] if first else list(summary.rows)  # type: ignore[union-attr]
            views.append(self.compute(worker, rows))
        slots = [slot for slot in self.layout.blocks[-1].slots if slot in self.true.open]
        found = {slot: self.agreed(slot, [view[slot - self.shift] for view in views], step) for slot in slots}
        self.true.commit(self.layout.n_paths, self.true.summary_quota(step), found, step)

    def agreed(self, slot: int, views: list[Tensor], step: int) -> tuple[float, int]:
        top, named = self.config.sync.top or 32, {}
        for view in views:
            view = view.clone()
            view[self.layout.mask_id] = -torch.inf
            p = view.softmax(-1).tolist()
            best = sorted(range(len(p)), key=lambda token: (-p[token], token))[:top]
            named[len(named)] = ({token: p[token] for token in best}, (1 - sum(p[t] for t in best)) / (len(p) - top))
        tokens = sorted({token for best, _ in named.values() for token in best})
        means = {t: sum(log(best.get(t, rest)) for best, rest in named.values()) / len(views) for t in tokens}
        noise = dict.fromkeys(tokens, 0.0)
        if self.config.temperature:
            ids, at = torch.tensor(tokens), torch.tensor(slot)
            u = uniform(self.config.seed, ids=ids, positions=at, step=step, purpose=Purpose.TOKEN)
            noise = dict(zip(tokens, (-torch.log(-torch.log(u))).tolist(), strict=True))
        token = max(tokens, key=lambda t: (means[t] + self.config.temperature * noise[t], -t))
        return means[token], token

    def run(self) -> None:
        for step in range(self.true.steps):
            if step < self.true.path_steps:
                self.path_step(step)
            else:
                self.summary_step(step)


POLICIES = [
    SyncPolicy("none"),
    SyncPolicy("none", topology="hub"),
    SyncPolicy("tokens", every=2),
    SyncPolicy("tokens", every=3, topology="hub"),
    SyncPolicy("tokens", every=4, topology="isolated", warmup=1),
    SyncPolicy("tokens", every=3, warmup=2),
    SyncPolicy("tokens", every=100),
    SyncPolicy("shared", every=2),
    SyncPolicy("shared", every=3, warmup=2),
    SyncPolicy("kv"),
    SyncPolicy("kv", every=2),
    SyncPolicy("kv", every=3, warmup=3),
    SyncPolicy("exact"),
    SyncPolicy("tokens"),
    SyncPolicy("shared"),
    SyncPolicy("kv", overlap=True),
    SyncPolicy("kv", every=2, overlap=True),
    SyncPolicy("kv", every=3, warmup=2, overlap=True),
    SyncPolicy("tokens", overlap=True),
    SyncPolicy("tokens", every=3, overlap=True),
    SyncPolicy("tokens", every=2, warmup=1, topology="hub", overlap=True),
    SyncPolicy("none", summary="consensus", top=5),
    SyncPolicy("none", topology="isolated", summary="consensus"),
    SyncPolicy("kv", every=3, summary="consensus", top=2),
    SyncPolicy("kv", every=2, overlap=True, summary="consensus", top=90),
    SyncPolicy("tokens", every=4, summary="consensus", top=1),
    SyncPolicy("exact", summary="live"),
    SyncPolicy("tokens", every=3, summary="live"),
    SyncPolicy("shared", every=2, summary="live"),
    SyncPolicy("kv", every=2, warmup=2, summary="live"),
    SyncPolicy("kv", every=3, overlap=True, summary="live"),
]
PLACEMENTS = [(0, 1), (0, 1, 2), (1, 0, 1), (1, 2, 0, 1)]


def policy_name(policy: SyncPolicy) -> str:
    more = "-overlap" * policy.overlap + (f"-{policy.summary}" if policy.summary else "")
    return f"{policy.mode}-{policy.sees}-K{policy.period}-w{policy.warmup}{more}"


@pytest.mark.parametrize("policy", POLICIES, ids=policy_name)
@pytest.mark.parametrize("placed", PLACEMENTS, ids=str)
def test_every_worker_sees_what_the_design_says(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    slow_canvas: Any,
    placed: tuple[int, ...],
    policy: SyncPolicy,
) -> None:
    m = len(placed)
    model, layout = tiny_model(SHAPE_NAMES[(m + policy.period) % 2], m), nap_layout(BUDGETS[m], prompt=3)
    # An odd m gets one token a step (many steps with nothing to do), an even one several.
    steps, temperature = (None if m % 2 else 10), float(m % 2)
    config = DecodeConfig(paths=m, steps=steps, temperature=temperature, seed=m, sync=policy)
    slow = SlowGroup(model, slow_canvas(layout, prompt_of(m, 3), config), config, placed)
    slow.run()
    got = decode_inline(model, layout, config, [prompt_of(m, 3)], placed)
    assert got.commits() == sorted(slow.true.commits)
    assert got.ids == [slow.true.ids]
    assert {step: ids.tolist() for step, ids in got.records[0].provisional.items()} == slow.provisional
    verify(got.records[0])


def test_the_policies_differ(tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any) -> None:
    """Otherwise the comparison above would prove little."""
    run = (tiny_model("llada-tiny", 1), nap_layout((12, 12, 12), summary=12))
    policies = [
        SyncPolicy("exact"),
        SyncPolicy("exact", topology="hub"),
        SyncPolicy("exact", topology="isolated"),
        SyncPolicy("none"),
        SyncPolicy("tokens", every=4),
        SyncPolicy("kv"),
        SyncPolicy("kv", every=4),
        SyncPolicy("shared", every=4),
        SyncPolicy("kv", overlap=True),
        SyncPolicy("kv", every=4, overlap=True),
        SyncPolicy("tokens", overlap=True),
        SyncPolicy("tokens", every=4, overlap=True),
        SyncPolicy("none", summary="consensus"),
        SyncPolicy("none", topology="isolated", summary="consensus"),
    ]
    decodes = [decode_inline(*run, DecodeConfig(paths=3, sync=p), [prompt_of(1)], 3).commits() for p in policies]
    assert len({tuple(commits) for commits in decodes}) == len(policies)


# -- meters --------------------------------------------------------------------------------------------------

# Prompt 2 rows, two paths of header + 4 slots, summary header 2 + 2 slots: 16 rows, 10 slots. T = 10: 8 steps
# for the paths, 2 for the summary. Each worker owns 5 rows; 6 rows are shared.
# llada-tiny in float64: a row's K and V of one layer are 2 · 4 heads · 16 · 8 B = 1024 B, of both 2048 B.
ROW, TOKEN, CANDIDATE = 2048, 8, 16
PARTIAL_ROW = 4 * (16 + 1) * 8 * 2  # a shared row's output and log-sum-exp, 4 heads, float64, both layers
TABLE = {
    # policy: (syncs, payload of worker 0, of worker 1, rows of worker 0, of worker 1)
    # 9 steps of 5 own + 3 shared rows; worker 1's share holds both summary slots, which it scores twice.
    SyncPolicy("exact"): (9, 9 * 8 * ROW, 9 * 8 * ROW + 2 * 2 * CANDIDATE, 16 + 9 * 8, 16 + 9 * 8),
    # Syncs before steps 3 and 6, gather before 8. Worker 0 refreshes at 8 and computes 4 summary rows at 9.
    SyncPolicy("tokens", every=3): (3, 4 * TOKEN, 4 * TOKEN, 16 * 4 + 5 * 5 + 4, 16 * 3 + 5 * 5),
    SyncPolicy("kv", every=3): (
        3,
        2 * 5 * ROW + 4 * TOKEN,
        2 * 5 * ROW + 4 * TOKEN,
        16 + 11 * 2 + 5 * 5 + 16 + 4,
        16 + 11 * 2 + 5 * 5,
    ),
    # Syncs in steps 3, 6 and 8 (6 shared rows) and 9 (4 summary rows, on both); worker 0 scores the summary.
    SyncPolicy("shared", every=3): (
        4,
        (3 * 6 + 4) * PARTIAL_ROW + 2 * 2 * CANDIDATE,
        (3 * 6 + 4) * PARTIAL_ROW,
        16 + 11 * 3 + 5 * 5 + 4,
        16 + 11 * 3 + 5 * 5 + 4,
    ),
    SyncPolicy("none"): (1, 4 * TOKEN, 4 * TOKEN, 16 + 5 * 7 + 16 + 4, 16 + 5 * 7),
    # Exact in steps 1 and 2, one sync before 5, gather before 8: own rows in 3, 4, 6, 7.
    SyncPolicy("tokens", every=3, warmup=2): (
        4,
        2 * 8 * ROW + 4 * TOKEN,
        2 * 8 * ROW + 4 * TOKEN,
        16 + 2 * 8 + 16 + 4 * 5 + 16 + 4,
        16 + 2 * 8 + 16 + 4 * 5,
    ),
}
# Path 1 commits at even steps, path 0 at odd ones, so no step leaves a worker with nothing to commit and
# nothing dirty: none is skipped.


@pytest.mark.parametrize("policy", TABLE, ids=policy_name)
def test_meters_by_hand(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, policy: SyncPolicy
) -> None:
    layout = nap_layout((4, 4), summary=2, prompt=2, ends=(94,))
    config = DecodeConfig(paths=2, sync=policy)
    got = decode_inline(tiny_model("llada-tiny"), layout, config, [prompt_of(0, 2)], 2)
    meters = [outcome.meters for outcome in got.outcomes]
    syncs, payload_0, payload_1, rows_0, rows_1 = TABLE[policy]
    assert [m.syncs for m in meters] == [syncs, syncs]
    assert len(got.records[0].syncs) == syncs
    assert [m.payload_bytes for m in meters] == [payload_0, payload_1]
    assert [m.rows_computed for m in meters] == [rows_0, rows_1]
    assert [m.forwards for m in meters] == [len(outcome.forwards) for outcome in got.outcomes]


def test_wire_bytes_count_padding_and_peers(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    layout = nap_layout((6, 2, 2), summary=2, prompt=2, ends=(94,))
    model, prompt = tiny_model("llada-tiny"), prompt_of(0, 2)
    for policy, padded_sync in ((SyncPolicy("tokens", every=100), 0), (SyncPolicy("kv", every=5), 7 * ROW)):
        config = DecodeConfig(paths=3, sync=policy)
        got = decode_inline(model, layout, config, [prompt], 3)
        gathered = 2 * 4 * 6  # two 32-bit words for each of the widest path's slots
        kv_syncs = sum(event.kind == "kv" for event in got.records[0].syncs)
        expected = 2 * (gathered + kv_syncs * padded_sync)  # to each of two peers
        assert [outcome.meters.wire_bytes for outcome in got.outcomes] == [expected] * 3
        assert [outcome.meters.payload_bytes for outcome in got.outcomes] == [
            slots * TOKEN + kv_syncs * rows * ROW * (padded_sync > 0) for slots, rows in ((6, 7), (2, 3), (2, 3))
        ]


@pytest.mark.parametrize("mode", ["kv", "tokens"])
def test_an_overlapped_exchange_sends_the_same_bytes_and_counts_its_time(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, mode: Any
) -> None:
    run = (tiny_model("llada-tiny"), nap_layout((8, 8), ends=(94,)))
    meters = [
        decode_inline(*run, DecodeConfig(paths=2, sync=policy), [prompt_of(0)], 2).outcomes[1].meters
        for policy in (SyncPolicy(mode, every=4), SyncPolicy(mode, every=4, overlap=True))
    ]
    for name in ("syncs", "payload_bytes", "wire_bytes"):
        assert getattr(meters[0], name) == getattr(meters[1], name), name
    assert meters[0].overlapped_seconds == 0
    assert meters[1].overlapped_seconds > 0


def test_one_worker_sends_nothing(tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any) -> None:
    for policy in (SyncPolicy("exact"), SyncPolicy("none"), SyncPolicy("tokens", every=2)):
        got = decode_inline(
            tiny_model("llada-tiny"), nap_layout((4, 4)), DecodeConfig(paths=2, sync=policy), [prompt_of(0)]
        )
        assert got.outcomes[0].meters.wire_bytes == 0
        assert got.records[0].syncs == ()


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("mode", "overlap", "youngest"),
    [("tokens", False, 0), ("kv", False, 1), ("shared", False, 0), ("tokens", True, 1), ("kv", True, 2)],
)
def test_staleness_ranges(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    mode: Any,
    overlap: bool,
    youngest: int,
    every: int,
) -> None:
    policy = SyncPolicy(mode, every=every, overlap=overlap)
    config = DecodeConfig(paths=2, sync=policy)
    run = (tiny_model("llada-tiny"), nap_layout((12, 12), ends=(94,)))
    record = decode_inline(*run, config, [prompt_of(0)], 2).records[0]
    ages = [
        step - record.sources(worker, step)[1 - worker]
        for worker, steps in enumerate(record.forwards)
        for step in steps
        if every + overlap <= step < record.path_steps  # before the first sync all ages are the step itself
    ]
    assert set(ages) == set(range(youngest, youngest + every))
    measured = staleness(record, policy)
    assert measured is not None
    assert measured.max == max(youngest + every - 1, every - 1 + overlap)


def test_exact_is_never_stale(tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any) -> None:
    policy = SyncPolicy("exact")
    run = (tiny_model("llada-tiny"), nap_layout((6, 6)))
    record = decode_inline(*run, DecodeConfig(paths=2, sync=policy), [prompt_of(0)], 2).records[0]
    measured = staleness(record, policy)
    assert measured is not None
    assert measured.max == 0


@pytest.mark.parametrize("policy", [SyncPolicy("tokens", every=3), SyncPolicy("shared", every=2), SyncPolicy("none")])
def test_own_rows_are_skipped_only_when_nothing_is_due_or_dirty(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, policy: SyncPolicy
) -> None:
    """A path of 2 slots among 16 steps commits twice: its worker runs then, a step later, and at syncs."""
    layout = nap_layout((2, 14), summary=2, ends=(94,))
    config = DecodeConfig(paths=2, sync=policy)  # T = 18: 16 steps for the paths; path 0 commits at 7 and 15
    got = decode_inline(tiny_model("llada-tiny"), layout, config, [prompt_of(0)], 2)
    in_syncs = {event.step for event in got.records[0].syncs if event.step < 16}
    assert [s for s in got.outcomes[0].forwards if s < 16] == sorted({0, 7, 8, 15} | in_syncs)


# -- what must not change the ids ----------------------------------------------------------------------------

INVARIANT = [
    SyncPolicy("exact"),
    SyncPolicy("tokens", every=3),
    SyncPolicy("shared", every=2, warmup=1),
    SyncPolicy("kv", every=2),
    SyncPolicy("none"),
    SyncPolicy("kv", every=2, overlap=True),
    SyncPolicy("tokens", overlap=True),
    SyncPolicy("none", summary="consensus"),
]


@pytest.mark.parametrize("policy", INVARIANT, ids=policy_name)
@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_batch_size_does_not_matter(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, policy: SyncPolicy
) -> None:
    run = (tiny_model(shape, 4), nap_layout(BUDGETS[3]))
    config = DecodeConfig(paths=3, temperature=1.0, seed=8, sync=policy, control_every=3)
    prompts = [prompt_of(seed) for seed in range(3)]
    together = decode_inline(*run, config, prompts, 3)
    alone = [decode_inline(*run, config, [prompt], 3) for prompt in prompts]
    assert len({tuple(ids) for ids in together.ids}) == 3
    for canvas, one in enumerate(alone):
        assert together.commits(canvas) == one.commits()
        assert together.ids[canvas] == one.ids[0]


@pytest.mark.parametrize("policy", INVARIANT, ids=policy_name)
def test_control_points_do_not_matter(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, policy: SyncPolicy
) -> None:
    """Also where paths close early, and are left out from one control point or another."""
    run = (tiny_model("llada-tiny", 5), nap_layout((14, 10, 12), ends=tuple(range(30))))
    config = DecodeConfig(paths=3, temperature=1.0, seed=2, sync=policy)
    decodes = [
        decode_inline(*run, config.with_values(control_every=every), [prompt_of(3)], 3) for every in (1, 2, 5, 1000)
    ]
    fills = [delta for delta in decodes[0].records[0].deltas if delta.kind is Kind.FILL]
    assert fills, "no path closed early: the test shows nothing"
    for other in decodes[1:]:
        assert other.commits() == decodes[0].commits()
        assert other.ids == decodes[0].ids


def test_reports_arrive_every_r_steps_and_hold_each_token_once(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    layout = nap_layout((8, 8), ends=(94,))
    config = DecodeConfig(paths=2, sync=SyncPolicy("kv", every=2), control_every=3)
    got = decode_inline(tiny_model("llada-tiny"), layout, config, [prompt_of(3)], 2)
    lead = [report.step for report in got.reports if report.worker == 0]
    assert lead == [3, 6, 9, 12, 15, 18, 20]
    told = [int(p) for report in got.reports for delta in report.deltas[0] for p in delta.positions]
    assert sorted(told) == list(layout.slots)
    for report in got.reports:
        assert all(delta.step < report.step for delta in report.deltas[0])


@pytest.mark.parametrize("mode", ["kv", "tokens"])
@pytest.mark.parametrize("overlap", [False, True])
def test_with_consensus_no_sync_is_left_out_when_the_paths_are_done(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, mode: Any, overlap: bool
) -> None:
    """The summary is read as the last sync left it, so a canvas whose neighbours take longer must not learn more."""
    policy = SyncPolicy(mode, every=2, overlap=overlap, summary="consensus")
    config = DecodeConfig(paths=3, rule="threshold", scope="path", threshold=0.5, block_length=4, sync=policy)
    run = (tiny_model("llada-tiny", scale=30.0), nap_layout((20, 20, 20), ends=(94,)))
    prompts = [prompt_of(seed) for seed in range(3)]
    together = decode_inline(*run, config, prompts, 3)
    for canvas, prompt in enumerate(prompts):
        alone = decode_inline(*run, config, [prompt], 3)
        verify(alone.records[0])
        assert together.commits(canvas) == alone.commits()
        syncs = [event.step for event in alone.records[0].syncs if event.kind == mode]
        assert syncs == list(range(2 + overlap, 20, 2))
        last = max(step for step, position, _ in alone.commits() if position < run[1].paths[-1].slots.stop)
        assert last < 18
        assert len([step for step in alone.outcomes[0].forwards if step < 20]) < 20  # but its own rows are left alone


@pytest.mark.parametrize("policy", INVARIANT, ids=policy_name)
def test_cancel_stops_all_workers_at_one_step(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, policy: SyncPolicy
) -> None:
    """Only one worker hears of it, once; what was told at a control point is read by all at the next."""
    config = DecodeConfig(paths=2, sync=policy, control_every=4)
    task = make_task(nap_layout((20, 20), ends=(94,)), config, [prompt_of(0)], 2)
    executor = InlineExecutor(tiny_model("llada-tiny"), workers=2, dtype=torch.float64)
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) == 1

    outcomes = executor.run(task, on_report=lambda report: None, cancelled=cancelled)
    assert [outcome.cancelled for outcome in outcomes] == [True, True]
    assert all(max(outcome.forwards) == 7 for outcome in outcomes)


@pytest.mark.parametrize("mode", ["exact", "tokens"])
def test_scope_canvas_counts_as_many_syncs_as_it_records(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, mode: Any
) -> None:
    """The first step needs no exchange: every worker has computed the whole canvas."""
    config = DecodeConfig(paths=2, rule="confidence", steps=6, sync=SyncPolicy(mode))
    got = decode_inline(tiny_model("llada-tiny"), nap_layout((4, 4)), config, [prompt_of(0)], 2)
    assert [outcome.meters.syncs for outcome in got.outcomes] == [len(got.records[0].syncs)] * 2
