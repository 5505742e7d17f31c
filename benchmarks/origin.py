"""How a result file of these benchmarks says where it was made (`head`), and how that is read (`origin`).

`benchmark`, `when`, `command` and `environment`, as `nap bench` writes them. What was not noted is null.
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
    """A file's `command`, and its `environment` beside it: `commit`, `torch`, `device_name`, `cpus`, `load` …"""
    return {"command": document["command"], **document["environment"]}
