"""`nap bench` on a GPU: every way of one device, captured and not, with FP8 where there is such a thing."""

from __future__ import annotations

import pytest
import torch

from nap_runtime.bench.run import run_bench
from nap_runtime.bench.spec import BenchSpec

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
