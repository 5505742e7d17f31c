"""On a GPU, with numerics `invariant`: bits of a canvas do not depend on its batch, nor under `exact` on the workers.

In bfloat16, the products on tensor cores. The kernels' own tests (`tests/unit/test_invariant.py`) run here as well.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.bench.run import run_bench
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.agreement import compare
from nap_runtime.models import invariant
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.shapes import random_model, shape_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs bfloat16 products"
    ),
]
# Layers as wide as an 8B model's, but two of them: products have hundreds of tiles, sums thousands of terms.
WIDE: dict[str, Any] = {"d_model": 2048, "head_dim": 128, "n_heads": 16, "d_ff": 4096, "n_layers": 2}
# What is compiled comes before and after the layers; a compiler would take longer than these decodes.
HOW = [CompileOptions(mode=mode, numerics="invariant", regions=False) for mode in ("default", "graph")]


def random(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randn(shape, generator=draw, device="cuda").to(torch.bfloat16)


# -- kernels at real sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 12288), (12288, 4096), (3584, 4608)])
@torch.inference_mode()
def test_a_row_of_a_product(inputs: int, outputs: int) -> None:
    a, w, b, x = random(1300, inputs), random(outputs, inputs, seed=1), random(outputs, seed=2), random(1300, outputs)
    whole, added = invariant.product(a, w, b), x.clone()
    invariant.add_product(added, a, w)
    want = a.float() @ w.float().t()
    # One rounding to bfloat16, and sums of float32 in another order (torch's may use TF32: 2^-10 of a factor).
    error = (whole.float() - want - b.float()).abs()
    assert (error <= 2**-8 * (want + b.float()).abs() + 2**-9 * inputs**0.5).all()
    for rows in (1, 2, 31, 32, 127, 128, 129, 331, 1024):
        some = torch.randperm(1300, generator=torch.Generator().manual_seed(rows))[:rows].to("cuda")
        assert torch.equal(invariant.product(a[some], w, b), whole[some])
        part = x[some]
        invariant.add_product(part, a[some], w)
        assert torch.equal(part, added[some])


@pytest.mark.parametrize("groups", [1, 7])
@torch.inference_mode()
def test_a_row_of_attention(groups: int) -> None:
    """With a mask or without, alone or beside others, and to the right of columns that are not its own."""
    q, k, v = (
        random(3, 28, 1152, 128),
        random(3, 28 // groups, 1152, 128, seed=1),
        random(3, 28 // groups, 1152, 128, seed=2),
    )
    first_B = torch.tensor([0, 40, 7], device="cuda")
    own = torch.arange(1152, device="cuda") >= first_B[:, None, None, None]
    together = invariant.attention(q, k, v, own, first_B)
    torch.testing.assert_close(together, grouped_sdpa(q, k, v, own), atol=4e-3, rtol=2e-2)
    assert torch.equal(invariant.attention(q, k, v, None, first_B), together)
    for canvas, first in enumerate(first_B.tolist()):
        here = slice(canvas, canvas + 1)
        keys, values = k[here, :, first:].contiguous(), v[here, :, first:].contiguous()
        for rows in (1, 32, 331, 1152):
            some = torch.randperm(1152, generator=torch.Generator().manual_seed(rows))[:rows].to("cuda")
            alone = invariant.attention(q[here].index_select(2, some), keys, values)
            assert torch.equal(alone, together[here].index_select(2, some))


@torch.inference_mode()
def test_a_row_of_norms_gates_and_candidates() -> None:
    x, weight, logits = random(700, 4096), random(4096, seed=1), 6 * random(700, 126464, seed=2)
    zero, positions = torch.zeros((), dtype=torch.int64, device="cuda"), torch.arange(700, device="cuda")
    noise: dict[str, Any] = {"temperature": 0.5, "seed": zero + 3, "step": zero + 5}
    norms, gates = invariant.rms_norm(x, weight, 1e-5), invariant.gated(x)
    ids, scores = invariant.candidates(logits[None], "max-prob", 7, positions=positions, **noise)
    for rows in (1, 3, 64, 331):
        some = torch.randperm(700, generator=torch.Generator().manual_seed(rows))[:rows].to("cuda")
        assert torch.equal(invariant.rms_norm(x[some], weight, 1e-5), norms[some])
        assert torch.equal(invariant.gated(x[some]), gates[some])
        found = invariant.candidates(logits[None, some], "max-prob", 7, positions=positions[some], **noise)
        assert torch.equal(found[0], ids[:, some])
        assert torch.equal(found[1], scores[:, some])


# -- whole decodes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Random weights in bfloat16, wide enough for logits to be apart, of both families."""
    found = {}
    for shape, kv_heads in (("llada-tiny", 16), ("dream-tiny", 4)):
        config: ModelConfig = shape_config(shape, n_kv_heads=kv_heads, **WIDE)
        model = random_model(config, seed=1, dtype=torch.bfloat16, device="cuda", draw="cuda")
        with torch.no_grad():
            model.head.weight.mul_(8)
        found[shape] = model.requires_grad_(False)
    return found


