"""Masks stay on slots, patterns show what they promise, and the loss is what a hand computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nap_runtime.errors import UsageError
from nap_trainer.dataset import Batch
from nap_trainer.objective import (
    PATTERNS,
    Masked,
    Objective,
    Pattern,
    Weighting,
    normalised,
    region_means,
    slot_losses,
    stratified,
    weigh,
)

# prompt prompt | head slot slot | head slot slot | head slot slot | padding
REGIONS = torch.tensor([0, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 0])
MASK = 9


def batch(size: int = 256) -> Batch:
    regions = REGIONS.expand(size, -1)
    return Batch(torch.full(regions.shape, 4), regions, torch.ones(regions.shape, dtype=torch.bool))


def objective(weighting: Weighting = "constant", aside: float = 0.5) -> Objective:
    mix = dict.fromkeys(PATTERNS, 1.0)
    return Objective(mix=mix, weighting=weighting, aside=aside, paths=2, mask_id=MASK)


def masked(pattern: Pattern, weighting: Weighting = "constant") -> Masked:
    which = torch.full((256,), PATTERNS.index(pattern))
    return objective(weighting).mask(batch(), torch.Generator().manual_seed(0), which)


def hidden(result: Masked, region: int) -> Tensor:
    return result.hidden_BN[:, region == REGIONS]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_only_slots_are_masked(pattern: Pattern) -> None:
    result = masked(pattern)
    assert not hidden(result, 0).any()
    assert (result.noisy_BN[result.hidden_BN] == MASK).all()
    assert (result.noisy_BN[~result.hidden_BN] == 4).all()
    assert (result.weight_BN[~result.hidden_BN] == 0).all()


def test_patterns_show_what_decoding_shows() -> None:
    assert hidden(masked("paths"), 3).all()
    assert hidden(masked("per-path"), 3).all()
    assert not hidden(masked("summary"), 1).any()
    assert hidden(masked("paths-hidden"), 1).all()
    assert hidden(masked("paths-hidden"), 2).all()
    for pattern, region in (
        ("uniform", 3),
        ("uniform", 1),
        ("paths", 1),
        ("summary", 3),
        ("paths-hidden", 3),
    ):
        assert hidden(masked(pattern), region).float().mean() == pytest.approx(0.5, abs=0.08)


def test_per_path_shows_full_beside_empty() -> None:
    result = masked("per-path")
    full, empty = ~hidden(result, 1).any(1), hidden(result, 2).all(1)
    assert (full & empty).float().mean() > 0.03


def test_aside_blocks_have_their_own_weight() -> None:
    result = masked("paths")
    assert (result.weight_BN[:, REGIONS == 3] == 0.5).all()
    assert set(result.weight_BN[:, REGIONS == 1].unique().tolist()) <= {0.0, 1.0}


def test_weights_by_hand() -> None:
    t = torch.tensor([0.25, 1.0, 0.0])
    assert weigh(t, "constant").tolist() == [1, 1, 1]
    assert weigh(t, "linear").tolist() == [0.75, 0, 1]
    assert weigh(t, "original").tolist() == pytest.approx([4, 1, 1000])


def test_loss_by_hand() -> None:
    logits = torch.zeros(1, 3, 4)
    losses = slot_losses(logits, torch.zeros(1, 3, dtype=torch.long))
    result = Masked(
        torch.zeros(1, 3, dtype=torch.long),
        torch.tensor([[True, True, False]]),
        torch.tensor([[1.0, 3.0, 0.0]]),
    )
    # two masked slots, weights 1 and 3, each log 4
    assert normalised(losses, result).item() == pytest.approx(2 * torch.log(torch.tensor(4.0)).item())


def test_padding_inside_a_block_counts() -> None:
    """End-of-text slots are slots: the region says so, whatever token they hold."""
    result = masked("paths-hidden")
    path, summary = region_means(result.hidden_BN, result.hidden_BN, REGIONS.expand(256, -1), 2)
    assert (path.item(), summary.item()) == (1, 1)
    assert (result.weight_BN[:, REGIONS == 2] == 0.5).all()


def test_t_is_stratified() -> None:
    values = stratified(64, torch.Generator().manual_seed(1), torch.device("cpu"))
    assert sorted((values * 64).long().tolist()) == list(range(64))


def test_patterns_come_in_their_shares() -> None:
    shares = Objective(
        mix={"paths": 3, "summary": 1}, weighting="constant", aside=1, paths=2, mask_id=MASK
    ).draw_patterns(400, torch.Generator().manual_seed(0), torch.device("cpu"))
    counts = [int((shares == i).sum()) for i in range(len(PATTERNS))]
    assert counts == [0, 300, 0, 100, 0]


def test_unknown_pattern_is_named() -> None:
    with pytest.raises(UsageError, match="patterns: unknown 'nonsense'"):
        Objective(mix={"nonsense": 1}, weighting="constant", aside=1, paths=2, mask_id=MASK)
