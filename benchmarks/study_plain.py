"""What the study says in plain words: directions alone, decided by the intervals that stand below them on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import study_overhead
from origin import origin
from study_numbers import Run, difference
from study_sections import TRAINED, Records, at, rule, runs

STEP = 4  # tokens a step that the sentences speak of
_SAID = {  # measure → its subject, what is said of a rise and of a fall
    "accuracy": ("the answers", "answers are right more often", "answers are right less often"),
    "path_accuracy": ("single paths", "single paths are right more often", "single paths are right less often"),
    "path_agree": ("how paths agree", "paths agree more often", "paths agree less often"),
    "arness": (
        "the order (ARness)",
        "the order is nearer to left to right",
        "the order is further from left to right",
    ),
}
_TALK = {"tokens": "the tokens that were committed", "kv": "keys and values"}


def plainly(records: Records, scaling: Sequence[Path]) -> Iterator[str]:
    """A sentence or two a question; nothing for a question whose records are not there."""
    if "full" in records:
        yield from _every(records)
        yield from _mode(records)
        yield from _paths(records)
    yield from _twins(records)
    yield from _mismatch(records)
    yield from _topology(records)
    yield from (said for file in scaling for said in _time(file))


def directions(one: Run, other: Run, measures: Sequence[str] = tuple(_SAID)) -> str:
    """What moved, and in which measures no change can be told: `one` against `other`."""
    signs = {measure: difference(one, other, measure).sign for measure in measures}
    said = [_SAID[measure][1 if sign > 0 else 2] for measure, sign in signs.items() if sign]
    same = [_SAID[measure][0] for measure, sign in signs.items() if not sign]
    return "; ".join([*said, *([f"no change can be told in {_listed(same)}"] if same else [])])


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _every(records: Records) -> Iterator[str]:
    """The rarest talk against the most frequent, and where it dips in between."""
    for mode, what in _TALK.items():
        found = runs(records["full"], "every", sync_mode=mode)
        some = sorted(at(found, STEP), key=lambda run: run.row["sync_every"])
        if len(some) < 2:
            continue
        often, *between, rarely = some
        less = often.row["bytes_per_token"] / rarely.row["bytes_per_token"]
        dips = [str(run.row["sync_every"]) for run in between if difference(run, often, "accuracy").sign < 0]
        more = f" In between, at K = {_listed(dips)}, answers are right less often." if dips else ""
        ks = (rarely.row["sync_every"], often.row["sync_every"])
        yield (
            f"**How often must the paths talk?** Sending {what} with K = {ks[0]} instead of {ks[1]} takes 1/{less:.0f} "
            f"of the bytes: {directions(rarely, often)}.{more}"
        )


def _mode(records: Records) -> Iterator[str]:
    by_mode = {run.row["sync_mode"]: run for run in at(runs(records["full"], "modes"), STEP)}
    if {"exact", "none"} <= set(by_mode):
        said = directions(by_mode["none"], by_mode["exact"])
        yield f"**What if they say nothing before the summary?** Against hearing everything at every step: {said}."


def _paths(records: Records) -> Iterator[str]:
    found = at(runs(records["full"], "paths", sync_mode="exact"), STEP)
    by_m = {run.row["paths"]: run for run in found}
    if {1, 3} <= set(by_m):
        said = directions(by_m[3], by_m[1], ("accuracy", "path_accuracy"))
        yield f"**Do more paths help?** Three against one, each of the same budget (three times the slots): {said}."


def _twins(records: Records) -> Iterator[str]:
    if not {"full", "twin"} <= set(records):
        return
    pair = [
        [run for run in at(runs(records[name], "rules"), STEP) if rule(run.row) == "parallel-forced"]
        for name in ("full", "twin")
    ]
    if all(pair):
        said = directions(pair[0][0], pair[1][0], ("accuracy",))
        yield f"**Three paths or one long chain in training?** nap-tiny against its twin, parallel-forced: {said}."


def _mismatch(records: Records) -> Iterator[str]:
    """How each model takes it that nothing is said."""
    if "mismatch" not in records:
        return
    often, never = (
        {run.row["label"]: run for run in runs(records["mismatch"], sweep, sync_topology="full", **more)}
        for sweep, more in (("every", {"sync_every": 1}), ("never", {}))
    )
    both = [name for name in TRAINED if name in often and name in never]
    signs = {name: difference(never[name], often[name], "accuracy").sign for name in both}
    verbs = {-1: "are right less often with", 1: "are right more often with", 0: "cannot be told from unchanged with"}
    groups = {verb: [f"`{name}`" for name in both if signs[name] == sign] for sign, verb in verbs.items()}
    said = [f"{verb} {_listed(names)}" for verb, names in groups.items() if names]
    if said:
        yield (
            "**Must a model be trained for silence?** Five models that knew different things of their peers in "
            f"training, decoded without talk instead of with it at every step: answers {'; '.join(said)}."
        )


def _topology(records: Records) -> Iterator[str]:
    """Each model under the topology that it was trained with, against the two others."""
    if "mismatch" not in records:
        return
    signs = []
    for name in TRAINED:
        found = runs(records["mismatch"], "every", label=name, sync_every=1)
        own = name if name in ("hub", "isolated") else "full"
        by = {run.row["sync_topology"]: run for run in found}
        signs += [difference(run, by[own], "accuracy").sign for at_, run in by.items() if own in by and at_ != own]
    if signs:
        fewer = signs.count(-1)
        yield (
            "**Can the topology be changed after training?** The same models decoded with another topology than they "
            f"were trained with: answers are right less often in {fewer} of {len(signs)} cases."
        )


def _time(file: Path) -> Iterator[str]:
    """The most workers with a core or GPU each, strong scaling."""
    values = json.loads(file.read_text(encoding="utf-8"))
    strong = [cell for cell in values["cells"] if cell["scaling"] == "strong"]
    counted = [cell for cell in strong if cell["scenario"]["workers"] > 1 and not cell["oversubscribed"]]
    if not counted:
        return
    most = max(cell["scenario"]["workers"] for cell in counted)
    cells = [cell for cell in counted if cell["scenario"]["workers"] == most]
    ratios = {study_overhead.policy(cell): study_overhead.speedup(cell, strong) for cell in cells}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    slower = [f"`{name}`" for name, ratio in known.items() if ratio < 1]
    best = max(known, key=lambda name: known[name])
    more = f"; slower than one device: {_listed(slower)}" if slower else ""
    made, one = origin(values), study_overhead.alone(cells[0], strong)
    with_threads = one is not None and made["device"] == "cpu"
    several, single = (f" of {_threads(cell)}" if with_threads else "" for cell in (cells[0], one))
    yield (
        f"**What does it cost in time?** {most} workers{several} on {made['device_name']} against one device{single}, "
        f"the same canvas: at best {known[best]:.2f} times as fast (`{best}`){more}."
    )


def _threads(cell: study_overhead.Cell | None) -> str:
    """`one thread`, `2 threads`."""
    count = 0 if cell is None else cell["scenario"]["threads"]
    return "one thread" if count == 1 else f"{count} threads"
