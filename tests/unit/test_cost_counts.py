"""The cost model's rows and bytes against what simulated workers meter, exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import UsageError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.quantised import FP8
from nap_runtime.storage import Storage, Stored
from nap_runtime.study.cost.counts import count
from nap_runtime.study.cost.predict import Work
from nap_runtime.study.cost.scenario import Scenario

NEVER_CLOSED = (95,)  # the mask id is never predicted
POLICIES = [
    SyncPolicy("exact"),
    SyncPolicy("exact", topology="isolated"),
    SyncPolicy("exact", summary="live"),
    SyncPolicy("tokens", every=1),
    SyncPolicy("tokens", every=3, warmup=2),
    SyncPolicy("tokens", every=2, overlap=True),
    SyncPolicy("tokens", every=3, summary="live"),
    SyncPolicy("tokens", every=3, summary="consensus", top=5),
    SyncPolicy("shared", every=1),
    SyncPolicy("shared", every=4, warmup=1),
    SyncPolicy("kv", every=1),
    SyncPolicy("kv", every=3),
    SyncPolicy("kv", every=2, overlap=True),
    SyncPolicy("none"),
    SyncPolicy("none", summary="consensus"),
]
PLACES = [(1, (9,), (0,)), (2, (7, 5), (0, 1)), (3, (6, 9, 4), (0, 1, 0)), (4, (5, 7, 3, 6), (0, 1, 2, 3))]


def name(policy: SyncPolicy) -> str:
    """Short enough for a test's id."""
    return f"{policy.mode}-{policy.every}-{policy.warmup}-{policy.overlap}-{policy.topology}-{policy.summary}"


@pytest.fixture
def check(tiny_model: Any, nap_layout: Any, prompt_of: Any) -> Any:
    """`(shape, budgets, placed, config, batch)` → run simulated workers and compare every meter with the counts."""

    def run(
        shape: str,
        budgets: tuple[int, ...],
        placed: tuple[int, ...],
        config: DecodeConfig,
        batch: int = 2,
        dtype: Any = torch.float64,
        kv: Stored = "native",
    ) -> None:
        from nap_runtime.worker import Task

        model = tiny_model(shape, dtype=dtype)
        plan = Plan.of(nap_layout(budgets, ends=NEVER_CLOSED), config, Assignment(placed))
        prompts = tuple(prompt_of(seed) for seed in range(batch))
        held = FP8 if kv == "fp8" else dtype
        executor = InlineExecutor(model, workers=plan.assignment.workers, dtype=held)
        outcomes = executor.run(Task(plan=plan, prompts=prompts), on_report=None, cancelled=lambda: False)
        meters = [outcome.meters for outcome in outcomes]
        item, storage = torch.finfo(dtype).bits // 8, Storage(kv=kv)
        counts = count(plan, model.config, item_bytes=item, batch=batch, storage=storage)
        assert counts.rows == tuple(m.rows_computed for m in meters)
        assert counts.extra_rows == tuple(m.rows_recomputed for m in meters)
        assert tuple(len(counts.forwards_of(w)) for w in range(counts.workers)) == tuple(m.forwards for m in meters)
        assert counts.syncs == tuple(m.syncs for m in meters)
        assert [counts.wire_bytes] * counts.workers == [m.wire_bytes for m in meters]
        assert counts.payload_bytes == tuple(m.payload_bytes for m in meters)
        steps = tuple(tuple(f.step for f in counts.forwards_of(w)) for w in range(counts.workers))
        assert steps == tuple(outcome.forwards for outcome in outcomes)

    return run


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"m{place[0]}")
@pytest.mark.parametrize("policy", POLICIES, ids=name)
def test_every_policy(check: Any, policy: SyncPolicy, place: tuple[int, Any, Any]) -> None:
    paths, budgets, placed = place
    shape = "dream-tiny" if paths == 3 else "llada-tiny"  # grouped heads, shifted logits
    check(shape, budgets, placed, DecodeConfig(paths=paths, steps=11, sync=policy))


@pytest.mark.parametrize("steps", [1, 2, 7, None])
@pytest.mark.parametrize("policy", [SyncPolicy("exact"), SyncPolicy("kv", every=2), SyncPolicy("none")], ids=name)
def test_every_number_of_steps(check: Any, policy: SyncPolicy, steps: int | None) -> None:
    check("llada-tiny", (6, 9, 4), (0, 1, 2), DecodeConfig(paths=3, steps=steps, sync=policy), batch=1)


