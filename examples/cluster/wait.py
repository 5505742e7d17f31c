"""Wait until a Ray cluster has enough hosts. `ray up` returns with the first; the others join while they are set up.

    python examples/cluster/wait.py 3 && nap decode --address auto --workers 3 --placement spread

Runs on a host of the cluster. Exit code 1 where the hosts do not come in time.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray


def main() -> int:
    """Count living hosts twice a second."""
    about = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", type=int, help="how many, the head among them")
    parser.add_argument("--seconds", type=float, default=1800.0, metavar="S", help="patience (default: 1800)")
    args = parser.parse_args()
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    deadline, seen = time.monotonic() + args.seconds, -1
    while seen < args.hosts and time.monotonic() < deadline:
        alive = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
        if len(alive) != seen:
            seen = len(alive)
            print(f"{seen} of {args.hosts} hosts: {' '.join(sorted(alive))}", flush=True)
        time.sleep(0.5)
    return 0 if seen >= args.hosts else 1


if __name__ == "__main__":
    sys.exit(main())
