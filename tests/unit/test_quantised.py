"""FP8: how far a number may be off, products against plain arithmetic, decodes whose workers still agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.api import decode
from nap_runtime.cli.app import main
from nap_runtime.errors import UsageError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.executor.process import Setup, WorkerProcess
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.loading import load_model
from nap_runtime.models.quantised import (
    FP8,
    PackedStore,
    QuantisedProjection,
    check_fp8,
    dequantise,
    is_quantised,
    quantise,
    quantise_rows,
    scaled_product,
    store_of,
)
from nap_runtime.models.shapes import make_model, shape_config
from nap_runtime.models.transformer import CanvasAttention
from nap_runtime.storage import Storage

sizes = st.integers(1, 40)
seeds = st.integers(0, 10_000)


def drawn(seed: int, *shape: int, spread: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)


@given(sizes, sizes, seeds, st.sampled_from([1e-6, 1.0, 1e5]))
def test_a_number_is_off_by_a_sixteenth_at_most(rows: int, width: int, seed: int, spread: float) -> None:
    x = drawn(seed, rows, width, spread=spread)
    numbers, scale = quantise_rows(x)
    off = (dequantise(numbers, scale, torch.float64) - x).abs()
    assert (off <= torch.maximum(x.abs() / 16 * 1.001, scale.double() * 2**-10 * 1.001)).all()
    assert numbers.dtype == FP8
    assert scale.shape == (rows, 1)


def test_by_hand() -> None:
    """The largest number of a row is exact; 1 of 448 is exact too; 17/16 rounds to even, which is 1; zeros stay."""
    numbers, scale = quantise_rows(torch.tensor([[448.0, 1.0, 17 / 16, -3 * 2.0**-9], [0.0, 0.0, 0.0, 0.0]]))
    assert scale[0].item() == 1.0
    assert numbers.float().tolist() == [[448.0, 1.0, 1.0, -3 * 2.0**-9], [0.0, 0.0, 0.0, 0.0]]
    assert torch.isfinite(dequantise(numbers, scale, torch.float32)).all()


@given(sizes, sizes, sizes, seeds)
def test_a_product_is_that_of_the_numbers_it_holds(rows: int, inputs: int, outputs: int, seed: int) -> None:
    x, w = quantise_rows(drawn(seed, rows, inputs)), quantise_rows(drawn(seed + 1, outputs, inputs))
    want = dequantise(*x, torch.float64) @ dequantise(*w, torch.float64).t()
    got = scaled_product(*x, *w, torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaled_product(*x, *w, torch.float32).double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_is_near_the_one_it_was_made_of(bias: bool) -> None:
    linear = torch.nn.Linear(64, 48, bias=bias)
    packed, x = QuantisedProjection(linear), drawn(3, 2, 5, 64, dtype=torch.float32)
    want, got = linear(x), packed(x)
    assert got.shape == want.shape
    assert got.dtype == torch.float32
    assert 0 < float((got - want).detach().norm() / want.detach().norm()) < 0.06


def test_the_same_as_torchs_own_on_this_device() -> None:
    """`torch._scaled_mm` with a scale a row, where this torch has it for the CPU."""
    x, w = quantise_rows(drawn(1, 32, 64)), quantise_rows(drawn(2, 48, 64))
    try:
        own = torch._scaled_mm(x[0], w[0].t(), scale_a=x[1], scale_b=w[1].t(), out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this torch has no FP8 product with a scale a row on a CPU ({str(error).splitlines()[0]})")
    torch.testing.assert_close(own, scaled_product(*x, *w, torch.bfloat16), rtol=2**-7, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 32, 330])
def test_a_gpu_multiplies_the_same_numbers(rows: int) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no GPU with FP8 products")
    x, w = quantise_rows(drawn(1, rows, 512)), quantise_rows(drawn(2, 256, 512))
    want = scaled_product(*x, *w, torch.bfloat16)
    got = scaled_product(*(part.cuda() for part in (*x, *w)), torch.bfloat16)
    torch.testing.assert_close(got.cpu(), want, rtol=2**-6, atol=0.05)


def test_layers_are_packed_and_the_rest_is_not() -> None:
    config, model = make_model("dream-tiny", seed=1, scale=10.0)
    ids = torch.randint(2, 90, (1, 20), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(20)
    want = model.forward_rows(ids, rows, CanvasAttention())
    assert not is_quantised(model)
    quantise(model)
    assert is_quantised(model)
    kinds = {name: value.dtype for name, value in model.named_parameters()}
    packed = {name for name, dtype in kinds.items() if dtype == FP8}
    assert len(packed) == 4 * config.n_layers
    assert kinds["embed.weight"] == kinds["head.weight"] == kinds["layers.0.attn.qkv.bias"] == torch.float32
    got = model.forward_rows(ids, rows, CanvasAttention())
    assert 0 < float((got - want).detach().norm() / want.detach().norm()) < 0.5
    assert not any(value.requires_grad for value in model.parameters())


def test_errors_name_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fp8("weights", device="cpu", dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UsageError, match=r"weights: 'fp8' needs a GPU of compute capability 8\.9"):
        check_fp8("weights", device="cuda", dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(UsageError, match="use dtype bfloat16"):
        check_fp8("weights", device="cuda", dtype=torch.float32)
    narrow = shape_config("llada-tiny", head_dim=6)
    with pytest.raises(UsageError, match="kv: 'fp8' needs heads of a multiple of 4"):
        store_of(narrow, batch=1, positions=3, dtype=FP8, device="cpu")


def test_a_packed_store_gives_back_what_was_written() -> None:
    config = shape_config("dream-tiny")
    store = store_of(config, batch=2, positions=7, dtype=FP8, device="cpu")
    assert isinstance(store, PackedStore)
    assert store.nbytes == 2 * config.n_layers * 2 * config.n_kv_heads * 7 * (config.head_dim + 4)
    k, v = (drawn(seed, 2, config.n_kv_heads, 3, config.head_dim, dtype=torch.float32) for seed in (1, 2))
    store.write(1, torch.tensor([5, 0, 2]), k, v)
    keys, values = store.read(1, torch.float32)
    for stored, given_ in ((keys, k), (values, v)):
        back = stored[:, :, [5, 0, 2]]
        torch.testing.assert_close(back, dequantise(*quantise_rows(given_), torch.float32), rtol=0, atol=0)
        assert not stored[:, :, [1, 3, 4, 6]].any()


POLICIES = [
    SyncPolicy(),
    SyncPolicy("tokens"),
    SyncPolicy("shared"),
    SyncPolicy("kv", every=2),
    SyncPolicy("none", topology="isolated"),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.mode)
@pytest.mark.parametrize("kv", [FP8, torch.float64], ids=["fp8", "native"])
def test_workers_agree_as_they_do_without(
    nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, policy: SyncPolicy, kv: torch.dtype
) -> None:
    """Where a sync equals one device, it does so with FP8 weights and with FP8 keys and values too."""
    model = quantise(make_model("dream-tiny", seed=2, dtype=torch.float64, scale=10.0)[1])
    config = DecodeConfig(paths=2, steps=8, sync=policy)
    layout, prompts = nap_layout([5, 4]), [prompt_of(1), prompt_of(2, 3)]

    def decoded(workers: int) -> Any:
        executor = InlineExecutor(model, workers=workers, dtype=kv)
        return collect(executor, make_task(layout, config, prompts, workers))

    one, two = decoded(1), decoded(2)
    assert len(two.commits()) == layout.n_slots
    if policy.mode != "kv":
        assert [two.commits(canvas) for canvas in (0, 1)] == [one.commits(canvas) for canvas in (0, 1)]


def test_a_sync_of_fp8_sends_about_half_of_what_bfloat16_does(
    nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any
) -> None:
    model = make_model("llada-tiny", seed=2, dtype=torch.bfloat16, scale=10.0)[1]
    config, sent = DecodeConfig(paths=2, steps=8, sync=SyncPolicy("kv", every=4)), {}
    for kv in (FP8, torch.bfloat16):
        task = make_task(nap_layout([5, 5], ends=(1,)), config, [prompt_of(1)], 2)
        outcome = collect(InlineExecutor(model, workers=2, dtype=kv), task).outcomes[0]
        sent[kv] = outcome.meters.wire_bytes
    width = shape_config("llada-tiny").head_dim
    told = sent[torch.bfloat16] * (width + 4) / (2 * width)
    assert abs(sent[FP8] - told) < 600  # the tokens of the end are the same in both


def test_a_replacement_takes_fp8_weights_from_a_peer() -> None:
    """Byte for byte, scales too, without reading files."""
    where: dict[str, Any] = {"device": "cpu", "compile": "none", "threads": 1, "timeout": 5.0}
    setup = Setup(model="nap-tiny", dtype="bfloat16", storage=Storage(weights="fp8"), **where)
    living, fresh = WorkerProcess(setup), WorkerProcess(setup)
    living.load()
    fresh.load(living.host_copy())
    models = living._model, fresh._model
    assert all(model is not None and is_quantised(model) for model in models)
    pairs = zip(*(model.named_parameters() for model in models if model is not None), strict=True)
    for (name, one), (_, other) in pairs:
        assert one.dtype == other.dtype, name
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name


def test_decode_takes_storage_and_its_records_say_so() -> None:
    asked = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
    config = DecodeConfig(steps=8)
    plain = decode(asked, config)
    packed = decode(asked, config, storage=Storage(weights="fp8", kv="fp8"))
    assert packed.record.model["fingerprint"] == f"{plain.record.model['fingerprint']}+weights-fp8+kv-fp8"
    loaded = load_model("nap-tiny")
    with pytest.raises(UsageError, match="weights: a loaded model keeps its own"):
        decode(asked, config, model=loaded, storage=Storage(weights="fp8"))
    quantise(loaded.model)
    again = decode(asked, config, model=loaded, storage=Storage(weights="fp8", kv="fp8"))
    assert again.record.final_ids.tolist() == packed.record.final_ids.tolist()
    with pytest.raises(UsageError, match="kv: unknown value 'int8'"):
        Storage(kv="int8")  # type: ignore[arg-type]


def test_nap_eval_counts_with_fp8_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    line = "eval words --n 2 --tokens-per-step 30 --neighbours 0 --batch-size 2 --weights fp8 --kv fp8"
    assert main(line.split()) == 0
    assert "nap-tiny, float32+weights-fp8+kv-fp8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weights int4", "--weights: unknown value 'int4'"),
        ("--kv fp4", "--kv: unknown value 'fp4'"),
        ("--bucket 8", "--bucket: one canvas makes no batch; give --batch-size too"),
        ("--device cuda --weights fp8", "--weights: 'fp8' on a GPU gives bfloat16; use dtype bfloat16"),
    ],
)
def test_the_command_line_refuses(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "hello", *options.split()]) == 2
    assert message in capsys.readouterr().err
