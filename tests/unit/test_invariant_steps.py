"""Numerics `invariant` without its kernels: plain operations stand in for them, so that no GPU and no Triton is needed.

What is tested is what carries them out: which rows see what, whose first columns those are, who scores what; and what
is refused.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nap_runtime import decode
from nap_runtime.bench import figures
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.cli.settings import Settings
from nap_runtime.decoding import confidence
from nap_runtime.errors import UsageError, WorkerError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.executor.process import Setup, WorkerProcess
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models import invariant, kernels
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.invariant_denoiser import InvariantDenoiser
from nap_runtime.models.quantised import FP8, quantise
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.shapes import make_model
from nap_runtime.models.transformer import gated, rms_norm, rotate
from nap_runtime.numerics import check_numerics
from nap_runtime.service.settings import GroupSettings
from nap_runtime.storage import NATIVE
from nap_runtime.worker import prepare

STEPS = CompileOptions(mode="default", numerics="invariant", regions=False)


class Plain:
    """Stands in for the kernels, in float64; counts attention, and what its canvases' first columns were."""

    def __init__(self) -> None:
        self.attended, self.firsts = 0, set[tuple[int, ...] | None]()

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, first_B: Tensor | None) -> Tensor:
        self.attended += 1
        self.firsts.add(None if first_B is None else tuple(first_B.tolist()))
        if first_B is not None:
            own = torch.arange(k.shape[2]) >= first_B[:, None, None, None]
            mask = own if mask is None else mask & own
        return grouped_sdpa(q, k, v, mask)

    @staticmethod
    def rotate_store(
        qkv: Tensor, rope: Any, rows: Tensor, store: tuple[Tensor, Tensor], *, heads: int, kv_heads: int
    ) -> Tensor:
        width = qkv.shape[-1] // (heads + 2 * kv_heads)
        q, k, v = qkv.unflatten(-1, (-1, width)).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
        store[0].index_copy_(2, rows, rotate(k, *rope))
        store[1].index_copy_(2, rows, v)
        return rotate(q, *rope)

    @staticmethod
    def candidates(logits: Tensor, kind: Any, mask_id: int, **noise: Any) -> tuple[Tensor, Tensor]:
        wide = torch.where(torch.arange(logits.shape[-1]) == mask_id, -torch.inf, logits)
        ids = confidence.draw(wide, **noise)
        return ids, confidence.log_confidence(kind, wide, ids)

    @staticmethod
    def score(logits: Tensor, ids: Tensor, kind: Any, mask_id: int) -> Tensor:
        wide = torch.where(torch.arange(logits.shape[-1]) == mask_id, -torch.inf, logits)
        return confidence.log_confidence(kind, wide, ids)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    """Plain operations in place of kernels, on any device, for float64 too."""
    stand_in = Plain()
    monkeypatch.setattr(invariant, "TAKEN", (torch.float64, torch.bfloat16))
    monkeypatch.setattr(invariant, "check_kernels", lambda device: None)
    monkeypatch.setattr(invariant, "product", lambda a, w, bias=None: F.linear(a, w, bias))
    monkeypatch.setattr(invariant, "add_product", lambda x, a, w: x.add_(F.linear(a, w)))
    monkeypatch.setattr(invariant, "rms_norm", rms_norm)
    monkeypatch.setattr(invariant, "gated", gated)
    monkeypatch.setattr(kernels, "rotate_store", stand_in.rotate_store)
    for name in ("attention", "candidates", "score"):
        monkeypatch.setattr(invariant, name, getattr(stand_in, name))
    return stand_in


