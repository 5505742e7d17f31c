"""How a result file of these benchmarks says where it was made (`head`), and how one is read, old or new (`origin`).

New files have `benchmark`, `when`, `command` and `environment` as `nap bench` writes it. Files from before that name
device, cores and versions at their top, each in words of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def head(device: str = "cpu") -> dict[str, Any]:
    """The head of a result file of the script that runs, on the device now: `cpu` or `cuda`."""
    from nap_runtime.study.environment import stamp  # late: at_rest.py must not inherit how this package waits

    script = Path(sys.argv[0])
    return {"benchmark": script.stem, **stamp(device, " ".join(("python", f"benchmarks/{script.name}", *sys.argv[1:])))}


def origin(document: Mapping[str, Any]) -> dict[str, Any]:
    """A file's `command`, `commit`, `version`, `torch`, `load`, `device`, `device_name` and `cpus`; None: not said."""
    new = document.get("environment")
    if isinstance(new, Mapping) and "device_name" in new:
        return {"command": document.get("command"), **new}
    old = dict(document) | dict(new or {})
    name, _, cores = str(old.get("cpu", old.get("device", ""))).partition(", ")
    return {
        **{key: old.get(key) for key in ("command", "commit", "version", "torch", "load")},
        "device": "cpu" if not name or "cpu" in old or "CPU" in name else "cuda",
        "device_name": name or None,
        "cpus": int(cores.split()[0]) if cores else old.get("cores", old.get("cpus")),
    }
