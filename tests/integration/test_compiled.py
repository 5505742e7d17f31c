"""Compiled on a CPU: the commits of plain steps in float64, by the agreement rule in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nap_runtime.distributed.comm import Solo
from nap_runtime.distributed.layerwise import layer_keys
from nap_runtime.distributed.wire import Clock, Wire
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.agreement import compare
from nap_runtime.models import compiled
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.compiled import CompiledDenoiser, CompileOptions
from nap_runtime.models.quantised import store_of
from nap_runtime.models.transformer import CanvasAttention, Projection

COMPILED = CompileOptions(mode="default", dynamic=True)  # one compilation for all numbers of rows


def check(executors: tuple[Any, Any], tasks: list[Any], collect: Any, rtol: float) -> None:
    for task in tasks:
        one, other = (collect(executor, task) for executor in executors)
        for mine, its in zip(one.records, other.records, strict=True):
            found = compare(mine, its, rtol=rtol)
            assert found.agrees, (task.plan.config, found)
            assert found.identical or rtol


def tasks_of(nap_layout: Any, prompt_of: Any, make_task: Any, configs: list[dict[str, Any]]) -> list[Any]:
    prompts = [prompt_of(seed, tokens=5 - seed) for seed in range(2)]
    return [make_task(nap_layout((9, 5, 7)), DecodeConfig(paths=3, **config), prompts) for config in configs]


@pytest.mark.timeout(600)
def test_compiled_steps_commit_what_plain_ones_do(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any
) -> None:
    model = tiny_model("dream-tiny", 1)
    executors = (
        InlineExecutor(model, dtype=torch.float64),
        InlineExecutor(model, dtype=torch.float64, compiling=COMPILED),
    )
    configs = [{"steps": 9}, {"sync": SyncPolicy("kv", every=3), "steps": 12}]
    check(executors, tasks_of(nap_layout, prompt_of, make_task, configs), collect, 0.0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 0.0), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_every_way_to_pick_compiled(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    shape: str,
    dtype: torch.dtype,
    rtol: float,
) -> None:
    model = tiny_model(shape, 1, dtype)
    executors = (InlineExecutor(model, dtype=dtype), InlineExecutor(model, dtype=dtype, compiling=COMPILED))
    configs: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 2},
        {"confidence": "margin", "steps": 9},
        {"confidence": "entropy", "steps": 9, "eos_weight": 0.0},
        {"rule": "left-to-right", "scope": "path", "steps": 8},
        {"rule": "random", "scope": "path", "steps": 8},
        {"rule": "confidence", "steps": 6, "sync": SyncPolicy("exact", topology="hub")},
        {"rule": "threshold", "threshold": 0.3},
        {"sync": SyncPolicy("tokens", every=2, topology="isolated")},
        {"sync": SyncPolicy("kv", every=5), "cache": "closed", "rule": "left-to-right", "scope": "path"},
        {"sync": SyncPolicy("none"), "cache": "dkv", "steps": 12},
    ]
    check(executors, tasks_of(nap_layout, prompt_of, make_task, configs), collect, rtol)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_compiled_batch_narrows(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any
) -> None:
    """Batches of four, two and one canvas are three shapes to a compiler."""
    model = tiny_model("llada-tiny", 2)
    layout, prompts = nap_layout((14, 11, 12), ends=tuple(range(30))), [prompt_of(seed) for seed in range(4)]
    config = DecodeConfig(paths=3, temperature=1.0, rule="left-to-right", scope="path", control_every=1)
    executors = (
        InlineExecutor(model, dtype=torch.float64),
        InlineExecutor(model, dtype=torch.float64, compiling=CompileOptions(mode="default")),
    )
    task = make_task(layout, config, prompts)
    check(executors, [task], collect, 0.0)
    assert any(collect(executors[1], task).outcomes[0].away)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", [None, False], ids=["numbers of rows together", "each by itself"])
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_one_region_serves_all_layers_and_rows(tiny_model: Any, shape: str, mode: bool | None) -> None:
    model = tiny_model(shape, 1)
    ours = CompiledDenoiser(model, CompileOptions(mode="default", dynamic=mode))
    with torch.inference_mode():
        for attend_with in ("store", "canvas"):
            for rows in (24, 40, 17):
                ids_BR, rows_R = torch.randint(0, 90, (2, rows)), torch.arange(3, 3 + rows)
                place = {"batch": 2, "positions": 48, "dtype": torch.float64, "device": "cpu"}
                stores = [store_of(model.config, **place) for _ in range(2)]  # type: ignore[arg-type]
                seen = [
                    StoreAttention(store, rows_R) if attend_with == "store" else CanvasAttention() for store in stores
                ]
                one, other = (d.forward_rows(ids_BR, rows_R, a) for d, a in zip((model, ours), seen, strict=True))
                torch.testing.assert_close(one, other)
                torch.testing.assert_close(stores[0].k_LBGNE, stores[1].k_LBGNE)
                torch.testing.assert_close(stores[0].v_LBGNE, stores[1].v_LBGNE)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kept", [False, True], ids=["read where they arrive", "read from the store"])
def test_exchanges_inside_a_layer(tiny_model: Any, kept: bool) -> None:
    """Compiled regions around an exchange, for two numbers of rows: the second is compiled for any."""
    model = tiny_model("dream-tiny", 1)
    ours = CompiledDenoiser(model, CompileOptions(mode="default"))
    with torch.inference_mode():
        for n in (9, 13):
            ids_BR, rows_R = torch.arange(2 * n).reshape(2, n) % 90, torch.arange(n)
            got = []
            for denoiser in (model, ours):
                store = store_of(model.config, batch=2, positions=n, dtype=torch.float64, device="cpu")
                wire = Wire(Solo(), Clock(rows_R.device))
                attend = layer_keys(wire, [range(n)], store, None, overlap=False, kept=kept)
                got.append(denoiser.forward_rows(ids_BR, rows_R, attend))
            torch.testing.assert_close(*got)


def test_products_added_in_place(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: the residual stream is changed where it stands, and nothing that is still read is lost."""
    monkeypatch.setattr(compiled, "in_place", lambda linear, x: isinstance(linear, Projection) and linear.bias is None)
    model = tiny_model("dream-tiny", 1)
    executors = (
        InlineExecutor(model, dtype=torch.float64),
        InlineExecutor(model, dtype=torch.float64, compiling=COMPILED),
    )
    configs = [{"steps": 9}, {"sync": SyncPolicy("exact"), "steps": 6}]
    check(executors, tasks_of(nap_layout, prompt_of, make_task, configs), collect, 0.0)
