"""Numerics `invariant`: kernels against plain operations, and bits of a row against whatever is computed beside it.

Kernels are interpreted on a CPU where Triton is installed, compiled and run on a GPU. `test_invariant_compiled.py` also
compiles them for GPUs that are not there, `test_invariant_steps.py` tests what carries them out with plain operations.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nap_runtime.decoding import confidence
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import Confidence, DecodeConfig, SyncPolicy
from nap_runtime.models import invariant, kernels
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.invariant import FixedOrder
from nap_runtime.models.quantised import store_of
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.transformer import gated, rms_norm, rotate
from nap_runtime.worker import prepare

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and invariant.triton is not None
DEVICE = "cuda" if ON_GPU else "cpu"
needs_triton = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="needs Triton, on a GPU or interpreted")
KINDS: tuple[Confidence, ...] = ("max-prob", "margin", "entropy")
HALF = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}  # the most a rounding changes, relatively


if INTERPRETED:
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy: what is computed beside a mask


@pytest.mark.skipif(find_spec("triton") is None or ON_GPU, reason="needs Triton, without a GPU")
@pytest.mark.timeout(400)
def test_interpreted(interpreted: Callable[[str], None]) -> None:
    """The tests below in a process that interprets kernels."""
    interpreted(__file__)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    assert ((got.double() - want).abs() <= bound).all(), float(((got.double() - want).abs() - bound).max())


# -- against plain operations -----------------------------------------------------------------------------------------

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


@needs_triton
@dtypes
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 16, 16), (70, 144, 200), (130, 48, 33)])
def test_a_product(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    """Each of I sums is off by at most half a unit of what has been added up so far; then it is rounded once."""
    a, w, b, x = (random(*s, dtype=dtype) for s in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)))
    wide = a.double() @ w.double().t()
    size = a.double().abs() @ w.double().abs().t()
    for got, more in ((invariant.product(a, w), 0 * x.double()), (invariant.product(a, w, b), b.double())):
        bound = (inputs + 1) * 2.0**-24 * (size + more.abs()) + 1.001 * HALF[dtype] * (wide + more).abs()
        within(got, wide + more, bound)
    start = x.clone()
    invariant.add_product(x, a, w)
    bound = (inputs + 1) * 2.0**-24 * (size + start.double().abs()) + 1.001 * HALF[dtype] * (wide + start).abs()
    within(x, wide + start.double(), bound)


@needs_triton
@dtypes
@pytest.mark.parametrize("width", [64, 100, 3584])
def test_norm_and_gate(dtype: torch.dtype, width: int) -> None:
    """Rounded twice: the normalised row and the weighed one, the silu and the product."""
    x, weight = 3 * random(5, 2 * width, dtype=dtype), random(2 * width, seed=1, dtype=dtype)
    want = rms_norm(x.double(), weight.double(), 1e-5)
    within(invariant.rms_norm(x, weight, 1e-5), want, (2.01 * HALF[dtype] + width * 2.0**-23) * want.abs())
    want = gated(x.double())
    within(invariant.gated(x), want, (2.01 * HALF[dtype] + 2.0**-18) * want.abs())


@needs_triton
@dtypes
@pytest.mark.parametrize(("heads", "groups", "width", "rows", "keys"), [(4, 2, 16, 9, 150), (2, 2, 64, 70, 65)])
def test_attention(dtype: torch.dtype, heads: int, groups: int, width: int, rows: int, keys: int) -> None:
    """Shares and the output are rounded; float32 sums before and between are off by far less."""
    q = random(2, heads, rows, width, dtype=dtype)
    k, v = (random(2, groups, keys, width, seed=seed, dtype=dtype) for seed in (1, 2))
    seen = torch.rand((2, 1, rows, keys), generator=torch.Generator().manual_seed(3)).to(DEVICE) < 0.4
    seen[0, 0, 1] = False  # a row that sees nothing
    for mask in (None, seen, seen[1, 0], seen[:, :, :1]):
        got = invariant.attention(q, k, v, mask)
        assert got.transpose(1, 2).is_contiguous()
        want = grouped_sdpa(q.double(), k.double(), v.double(), mask)
        size = grouped_sdpa(q.double(), k.double(), v.double().abs(), mask)
        within(got, want, (2.1 * HALF[dtype] + 2.0**-18) * size)
    assert not invariant.attention(q, k, v, seen)[0, :, 1].any()


@needs_triton
@dtypes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_candidates(dtype: torch.dtype, kind: Confidence, temperature: float) -> None:
    logits, at = 6 * random(2, 3, 9001, dtype=dtype), torch.tensor([4, 50, 9], device=DEVICE)
    number = [torch.tensor(value, device=DEVICE) for value in (-7 * 2**33 + 5, 3)]
    noise: dict[str, Any] = {"temperature": temperature, "positions": at, "seed": number[0], "step": number[1]}
    ids, scores = invariant.candidates(logits, kind, 7, **noise)
    wide = logits.double()
    wide[..., 7] = -torch.inf
    assert torch.equal(ids, confidence.draw(wide, **noise))
    want = confidence.log_confidence(kind, wide, ids)
    clear = want > -1e20
    torch.testing.assert_close(scores.double()[clear], want[clear], atol=2e-6, rtol=1e-5)
    assert (scores[~clear] < -1e20).all()
    assert torch.equal(invariant.score(logits, ids, kind, 7), scores)


@needs_triton
def test_candidates_at_the_edges() -> None:
    """Of equal logits the first; close to certain a score keeps its digits; NaN makes a score NaN, but at the mask."""
    x = torch.full((1, 6, 10_000), -1e4)
    x[0, 0, 9], x[0, 0, 11] = 20.0, -20.25
    x[0, 1, 9000] = x[0, 1, 400] = x[0, 1, 400 + 4096] = 2.5
    x[0, 2, 3], x[0, 3, 15] = torch.nan, torch.nan  # id 3 is the mask
    x[0, 4] = torch.nan
    x[0, 5, 3] = 99.0
    zero = torch.zeros((), dtype=torch.int64, device=DEVICE)
    noise: dict[str, Any] = {"temperature": 0.0, "positions": zero.expand(6), "seed": zero, "step": zero}
    ids, scores = invariant.candidates(x.to(DEVICE), "max-prob", 3, **noise)
    assert ids[0, :2].tolist() == [9, 400]
    assert ids[0, 5] != 3
    assert float(scores[0, 0]) == pytest.approx(-torch.tensor(-40.25).double().exp().item(), rel=1e-5)
    assert scores.isnan().tolist() == [[False, False, False, True, True, False]]
    others = invariant.score(x.to(DEVICE), torch.tensor([[11, 9000, 5, 0, 0, 0]], device=DEVICE), "max-prob", 3)
    assert others[0, :2].tolist() == [pytest.approx(-40.25, rel=1e-6), scores[0, 1]]


@needs_triton
def test_the_operation_is_what_it_says_it_is() -> None:
    number = torch.tensor(3, device=DEVICE)
    sample = (random(4, 9001, dtype=torch.float32), 7, 0, 0.5, number, torch.arange(4, device=DEVICE), number)
    torch.library.opcheck(invariant._candidates, sample)


@needs_triton
def test_rotations_of_padded_canvases() -> None:
    """Each canvas with tables of its own: the bits of plain operations, and of the canvas alone."""
    draw = torch.Generator().manual_seed(3)
    qkv, angles = torch.randn((2, 5, 8 * 16), generator=draw), 6 * torch.rand((2, 1, 5, 8), generator=draw)
    rope, at = (angles.cos(), angles.sin()), torch.tensor([2, 0, 6, 3, 5])
    there = tuple(table.to(DEVICE) for table in rope)
    store = torch.zeros((2, 2, 2, 7, 16), device=DEVICE)
    q = kernels.rotate_store(qkv.to(DEVICE), there, at.to(DEVICE), (store[0], store[1]), heads=4, kv_heads=2)  # type: ignore[arg-type]
    want_q, want_k, want_v = qkv.unflatten(-1, (-1, 16)).transpose(1, 2).split([4, 2, 2], dim=1)
    assert torch.equal(q.cpu(), rotate(want_q, *rope))
    assert torch.equal(store[0, :, :, at].cpu(), rotate(want_k, *rope))
    assert torch.equal(store[1, :, :, at].cpu(), want_v)
    one, own = (there[0][1, 0], there[1][1, 0]), torch.zeros((2, 1, 2, 7, 16), device=DEVICE)
    q_alone = kernels.rotate_store(qkv[1:].to(DEVICE), one, at.to(DEVICE), (own[0], own[1]), heads=4, kv_heads=2)
    assert torch.equal(q_alone[0], q[1])
    assert torch.equal(own[:, 0], store[:, 1])


# -- bits of a row ----------------------------------------------------------------------------------------------------

Rowwise = Callable[[Tensor], Tensor]


def operations(dtype: torch.dtype) -> dict[str, tuple[int, Rowwise]]:
    """Operations of rows of some width."""
    w, b, gain = random(72, 80, seed=5, dtype=dtype), random(72, seed=6, dtype=dtype), random(80, seed=7, dtype=dtype)

    def added(a: Tensor) -> Tensor:
        x = a[:, :72].clone(memory_format=torch.contiguous_format)
        invariant.add_product(x, a, w)
        return x

    def decided(a: Tensor) -> Tensor:
        number = torch.tensor(11, device=DEVICE)
        noise: dict[str, Any] = {"temperature": 0.9, "seed": number, "step": number}
        found = [invariant.candidates(a[None], kind, 3, positions=number.expand(len(a)), **noise) for kind in KINDS]
        return torch.stack([part[0].double() for pair in found for part in pair], dim=-1)

    return {
        "product": (80, lambda a: invariant.product(a, w, b)),
        "add_product": (80, added),
        "rms_norm": (80, lambda a: invariant.rms_norm(a, gain, 1e-6)),
        "gated": (80, invariant.gated),
        "candidates": (80, decided),
    }


@needs_triton
@dtypes
@pytest.mark.parametrize("name", list(operations(torch.float32)) if invariant.triton is not None else ["product"])
@settings(max_examples=6, derandomize=True)
@given(rows=st.integers(2, 300), order=st.randoms(use_true_random=False), data=st.data())
def test_a_row_does_not_depend_on_others(
    dtype: torch.dtype, name: str, rows: int, order: Any, data: st.DataObject
) -> None:
    """In whatever order and in however many calls rows are computed."""
    width, operation = operations(dtype)[name]
    rows = rows if "product" in name else min(rows, 12)
    a = random(rows, width, seed=rows, dtype=dtype)
    whole, shuffled = operation(a), list(range(rows))
    order.shuffle(shuffled)
    at = data.draw(st.integers(1, rows - 1))
    parts = [operation(a[part].contiguous()) for part in (shuffled[:at], shuffled[at:])]
    assert torch.equal(torch.cat(parts), whole[shuffled])
    assert torch.equal(operation(a[-1:]), whole[-1:])


@needs_triton
@dtypes
@settings(max_examples=6, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 140), min_size=1, max_size=3),
    rows=st.integers(1, 70),
    masked=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_a_rows_attention_depends_on_its_own_canvas_alone(
    dtype: torch.dtype, lengths: list[int], rows: int, masked: bool, order: Any
) -> None:
    """Canvases stand to the right of columns that are not theirs, which hold NaN here: they are never read."""
    keys, batch = max(lengths), len(lengths)
    q, k, v = (random(batch, *shape, seed=at, dtype=dtype) for at, shape in enumerate(((4, rows, 16), (2, keys, 16),
                                                                                       (2, keys, 16))))  # fmt: skip
    seen = torch.rand((batch, 1, rows, keys), generator=torch.Generator().manual_seed(rows)).to(DEVICE) < 0.7
    first_B = torch.tensor([keys - length for length in lengths], device=DEVICE)
    for canvas, first in enumerate(first_B.tolist()):
        k[canvas, :, :first] = v[canvas, :, :first] = torch.nan
    together = invariant.attention(q, k, v, seen if masked else None, first_B)
    for canvas, length in enumerate(lengths):
        own = q[canvas : canvas + 1], *(held[canvas : canvas + 1, :, keys - length :] for held in (k, v))
        mask = seen[canvas, 0, :, keys - length :] if masked else None
        alone = invariant.attention(*own, mask)
        assert torch.equal(alone, together[canvas : canvas + 1])
        numbers = list(range(rows))
        order.shuffle(numbers)
        some = torch.tensor(numbers[: max(1, rows // 2)], device=DEVICE)
        part = invariant.attention(own[0].index_select(2, some), *own[1:], None if mask is None else mask[some])
        assert torch.equal(part, alone.index_select(2, some))


@needs_triton
def test_a_mask_of_all_columns_changes_no_bit() -> None:
    q, k, v = random(2, 4, 20, 32), random(2, 4, 90, 32, seed=1), random(2, 4, 90, 32, seed=2)
    everything = torch.ones((2, 1, 1, 90), dtype=torch.bool, device=DEVICE)
    assert torch.equal(invariant.attention(q, k, v, everything), invariant.attention(q, k, v))


# -- whole canvases ---------------------------------------------------------------------------------------------------

STEPS = CompileOptions(mode="default", numerics="invariant", regions=False)  # a compiler would take longer than these


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter will do."""
    monkeypatch.setattr(invariant, "check_kernels", lambda device: None)


