"""The same decode over links of different bandwidth and delay: measured beside the cost model, for every sync and K.

    sudo .venv/bin/python benchmarks/shaped_links.py --out benchmarks/results/links.json --doc docs/study.md

nap-tiny on a CPU. Each worker is a process of the runtime in a network namespace of its own (no Ray), with one thread;
workers talk by gloo. Bandwidth is a token bucket on the way out of each host, delay a relay in user space that holds
each frame back (benchmarks/shaped). Links, numbers of workers and syncs are interleaved: a round measures each once,
and a figure is a median. A cell whose decodes have taken --share seconds is left out of further rounds (at 50 ms one
decode may take 20 s), so every cell says how often it ran.

The model gets nothing from the cells that it predicts: its compute side is fitted to decodes of one worker, latency and
bandwidth of a link to all-gathers of 64 bytes and of 1 MiB over it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from origin import head
from shaped import tables
from shaped.group import Group
from shaped.net import Network, Shape, missing

from nap_runtime import SyncPolicy
from nap_runtime.auto import AutoSync
from nap_runtime.distributed.probe import fit
from nap_runtime.study.cost.calibrate import Point, calibrate
from nap_runtime.study.cost.choose import Decode, choose
from nap_runtime.study.cost.predict import DEVICES, LINKS, Device, Link, Machine, predict
from nap_runtime.study.cost.scenario import Scenario

SHAPES = (
    Shape(rate=10e9),
    Shape(rate=1e9),
    Shape(rate=0.1e9),
    Shape(rate=1e9, delay=0.001),
    Shape(rate=1e9, delay=0.010),
    Shape(rate=1e9, delay=0.050),
)
POLICIES = (
    SyncPolicy("exact"),
    *(SyncPolicy(mode, every=every) for mode in ("tokens", "shared", "kv") for every in (1, 4, 8)),
    SyncPolicy("none"),
)
SMALL, LARGE = 64, 1 << 20


@dataclass(slots=True)
class Cell:
    """One sync on one link and number of workers: what each decode took."""

    shape: Shape
    scenario: Scenario
    seconds: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def note(self, told: list[dict[str, Any]]) -> None:
        """One decode: all ranks' answers; the slowest counts, and the share of the one that waits longest."""
        self.seconds.append(max(rank["seconds"] for rank in told))
        self.blocked.append(max(rank["blocked"] / rank["seconds"] for rank in told))
        self.ids.add(json.dumps([rank["ids"] for rank in told]))


