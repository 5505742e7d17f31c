"""One GPU commits what a CPU commits, under every rule, cache and summary, and no step waits for the device."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PLAIN: list[dict[str, Any]] = [
    {"rule": "confidence"},
    {"rule": "threshold", "threshold": 0.7, "block_length": 8},
    {"rule": "factor", "factor": 1.5, "block_length": 10},
    {"rule": "prophet"},
    {"rule": "p2", "rule_args": {"eta": "2"}},
    {"rule": "confidence", "cfg": 1.0},
    {"rule": "blockwise", "block_length": 8, "cache": "dual"},
    {"rule": "threshold", "threshold": 0.7, "block_length": 8, "cache": "prefix"},
    {"rule": "confidence", "cache": "dkv", "cache_every": 4},
]
PATHS = [
    SyncPolicy("exact"),
    SyncPolicy("kv", every=3),
    SyncPolicy("kv", overlap=True),
    SyncPolicy("tokens", every=2, overlap=True),
    SyncPolicy("none", summary="consensus"),
    SyncPolicy("tokens", every=2, summary="live", settle=2),
]


def run(model: Any, task: Any, collect: Any, device: str) -> Any:
    there = copy.deepcopy(model).to(device)
    executor = InlineExecutor(there, workers=task.plan.assignment.workers, dtype=torch.float64, device=device)
    return collect(executor, task)


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_one_region(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, make_task: Any, collect: Any, options: dict[str, Any]
) -> None:
    config = DecodeConfig(layout="plain", gen_length=24, temperature=0.5, seed=3, **options)
    task = make_task(plain_layout(24), config, [prompt_of(seed) for seed in range(3)])
    model = tiny_model("dream-tiny", 1, scale=30.0)
    there, here = run(model, task, collect, "cuda"), run(model, task, collect, "cpu")
    assert there.ids == here.ids
    assert [there.commits(canvas) for canvas in range(3)] == [here.commits(canvas) for canvas in range(3)]
    assert there.outcomes[0].forwards == here.outcomes[0].forwards


@pytest.mark.parametrize("policy", PATHS, ids=lambda p: f"{p.mode}{'-overlap' * p.overlap}-{p.summary}")
def test_paths_on_simulated_workers(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, policy: SyncPolicy
) -> None:
    config = DecodeConfig(paths=3, temperature=0.5, seed=3, sync=policy)
    task = make_task(nap_layout((9, 12, 7)), config, [prompt_of(seed) for seed in range(2)], 3)
    same_there(tiny_model("llada-tiny", 1, scale=20.0), task, collect)


def same_there(model: Any, task: Any, collect: Any) -> None:
    there, here = run(model, task, collect, "cuda"), run(model, task, collect, "cpu")
    assert there.ids == here.ids
    for canvas in range(len(there.ids)):
        assert there.commits(canvas) == here.commits(canvas)
    assert [one.forwards for one in there.outcomes] == [one.forwards for one in here.outcomes]
    assert [one.away for one in there.outcomes] == [one.away for one in here.outcomes]


@pytest.mark.parametrize("cache", [None, "closed", "dkv"])
def test_canvases_leave_a_batch(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, cache: Any
) -> None:
    """The same ones at the same steps as on a CPU, and of a cache's rows as many."""
    layout = nap_layout((14, 11, 12), summary=6, ends=tuple(range(30)))
    left: dict[str, Any] = {"rule": "left-to-right", "scope": "path", "control_every": 1}
    config = DecodeConfig(paths=3, temperature=1.0, sync=SyncPolicy("kv", every=4), cache=cache, **left)
    task = make_task(layout, config, [prompt_of(seed, tokens=5 - seed % 2) for seed in range(6)], 3)
    same_there(tiny_model("llada-tiny", 2), task, collect)


@pytest.fixture
def waits() -> Iterator[list[str]]:
    """Every place that waited for the device, as torch tells."""
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: told.append(str(message))
        torch.cuda.set_sync_debug_mode("warn")
        yield told
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_more_steps_do_not_wait_more_often(
    tiny_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    waits: list[str],
    options: dict[str, Any],
) -> None:
    """Setting up a batch and reading its end may wait; a step may not."""
    model = tiny_model("llada-tiny", 1, scale=30.0)
    counts = []
    for slots in (24, 48):
        length = {"block_length": slots // 3} if "block_length" in options else {}
        config = DecodeConfig(layout="plain", gen_length=slots, seed=3, **{**options, **length})
        task = make_task(plain_layout(slots), config, [prompt_of(1)])
        run(model, task, collect, "cuda")
        waits.clear()
        run(model, task, collect, "cuda")
        counts.append(len(waits))
    assert counts[0] == counts[1]
