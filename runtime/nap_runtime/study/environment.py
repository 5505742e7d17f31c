"""Where a run was made: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from nap_runtime import __version__


@cache
def commit() -> str:
    """The project's git commit (`-dirty` where files differ), or outside its repository the version."""
    package = Path(__file__).resolve().parents[1]
    if package.parent.name != "runtime":
        return __version__
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return done.stdout.strip() if done.returncode == 0 else __version__


def environment(device: str) -> dict[str, str | int]:
    """Columns of every row: commit, versions, the device by name."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "commit": commit(),
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device_name": name,
    }


def stamp(device: str, command: str) -> dict[str, Any]:
    """The head of a result file: `when` it was made, by which `command`, and its `environment`.

    That is :func:`environment`, and `device` (`cpu` or `cuda`), how many `devices` there are, and the machine's `load`
    now, where other work shows.
    """
    import torch

    devices = torch.cuda.device_count() if device == "cuda" else 1
    here = environment(device) | {"device": device, "devices": devices, "load": os.getloadavg()[0]}
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, "environment": here}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