CONFIGS: list[dict[str, Any]] = [
    {"steps": 20},
    {"steps": 16, "temperature": 0.7, "seed": 4, "sync": SyncPolicy("exact", topology="hub")},
    {"steps": 16, "confidence": "margin", "sync": SyncPolicy("kv", every=4)},
    {"steps": 20, "sync": SyncPolicy("none"), "cache": "dkv"},
]


@pytest.mark.parametrize("options", HOW, ids=lambda o: o.mode)
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_a_batch_of_eight_is_eight_batches_of_one(
    models: dict[str, Any],
    nap_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    shape: str,
    options: CompileOptions,
) -> None:
    """Padded prompts included: three of the eight are shorter."""
    prompts = [prompt_of(seed, tokens=40 - 9 * (seed % 3 == 1)) for seed in range(8)]
    for config in CONFIGS:
        executor = InlineExecutor(models[shape], dtype=torch.bfloat16, device="cuda", compiling=options)

        def run(some: list[Any], config: dict[str, Any] = config, executor: Any = executor) -> list[list[Any]]:
            layout: CanvasLayout = nap_layout((31, 28), summary=9, prompt=max(map(len, some)))
            return collect(executor, make_task(layout, DecodeConfig(paths=2, **config), some)).decisions()

        together = run(prompts)
        for seed in (0, 1, 7):
            assert run([prompts[seed]])[0] == together[seed], (config, seed)
        assert run(prompts[::-1]) == together[::-1], config


@pytest.mark.parametrize("topology", ["full", "isolated"])
def test_two_workers_are_one(
    models: dict[str, Any], nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, topology: Any
) -> None:
    """`exact`: rows shared between simulated workers, one device's graphs beside them."""
    layout, prompts = nap_layout((31, 28), summary=9, prompt=40), [prompt_of(seed, tokens=40) for seed in range(2)]
    wanted = DecodeConfig(paths=2, steps=20, sync=SyncPolicy("exact", topology=topology))
    found = []
    for workers, options in ((1, HOW[1]), (1, HOW[0]), (2, HOW[0])):
        model = models["dream-tiny"]
        executor = InlineExecutor(model, workers=workers, dtype=torch.bfloat16, device="cuda", compiling=options)
        found.append(collect(executor, make_task(layout, wanted, prompts, workers)).decisions())
    assert found[0] == found[1] == found[2]


def test_compiled_commits_are_the_same_bits(
    models: dict[str, Any], nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any
) -> None:
    """What comes before and after the layers, compiled and not."""
    layout, prompts = nap_layout((31, 28), summary=9, prompt=40), [prompt_of(seed, tokens=40) for seed in range(3)]
    task = make_task(layout, DecodeConfig(paths=2, steps=12, temperature=0.5), prompts)
    found = []
    for options in (HOW[0], CompileOptions(mode="graph", numerics="invariant")):
        executor = InlineExecutor(models["llada-tiny"], dtype=torch.bfloat16, device="cuda", compiling=options)
        found.append(collect(executor, task).decisions())
    assert found[0] == found[1]


def test_it_is_the_model(tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any) -> None:
    """In float32: the same commits as plain steps, until two scores are within rounding."""
    model = copy.deepcopy(tiny_model("dream-tiny", 1, torch.float32)).to("cuda")
    task = make_task(nap_layout((9, 8)), DecodeConfig(paths=2, steps=12), [prompt_of(0), prompt_of(1, tokens=3)])
    place: dict[str, Any] = {"dtype": torch.float32, "device": "cuda"}
    one = collect(InlineExecutor(model, **place), task)
    for options in HOW:
        other = collect(InlineExecutor(model, compiling=options, **place), task)
        for mine, its in zip(one.records, other.records, strict=True):
            found = compare(mine, its, rtol=1e-3)
            assert found.agrees, found


def test_a_benchmark_finds_equal_ids() -> None:
    spec = BenchSpec(
        shape="llada-tiny",
        device="cuda",
        dtype="bfloat16",
        prompt_tokens=20,
        path_tokens=32,
        summary_tokens=8,
        sync=("exact", "none"),
        methods=("ours",),
        batch_size=(1, 8),
        compile=("graph",),
        numerics="invariant",
        repeats=1,
    )
    found = run_bench(spec, command="a test")
    assert found["failed"] == []
    held = [row for row in found["rows"] if row["ids"] is not None and row["ids"]["must_agree"]]
    assert len(held) >= 2
    for row in held:
        assert row["ids"]["agrees"], row["case"]
        assert row["ids"]["equal"] == 1.0
