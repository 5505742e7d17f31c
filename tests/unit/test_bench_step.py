"""`benchmarks/step.py`: LLaDA's restated loop commits what the published rule does here, and variants are compared."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench(load_script: Callable[[Path], ModuleType]) -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        return load_script(FOLDER / "step.py")
    finally:
        sys.path.remove(str(FOLDER))


def arguments(**values: Any) -> argparse.Namespace:
    common = {"slots": 96, "path_slots": 30, "dtype": "float64", "device": "cpu", "repeats": 5, "profile": ""}
    return argparse.Namespace(**common | values)


def measured(bench: Any, variant: str, rows: str, shape: str = "llada-tiny") -> Any:
    args, model = arguments(), bench.random_model(shape, torch.device("cpu"), "float64")
    return bench.measure(bench.parse_variant(variant), model, model, bench.task_of(rows, model.config, args), 30)


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_the_restated_loop_is_the_published_algorithm(bench: Any, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network that never predicts the mask, which the published loop would take for a token like others."""
    module = sys.modules["llada_loop"]
    forward = module.forward

    def without_mask(model: Any, ids_BN: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = forward(model, ids_BN)
        logits[..., model.config.mask_id] = -torch.inf
        return logits

    monkeypatch.setattr(module, "forward", without_mask)
    loop, ours = (measured(bench, variant, "canvas", shape) for variant in ("llada", "eager"))
    steps = min(loop.forwards, ours.forwards)
    assert bench.compare(loop, ours, steps=steps, apart=0.0) == f"same for {steps} steps"
    assert steps > 30


def test_its_forward_is_the_models(bench: Any) -> None:
    model = bench.random_model("dream-tiny", torch.device("cpu"), "float64")
    ids = torch.randint(0, 90, (2, 40))
    torch.testing.assert_close(sys.modules["llada_loop"].forward(model, ids), model(ids))


def test_rows_are_those_asked_for(bench: Any) -> None:
    config, args = bench.shape_config("llada-8b"), arguments(slots=1024, path_slots=330)
    sizes = {}
    for rows in bench.ROWS:
        plan = bench.task_of(rows, config, args).plan
        sizes[rows] = plan.layout.size, len(plan.assignment.own_rows(plan.layout, 0))
    assert sizes == {"canvas": (1152, 1025), "path": (1152, 331), "narrow": (1152, 32)}


def test_a_difference_is_told_with_its_size(bench: Any) -> None:
    one = measured(bench, "eager", "path")
    other = bench.replace(one, ids=one.ids.clone(), score=one.score.clone(), step=one.step.clone())
    assert bench.compare(one, other, steps=9, apart=0.0) == "same for 9 steps"
    steps = one.forwards
    last = int(one.step.max())
    at = int((one.step == last).nonzero()[0])
    other.ids[at] += 1
    assert bench.compare(one, other, steps=steps, apart=1e-4).startswith(f"agree: same for {last} steps")
    other.score[at] *= 1.5
    assert bench.compare(one, other, steps=steps, apart=1e-4).startswith(f"DIFFER: same for {last} steps")
    other.step[at] = last + 1
    assert "commits" in bench.compare(one, other, steps=steps, apart=1e-4)


def test_variants_are_read(bench: Any) -> None:
    options = bench.parse_variant("graph8:cudnn:tuned:static:plain:compiler").options
    assert (options.mode, options.unroll, options.attention, options.gemm) == ("graph", 8, "cudnn", "tuned")
    assert (options.dynamic, options.regions, options.kernels) == (False, False, False)
    assert bench.parse_variant("llada").options is None
    with pytest.raises(KeyError):
        bench.parse_variant("graph:quick")
