"""What is paid before the first token: imports, help, model load, first decode, Ray; and beside a busy neighbour.

    python benchmarks/at_rest.py --out out/at_rest.json          # some minutes; --no-ray leaves Ray out

Every figure is the median of `--repeats` new processes, with the least and the most beside it. Whatever else uses the
machine counts in: see the load in the file. `spinning` is OpenMP's own default (GOMP_SPINCOUNT=300000), which
`nap_runtime.waiting` replaces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHIRT = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
SPINNING = {"GOMP_SPINCOUNT": "300000"}
_BUSY = "while True: pass"
# What one process pays, in its own words; the canvas is nap-tiny's, 4 tokens a step.
_DECODE = """
import json, sys, time
marks = [("begin", time.perf_counter())]
def mark(name): marks.append((name, time.perf_counter()))
import torch; mark("import torch")
import nap_runtime.api as api; mark("import nap_runtime.api")
from nap_runtime import DecodeConfig
card = api.read_card("nap-tiny"); mark("read the card")
model = api.load_model("nap-tiny"); mark("load the weights")
workers = int(sys.argv[1])
where = {"model": model} if workers == 1 else {"model": "nap-tiny", "workers": workers}
def decode(): return api.decode(sys.argv[2], DecodeConfig(steps=33), **where)
first = decode(); mark("first decode")
second = decode(); mark("second decode")
third = decode(); mark("third decode")
laps = {name: at - before for (_, before), (name, at) in zip(marks, marks[1:])}
laps["decoding"] = third.metrics.seconds
print(json.dumps(laps | {"answer": third.answer, "threads": torch.get_num_threads()}))
"""


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--neighbours", type=int, default=1, help="busy processes for the last part")
    parser.add_argument("--no-ray", dest="ray", action="store_false")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()
    found = dict(_measurements(args))
    figures = {name: _figure(times) for name, times in found.items()}
    print(_table(figures))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(_environment(args, load) | {"seconds": figures, "all": found}, indent=1) + "\n")


def _measurements(args: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    nap = [sys.executable, "-m", "nap_runtime.cli"]
    for name, command in {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import nap_runtime": [sys.executable, "-c", "import nap_runtime"],
        "nap --help": [*nap, "--help"],
        "nap decode --help": [*nap, "decode", "--help"],
        "nap decode, whole": [*nap, "decode", SHIRT, "--steps", "33"],
    }.items():
        yield name, [_timed(command) for _ in range(args.repeats)]
    yield from _laps("inline", args.repeats, {}, workers=1)
    for label, variables in (("asleep", {}), ("spinning", SPINNING), ("one thread", {"OMP_NUM_THREADS": "1"})):
        yield from _laps(f"inline, {label}, quiet", args.repeats, variables, only=("decoding",))
        with _neighbours(args.neighbours):
            yield from _laps(f"inline, {label}, {args.neighbours} busy", args.repeats, variables, only=("decoding",))
    if args.ray:
        ray = _laps("3 Ray workers", min(args.repeats, 3), {}, workers=3, only=("first decode", "third decode"))
        yield from ray


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _laps(
    name: str, repeats: int, variables: Mapping[str, str], *, workers: int = 1, only: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[float]]]:
    """The parts of one process's time."""
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        command = [sys.executable, "-c", "import nap_runtime\n" + _DECODE, str(workers), SHIRT]
        done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        assert runs[-1]["answer"] == "40", runs[-1]
    for part in only or [part for part in runs[0] if part not in ("answer", "threads")]:
        yield f"{name}: {part}", [run[part] for run in runs]


@contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """Processes that want a core each, all the time."""
    running = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _figure(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    rows = [f"| {name} | {f['median']:.3f} | {f['least']:.3f} | {f['most']:.3f} |" for name, f in figures.items()]
    return "\n".join(["| what | median, s | least | most |", "| :-- | --: | --: | --: |", *rows])


def _environment(args: argparse.Namespace, load: tuple[float, float, float]) -> dict[str, Any]:
    from nap_runtime.study.environment import commit

    return {
        "benchmark": "at_rest",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": load,
        "repeats": args.repeats,
        "neighbours": args.neighbours,
    }


if __name__ == "__main__":
    main()