NAP: list[tuple[int, dict[str, Any]]] = [
    (1, {"steps": 7}),
    (1, {"temperature": 0.8, "seed": 4, "sync": SyncPolicy("exact", topology="hub")}),
    (1, {"sync": SyncPolicy("kv", every=3), "eos_weight": 0.5, "confidence": "entropy"}),
    (1, {"sync": SyncPolicy("kv", every=9), "cache": "closed", "rule": "left-to-right", "scope": "path"}),
    (1, {"sync": SyncPolicy("none"), "cache": "dkv", "temperature": 1.0}),
    (1, {"rule": "prophet", "scope": "path"}),
    (3, {"steps": 9}),
    (3, {"sync": SyncPolicy("exact", topology="isolated"), "confidence": "margin"}),
    (3, {"rule": "confidence", "scope": "canvas", "steps": 8}),
    (2, {"sync": SyncPolicy("tokens", every=3, warmup=1), "temperature": 0.4}),
    (2, {"sync": SyncPolicy("kv", every=2, overlap=True)}),
    (2, {"sync": SyncPolicy("none", summary="consensus"), "steps": 9}),
    (2, {"sync": SyncPolicy("kv", every=2, summary="live")}),
]
PLAIN: list[dict[str, Any]] = [
    {"rule": "confidence", "steps": 9},
    {"rule": "confidence", "cfg": 1.0, "steps": 8},
    {"rule": "p2", "steps": 8, "rule_args": {"eta": "2", "score": "token"}},
    {"rule": "threshold", "threshold": 0.2, "block_length": 8},
    {"rule": "blockwise", "block_length": 8, "cache": "dual", "steps": 9},
    {"rule": "confidence", "cache": "dkv", "cache_every": 4, "steps": 12},
]


def same(one: Any, other: Any, canvases: int) -> None:
    assert other.ids == one.ids
    for canvas in range(canvases):
        assert other.commits(canvas) == one.commits(canvas)
    assert [outcome.forwards for outcome in other.outcomes] == [outcome.forwards for outcome in one.outcomes]


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
@pytest.mark.parametrize(("workers", "config"), NAP, ids=str)
def test_steps_commit_what_plain_ones_do(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    plain: Plain,
    shape: str,
    workers: int,
    config: dict[str, Any],
) -> None:
    """Every attention of a step goes through the kernel, from each canvas's own first column on."""
    model, layout = tiny_model(shape, 1), nap_layout((6, 5, 5))
    prompts = [prompt_of(seed, tokens=5 - seed) for seed in range(3)]
    task = make_task(layout, DecodeConfig(paths=3, **config), prompts, workers)
    fast = InlineExecutor(model, workers=workers, dtype=torch.float64)
    ours = InlineExecutor(model, workers=workers, dtype=torch.float64, compiling=STEPS)
    one, other = collect(fast, task), collect(ours, task)
    same(one, other, 3)
    rows = sum(len(outcome.forwards) for outcome in other.outcomes)
    assert plain.attended == rows * model.config.n_layers
    assert (0, 1, 2) in plain.firsts
    assert None not in plain.firsts


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_one_region(
    tiny_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    plain: Plain,
    config: dict[str, Any],
) -> None:
    model, views = tiny_model("dream-tiny", 1), 1 + ("cfg" in config)
    prompts = [prompt_of(0), prompt_of(1, tokens=2)]
    task = make_task(plain_layout(24), DecodeConfig(layout="plain", gen_length=24, **config), prompts)
    one, other = (
        collect(InlineExecutor(model, dtype=torch.float64, **how), task) for how in ({}, {"compiling": STEPS})
    )
    same(one, other, 2)
    assert (0, 3) * views in plain.firsts
    assert plain.firsts <= {(0, 3) * views, None, (3,) * views}  # one of them may be done before the other


def test_syncs_without_an_order_of_sums_are_refused(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, plain: Plain
) -> None:
    model = tiny_model("llada-tiny", 1)
    for policy in (
        SyncPolicy("shared", every=2),
        SyncPolicy("exact", overlap=True),
        SyncPolicy("kv", every=2, warmup=1, overlap=True),
    ):
        task = make_task(nap_layout((6, 5)), DecodeConfig(paths=2, sync=policy), [prompt_of(0)], 2)
        executor = InlineExecutor(model, workers=2, dtype=torch.float64, compiling=STEPS)
        with pytest.raises(UsageError, match="numerics: 'invariant'"):
            collect(executor, task)
    packed = InlineExecutor(model, dtype=FP8, compiling=STEPS)
    task = make_task(nap_layout((6, 5)), DecodeConfig(paths=2), [prompt_of(0)])
    with pytest.raises((UsageError, WorkerError), match="no FP8 keys and values"):
        collect(packed, task)


