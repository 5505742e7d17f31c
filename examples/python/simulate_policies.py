"""Compare sync policies on one device: three simulated workers, one path each, the ids of real ones.

python examples/python/simulate_policies.py [QUESTIONS=2]

Speed is left out on purpose: simulated workers share one device. A few questions show how the figures move, and
say nothing of accuracy; `nap eval words` does that.
"""

from __future__ import annotations

import sys
from itertools import islice

from nap_runtime import DecodeConfig, SyncPolicy, decode
from nap_trainer.words import generate

POLICIES = {
    "exact": SyncPolicy("exact"),
    "tokens, K = 1": SyncPolicy("tokens", every=1),
    "tokens, K = 8": SyncPolicy("tokens", every=8),
    "kv, K = 8": SyncPolicy("kv", every=8),
    "none": SyncPolicy("none"),
}


def main(n: int) -> None:
    problems = list(islice(generate("test", seed=0), n))
    print(f"{'policy':16}{'right':>8}{'syncs':>8}{'KiB sent':>10}{'staleness':>11}{'ARness':>8}")
    for name, sync in POLICIES.items():
        config = DecodeConfig(paths=3, steps=22, sync=sync)
        results = decode([problem.question for problem in problems], config, workers=3, simulate=True)

        right = sum(r.answer == str(p.answer) for r, p in zip(results, problems, strict=True))
        sent = sum(max(r.metrics.sync.wire_bytes) for r in results) / n / 1024
        stale = [r.metrics.sync.staleness.mean for r in results if r.metrics.sync.staleness is not None]
        order = [a for r in results if (a := r.metrics.arness.path_mean["set_based"]) is not None]
        print(
            f"{name:16}{f'{right}/{n}':>8}{results[0].metrics.sync.syncs:>8}{sent:>10.0f}"
            f"{sum(stale) / len(stale):>11.1f}{sum(order) / len(order):>8.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
