"""What is paid before the first token: imports, help, model load, first decode, Ray; and beside a busy neighbour.

    python benchmarks/at_rest.py --out out/at_rest.json          # some minutes; --no-ray leaves Ray out

Every figure is the median of `--repeats` new processes, with the least and the most beside it, and the median of CPU
seconds, which depend less on who else uses the machine (its load is in the file). `spinning` is OpenMP's own default
(GOMP_SPINCOUNT=300000), which `nap_runtime.waiting` replaces.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from origin import head

SHIRT = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
SPINNING = {"GOMP_SPINCOUNT": "300000"}
_BUSY = "while True: pass"
Times = tuple[float, float]  # seconds, and CPU seconds
# What one process pays, in its own words; the canvas is nap-tiny's, 4 tokens a step.
_DECODE = """
import json, sys, time
def now(): return time.perf_counter(), time.process_time()
marks = [("begin", now())]
def mark(name): marks.append((name, now()))
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
laps = {name: [b - a for a, b in zip(before, at)] for (_, before), (name, at) in zip(marks, marks[1:])}
print(json.dumps({"laps": laps, "answer": second.answer}))
"""


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decodes", type=int, default=3, help="processes for each way of waiting")
    parser.add_argument("--neighbours", type=int, default=1, help="busy processes for the last part")
    parser.add_argument("--no-ray", dest="ray", action="store_false")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()
    found = {}
    for name, times in _measurements(args):
        found[name] = times
        print(f"{name}: {times}", file=sys.stderr, flush=True)
    figures = {name: _figure(times) for name, times in found.items()}
    print(_table(figures))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(_about(args, load) | {"seconds": figures, "all": found}, indent=1) + "\n")


def _measurements(args: argparse.Namespace) -> Iterator[tuple[str, list[Times]]]:
    nap = [sys.executable, "-m", "nap_runtime.cli"]
    for name, command in {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import nap_runtime": [sys.executable, "-c", "import nap_runtime"],
        "nap --help": [*nap, "--help"],
        "nap decode --help": [*nap, "decode", "--help"],
        "nap decode, whole": [*nap, "decode", SHIRT, "--steps", "33"],
    }.items():
        yield name, [_timed(command) for _ in range(args.repeats)]
    yield from _laps("inline", args.decodes, {}, workers=1)
    for label, variables in (("asleep", {}), ("spinning", SPINNING), ("one thread", {"OMP_NUM_THREADS": "1"})):
        yield from _laps(f"inline, {label}, quiet", args.decodes, variables, only=("second decode",))
        with _neighbours(args.neighbours):
            yield from _laps(
                f"inline, {label}, {args.neighbours} busy", args.decodes, variables, only=("second decode",)
            )
    if args.ray:
        ray = _laps("3 Ray workers", args.decodes, {}, workers=3, only=("first decode", "second decode"))
        yield from ray


def _timed(command: list[str]) -> Times:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _laps(
    name: str, repeats: int, variables: Mapping[str, str], *, workers: int = 1, only: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[Times]]]:
    """The parts of one process's time."""
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        command = [sys.executable, "-c", "import nap_runtime\n" + _DECODE, str(workers), SHIRT]
        done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        assert runs[-1]["answer"] == "40", runs[-1]
    for part in only or runs[0]["laps"]:
        yield f"{name}: {part}", [tuple(run["laps"][part]) for run in runs]


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


def _figure(times: list[Times]) -> dict[str, float]:
    wall, cpu = zip(*times, strict=True)
    return {"median": statistics.median(wall), "least": min(wall), "most": max(wall), "cpu": statistics.median(cpu)}


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        f"| {name} | {f['median']:.3f} | {f['least']:.3f} | {f['most']:.3f} | {f['cpu']:.3f} |"
        for name, f in figures.items()
    ]
    return "\n".join(["| what | median, s | least | most | CPU, s |", "| :-- | --: | --: | --: | --: |", *rows])


def _about(args: argparse.Namespace, load: tuple[float, float, float]) -> dict[str, Any]:
    return {**head(), "load_before": load, "repeats": args.repeats, "neighbours": args.neighbours}


if __name__ == "__main__":
    main()
