"""Philox: known answers, uniformity, and independence of everything but what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nap_runtime.decoding.confidence import draw
from nap_runtime.decoding.noise import Purpose, gumbel, philox4x32, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    words = philox4x32(tuple(torch.tensor(c) for c in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == answer


def reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's own integers."""
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def test_key_and_counter_are_what_the_design_says() -> None:
    """Key = seed (low word first), counter = (vocabulary id, position, step, purpose), 52 bits."""
    seed = 0x1234_5678_9ABC_DEF0
    for vocabulary_id, position, step, purpose in [(0, 0, 0, 0), (5, 17, 3, 0), (126_463, 4095, 1021, 1)]:
        high, low, *_ = reference([vocabulary_id, position, step, purpose], [seed & ONES, seed >> 32])
        got = uniform(
            seed,
            ids=torch.tensor(vocabulary_id),
            positions=torch.tensor(position),
            step=step,
            purpose=Purpose(purpose),
        )
        assert float(got) == (((high << 32 | low) >> 12) + 0.5) / 2**52


def test_draws_depend_on_nothing_but_what_is_drawn() -> None:
    """Not on which other positions are drawn with them, nor on the order: so not on worker or batch."""
    positions = torch.tensor([3, 9, 4, 100, 41])
    together = gumbel(7, vocab=50, positions=positions, step=12)
    for place, position in enumerate(positions):
        alone = gumbel(7, vocab=50, positions=position[None], step=12)
        assert torch.equal(together[place], alone[0])
    assert torch.equal(together[:, :20], gumbel(7, vocab=20, positions=positions, step=12))


def test_seeds_steps_positions_and_purposes_share_no_draws() -> None:
    def draws(seed: int, at: int, step: int, purpose: Purpose) -> tuple[float, ...]:
        ids = torch.arange(64)
        return tuple(uniform(seed, ids=ids, positions=torch.tensor(at), step=step, purpose=purpose).tolist())

    series = [
        draws(0, 0, 0, Purpose.TOKEN),
        draws(1, 0, 0, Purpose.TOKEN),
        draws(1 << 32, 0, 0, Purpose.TOKEN),
        draws(0, 1, 0, Purpose.TOKEN),
        draws(0, 0, 1, Purpose.TOKEN),
        draws(0, 0, 0, Purpose.ORDER),
    ]
    assert len({value for values in series for value in values}) == 64 * len(series)


def test_uniform_numbers_are_uniform() -> None:
    u = uniform(3, ids=torch.arange(400)[None], positions=torch.arange(250)[:, None], step=2, purpose=Purpose.TOKEN)
    values = u.flatten().numpy()
    assert values.min() > 0
    assert values.max() < 1
    counts, _ = np.histogram(values, bins=50, range=(0, 1))
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 98.2  # 49 degrees of freedom, p = 3e-5; the draws are fixed, so this cannot flicker
    for rows in (u[:, :-1] * u[:, 1:], u[:-1] * u[1:]):  # neighbours in id and in position
        correlation = (float(rows.mean()) - 0.25) * 12
        assert abs(correlation) < 0.02


def test_gumbel_has_its_mean_and_variance() -> None:
    g = gumbel(5, vocab=500, positions=torch.arange(200), step=0)
    assert math.isclose(float(g.mean()), 0.5772, abs_tol=0.02)
    assert math.isclose(float(g.var()), math.pi**2 / 6, abs_tol=0.04)


def test_draws_follow_the_softmax_of_the_logits() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    positions = torch.arange(20_000)
    ids = draw(logits.expand(1, 20_000, 4), temperature=1.0, seed=1, positions=positions, step=0)
    shares = torch.bincount(ids[0], minlength=4) / 20_000
    assert shares.tolist() == pytest.approx(logits.softmax(-1).tolist(), abs=0.01)


def test_no_temperature_is_greedy_whatever_the_seed() -> None:
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        ids = draw(logits, temperature=0, seed=seed, positions=torch.arange(5), step=0)
        assert torch.equal(ids, logits.argmax(-1))
