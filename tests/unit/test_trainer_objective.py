"""What is hidden, what it weighs, who sees whom: cases by hand, the decoder as oracle, independence of shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.quantised import store_of
from nap_runtime.models.shapes import make_model
from nap_runtime.models.transformer import CanvasAttention, KVStore
from nap_trainer.objective.draws import Draws, Use
from nap_trainer.objective.forward import PATTERNS, DeviceBatch, ForwardProcess, Masked, with_unknown
from nap_trainer.objective.loss import DiffusionLoss, region_sums, shares
from nap_trainer.objective.views import Views, visible
from nap_trainer.objective.weights import slot_weights
from nap_trainer.settings import ObjectiveSection

MASK = 95
BUDGETS, SUMMARY, PROMPT = (6, 5), 4, 3


def section(**keys: Any) -> ObjectiveSection:
    return ObjectiveSection.model_validate({"weighting": "constant", **keys})


@pytest.fixture
def batch(nap_layout: Any) -> DeviceBatch:
    """Eight canvases of one layout, two positions of nothing at the end; the last two slots of every block pad."""
    layout: CanvasLayout = nap_layout(BUDGETS, SUMMARY, PROMPT)
    n = layout.size + 2
    generator = torch.Generator().manual_seed(0)
    ids_BN = torch.randint(30, 90, (8, n), generator=generator)
    block_N, header_N, text_N = (torch.zeros(n, dtype=torch.int64) for _ in range(3))
    for index, each in enumerate(layout.blocks):
        block_N[each.slots.start : each.slots.stop] = index + 1
        header_N[each.header.start : each.header.stop] = index + 1
        text_N[each.slots.start : each.slots.stop - 2] = 1
    owner_N = torch.full((n,), -2)
    owner_N[: layout.size] = torch.from_numpy(layout._owner())
    return DeviceBatch(
        ids_BN=ids_BN,
        block_BN=block_N.repeat(8, 1),
        header_BN=header_N.repeat(8, 1),
        owner_BN=owner_N.repeat(8, 1),
        text_BN=text_N.bool().repeat(8, 1),
        index_B=torch.arange(8),
        blocks=3,
        summary=True,
        full=False,
    )


def forward(settings: ObjectiveSection, *, learn_padding: bool = True, size: int = 8) -> ForwardProcess:
    return ForwardProcess(settings, global_batch=size, learn_padding=learn_padding, mask_id=MASK, seed=3)


def rows(batch: DeviceBatch, keep: slice) -> DeviceBatch:
    tensors = {name: getattr(batch, name)[keep] for name in DeviceBatch.__slots__ if name.endswith(("_BN", "_B"))}
    return replace(batch, **tensors)


def repeated(batch: DeviceBatch, times: int) -> DeviceBatch:
    tensors = {name: getattr(batch, name).repeat(times, 1) for name in DeviceBatch.__slots__ if name.endswith("_BN")}
    return replace(batch, **tensors, index_B=torch.arange(times * len(batch.index_B)))


# --- draws ---


def test_draws_are_uniform_and_named_by_canvas_and_step() -> None:
    index_B = torch.arange(400)
    drawn = Draws(1, 5).slots(index_B, 50, Use.HIDE)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(Draws(1, 5).slots(index_B[7:9], 50, Use.HIDE), drawn[7:9])
    for other in (Draws(2, 5), Draws(1, 6)):
        assert not torch.equal(other.slots(index_B, 50, Use.HIDE), drawn)
    assert not torch.equal(Draws(1, 5).slots(index_B, 50, Use.STALE), drawn)


def test_compiled_draws_are_the_same_bits() -> None:
    for seed, step, canvases in ((0, 0, 16), (2**40 + 7, 2**20, 24)):
        eager, fused, index_B = Draws(seed, step), Draws(seed, step, fused=True), torch.arange(canvases) + 2**33
        assert torch.equal(fused.slots(index_B, 50, Use.HIDE), eager.slots(index_B, 50, Use.HIDE))


def test_stratified_has_one_canvas_in_each_part() -> None:
    [t_B] = Draws(0, 9).spread(torch.arange(64), 64, [Use.T], kind="stratified")
    assert sorted((t_B * 64).floor().long().tolist()) == list(range(64))
    assert t_B.tolist() != t_B.sort().values.tolist()
    [part_B, other_B] = Draws(0, 9).spread(torch.arange(10, 20), 64, [Use.T, Use.PATTERN], kind="stratified")
    assert torch.equal(part_B, t_B[10:20])
    assert not torch.equal(part_B, other_B)


def test_antithetic_pairs_sum_to_one() -> None:
    [t_B] = Draws(0, 9).spread(torch.arange(64), 64, [Use.T], kind="antithetic")
    torch.testing.assert_close(t_B[::2] + t_B[1::2], torch.ones(32))
    assert len(set(t_B[::2].tolist())) == 32


# --- what is hidden ---


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("learn", [True, False])
def test_prompt_headers_and_outside_are_never_hidden(batch: DeviceBatch, pattern: str, learn: bool) -> None:
    process = forward(section(patterns={pattern: 1.0}), learn_padding=learn)
    slots = batch.block_BN > 0 if learn else batch.text_BN
    for step in range(20):
        masked = process(batch, step)
        assert not masked.hidden_BN[~slots].any()
        assert torch.equal(masked.noisy_BN == MASK, masked.hidden_BN)
        assert torch.equal(masked.noisy_BN[~masked.hidden_BN], batch.ids_BN[~masked.hidden_BN])
        assert torch.equal(masked.slots_B, slots.sum(1))


def test_headers_may_be_learnt(batch: DeviceBatch) -> None:
    process = forward(section(headers="learn"))
    hidden = torch.stack([process(batch, step).hidden_BN for step in range(50)]).any(0)
    assert torch.equal(hidden, (batch.block_BN > 0) | (batch.header_BN > 0))


def test_rate_is_t(batch: DeviceBatch) -> None:
    """With t stratified over many canvases, half of all slots are hidden, and a canvas's share is near its own t."""
    many = repeated(batch, 100)
    masked = forward(section(weighting="original"), size=800)(many, 0)
    assert float(masked.hidden_BN.sum() / (many.block_BN > 0).sum()) == pytest.approx(0.5, abs=0.02)
    [t_B] = Draws(3, 0).spread(many.index_B, 800, [Use.T], kind="stratified")
    share_B = masked.hidden_BN.sum(1) / (many.block_BN > 0).sum(1)
    assert float((share_B - t_B).abs().mean()) < 0.12  # 15 slots: a binomial's mean deviation is below 0.11


