"""Caches of paths: what they keep, against a slow loop; and that ids depend on nothing else.

The loop decodes one canvas with a store of its own and computes just the rows that the descriptions name.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.verify import verify
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.quantised import store_of

BUDGETS = (12, 9, 10)
ENDS = tuple(range(48))  # half of the vocabulary: a path closes when its first slots are committed
POLICIES = [
    SyncPolicy("kv", every=5),
    SyncPolicy("kv", every=4, overlap=True, summary="live"),
    SyncPolicy("tokens", every=6, warmup=2),
    SyncPolicy("shared", every=4),
    SyncPolicy("none"),
    SyncPolicy("none", summary="consensus"),
    SyncPolicy("tokens", every=3, summary="live", settle=3),
]


def name(policy: SyncPolicy) -> str:
    return f"{policy.mode}-{policy.period}{'-overlap' * policy.overlap}-{policy.summary}"


class Reference:
    """One canvas on one device under `kv` or `none`, its rows kept as a cache says."""

    def __init__(self, model: Any, layout: CanvasLayout, canvas: Any, config: DecodeConfig) -> None:
        self.model, self.layout, self.canvas, self.config = model, layout, canvas, config
        self.shift = int(model.config.shifted_logits)
        self.store = store_of(model.config, batch=1, positions=layout.size, dtype=torch.float64, device="cpu")
        self.decided = dict.fromkeys(layout.slots, 10**6)  # the step of its commit or fill

    def rows(self, step: int) -> list[int]:
        """Those of a step, by the description of `DecodeConfig.cache`."""
        sync, layout, everything = self.config.sync, self.layout, list(range(self.layout.size))
        if step in (0, self.canvas.path_steps) or (step < self.canvas.path_steps and self._sync_at(sync, step)):
            return everything
        if step > self.canvas.path_steps:
            return list(layout.summary.rows) if layout.summary else []
        due: list[int] = []
        for path, block in enumerate(layout.paths):
            open_ = {slot for slot in block.slots if self.decided[slot] >= step - 1}
            before = {slot - 1 for slot in block.slots if self.shift and slot in self.canvas.open}
            if self.config.cache == "closed":
                due += layout.own_rows(path) if open_ else ()
            else:
                due += sorted(open_ | before)
        return due

    @staticmethod
    def _sync_at(sync: SyncPolicy, step: int) -> bool:
        return sync.mode == "kv" and step % sync.period == 0

    def decode(self) -> list[tuple[int, int, int]]:
        canvas = self.canvas
        for step in range(canvas.steps):
            rows, before = self.rows(step), set(canvas.open)
            logits = self.forward(rows) if rows else {}
            if step < canvas.path_steps:
                for path, block in enumerate(self.layout.paths):
                    self.commit(path, canvas.quota(path, step), list(block.slots), logits, step)
            elif self.layout.summary is not None:
                slots = list(self.layout.summary.slots)
                self.commit(self.layout.n_paths, canvas.summary_quota(step), slots, logits, step)
            self.decided |= dict.fromkeys(before - canvas.open, step)
        return sorted(canvas.commits)

    def forward(self, rows: list[int]) -> dict[int, Any]:
        ids, at = torch.tensor([[self.canvas.ids[row] for row in rows]]), torch.tensor(rows)
        hidden = self.model.forward_rows(ids, at, StoreAttention(self.store, at))
        return dict(zip(rows, self.model.logits(hidden)[0], strict=True))

    def commit(self, block: int, quota: int, slots: list[int], logits: dict[int, Any], step: int) -> None:
        open_ = [slot for slot in slots if slot in self.canvas.open]
        if quota:
            found = {slot: self.canvas.candidate(logits[slot - self.shift], slot, step) for slot in open_}
            self.canvas.commit(block, quota, found, step)


@pytest.mark.parametrize("cache", ["closed", "dkv"])
@pytest.mark.parametrize("policy", [SyncPolicy("kv", every=6), SyncPolicy("none")], ids=name)
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_the_rows_of_a_slow_loop(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    slow_canvas: Any,
    shape: str,
    policy: SyncPolicy,
    cache: Any,
) -> None:
    model, layout = tiny_model(shape, 1, scale=30.0), nap_layout(BUDGETS, ends=ENDS[:30])
    changed, wide, narrow = 0, [0, 0], [0, 0]
    for seed in range(4):
        config = DecodeConfig(paths=3, temperature=0.8, seed=seed, cache=cache, sync=policy, control_every=1)
        got = decode_inline(model, layout, config, [prompt_of(seed)])
        reference = Reference(model, layout, slow_canvas(layout, prompt_of(seed), config), config)
        assert got.commits() == reference.decode()
        verify(got.records[0])
        plain = decode_inline(model, layout, config.with_values(cache=None), [prompt_of(seed)])
        changed += plain.commits() != got.commits()
        for total, one in ((wide, plain), (narrow, got)):
            total[0] += one.outcomes[0].meters.rows_computed
            total[1] += one.outcomes[0].meters.forwards
    assert changed, "the cache never mattered: the test shows nothing"
    assert narrow[0] / narrow[1] < wide[0] / wide[1], "a forward has no fewer rows"


@settings(max_examples=30)
@given(
    st.sampled_from(POLICIES),
    st.sampled_from(["closed", "dkv"]),
    st.sampled_from([{}, {"rule": "left-to-right", "scope": "path"}, {"steps": 16}, {"cfg": 1.0}]),
    st.sampled_from([1, (1, 0, 1), 3]),
    st.integers(1, 6),
    st.integers(0, 10**6),
)
def test_ids_depend_on_neither_batch_nor_reports(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    policy: SyncPolicy,
    cache: Any,
    rule: dict[str, Any],
    placed: Any,
    control_every: int,
    seed: int,
) -> None:
    """Each canvas in a padded batch, narrowed and not, with reports at any distance, commits what it does alone."""
    run = (tiny_model("dream-tiny" if seed % 2 else "llada-tiny", seed % 3, scale=20.0), nap_layout(BUDGETS, ends=ENDS))
    prompts = [prompt_of(seed + at, tokens=5 - (seed + at) % 3) for at in range(3)]
    config = DecodeConfig(paths=3, sync=policy, cache=cache, temperature=0.7, seed=seed % 11, **rule)
    often = config if policy.settle else config.with_values(control_every=control_every)
    found = [decode_inline(*run, often, prompts, placed, narrow=narrow) for narrow in (False, True)]
    for canvas, prompt in enumerate(prompts):
        alone = decode_inline(*run, config, [prompt], placed).commits()
        assert [one.commits(canvas) for one in found] == [alone, alone]


@pytest.mark.parametrize(
    ("policy", "placed"),
    [
        (SyncPolicy("tokens", every=5, topology="hub"), 1),
        (SyncPolicy("tokens", every=4, topology="isolated"), (0, 1, 0)),
        (SyncPolicy("shared", every=3), 1),
        (SyncPolicy("none", topology="isolated"), 1),
        (SyncPolicy("none", topology="hub", summary="consensus"), (1, 0, 1)),
        (SyncPolicy("kv", every=4), 3),
        (SyncPolicy("kv", every=3, overlap=True), 3),
        (SyncPolicy("tokens", every=4), 3),
        (SyncPolicy("none"), 3),
    ],
    ids=str,
)
def test_where_no_other_path_reads_a_closed_one_keeping_it_changes_nothing(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, policy: SyncPolicy, placed: Any
) -> None:
    """Under `hub` and `isolated`, and with one path a worker: its rows are read at syncs, which compute them."""
    run = (tiny_model("llada-tiny", 1), nap_layout(BUDGETS, ends=ENDS[:16]))
    config = DecodeConfig(paths=3, temperature=1.0, sync=policy, control_every=1, rule="left-to-right", scope="path")
    prompts = [prompt_of(seed) for seed in range(4)]
    plain, kept = (
        decode_inline(*run, config.with_values(cache=cache), prompts, placed, narrow=False)
        for cache in (None, "closed")
    )
    assert kept.ids == plain.ids
    assert [kept.commits(c) for c in range(4)] == [plain.commits(c) for c in range(4)]
    rows = [sum(outcome.meters.rows_computed for outcome in one.outcomes) for one in (plain, kept)]
    assert rows[1] == rows[0] if placed == 3 else rows[1] < rows[0]  # a worker of one closed path computes nothing


@pytest.mark.parametrize("cache", ["closed", "dkv"])
def test_compiled_and_in_fp8(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    without_compiler: None,
    cache: Any,
) -> None:
    """The steps that compile, without a compiler, find the same rows; FP8 keeps bytes as they are."""
    config = DecodeConfig(paths=3, temperature=0.8, cache=cache, sync=SyncPolicy("kv", every=6), control_every=2)
    task = make_task(nap_layout(BUDGETS, ends=ENDS), config, [prompt_of(seed) for seed in range(3)], (0, 1, 0))
    for dtype in (torch.float64, torch.float8_e4m3fn):
        model, ways = tiny_model("dream-tiny", 1), [CompileOptions(), CompileOptions(mode="default")]
        found = [
            collect(InlineExecutor(model, workers=2, dtype=dtype, compiling=compiling), task) for compiling in ways
        ]
        assert found[0].ids == found[1].ids
        assert [one.meters.rows_computed for one in found[0].outcomes] == [
            one.meters.rows_computed for one in found[1].outcomes
        ]
