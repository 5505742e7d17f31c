"""Stacked Muon is torch's Muon."""

from __future__ import annotations

import torch

from nap_trainer.zero.muon import StackedMuon


def test_steps_are_torchs() -> None:
    """Wide, tall and square matrices, several of a shape; bfloat16 iterations leave their rounding only."""
    shapes = [(6, 4), (6, 4), (4, 6), (5, 5), (4, 6), (9, 3)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9}
    optimizers = StackedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        moved = (other.detach() - before).norm()
        assert float((one.detach() - other.detach()).norm() / moved) < 0.02
        assert float(moved) > 0.1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            optimizers[0].state[one]["momentum_buffer"], optimizers[1].state[other]["momentum_buffer"]
        )


def test_matrices_without_a_gradient_stay() -> None:
    moving, still = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3, 3))
    optimizer = StackedMuon([moving, still], lr=0.1)
    moving.grad = torch.eye(3)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 3))
    assert not torch.equal(moving, torch.ones(3, 3))