@pytest.mark.parametrize(
    ("pattern", "paths_hidden", "summary_hidden"),
    [("paths", None, True), ("per-path", None, True), ("summary", False, None), ("paths-hidden", True, None)],
)
def test_patterns(batch: DeviceBatch, pattern: str, paths_hidden: bool | None, summary_hidden: bool | None) -> None:
    process = forward(section(patterns={pattern: 1.0}, aside=0.25))
    is_summary = batch.block_BN == 3
    is_path = (batch.block_BN > 0) & ~is_summary
    seen: dict[str, set[bool]] = {"path": set(), "summary": set()}
    for step in range(30):
        masked = process(batch, step)
        seen["path"] |= set(masked.hidden_BN[is_path].tolist())
        seen["summary"] |= set(masked.hidden_BN[is_summary].tolist())
        aside = is_summary if summary_hidden else is_path if paths_hidden else torch.zeros_like(is_path)
        assert set(masked.weight_BN[aside & masked.hidden_BN].tolist()) <= {0.25}
        assert set(masked.weight_BN[~aside & masked.hidden_BN].tolist()) <= {1.0}
    assert seen["path"] == ({True, False} if paths_hidden is None else {paths_hidden})
    assert seen["summary"] == ({True, False} if summary_hidden is None else {summary_hidden})