def test_a_model_that_the_kernels_do_not_take() -> None:
    _, model = make_model("llada-tiny", seed=1, dtype=torch.float64)
    with pytest.raises(UsageError, match="at most 32 bits a number, not float64"):
        prepare(model, STEPS)
    _, model = make_model("llada-tiny", seed=1, dtype=torch.bfloat16)
    assert isinstance(prepare(model, STEPS), InvariantDenoiser)
    with pytest.raises(UsageError, match="no FP8 products"):
        prepare(quantise(model), STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numerics": "exact"}, "numerics: unknown value 'exact'"),
        ({"numerics": "invariant"}, "numerics: 'invariant' needs compile"),
        ({"numerics": "invariant", "mode": "graph", "gemm": "tuned"}, "gemm: numerics 'invariant' has"),
        ({"numerics": "invariant", "mode": "graph", "attention": "cudnn"}, "attention: numerics 'invariant' has"),
        ({"numerics": "invariant", "mode": "graph", "kernels": False}, "kernels: numerics 'invariant' has"),
    ],
)
def test_options_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompileOptions(**options)


def test_a_device_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="numerics: 'invariant' needs a CUDA device, not cpu"):
        STEPS.check(torch.device("cpu"))
    monkeypatch.setattr(invariant, "triton", None)
    with pytest.raises(UsageError, match="numerics: 'invariant' needs Triton"):
        STEPS.check(torch.device("cuda"))
    with pytest.raises(UsageError, match="needs a CUDA device"):
        decode("a", numerics="invariant", compile="default")
    alone = Setup(model="nap-tiny", dtype="float32", device="cpu", compile="default", storage=NATIVE, threads=1,
                  timeout=5.0, numerics="invariant")  # fmt: skip
    with pytest.raises(UsageError, match="needs a CUDA device"):
        WorkerProcess(alone).load()


GPU = {"device": "cuda", "dtype": "bfloat16", "compile": "graph", "numerics": "invariant"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cpu", "compile": "default"}, "needs a CUDA device, not cpu"),
        ({"compile": "none"}, "needs compile 'default' or 'graph'"),
        ({"dtype": "float64"}, "float64 gives equal ids with 'fast'"),
        ({"weights": "fp8"}, "has no FP8"),
        ({"kv": "fp8"}, "has no FP8"),
        ({"sync": {"mode": "shared", "topology": "hub"}, "workers": 2}, "no order of sums for sync 'shared'"),
        ({"sync": {"mode": "exact", "overlap": True}, "workers": 2}, "cannot attend to own keys first"),
    ],
)
def test_settings_refuse(changes: dict[str, Any], message: str) -> None:
    assert Settings.from_mapping(GPU).to_mapping()["numerics"] == "invariant"
    with pytest.raises(UsageError, match=message) as raised:
        Settings.from_mapping({**GPU, **changes})
    assert raised.value.field == "numerics"
    if "sync" not in changes:
        assert GroupSettings(**GPU).numerics == "invariant"
        with pytest.raises(UsageError, match=message):
            GroupSettings(**{**GPU, **changes})


def test_a_benchmark_holds_equal_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others agree up to a near-tie."""
    allowed: list[float] = []

    def compare(one: Any, other: Any, *, rtol: float) -> Any:
        allowed.append(rtol)
        return SimpleNamespace(agrees=True)

    monkeypatch.setattr(figures, "compare", compare)
    sample: Any = SimpleNamespace(ids=(torch.zeros(2).numpy(),), records=(SimpleNamespace(layout=0),))
    syncs: Any = ("exact", "none")
    for numerics in ("fast", "invariant"):
        spec = BenchSpec(**{**GPU, "compile": ("graph",), "numerics": numerics, "sync": syncs})  # type: ignore[arg-type]
        figures._check("another", sample, sample, spec, must=True)
    assert allowed == [2e-2, 0.0]


def test_a_benchmark_of_these_numerics() -> None:
    syncs = ("exact", "kv", "tokens", "none")
    spec = BenchSpec(**{**GPU, "compile": ("default", "graph"), "sync": syncs})  # type: ignore[arg-type]
    assert spec.compile_options("graph").numerics == "invariant"
    assert spec.fast_options("graph").numerics == "fast"
    assert spec.canvas_key()["numerics"] == "invariant"
    assert "numerics" not in BenchSpec().canvas_key()
    with pytest.raises(UsageError, match="needs compile 'default' or 'graph'"):
        BenchSpec(**{**GPU, "compile": ("none", "graph"), "sync": syncs})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no order of sums for sync 'shared'"):
        BenchSpec(**{**GPU, "compile": ("graph",)})  # type: ignore[arg-type]


def test_fast_numerics_ask_for_nothing() -> None:
    check_numerics("fast", compile="none", device="cpu", dtype="float64", storage=NATIVE)
