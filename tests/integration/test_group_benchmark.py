"""`benchmarks/group.py` at a small size: its cases are the decodes they say they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "group.py"
PLACE = ("--device", "cpu", "--dtype", "float64", "--compile", "none")
SMALL = (*PLACE, "--shape", "llada-tiny", "--slots", "48", "--summary", "4", "--steps", "24")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *SMALL, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_two_processes_decode_what_one_does(tmp_path: Path) -> None:
    done = run("--policies", "exact,exact:overlap,kv:K = 8,none", "--out", str(tmp_path / "x.json"))
    assert done.returncode == 0, done.stderr
    lines = {line["case"]: line for line in json.loads((tmp_path / "x.json").read_text())["lines"]}
    whole, exact, kv, none = (lines[name] for name in ("one device, whole canvas", "exact", "kv, K = 8", "none"))
    assert exact["same_ids"] == lines["exact, overlap"]["same_ids"] == 1.0
    assert whole["rows_per_forward"] == 128 + 3 + 48
    assert exact["rows_per_forward"] < 0.6 * whole["rows_per_forward"]
    assert none["rows_per_forward"] < lines["one device, none"]["rows_per_forward"]
    assert whole["wire_bytes"] == 0 < none["wire_bytes"] < kv["wire_bytes"] < exact["wire_bytes"]
    assert whole["sync_share"] is None
    assert 0 < kv["sync_share"] < 1
    assert all(len(line["seconds_all"]) == 5 for line in lines.values())
    assert "kv, K = 8" in done.stdout


@pytest.mark.parametrize(("arguments", "said"), [(("--policies", "kvv"), "kvv"), (("--repeats", "2"), "--repeats")])
def test_wrong_options(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_one_that_fails_ends_the_others() -> None:
    done = run("--slots", "9", "--summary", "8")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "a process of the group failed; its error stands above"