def test_per_path_is_often_extreme(batch: DeviceBatch) -> None:
    many = repeated(batch, 100)
    masked = forward(section(patterns={"per-path": 1.0}), size=800)(many, 0)
    hidden = (masked.hidden_BN & (many.block_BN == 1)).sum(1)
    assert 0.15 <= float((hidden == 0).float().mean()) < 0.35
    assert 0.15 <= float((hidden == BUDGETS[0]).float().mean()) < 0.35


def test_structured(batch: DeviceBatch) -> None:
    """Tags never; paths at 0.9 t; the summary wholly where 1 − t < 0.8, else the more the later the slot."""
    many = repeated(batch, 500)
    masked = forward(section(patterns={"structured": 1.0}), size=4000)(many, 0)
    t_B = Draws(3, 0).spread(many.index_B, 4000, [Use.T], kind="stratified")[0] * (1 - 1e-3) + 1e-3
    tag_N = torch.zeros(batch.ids_BN.shape[1], dtype=torch.bool)
    for block, budget in enumerate((*BUDGETS, SUMMARY), start=1):
        tag_N[int((batch.block_BN[0] == block).nonzero()[0]) + budget - 3] = True  # the text ends two before the budget
    assert not masked.hidden_BN[:, tag_N].any()
    path = (many.block_BN == 1) & ~tag_N
    share_B = (masked.hidden_BN & path).sum(1) / path.sum(1)
    assert float((share_B - 0.9 * t_B).mean()) == pytest.approx(0.0, abs=0.02)
    summary = (many.block_BN == 3) & ~tag_N
    all_B = (masked.hidden_BN & summary).sum(1) == summary.sum(1)
    assert bool(all_B[1 - t_B < 0.8].all())
    low = 1 - t_B >= 0.8
    places = summary[0].nonzero().flatten()
    for place in places.tolist():
        z = (place - int((batch.block_BN[0] == 3).nonzero()[0])) / (SUMMARY - 1)
        wanted = (0.9 * t_B[low] * (1 + z)).clamp(max=1).mean()
        assert float(masked.hidden_BN[low, place].float().mean()) == pytest.approx(float(wanted), abs=0.04)


def test_unknown_words_are_of_the_prompt(batch: DeviceBatch) -> None:
    words_V = torch.zeros(96, dtype=torch.bool)
    words_V[30:60] = True
    changed = with_unknown(batch, 1.0, words_V, 2, Draws(0, 0))
    hit = (batch.owner_BN == -1) & words_V[batch.ids_BN]
    assert torch.equal(changed.ids_BN == 2, hit)
    assert hit.any()


def test_masks_do_not_depend_on_shares(batch: DeviceBatch) -> None:
    """1 × 8, 2 × 4 and 4 × 2 canvases hide the same slots."""
    settings = section(patterns={"uniform": 0.5, "per-path": 0.5}, weighting="original")
    whole = forward(settings)(batch, 4)
    for size in (4, 2):
        parts = [forward(settings)(rows(batch, slice(at, at + size)), 4) for at in range(0, 8, size)]
        assert torch.equal(torch.cat([part.noisy_BN for part in parts]), whole.noisy_BN)
        assert torch.equal(torch.cat([part.weight_BN for part in parts]), whole.weight_BN)


# --- weights and averages, by hand ---


def test_weightings_by_hand() -> None:
    t_BN = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    hidden_BN = torch.tensor([[False, True, False, True]])
    real_BN = torch.ones_like(hidden_BN)
    by_hand = {
        "constant": [0, 1, 0, 1],
        "original": [0, 2, 0, 2],
        "linear": [0, 0.5, 0, 0.5],
        # p = 0.1: slot 1 sees 0 and 2 next to it: ½(0.1 + 0.1); slot 3 sees 2 and, three away, 0: ½(0.1 + 0.1·0.9²)
        "cart": [0, 0.1, 0, 0.5 * (0.1 + 0.1 * 0.81)],
    }
    for name, wanted in by_hand.items():
        weights = slot_weights(name, t_BN, hidden_BN, real_BN, cart_p=0.1)  # type: ignore[arg-type]
        torch.testing.assert_close(weights, torch.tensor([wanted], dtype=torch.float32))