@needs_triton
@pytest.mark.parametrize(
    ("shape", "dtype", "config"),
    [
        ("dream-tiny", torch.bfloat16, {"steps": 3}),
        ("llada-tiny", torch.float32, {"steps": 3, "temperature": 0.6, "sync": SyncPolicy("exact", topology="hub")}),
        ("llada-tiny", torch.float32, {"steps": 4, "confidence": "margin", "sync": SyncPolicy("none"), "cache": "dkv"}),
    ],
    ids=str,
)
def test_a_canvas_alone_and_in_a_batch(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    anywhere: None,
    shape: str,
    dtype: torch.dtype,
    config: dict[str, Any],
) -> None:
    """Beside canvases with shorter prompts and longer ones: every id and every bit of its score.

    In float32, where an order shows that bfloat16 would round away, keys make two blocks.
    """
    longest = 7 if dtype == torch.bfloat16 else 22
    prompts = [prompt_of(seed, tokens=longest - less) for seed, less in enumerate((0, 9 if longest > 9 else 3, 2))]
    model = copy.deepcopy(tiny_model(shape, 1, dtype)).to(DEVICE)
    executor = InlineExecutor(model, dtype=dtype, device=DEVICE, compiling=STEPS)
    wanted = DecodeConfig(paths=2, **config)

    def run(some: list[tuple[int, ...]]) -> list[list[Any]]:
        layout = nap_layout((5, 4), summary=3, prompt=max(map(len, some)))
        return collect(executor, make_task(layout, wanted, some)).decisions()

    together = run(prompts)
    assert all(len(one) >= 3 for one in together)
    assert [run([prompt])[0] for prompt in prompts] == together


