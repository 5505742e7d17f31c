"""OpenMP's threads sleep while they wait, unless somebody has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def printed(code: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in _OWN}
    env = {**kept, "PYTHONPATH": str(RUNTIME), "OMP_DISPLAY_ENV": "VERBOSE", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("before", "variables", "policy"),
    [
        ("", {}, "PASSIVE"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ("", {"GOMP_SPINCOUNT": "7"}, "None"),
        ("import sys; sys.modules['torch'] = None; ", {}, "None"),  # too late
    ],
)
def test_the_environment_says_how_to_wait(before: str, variables: dict[str, str], policy: str) -> None:
    code = f"{before}import os, nap_runtime; print('policy', os.environ.get('OMP_WAIT_POLICY'))"
    assert f"policy {policy}\n" in printed(code, **variables)


def test_openmp_has_heard_of_it() -> None:
    """What torch's own OpenMP library says of itself when it is loaded; others say nothing, or say it otherwise."""
    said = printed("import nap_runtime, torch")
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch brings no GNU OpenMP here")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in said
    assert "GOMP_SPINCOUNT = '0'" in said
