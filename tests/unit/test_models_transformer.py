"""Rows, stores, partial attention: every way to compute a canvas gives the whole-canvas logits."""

from __future__ import annotations

import pytest
import torch

from nap_runtime.errors import ModelError
from nap_runtime.models.attention import StoreAttention, merge_partials, partial_attention
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.quantised import store_of
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.shapes import make_model
from nap_runtime.models.transformer import DiffusionTransformer, KVStore

B, N = 2, 30
SHAPES = ["llada-tiny", "dream-tiny"]  # without and with grouped heads


def toy(shape: str, dtype: torch.dtype = torch.float64) -> tuple[ModelConfig, DiffusionTransformer]:
    config, model = make_model(shape, seed=3, dtype=dtype, scale=10.0)
    return config, model.requires_grad_(False)


def canvas(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 96, (B, N), generator=torch.Generator().manual_seed(seed))


def store_for(config: ModelConfig, dtype: torch.dtype = torch.float64) -> KVStore:
    return store_of(config, batch=B, positions=N, dtype=dtype, device="cpu")


def random_mask(*shape: int) -> torch.Tensor:
    """Half of the keys seen, and in any case the first."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.5
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
def test_parameter_count_is_the_configs(shape: str) -> None:
    config, model = toy(shape)
    assert sum(weight.numel() for weight in model.parameters()) == config.n_params
    tied, tied_model = make_model(shape, seed=0, tied_head=True)
    assert sum(weight.numel() for weight in tied_model.parameters()) == tied.n_params < config.n_params


def test_published_sizes_follow_from_the_shapes() -> None:
    from nap_runtime.models.shapes import shape_config

    llada, dream = shape_config("llada-8b"), shape_config("dream-7b")
    assert round(llada.n_params / 1e9, 1) == 8.0
    assert round(dream.n_params / 1e9, 1) == 7.6
    assert llada.kv_bytes_per_token(2) == 512 * 1024
    assert dream.kv_bytes_per_token(2) == 56 * 1024


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_all_rows_through_a_store_equal_forward(shape: str, masked: bool) -> None:
    config, model = toy(shape)
    mask_NN = random_mask(N, N) if masked else None
    rows_R = torch.arange(N)
    hidden = model.forward_rows(canvas(), rows_R, StoreAttention(store_for(config), rows_R, mask_NN))
    torch.testing.assert_close(model.logits(hidden), model(canvas(), mask_NN), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_split_of_rows_equals_forward(shape: str) -> None:
    """With the store of a finished forward, recomputing any rows changes nothing."""
    config, model = toy(shape)
    ids, expected, store = canvas(), model(canvas()), store_for(config)
    everything = torch.arange(N)
    model.forward_rows(ids, everything, StoreAttention(store, everything))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    for rows_R in order.split([1, 7, 22]):
        hidden = model.forward_rows(ids[:, rows_R], rows_R, StoreAttention(store, rows_R))
        torch.testing.assert_close(model.logits(hidden), expected[:, rows_R], rtol=0, atol=1e-12)


def test_rows_over_a_stale_store_see_the_old_keys() -> None:
    """Changed tokens elsewhere are not seen until their rows are computed; own rows are fresh."""
    config, model = toy("llada-tiny")
    old, new, store = canvas(0), canvas(1), store_for(config)
    everything, own = torch.arange(N), torch.arange(10, 20)
    model.forward_rows(old, everything, StoreAttention(store, everything))
    before = store.k_LBGNE.clone()
    hidden = model.forward_rows(new[:, own], own, StoreAttention(store, own))
    others = [i for i in range(N) if i not in range(10, 20)]
    assert torch.equal(store.k_LBGNE[..., others, :], before[..., others, :])
    assert not torch.equal(store.k_LBGNE[..., 10:20, :], before[..., 10:20, :])

    mixed = old.clone()
    mixed[:, own] = new[:, own]
    one_layer = DiffusionTransformer(make_model("llada-tiny", seed=3, n_layers=1)[0], dtype=torch.float64)
    one_layer.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("layers.1")})
    assert not torch.allclose(model.logits(hidden), model(mixed)[:, own], atol=1e-6)
    shallow = store_for(one_layer.config)
    one_layer.forward_rows(old, everything, StoreAttention(shallow, everything))
    fresh = one_layer.forward_rows(new[:, own], own, StoreAttention(shallow, own))
    # With one layer, keys depend on their own token only, so a stale store is exact.
    torch.testing.assert_close(one_layer.logits(fresh), one_layer(mixed)[:, own], rtol=0, atol=1e-12)


def test_positions_are_relative_to_nothing_but_the_canvas() -> None:
    _, model = toy("llada-tiny")
    shifted = model(canvas(), positions=torch.arange(5, 5 + N))
    torch.testing.assert_close(shifted, model(canvas()), rtol=0, atol=1e-9)  # rotary: only distances count
    spread = model(canvas(), positions=torch.arange(N) * 2)
    assert not torch.allclose(spread, model(canvas()), atol=1e-3)
    per_canvas = torch.stack([torch.arange(N), torch.arange(N) * 2])
    torch.testing.assert_close(model(canvas(), positions=per_canvas)[1], spread[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mask_shape", [None, (N, N), (1, N), (B, 1, N, N), (B, 8, N, N), (B, 8, 1, N)])
def test_grouped_attention_equals_repeated_keys(dtype: torch.dtype, mask_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(B, 8, N, 16), torch.randn(B, 2, N, 16), torch.randn(B, 2, N, 16)
    mask = None if mask_shape is None else random_mask(*mask_shape)
    got = grouped_sdpa(q.to(dtype), k.to(dtype), v.to(dtype), mask)
    wide_k, wide_v = k.to(dtype).repeat_interleave(4, 1), v.to(dtype).repeat_interleave(4, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(q.to(dtype), wide_k, wide_v, attn_mask=mask)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert got.dtype == dtype


@pytest.mark.parametrize("kv_heads", [2, 8])
def test_partials_over_disjoint_keys_merge_to_full_attention(kv_heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(B, 8, 5, 16, dtype=torch.float64)
    k, v = torch.randn(2, B, kv_heads, N, 16, dtype=torch.float64)
    mask_RN = random_mask(5, N)
    mask_RN[2, 10:] = False  # a row that sees keys of the first part only
    cuts = torch.arange(N).split([10, 0, 7, 13])
    parts = [partial_attention(q, k[:, :, cut], v[:, :, cut], mask_RN[:, cut]) for cut in cuts]
    merged = merge_partials(torch.stack([o for o, _ in parts]), torch.stack([lse for _, lse in parts]))
    torch.testing.assert_close(merged, grouped_sdpa(q, k, v, mask_RN), rtol=0, atol=1e-12)
    assert torch.isneginf(parts[1][1]).all()
    assert torch.isneginf(parts[3][1][:, :, 2]).all()
    assert not parts[3][0][:, :, 2].any()


def test_a_row_that_sees_nothing_is_zero() -> None:
    q = torch.randn(1, 2, 3, 8)
    o, lse = partial_attention(q, q, q, torch.zeros(3, 3, dtype=torch.bool))
    merged = merge_partials(torch.stack([o, o]), torch.stack([lse, lse]))
    assert not o.any()
    assert torch.equal(merged, torch.zeros_like(q))


def test_partials_of_bfloat16_keep_a_wide_log_sum() -> None:
    q = torch.randn(1, 2, 3, 8, dtype=torch.bfloat16)
    o, lse = partial_attention(q, q, q)
    assert (o.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    merged = merge_partials(o.unsqueeze(0), lse.unsqueeze(0))
    torch.testing.assert_close(merged, grouped_sdpa(q, q, q), rtol=2e-2, atol=2e-2)


def test_bfloat16_is_near_float32_and_keeps_wide_rotary_tables() -> None:
    _, wide = toy("dream-tiny", torch.float32)
    config, narrow = toy("dream-tiny", torch.bfloat16)
    assert narrow.rope.cos.dtype == torch.float32
    rows_R = torch.arange(N)
    attend = StoreAttention(store_for(config, torch.bfloat16), rows_R)
    logits = narrow.logits(narrow.forward_rows(canvas(), rows_R, attend))
    assert logits.dtype == torch.bfloat16
    error = (logits.float() - wide(canvas())).norm() / wide(canvas()).norm()
    assert error < 0.05
    converted = wide.to(torch.bfloat16)
    assert converted.rope.cos.dtype == torch.float32
    assert converted.to(torch.float64).rope.cos.dtype == torch.float64


def test_it_trains_and_checkpointing_changes_no_gradient() -> None:
    _, model = make_model("dream-tiny", seed=1, dtype=torch.float64, scale=5.0)
    model.train()
    grads = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(canvas()).flatten(0, 1), canvas(1).flatten()).backward()
        grads.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    assert len(grads[0]) == len(list(model.parameters()))
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-12)


def test_the_module_traces_without_graph_breaks() -> None:
    config, model = toy("dream-tiny", torch.float32)
    rows_R, store = torch.arange(N), store_for(config, torch.float32)
    compiled = torch.compile(model.forward_rows, fullgraph=True, backend="aot_eager")
    hidden = compiled(canvas(), rows_R, StoreAttention(store, rows_R, random_mask(N, N)))
    torch.testing.assert_close(model.logits(hidden), model(canvas(), random_mask(N, N)), rtol=1e-4, atol=1e-4)
    assert store.k_LBGNE.any()


def test_random_weights_follow_the_seed_only() -> None:
    _, first = make_model("llada-tiny", seed=1)
    _, again = make_model("llada-tiny", seed=1)
    _, other = make_model("llada-tiny", seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)
    assert make_model("llada-tiny", seed=1, scale=10.0)[1](canvas()).std() > 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_heads": 3, "n_kv_heads": 2}, "multiple of n_kv_heads"),
        ({"n_layers": 0}, "n_layers"),
        ({"head_dim": 15}, "even"),
        ({"mask_id": 96}, "mask_id 96 is outside"),
        ({"end_ids": (94, 99)}, "end_ids"),
        ({"family": "gpt"}, "'gpt' is unknown"),
        ({"rope_theta": 0.0}, "rope_theta"),
    ],
)
def test_invalid_configurations_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        make_model("llada-tiny", seed=0, **change)