@needs_triton
def test_several_workers_equal_one(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, anywhere: None
) -> None:
    """`exact`: rows are shared, keys and values travel, the summary is scored by both."""
    model = copy.deepcopy(tiny_model("dream-tiny", 2, torch.float32)).to(DEVICE)
    wanted, place = DecodeConfig(paths=2, steps=4), {"dtype": torch.float32, "device": DEVICE}
    layout, prompts = nap_layout((12, 11), summary=4, prompt=9), [prompt_of(0, tokens=9), prompt_of(1, tokens=4)]
    found = []
    for workers in (1, 2):
        executor = InlineExecutor(model, workers=workers, compiling=STEPS, **place)  # type: ignore[arg-type]
        found.append(collect(executor, make_task(layout, wanted, prompts, workers)).decisions())
    assert found[0] == found[1]


@needs_triton
@dtypes
def test_a_models_logits(tiny_model: Any, anywhere: None, dtype: torch.dtype) -> None:
    """Near those of the model, and the bits of a canvas alone, of some of its rows, and of rows in another order."""
    model = copy.deepcopy(tiny_model("dream-tiny", 1, dtype)).to(DEVICE)
    ours, rows = prepare(model, STEPS), torch.arange(21, device=DEVICE)
    ids = torch.randint(0, 90, (3, 21), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    store = store_of(model.config, batch=3, positions=21, dtype=dtype, device=DEVICE)
    with torch.inference_mode():
        whole = ours.logits(ours.forward_rows(ids, rows, StoreAttention(store, rows, None, FixedOrder(None))))
        want = tiny_model("dream-tiny", 1)(ids.cpu()).to(DEVICE)
        bound = 0.05 if dtype == torch.bfloat16 else 1e-4
        assert float((whole.double() - want).norm() / want.norm()) < bound
        some, one = torch.tensor([17, 3, 8], device=DEVICE), store.first(1)
        again = ours.forward_rows(ids[:1, some], some, StoreAttention(one, some, None, FixedOrder(None)))
        assert torch.equal(ours.logits(again), whole[:1, some])
        assert torch.equal(ours.logits(again[:, 1:2]), whole[:1, 3:4])