@dataclass(slots=True)
class Bench:
    """All that is measured.

    Attributes:
        alone: seconds of one worker, by scenario name; `m2`, `m3` are the one-device baselines.
        gathers: seconds of an all-gather, by workers, link and bytes.
    """

    args: argparse.Namespace
    cells: list[Cell] = field(default_factory=list)
    alone: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    gathers: dict[tuple[int, str, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def scenario(self, paths: int, workers: int, sync: SyncPolicy, path_tokens: int | None = None) -> Scenario:
        """A canvas; its paths commit `--tokens-per-step` slots each a step."""
        slots = path_tokens or self.args.path_tokens
        return Scenario(
            shape="nap-tiny",
            paths=paths,
            path_tokens=slots,
            summary_tokens=self.args.summary_tokens,
            prompt_tokens=self.args.prompt_tokens,
            header_tokens=1,
            steps=(slots + self.args.summary_tokens) // self.args.tokens_per_step,
            workers=workers,
            dtype="float32",
            sync=sync,
        )

    def baselines(self) -> dict[str, Scenario]:
        """What one worker decodes: the canvases, and smaller ones that tell FLOPs from the rest of a forward."""
        found = {}
        for paths in self.args.workers:
            for name, slots in ((f"m{paths}", None), (f"m{paths} small", max(self.args.path_tokens // 4, 4))):
                found[name] = self.scenario(paths, 1, SyncPolicy("exact"), slots)
        return found

    def run(self) -> None:
        """Rounds, until the time is up; the first is always whole."""
        began = time.monotonic()
        hosts = max(self.args.workers)
        self.cells = [
            Cell(shape, self.scenario(workers, workers, policy))
            for shape in self.args.shapes
            for workers in self.args.workers
            for policy in POLICIES
        ]
        with Network(hosts) as network:
            groups = {workers: Group(network, workers) for workers in self.args.workers}
            try:
                self._warm(groups)
                for number in range(self.args.rounds):
                    if number and time.monotonic() - began > 60 * self.args.minutes:
                        break
                    for shape in self.args.shapes:
                        self._visit(shape, network, groups)
                        spent = f"{time.monotonic() - began:.0f} s since the start"
                        print(f"round {number + 1}, {shape.name}: {spent}", file=sys.stderr, flush=True)
            finally:
                for group in groups.values():
                    group.close()

    def _warm(self, groups: dict[int, Group]) -> None:
        for workers, group in groups.items():
            for policy in POLICIES:
                group.ask(do="decode", scenario=self.scenario(workers, workers, policy).to_mapping())

    def _visit(self, shape: Shape, network: Network, groups: dict[int, Group]) -> None:
        """One link of a round: every cell of it once, and what the model goes by."""
        network.shape(shape)
        lead = groups[self.args.workers[0]]
        for name, scenario in self.baselines().items():
            self.alone[name].append(lead.ask_one(0, do="alone", scenario=scenario.to_mapping())["seconds"])
        for workers, group in groups.items():
            self._measure_link(shape, workers, group)
            for cell in self.cells:
                if cell.shape == shape and cell.scenario.workers == workers and self._has_time(cell.seconds):
                    cell.note(group.ask(do="decode", scenario=cell.scenario.to_mapping()))

    def _measure_link(self, shape: Shape, workers: int, group: Group) -> None:
        for size, times in ((SMALL, 5), (LARGE, 3)):
            taken = self.gathers[workers, shape.name, size]
            if self._has_time([seconds * times for seconds in taken]):
                taken.append(max(rank["seconds"] for rank in group.ask(do="gather", bytes=size, times=times)))

    def _has_time(self, taken: list[float]) -> bool:
        return bool(sum(taken) < self.args.share)

    # -- the model ------------------------------------------------------------------------------------------------

    def device(self) -> tuple[Device, dict[str, float]]:
        """Fitted to one worker's decodes, and how far it is off on them."""
        points = [
            Point(name=name, scenario=scenario, seconds=statistics.median(self.alone[name]))
            for name, scenario in self.baselines().items()
        ]
        start = Machine(device=replace(DEVICES["cpu"], launch=1e-9), link=LINKS["10g"])
        found = calibrate(points, start, fitted=("flops", "forward"))
        return found.machine.device, dict(found.errors)

    def link(self, workers: int, shape: Shape) -> Link:
        """Fitted to all-gathers over it."""
        small, large = (statistics.median(self.gathers[workers, shape.name, size]) for size in (SMALL, LARGE))
        found = fit(workers, small, large, small_bytes=SMALL, large_bytes=LARGE)
        return Link(latency=found.latency, bandwidth=found.bandwidth)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every cell, measured and predicted."""
        device, _ = self.device()
        for cell in self.cells:
            workers, policy = cell.scenario.workers, cell.scenario.sync
            machine = Machine(device=device, link=self.link(workers, cell.shape))
            found, seconds = predict(cell.scenario, machine), statistics.median(cell.seconds)
            alone = statistics.median(self.alone[f"m{cell.scenario.paths}"])
            bare = predict(self.baselines()[f"m{cell.scenario.paths}"], machine).seconds
            yield {
                "link": cell.shape.name,
                "workers": workers,
                "sync": policy.mode,
                "every": policy.every,
                "n": len(cell.seconds),
                "seconds": seconds,
                "seconds_all": cell.seconds,
                "predicted_seconds": found.seconds,
                "error": found.seconds / seconds - 1,
                "of_one_device": seconds / alone,
                "predicted_of_one_device": found.seconds / bare,
                "blocked_share": statistics.median(cell.blocked),
                "predicted_blocked_share": found.blocked_share,
                "wire_bytes": found.wire_bytes,
                "same_ids": len(cell.ids) == 1,
                "oversubscribed": workers > cores(),
            }

    def links(self) -> Iterator[dict[str, Any]]:
        """Every link as it was measured, and what `--sync auto` would take on it."""
        device, _ = self.device()
        for shape in self.args.shapes:
            for workers in self.args.workers:
                link, scenario = self.link(workers, shape), self.scenario(workers, workers, SyncPolicy())
                layout, config = scenario.plan.layout, scenario.config
                decode = Decode(layout=layout, config=config, model=scenario.model, workers=workers)
                chosen = {"full": AutoSync(), "hub": AutoSync(topology="hub")}
                auto = {name: choose(a, decode, Machine(device=device, link=link)) for name, a in chosen.items()}
                names = {name: f"{c.policy.mode} {c.policy.every or ''}".strip() for name, c in auto.items()}
                yield {"link": shape.name, "workers": workers, **asdict(link), "auto": names}

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        device, errors = self.device()
        return {
            "schema": "nap.links/1",
            **head(),
            "scenario": self.scenario(self.args.workers[0], self.args.workers[0], SyncPolicy()).to_mapping(),
            "one_device": {name: statistics.median(taken) for name, taken in self.alone.items()},
            "device": asdict(device),
            "device_errors": errors,
            "links": list(self.links()),
            "rows": list(self.rows()),
        }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main() -> None:
    """Measure, or read what was measured; write JSON and tables."""
    args = _arguments()
    if args.read:
        found = json.loads(args.read.read_text(encoding="utf-8"))
    else:
        if lacks := missing():
            sys.exit(f"shaped_links: this machine {lacks}")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the network is taken down, however this ends
        bench = Bench(args)
        bench.run()
        found = bench.to_json()
    text = tables.page(found)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.doc:
        tables.fill(args.doc, text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=_integers, default=(2, 3), help="one path each")
    parser.add_argument("--shapes", type=_shapes, default=SHAPES, help="places in the list of links, as 0,1,2")
    parser.add_argument("--path-tokens", type=int, default=40)
    parser.add_argument("--summary-tokens", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--tokens-per-step", type=int, default=4, help="of a path")
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument("--minutes", type=float, default=4.5, help="no round begins after so long")
    parser.add_argument("--share", type=float, default=3.0, help="seconds after which a cell is measured no more")
    parser.add_argument("--read", type=Path, help="make tables from a file of --out instead of measuring")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--doc", type=Path, help="page whose part between links:begin and links:end is filled")
    return parser.parse_args()


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(SHAPES[at] for at in _integers(text))


if __name__ == "__main__":
    main()
