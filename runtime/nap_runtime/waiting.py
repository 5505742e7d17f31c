"""How torch's threads wait for each other, decided before torch is loaded.

OpenMP's threads spin between two pieces of work, which is quickest as long as nobody else wants the cores. Where
somebody does, a thread that spins keeps out the one it waits for, and every operation lasts a scheduler's time slice: a
decode beside one busy process takes ten times as long and more (`benchmarks/at_rest.py`). So they sleep instead.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "OMP_WAIT_POLICY"
_OWN = (VARIABLE, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep() -> bool:
    """Let OpenMP's threads sleep while they wait; whether it was done.

    Not where torch is loaded already, which reads this once, nor where the environment says how to wait. Child
    processes inherit it.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _OWN):
        return False
    os.environ[VARIABLE] = "PASSIVE"
    return True
