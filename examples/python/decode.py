"""Decode one question on three workers, and look at what came back.

python examples/python/decode.py            workers as threads of this process
python examples/python/decode.py --ray      workers as processes, on a local Ray cluster
"""

from __future__ import annotations

import sys

from nap_runtime import DecodeConfig, SyncPolicy, decode

QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


def main() -> None:
    config = DecodeConfig(paths=3, steps=44, sync=SyncPolicy("kv", every=8))
    result = decode(QUESTION, config, model="nap-tiny", workers=3, simulate="--ray" not in sys.argv)

    for number, path in enumerate(result.paths, start=1):
        print(f"path {number}   {path}")
    print(f"summary  {result.summary}")
    print(f"answer   {result.answer}")

    metrics, arness = result.metrics, result.metrics.arness.path_mean["set_based"]
    sent = max(metrics.sync.wire_bytes) / 1024
    print(f"\n{metrics.nfe.steps} steps, {metrics.sync.syncs} syncs, {sent:.0f} KiB sent by a worker")
    if arness is not None:
        print(f"ARness@1 of the paths, mean: {arness:.2f}")

    data = result.record.to_bytes()  # the trace, as `nap decode --trace` writes it
    commits = sum(len(delta.ids) for delta in result.record.commits)
    print(f"trace: {len(data)} bytes, {commits} tokens committed")


if __name__ == "__main__":
    main()
