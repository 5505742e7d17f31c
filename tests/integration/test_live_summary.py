"""Summary `live` with `settle`: the paths are stopped once the summary has stopped changing, and what follows.

That the provisional summaries themselves are right is part of `test_sync_semantics.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.decoding.state import Kind
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.verify import verify

BUDGETS = (14, 11, 12)
POLICIES = [
    SyncPolicy("exact", summary="live"),
    SyncPolicy("tokens", every=2, summary="live"),
    SyncPolicy("kv", every=2, summary="live"),
    SyncPolicy("kv", every=2, overlap=True, summary="live"),
    SyncPolicy("shared", every=1, summary="live"),
]


def patient(policy: SyncPolicy, syncs: int) -> SyncPolicy:
    return SyncPolicy(policy.mode, every=policy.every, overlap=policy.overlap, summary="live", settle=syncs)


def settled_at(record: DecodeRecord, syncs: int) -> int | None:
    """The sync at which the summary was the same for the `syncs`-th time in a row."""
    steps, times = sorted(record.provisional), 0
    for before, step in zip([None, *steps], steps, strict=False):
        same = before is not None and (record.provisional[before] == record.provisional[step]).all()
        times = times + 1 if same else 1
        if times >= syncs:
            return step
    return None


def commits(record: DecodeRecord, slots: Any) -> list[tuple[int, int, int]]:
    return sorted(
        (delta.step, int(position), int(token))
        for delta in record.commits
        for position, token in zip(delta.positions, delta.ids, strict=True)
        if position in slots
    )


def fills(record: DecodeRecord) -> list[tuple[int, int]]:
    return sorted((d.step, int(p)) for d in record.deltas if d.kind is Kind.FILL for p in d.positions)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.mode}{'-overlap' * p.overlap}")
@pytest.mark.parametrize("placed", [1, (1, 0, 2)], ids=str)
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_the_paths_stop_two_steps_after_the_summary_has_settled(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, placed: Any, policy: SyncPolicy
) -> None:
    """The lead learns of it from a report, all from a control word (R = 1), then they stop at the same step."""
    run = (tiny_model(shape, 2), nap_layout(BUDGETS, summary=2, ends=(94,)))
    layout, stopped = run[1], 0
    paths = {slot for block in layout.paths for slot in block.slots}
    for seed in range(4):
        config = DecodeConfig(paths=3, sync=policy)
        whole = decode_inline(*run, config, [prompt_of(seed)], placed).records[0]
        got = decode_inline(*run, config.with_values(sync=patient(policy, 2)), [prompt_of(seed)], placed).records[0]
        verify(got)
        at = settled_at(whole, 2)
        last = len(paths) if at is None else at + 2
        assert commits(got, paths) == [commit for commit in commits(whole, paths) if commit[0] <= last]
        of_itself = [fill for fill in fills(whole) if fill[0] <= last]  # paths that have closed
        open_slots = paths - {slot for _, slot, _ in commits(got, paths)} - {slot for _, slot in of_itself}
        assert fills(got) == sorted(of_itself + [(last, slot) for slot in open_slots])
        assert got.canvas()[sorted(open_slots)].tolist() == [94] * len(open_slots)
        stopped += bool(open_slots)
    assert stopped, "no decode stopped early: the test shows nothing"


def test_the_summary_then_reads_the_paths_as_they_are(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    """Against a plain loop over the whole canvas, one summary slot a step."""
    model, layout = tiny_model("llada-tiny", 2), nap_layout(BUDGETS, summary=3, ends=(94,))
    config = DecodeConfig(paths=3, sync=patient(POLICIES[0], 2))
    record = decode_inline(model, layout, config, [prompt_of(0)], 3).records[0]
    assert any(delta.kind is Kind.FILL for delta in record.deltas)
    ids, slots = torch.from_numpy(record.canvas())[None].clone(), list(layout.summary.slots)
    ids[0, slots] = layout.mask_id
    while open_ := [slot for slot in slots if ids[0, slot] == layout.mask_id]:
        logits = model.forward(ids)[0]
        logits[:, layout.mask_id] = -torch.inf
        best = max(open_, key=lambda slot: (float(logits[slot].softmax(-1).max()), -slot))
        ids[0, best] = logits[best].argmax()
    assert ids[0].tolist() == record.canvas().tolist()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.mode}{'-overlap' * p.overlap}")
def test_a_neighbour_in_the_batch_does_not_matter(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, policy: SyncPolicy
) -> None:
    run = (tiny_model("llada-tiny", 2), nap_layout(BUDGETS, summary=8, ends=(94,)))
    config = DecodeConfig(paths=3, temperature=0.3, seed=2, sync=patient(policy, 3))
    prompts = [prompt_of(seed) for seed in range(6)]
    together = decode_inline(*run, config, prompts, 3)
    alone = [decode_inline(*run, config, [prompt], 3) for prompt in prompts]
    assert together.ids == [one.ids[0] for one in alone]
    assert [together.commits(canvas) for canvas in range(6)] == [one.commits() for one in alone]
    stops = {delta.step for record in together.records for delta in record.deltas if delta.kind is Kind.FILL}
    assert len(stops) > 1, "all canvases stop at the same step: the test shows nothing"