def test_cart_does_not_see_outside_the_canvas() -> None:
    hidden_BN = torch.tensor([[True, False, False]])
    real_BN = torch.tensor([[True, True, False]])
    weights = slot_weights("cart", torch.ones(1, 3), hidden_BN, real_BN, cart_p=0.2)
    torch.testing.assert_close(weights, torch.tensor([[0.1, 0.0, 0.0]]))


def test_normalisations_by_hand() -> None:
    hidden_BN = torch.tensor([[True, True, False, False], [True, False, False, False]])
    weight_BN = torch.where(hidden_BN, torch.tensor([[2.0], [4.0]]), 0.0)
    masked = Masked(
        noisy_BN=torch.zeros(2, 4, dtype=torch.int64),
        hidden_BN=hidden_BN,
        weight_BN=weight_BN,
        block_BN=torch.ones(2, 4, dtype=torch.int64),
        slots_B=torch.tensor([4, 2]),
    )
    losses_BN = torch.tensor([[1.0, 3.0, 9.0, 9.0], [5.0, 9.0, 9.0, 9.0]])
    nap, divisor = shares(masked, section(normalisation="nap"))
    assert float((nap * losses_BN).sum() / divisor) == pytest.approx((2 * 1 + 2 * 3 + 4 * 5) / 3)  # Σ w·CE / #masked
    llada, divisor = shares(masked, section(normalisation="llada"))
    by_canvas = ((2 * 1 + 2 * 3) / 4 + (4 * 5) / 2) / 2  # each by its own length, then the mean of the canvases
    assert float((llada * losses_BN).sum() / divisor) == pytest.approx(by_canvas)
    assert region_sums(losses_BN, masked, 2, summary=True).tolist() == [9.0, 3.0, 0.0, 0.0]


# --- the network's part ---


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
@pytest.mark.parametrize("chunk", [3, 10_000])
def test_loss_is_cross_entropy_of_the_right_rows(batch: DeviceBatch, tiny_model: Any, shape: str, chunk: int) -> None:
    """LLaDA scores a position from its own row, Dream from the row before."""
    model = tiny_model(shape)
    masked = forward(section())(batch, 0)
    view = Views(section(), mask_id=MASK, seed=3)(batch, masked, 0)
    loss, losses_BN = DiffusionLoss(model, head_chunk=chunk)(
        view.ids_BR, view.positions_R, view.mask, view.start, batch.ids_BN, masked.weight_BN
    )
    logits_BNV = model(masked.noisy_BN, batch.real_BN[:, None, None])
    total = 0.0
    for b, i in masked.hidden_BN.nonzero().tolist():
        row = i - 1 if shape == "dream-tiny" else i
        one = F.cross_entropy(logits_BNV[b, row].float(), batch.ids_BN[b, i])
        assert float(losses_BN[b, i]) == pytest.approx(float(one), rel=1e-5)
        total += float(one)
    assert float(loss) == pytest.approx(total, rel=1e-5)


def test_chunks_give_the_same_gradient(batch: DeviceBatch) -> None:
    gradients: list[list[Tensor]] = []
    masked = forward(section())(batch, 0)
    view = Views(section(), mask_id=MASK, seed=3)(batch, masked, 0)
    for chunk in (7, 10_000):
        _, model = make_model("llada-tiny", seed=0, scale=5.0)
        inputs = (view.ids_BR, view.positions_R, view.mask, view.start, batch.ids_BN, masked.weight_BN)
        DiffusionLoss(model, head_chunk=chunk)(*inputs)[0].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("topology", ["full", "hub", "isolated"])
