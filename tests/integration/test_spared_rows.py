"""`benchmarks/spared_rows.py` at a small size: what does not change ids does not, and rows are counted as they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from nap_runtime.study.problems import read_problems

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_small_run(load_script: Callable[[Path], ModuleType]) -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        bench = load_script(FOLDER / "spared_rows.py")
    finally:
        sys.path.remove(str(FOLDER))
    args = argparse.Namespace(batch=3, steps=12, seed=0, control_every=1)
    ways = bench.measure("none", read_problems("words", n=3, seed=0), args)
    assert list(ways) == ["whole", "leaving", "closed", "dkv"]
    assert ways["whole"]["same"] == ways["leaving"]["same"] == ways["leaving"]["ratio"]["median"] == 1.0
    assert ways["dkv"]["rows"] < ways["leaving"]["rows"] <= ways["whole"]["rows"]
    assert all(one["of"] == 3 and one["seconds"] > 0 for one in ways.values())
    assert len(bench.table({"none": ways}).splitlines()) == 5
