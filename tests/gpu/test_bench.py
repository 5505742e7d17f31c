"""`nap bench` on a GPU: every way of one device, captured and not, with FP8 where there is such a thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nap_runtime.bench.run import run_bench
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.models.loading import load_model
from nap_runtime.models.shapes import random_model, shape_config, write_random

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_way_runs() -> None:
    fp8 = torch.cuda.get_device_capability() >= (8, 9)
    spec = BenchSpec(
        shape="llada-tiny",
        device="cuda",
        dtype="bfloat16",
        prompt_tokens=20,
        path_tokens=32,
        summary_tokens=8,
        every=(2,),
        batch_size=(1, 3),
        compile=("none", "graph"),
        weights=("native", "fp8") if fp8 else ("native",),
        kv=("native", "fp8"),
        repeats=2,
    )
    found = run_bench(spec, command="a test")
    assert found["failed"] == []
    ways = {(row["how"], row["weights"], row["kv"]) for row in found["rows"] if row["name"] == "whole canvas"}
    assert len(ways) == 2 * len(spec.weights) * 2
    for row in found["rows"]:
        assert row["peak_bytes"] > 0
        if row["ids"] is not None and row["ids"]["must_agree"]:
            assert row["ids"]["agrees"] is not False, row["case"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_drawn_on_a_gpu_are_those_of_a_folder_drawn_there(tmp_path: Path) -> None:
    config = shape_config("dream-tiny")
    model = random_model(config, seed=3, device="cuda", draw="cuda")
    write_random(config, tmp_path / "model", seed=3, dtype=torch.float32, draw="cuda")
    loaded, host = load_model(tmp_path / "model").model, random_model(config, seed=3)
    for (name, one), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one.cpu(), other), name
    drawn, expected = (dict(m.named_parameters())["layers.0.mlp.down.weight"] for m in (model, host))
    assert drawn.std().item() == pytest.approx(expected.std().item(), rel=0.05)  # the same rule, other bits