def test_visible_is_the_decoders(batch: DeviceBatch, nap_layout: Any, topology: str) -> None:
    layout: CanvasLayout = nap_layout(BUDGETS, SUMMARY, PROMPT)
    kinds = torch.full((8,), ["full", "hub", "isolated"].index(topology))
    inside = slice(0, layout.size)
    seen = visible(batch, kinds)[0].numpy()
    np.testing.assert_array_equal(seen[inside, inside], layout.visible(topology))  # type: ignore[arg-type]
    assert not seen[inside, layout.size :].any()


def test_mixed_draws_every_topology(batch: DeviceBatch) -> None:
    views = Views(section(topology="mixed"), mask_id=MASK, seed=0)
    kinds = views._kinds(repeated(batch, 50), Draws(0, 0))
    assert sorted(set(kinds.tolist())) == [0, 1, 2]


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_staleness_is_what_a_worker_sees(batch: DeviceBatch, tiny_model: Any, shape: str) -> None:
    """Rows of a path, run side by side with the canvas as it was, equal a worker's rows between two syncs.

    The worker: a K/V store filled by the whole canvas as of the sync, then its own rows alone on newer ids.
    """
    model = tiny_model(shape)
    settings = section(staleness=3)
    masked = forward(settings)(batch, 2)
    view = Views(settings, mask_id=MASK, seed=3)(batch, masked, 2)
    n = batch.ids_BN.shape[1]
    was_BN, now_BN = view.ids_BR[:, :n], view.ids_BR[:, n:]
    assert torch.equal(now_BN, masked.noisy_BN)
    assert (was_BN != now_BN).any()
    assert bool((was_BN[was_BN != now_BN] == MASK).all())
    with torch.no_grad():
        got = model.forward_rows(view.ids_BR, view.positions_R, CanvasAttention(view.mask))[:, n:]
        all_N = torch.arange(n)
        store = store_of(model.config, batch=8, positions=n, dtype=torch.float64, device="cpu")
        real = batch.real_BN[0].expand(n, n)
        model.forward_rows(was_BN, all_N, StoreAttention(store, all_N, real))
        for path in range(2):
            own_R = (batch.owner_BN[0] == path).nonzero().flatten()
            copy = KVStore(store.k_LBGNE.clone(), store.v_LBGNE.clone())
            wanted = model.forward_rows(now_BN[:, own_R], own_R, StoreAttention(copy, own_R, real[own_R]))
            torch.testing.assert_close(got[:, own_R], wanted, rtol=1e-9, atol=1e-9)
        fresh = model.forward_rows(now_BN, all_N, CanvasAttention(batch.real_BN[:, None, None]))
        summary_R = (batch.owner_BN[0] == 2).nonzero().flatten()
    assert not torch.allclose(got[:, own_R], fresh[:, own_R], rtol=1e-3)
    assert torch.isfinite(got[:, summary_R]).all()


def test_no_age_is_no_staleness(batch: DeviceBatch, tiny_model: Any) -> None:
    """Where nothing was hidden since, both halves are the plain forward."""
    model = tiny_model("llada-tiny")
    settings = section(staleness=3, stale_share=0.0)
    masked = forward(settings)(batch, 2)
    view = Views(settings, mask_id=MASK, seed=3)(batch, masked, 2)
    n = batch.ids_BN.shape[1]
    plain = Views(section(), mask_id=MASK, seed=3)(batch, masked, 2)
    with torch.no_grad():
        both = model.forward_rows(view.ids_BR, view.positions_R, CanvasAttention(view.mask))
        one = model.forward_rows(plain.ids_BR, plain.positions_R, CanvasAttention(plain.mask))
    real = batch.real_BN
    torch.testing.assert_close(both[:, n:][real], one[real], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(both[:, :n][real], one[real], rtol=1e-9, atol=1e-9)
