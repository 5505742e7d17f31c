"""Views on one device decode what as many workers would, and the published loops give the published ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nap_runtime.bench.peers import branches, llada
from nap_runtime.bench.views import BatchedViews
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.quantised import FP8

POLICIES = [
    SyncPolicy("kv"),
    SyncPolicy("kv", every=3),
    SyncPolicy("tokens", every=1),
    SyncPolicy("tokens", every=4),
    SyncPolicy("none"),
]
CPU = torch.device("cpu")


def resolved(policy: SyncPolicy, **values: Any) -> DecodeConfig:
    from dataclasses import replace

    return DecodeConfig(paths=3, sync=replace(policy, summary="gather", topology="full"), **values)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.mode}-{p.every}")
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
@pytest.mark.parametrize("steps", [1, 5, 11, None])
def test_views_commit_what_workers_commit(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, decode_inline: Any, policy: Any, shape: str,
    steps: int | None,
) -> None:  # fmt: skip
    for seed in range(2):
        model, config = tiny_model(shape, seed, scale=25.0), resolved(policy, steps=steps, eos_weight=0.5 + seed / 2)
        layout, prompt = nap_layout([7, 7, 7], ends=(94, 1, 2)), prompt_of(seed)
        want = decode_inline(model, layout, config, [prompt], 3).records[0]
        plan = make_task(layout, config, [prompt], 3).plan
        views = BatchedViews(model, plan, prompt, dtype=torch.float64, device=CPU)
        views.run()
        assert views.ids.tolist() == want.final_ids.tolist()
        step, committed = views.order
        got = sorted((int(step[at]), at, int(views.ids[at])) for at in committed.nonzero().flatten().tolist())
        decided = sorted(
            (d.step, int(position), int(token))
            for d in want.commits
            for position, token in zip(d.positions, d.ids, strict=True)
        )
        assert got == decided


def test_views_take_packed_keys_and_values(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, decode_inline: Any
) -> None:
    model, config = tiny_model("llada-tiny", 1), resolved(SyncPolicy("kv", every=2), steps=9)
    layout, prompt = nap_layout([5, 5, 5]), prompt_of(4)
    want = decode_inline(model, layout, config, [prompt], 3, dtype=FP8).records[0]
    views = BatchedViews(model, make_task(layout, config, [prompt], 3).plan, prompt, dtype=FP8, device=CPU)
    views.run()
    assert views.ids.tolist() == want.final_ids.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sync": SyncPolicy("exact", summary="gather")}, "tokens, kv or none"),
        ({"sync": SyncPolicy("kv", overlap=True, summary="gather")}, "tokens, kv or none"),
        ({"temperature": 1.0}, "temperature 0"),
        ({"paths": 3, "sync": SyncPolicy("none", topology="isolated", summary="gather")}, "topology full"),
    ],
)
def test_views_refuse_what_they_cannot_do(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, changes: Any, message: str
) -> None:
    config = resolved(SyncPolicy("kv")).with_values(**changes)
    plan = make_task(nap_layout([4, 4, 4]), config, [prompt_of(1)], 3).plan
    with pytest.raises(UsageError, match=message):
        BatchedViews(tiny_model("llada-tiny"), plan, prompt_of(1), dtype=torch.float64, device=CPU)


def test_views_refuse_paths_of_different_sizes(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any
) -> None:
    plan = make_task(nap_layout([4, 5, 4]), resolved(SyncPolicy("kv")), [prompt_of(1)], 3).plan
    with pytest.raises(UsageError, match="one size"):
        BatchedViews(tiny_model("llada-tiny"), plan, prompt_of(1), dtype=torch.float64, device=CPU)


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_lladas_loop_gives_what_our_plain_layout_gives(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, steps: int
) -> None:
    model, prompt = tiny_model(shape, 2), prompt_of(3)
    found = llada(model, prompt, slots=20, steps=steps, device=CPU)
    config = DecodeConfig(layout="plain", gen_length=20, steps=steps, rule="confidence")
    want = decode_inline(model, plain_layout(20), config, [prompt]).records[0]
    assert found.ids.tolist() == want.final_ids.tolist()
    assert found.rows == 25 * steps


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_branches_fill_the_canvas_and_one_branch_is_no_branch(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any, shape: str
) -> None:
    model, prompt = tiny_model(shape, 2), prompt_of(3)
    found = branches(model, prompt, slots=20, steps=10, branches=3, device=CPU)
    assert found.committed == 20
    assert 95 not in found.ids.tolist()
    assert found.steps < 10  # one token a step more than the anchor's two
    alone = branches(model, prompt, slots=20, steps=20, branches=0, device=CPU)
    config = DecodeConfig(layout="plain", gen_length=20, steps=20, rule="confidence")
    want = decode_inline(model, plain_layout(20), config, [prompt]).records[0]
    assert alone.ids.tolist() == want.final_ids.tolist()
    assert alone.steps == 20