@pytest.mark.parametrize("sync", [SyncPolicy("exact"), SyncPolicy("tokens", every=1)], ids=name)
def test_scope_canvas(check: Any, sync: SyncPolicy) -> None:
    check("dream-tiny", (6, 5), (0, 1), DecodeConfig(paths=2, steps=9, rule="confidence", sync=sync))


@pytest.mark.parametrize(
    "policy", [SyncPolicy("exact"), SyncPolicy("kv", every=2), SyncPolicy("shared", every=2)], ids=name
)
def test_guidance_and_precision(check: Any, policy: SyncPolicy) -> None:
    config = DecodeConfig(paths=2, steps=8, cfg=0.5, sync=policy)
    check("dream-tiny", (6, 5), (0, 1), config, batch=1, dtype=torch.float32)
    check("llada-tiny", (6, 5), (0, 1), replace(config, cfg=None), batch=3, dtype=torch.bfloat16)


@pytest.mark.parametrize("policy", [SyncPolicy("exact"), SyncPolicy("kv", every=2), SyncPolicy("shared")], ids=name)
def test_keys_and_values_in_fp8(check: Any, policy: SyncPolicy) -> None:
    check("dream-tiny", (6, 5), (0, 1), DecodeConfig(paths=2, steps=8, sync=policy), kv="fp8", dtype=torch.float32)


@pytest.mark.parametrize(("dtype", "item"), [("bfloat16", 2), ("float32", 4)])
def test_bytes_of_fp8_by_hand(dtype: Any, item: int) -> None:
    """Two paths of 5 own rows; 2 layers, 4 heads of 16: E + 4 = 20 bytes a head and position, whatever the dtype."""
    scenario = Scenario(
        shape="llada-tiny", paths=2, path_tokens=4, summary_tokens=2, prompt_tokens=3, header_tokens=1, workers=2,
        dtype=dtype, sync=SyncPolicy("kv", every=4),
    )  # fmt: skip
    native, fp8 = (Work.of(each).counts.exchanges[0] for each in (scenario, replace(scenario, kv="fp8")))
    assert native.buffer_bytes == 5 * 2 * 2 * 4 * 16 * item
    assert fp8.buffer_bytes == 5 * 2 * 2 * 4 * 20
    assert fp8.payload_bytes == (1600, 1600)


def test_by_hand() -> None:
    """Two paths of 4 slots and a header of 1, prompt 3, summary 1 + 2, one token a step: T_p = 8, T = 10."""
    scenario = Scenario(
        shape="llada-tiny", paths=2, path_tokens=4, summary_tokens=2, prompt_tokens=3, header_tokens=1, workers=2,
        dtype="float32", sync=SyncPolicy("kv", every=4),
    )  # fmt: skip
    counts = count(scenario.plan, scenario.model, item_bytes=4)
    row = 2 * 2 * 4 * 16 * 4  # K and V, 2 layers, 4 heads of 16, float32
    buffers = [(e.kind, e.step, e.buffer_bytes) for e in counts.exchanges]
    assert buffers == [("kv", 4, 5 * row), ("tokens", 8, 2 * 4 * 4)]
    assert counts.wire_bytes == 5 * row + 32
    assert counts.payload_bytes == (5 * row + 4 * 8, 5 * row + 4 * 8)
    assert counts.syncs == (2, 2)
    # Worker 1 commits at even steps, worker 0 at odd ones: no step is left out but for what is neither due nor dirty.
    assert [f.rows for f in counts.forwards_of(0)] == [16, 5, 5, 5, 11, 5, 5, 5, 16, 3]
    assert counts.extra_rows == (6 + 13, 6)


def test_what_is_not_known_beforehand_is_refused(nap_layout: Any, tiny_model: Any) -> None:
    plan = Plan.of(nap_layout((4, 4)), DecodeConfig(paths=2, rule="threshold"), Assignment((0, 1)))
    with pytest.raises(UsageError, match="fixed quotas"):
        count(plan, tiny_model("llada-tiny").config, item_bytes=8)


def test_scenarios_are_plain_values() -> None:
    scenario = Scenario(paths=2, workers=2, sync=SyncPolicy("kv", every=8))
    assert Scenario.from_mapping(scenario.to_mapping()) == scenario
    with pytest.raises(UsageError, match="evry: unknown key"):
        Scenario.from_mapping({"sync": {"mode": "kv", "evry": 2}})
    with pytest.raises(UsageError, match="neither a folder nor one of"):
        _ = Scenario(shape="llada-9b").model
