"""`benchmarks/scale.py` at a small size: every job is done, and what it counts is what there must be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python benchmarks/scale.py --groups 2 --jobs-per-group 25 --workers 3 --path-tokens 24 --step-ms 0"
JOBS, GROUPS, WORKERS, PATH, SUMMARY, EVERY = 50, 2, 3, 24, 32, 8


@pytest.mark.timeout(280)
def test_fifty_jobs_on_two_groups_of_scripted_workers(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    paths = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "trainer")])
    _, *words = COMMAND.split()
    subprocess.run(
        [sys.executable, *words, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=240,
    )
    (row,) = json.loads(out.read_text())["rows"]
    steps = -(-(WORKERS * PATH + SUMMARY) // WORKERS)  # 35, of which 24 are the paths'
    told = len({1, 2, *range(EVERY, steps, EVERY), steps})
    groups, batches = row["groups_sum"], row["groups_sum"]["batches"]
    assert row["ended"] == {"done": JOBS, "failed": 0}
    assert (row["jobs"], groups["jobs"], row["workers"]) == (JOBS, JOBS, GROUPS * WORKERS)
    assert -(-JOBS // 8) <= batches <= JOBS
    assert groups["reports"] == batches * told * WORKERS
    assert groups["steps"] == batches * steps
    assert groups["syncs"] == batches * 3  # kv at 8 and 16, then the gathering
    messages = {kind: count for kind, count in groups["messages"].items() if kind != "beat"}
    assert messages == {"ready": GROUPS, "events": batches * (1 + told), "result": JOBS, "done": batches}
    assert (
        row["journal"]["events"] == row["client"]["events"] == JOBS * (4 + told)
    )  # queued, running, laid out, the end
    assert row["journal"]["writes"] >= JOBS + batches * (2 + told) + JOBS
    assert (
        0
        < row["server"]["loop_cpu_seconds"] + row["server"]["journal_cpu_seconds"]
        < row["server"]["process_cpu_seconds"]
    )
    assert min(value for value in row["per"].values()) > 0
