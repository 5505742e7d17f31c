"""On a GPU, compiled and captured steps commit what plain ones do, and do not wait for the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.agreement import compare
from nap_runtime.models.attention import attend_part, merge_partials, partial_attention
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.sdpa import grouped_sdpa

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HOW = [
    CompileOptions(mode="default"),
    CompileOptions(mode="graph"),
    CompileOptions(mode="graph", unroll=4),
]
CONFIGS: list[dict[str, Any]] = [
    {"steps": 20},
    {"temperature": 1.0, "seed": 4},
    {"sync": SyncPolicy("kv", every=4), "steps": 24},
    {"sync": SyncPolicy("none", topology="hub")},
    {"sync": SyncPolicy("kv", every=8), "cache": "closed", "rule": "left-to-right", "scope": "path"},
    {"sync": SyncPolicy("none"), "cache": "dkv"},
]


@pytest.mark.parametrize("options", HOW, ids=lambda o: f"{o.mode}{o.unroll}")
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_captured_steps_commit_what_plain_ones_do(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, shape: str, options: CompileOptions
) -> None:
    model = copy.deepcopy(tiny_model(shape, 1)).to("cuda")
    place: dict[str, Any] = {"dtype": torch.float64, "device": "cuda"}
    plain, ours = InlineExecutor(model, **place), InlineExecutor(model, compiling=options, **place)
    for config in CONFIGS:
        for seed in range(2):  # the second batch finds what the first has captured
            task = make_task(nap_layout((19, 12, 16)), DecodeConfig(paths=3, **config), [prompt_of(seed)] * 2)
            one, other = collect(plain, task), collect(ours, task)
            assert other.ids == one.ids, config
            assert other.commits() == one.commits(), config
            assert other.outcomes[0].forwards == one.outcomes[0].forwards


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_kernels_of_our_own_decide_as_plain_steps_do(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, shape: str
) -> None:
    """In float32, which they take and float64 they leave: the same commits until two scores are within rounding."""
    model = copy.deepcopy(tiny_model(shape, 1, torch.float32)).to("cuda")
    place: dict[str, Any] = {"dtype": torch.float32, "device": "cuda"}
    plain = InlineExecutor(model, **place)
    ours = InlineExecutor(model, compiling=CompileOptions(mode="graph", regions=False), **place)
    configs: list[dict[str, Any]] = [{"steps": 20}, {"sync": SyncPolicy("none"), "steps": 24}, {"eos_weight": 0.0}]
    for config in configs:
        for summary in (12, 1):  # a head of one slot is filled up
            layout = nap_layout((19, 12, summary))
            for tokens in ((5, 5), (5, 3)):  # and a batch with padding, where each canvas has angles of its own
                prompts = [prompt_of(seed, tokens=tokens[seed]) for seed in range(2)]
                task = make_task(layout, DecodeConfig(paths=2, **config), prompts)
                one, other = collect(plain, task), collect(ours, task)
                for mine, its in zip(one.records, other.records, strict=True):
                    found = compare(mine, its, rtol=1e-3)
                    assert found.agrees, (config, tokens, found)


@pytest.mark.parametrize("groups", [1, 4])
def test_attention_in_parts_is_attention(groups: int) -> None:
    draw = torch.Generator(device="cuda").manual_seed(0)

    def random(heads: int, rows: int) -> torch.Tensor:
        return torch.randn((2, heads, rows, 128), generator=draw, device="cuda", dtype=torch.bfloat16)

    q, k, v = random(8, 331), random(8 // groups, 1152), random(8 // groups, 1152)
    parts = [attend_part(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 331), slice(331, 1152))]
    merged = merge_partials(torch.stack([o for o, _ in parts]), torch.stack([lse for _, lse in parts]))
    torch.testing.assert_close(merged, grouped_sdpa(q, k, v), atol=4e-3, rtol=2e-2)
    by_hand = partial_attention(q, k[:, :, :331], v[:, :, :331])
    torch.testing.assert_close(parts[0][1], by_hand[1], atol=1e-3, rtol=1e-3)


def test_a_replayed_step_does_not_wait(tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any) -> None:
    from nap_runtime.distributed.comm import Solo
    from nap_runtime.worker import BlockWorker, prepare
    from nap_runtime.worker.loop import _Run

    options = CompileOptions(mode="graph")
    model = copy.deepcopy(tiny_model("llada-tiny", 1)).to("cuda")
    device = torch.device("cuda")
    worker = BlockWorker(prepare(model, options), Solo(), dtype=torch.float64, device=device, compiling=options)
    config = DecodeConfig(paths=1, control_every=64)
    task = make_task(nap_layout((40,), ends=()), config, [prompt_of(0)])
    with torch.inference_mode():
        run = _Run(worker, task, None, lambda: False)
        for _ in range(14):  # the head has become smaller at step 8
            run.obey(run.machine.next(run.control()))  # type: ignore[arg-type]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                run.obey(run.machine.next(run.control()))  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")
