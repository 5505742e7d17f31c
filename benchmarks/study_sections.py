"""Sections of the study's page, each from packed records; every sentence with a number is made here.

A section is a function of the records that gives its lines and its findings (for the head of the page), or nothing
where its records are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study_numbers import Interval, Row, Run, difference, estimate, moves, number, run_table, signed, spread, table

from nap_runtime.metrics import aup
from nap_runtime.study.pack import Packed

NAMES = {"accuracy": "accuracy", "path_accuracy": "accuracy of single paths", "arness": "ARness",
         "path_agree": "agreement between paths"}  # fmt: skip
HEADS = {"accuracy": "accuracy", "one path": "path_accuracy", "ARness": "arness", "paths agree": "path_agree"}
RULED = ("full", "twin", "adapted")  # studies with a sweep of rules by tokens a step
CHANCE = {"by chance": "arness_random", "corrected": "arness_corrected"}
Records = Mapping[str, Packed]
Key = Callable[[Row], str]


@dataclass(slots=True)
class Section:
    """A heading, its lines, and what is said of it at the head of the page."""

    title: str
    lines: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def runs(packed: Packed, sweep: str, **wanted: Any) -> list[Run]:
    """The runs of a sweep whose columns have these values."""
    return [Run(packed, row) for row in packed.of(sweep) if all(row.get(k) == v for k, v in wanted.items())]


def per_step(row: Row) -> int:
    """Tokens a step as it was asked for: the row has slots / T, T rounded up."""
    return round(float(row["tokens_per_step"]))


def step_text(tokens: int) -> str:
    """`4 tokens a step`."""
    return f"{tokens} token{'s' * (tokens > 1)} a step"


def at(found: Sequence[Run], tokens: int) -> list[Run]:
    """Those with so many tokens a step."""
    return [run for run in found if per_step(run.row) == tokens]


def how(row: Row) -> str:
    """`kv, K = 8`; `one device` for a run with one worker."""
    if row["workers"] == 1 and row["paths"] != 1:
        return "one device"
    every = row.get("sync_every")
    return str(row["sync_mode"]) + (f", K = {every}" if every else "")


SYNC: dict[str, Key] = {"sync": how}
STEPS: dict[str, Key] = {"tokens a step": lambda row: str(per_step(row))}


def compared(one: Run, other: Run, measures: Sequence[str]) -> str:
    """Differences of several measures in words."""
    return "; ".join(f"{NAMES[m]} {moves(difference(one, other, m))}" for m in measures)


def corrected(one: Run, other: Run) -> str:
    """Chance-corrected ARness of two runs on different canvases; raw values would differ by geometry alone."""
    values = [number(run.row.get("arness_corrected")) for run in (one, other)]
    return f"ARness, chance-corrected, {values[0]} against {values[1]} (means; no interval was kept)"


# -- how often --------------------------------------------------------------------------------------


def every(records: Records) -> Section | None:
    """K against everything, at 4 tokens a step."""
    if "full" not in records:
        return None
    section = Section("How often must the paths talk?")
    found = runs(records["full"], "every")
    for mode, what in (("tokens", "committed tokens travel"), ("kv", "keys and values travel")):
        some = sorted(at([r for r in found if r.row["sync_mode"] == mode], 4), key=lambda r: r.row["sync_every"])
        if len(some) < 2:
            continue
        first, others_ = some[0], some[1:]
        ks = ", ".join(str(run.row["sync_every"]) for run in others_)
        said = "; ".join(
            f"{NAMES[m]} {', '.join(signed(difference(run, first, m)) for run in others_)}"
            for m in ("accuracy", "path_accuracy", "arness", "path_agree")
        )
        cost = " → ".join(f"{run.row['bytes_per_token']:,.0f}" for run in some)
        section.findings.append(
            f"**K** (nap-tiny, `{mode}`: {what}; 4 tokens a step). K = {ks} minus K = {first.row['sync_every']}: "
            f"{said}. Bytes a token: {cost}."
        )
    keys = SYNC | STEPS
    section.lines += run_table(
        found, keys, HEADS | {"same wrong": "path_same_wrong", "stale": "staleness_mean", "bytes": "bytes_per_token"}
    )
    section.lines += [
        "",
        "same wrong: of pairs of paths that are both wrong, the share with one answer. stale: mean age in steps of "
        "what was read of peers. bytes: wire bytes of all workers for a useful token.",
    ]
    return section


def modes(records: Records) -> Section | None:
    """Sync modes, by tokens a step."""
    if "full" not in records:
        return None
    section = Section("What may they say? Sync mode by tokens a step")
    found = sorted(runs(records["full"], "modes"), key=lambda run: (per_step(run.row), how(run.row)))
    for tokens in (1, 4):
        by_mode = {run.row["sync_mode"]: run for run in at(found, tokens)}
        if {"exact", "none"} <= set(by_mode):
            said = compared(by_mode["none"], by_mode["exact"], ("accuracy", "path_accuracy", "arness", "path_agree"))
            section.findings.append(
                f"**Mode** (nap-tiny, {step_text(tokens)}). Nothing said before the summary, against `exact`: {said}."
            )
    section.lines += run_table(
        found, STEPS | SYNC, HEADS | {"vote": "majority_accuracy", "any path": "any_path_accuracy",
                                      "stale": "staleness_mean", "bytes": "bytes_per_token"}
    )  # fmt: skip
    return section


def paths(records: Records) -> Section | None:
    """The number of paths."""
    if "full" not in records:
        return None
    section = Section("How many paths?")
    found = runs(records["full"], "paths")
    found.sort(key=lambda run: (per_step(run.row), run.row["sync_mode"], run.row["paths"]))
    for mode in ("exact", "none"):
        for tokens in (1, 4):
            by_m = {r.row["paths"]: r for r in at([r for r in found if r.row["sync_mode"] == mode], tokens)}
            if {1, 3} <= set(by_m):
                said = compared(by_m[3], by_m[1], ("accuracy", "path_accuracy"))
                said += f"; {corrected(by_m[3], by_m[1])}"
                where = f"nap-tiny, `{mode}`, {step_text(tokens)}"
                section.findings.append(f"**Paths** ({where}). Three against one: {said}.")
    section.lines += [
        "Every path has the same budget, so three paths have three times the slots, and at equal tokens a step nearly "
        "three times the steps; a single path then commits three times as many slots of its own at a step. Raw ARness "
        "is therefore not compared here: a random order alone scores differently (the column by chance).",
        "",
    ]
    keys = STEPS | {"sync": lambda row: str(row["sync_mode"]), "paths": lambda row: str(row["paths"])}
    section.lines += run_table(
        found, keys, HEADS | CHANCE | {"vote": "majority_accuracy", "any path": "any_path_accuracy",
                                       "steps": "nfe_steps", "bytes": "bytes_per_token"}
    )  # fmt: skip
    return section


# -- twins ------------------------------------------------------------------------------------------


def rule(row: Row) -> str:
    """Rule and, where it is not the usual one, scope."""
    return str(row["rule"]) + (", within each path" if row["scope"] == "path" and row["rule"] == "random" else "")


def twins(records: Records) -> Section | None:
    """NAP against its twin, on one device, by rule and tokens a step."""
    if not {"full", "twin"} <= set(records):
        return None
    section = Section("Three paths or one chain? nap-tiny and its Long-CoT twin")
    nap, cot = (runs(records[name], "rules") for name in ("full", "twin"))
    for tokens in (1, 4):
        for name in ("parallel-forced", "confidence"):
            pair = [next((r for r in at(some, tokens) if rule(r.row) == name), None) for some in (nap, cot)]
            one, other = pair
            if one is not None and other is not None:
                said = f"accuracy {signed(difference(one, other, 'accuracy'))}; {corrected(one, other)}"
                section.findings.append(f"**NAP minus twin** (`{name}`, {step_text(tokens)}): {said}.")
    slots = {round(run.row["tokens_per_step"] * run.row["steps"]) for run in [*nap, *cot]}
    section.lines += [
        f"Same start, same number of steps and canvases, same problems; {' and '.join(map(str, sorted(slots)))} slots "
        "in both, the summary clamped in both. Both went on from the weights bundled before, which had only ever seen "
        "canvases of three paths ([nap-tiny.md](nap-tiny.md)): the twin had less practice in its form. One training "
        "each, so a difference between the two holds for these two models. Raw ARness is not compared: within a short "
        "path a random order scores more than within a long chain (the column by chance).",
        "",
    ]
    head = {"model": lambda row: str(row["label"]), "rule": rule}
    section.lines += run_table([*nap, *cot], head | STEPS, {k: v for k, v in HEADS.items() if k != "paths agree"}
                               | CHANCE | {"TPF": "tpf"})  # fmt: skip
    return section


def adapted(records: Records) -> Section | None:
    """A pretrained model adapted to masks, on GSM8K."""
    if "adapted" not in records:
        return None
    section = Section("A pretrained model: adapted SmolLM2-135M on GSM8K questions")
    found = runs(records["adapted"], "rules")
    by = {(rule(run.row), per_step(run.row)): run for run in found}
    one, four = by.get(("confidence", 1)), by.get(("confidence", 4))
    best = max((run.row["accuracy"] for run in found), default=None)
    if one is not None:
        text = f"**Adapted SmolLM2** (arbitrary order, one token a step): ARness {spread(estimate(one, 'arness'))}"
        if four is not None:
            text += f"; at 4 tokens a step it {moves(difference(four, one, 'arness'))}"
        section.findings.append(
            f"{text}. Its best accuracy under any rule is {number(best)} of {one.row['n']} problems."
        )
    keys = {"rule": rule} | STEPS
    measures = {"accuracy": "accuracy", "ARness": "arness", "corrected": "arness_corrected", "local": "arness_local",
                "TPF": "tpf", "content tokens": "useful_tokens"}  # fmt: skip
    section.lines += [*run_table(found, keys, measures), ""]
    sure = {"threshold": lambda row: f"{row['threshold']}", "cache": lambda row: str(row.get("cache") or "none")}
    section.lines += run_table(runs(records["adapted"], "threshold"), sure, measures)
    return section


# -- mismatch ---------------------------------------------------------------------------------------

TRAINED = {
    "shared-t": "all paths equally far",
    "per-path-t": "each path as far as it happens to be",
    "stale": "peers as of up to 24 commits ago",
    "hub": "topology hub",
    "isolated": "topology isolated",
}


def mismatch(records: Records) -> Section | None:
    """Models that knew different things in training, each under every K and topology."""
    if "mismatch" not in records:
        return None
    section = Section("Training and decoding that differ")
    talking, silent = (runs(records["mismatch"], name) for name in ("every", "never"))
    section.lines += [
        "Five models that went on from the same weights and differ in what a path knew of the others while it was "
        "learnt (`examples/train/mismatch.yaml`). One training each: between rows of one model only the decoding "
        "differs, between models also chance.",
        "",
    ]
    topologies = ("full", "hub", "isolated")
    for measure in ("accuracy", "path_accuracy", "arness", "path_agree"):
        section.lines += [f"{NAMES[measure][0].upper()}{NAMES[measure][1:]}:", ""]
        section.lines += [*_mismatch_table(talking, silent, measure, topologies), ""]
    section.findings += list(_mismatch_findings(talking, silent))
    return section


def _mismatch_table(
    talking: Sequence[Run], silent: Sequence[Run], measure: str, topologies: Sequence[str]
) -> list[str]:
    ks = sorted({run.row["sync_every"] for run in talking})
    rows = []
    for name in TRAINED:
        for topology in topologies:
            some = {r.row["sync_every"]: r for r in _of(talking, name, topology)}
            none = next(iter(_of(silent, name, topology)), None)
            if some:
                cells = [spread(estimate(some[k], measure)) if k in some else "–" for k in ks]
                last = "–" if none is None else spread(estimate(none, measure))
                rows.append([f"{name} ({TRAINED[name]})", topology, *cells, last])
    return table(["trained with", "decoded with", *(f"K = {k}" for k in ks), "none"], rows)


def _of(found: Sequence[Run], label: str, topology: str) -> list[Run]:
    return [r for r in found if (r.row["label"], r.row["sync_topology"]) == (label, topology)]


def _mismatch_findings(talking: Sequence[Run], silent: Sequence[Run]) -> Iterator[str]:
    for name in ("shared-t", "per-path-t", "stale"):
        some = sorted(_of(talking, name, "full"), key=lambda run: run.row["sync_every"])
        none = next(iter(_of(silent, name, "full")), None)
        if len(some) > 1 and none is not None:
            ks = (some[0].row["sync_every"], some[-1].row["sync_every"])
            later, never = (moves(difference(run, some[0], "accuracy")) for run in (some[-1], none))
            yield (
                f"**Mismatch** (trained `{name}`, decoded `full`): accuracy {later} from K = {ks[0]} to {ks[1]}, and "
                f"{never} where nothing is said."
            )
    for name in ("hub", "isolated"):
        own, full = (next(iter(_of(talking, name, topology)), None) for topology in (name, "full"))
        if own is not None and full is not None:
            said = moves(difference(full, own, "accuracy"))
            where = f"decoded with `full` instead of `{name}`, K = {own.row['sync_every']}"
            yield f"**Mismatch** (trained `{name}`): {where}, accuracy {said}."


# -- the rest ---------------------------------------------------------------------------------------


def others(records: Records) -> Section | None:
    """Topology, temperature and warm-up of nap-tiny."""
    if "full" not in records:
        return None
    section = Section("Topology, temperature, warm-up")
    sweeps: dict[str, dict[str, Key]] = {
        "topology": STEPS | {"topology": lambda row: str(row["sync_topology"])},
        "temperature": {"temperature": lambda row: f"{row['temperature']}", "seed": lambda row: str(row["seed"])}
        | SYNC,
        "warmup": SYNC | {"exact steps first": lambda row: str(row["sync_warmup"])},
    }
    for name, keys in sweeps.items():
        found = runs(records["full"], name)
        if found:
            section.lines += [
                *run_table(found, keys, HEADS | {"vote": "majority_accuracy", "bytes": "bytes_per_token"}),
                "",
            ]
    return section


def across(records: Records, seqdep: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """SeqDep of the training texts, ARness and AUP of the models trained on them."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in RULED:
        for run in runs(records[name], "rules") if name in records else []:
            where = f"{run.row['label']}, {rule(run.row)}"
            if run.row.get("tpf"):
                curves.setdefault(where, []).append((run.row["tpf"], 100 * run.row["accuracy"]))
    if not curves and not seqdep:
        return None
    section = Section("SeqDep, ARness and AUP across models")
    section.lines += _seqdep_lines(seqdep)
    section.lines += _aup_lines(records, curves)
    return section


def _seqdep_lines(seqdep: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, found in seqdep.items():
        for form, one in found["forms"].items():
            gains = [_seq(one.get(key)) for key in ("seqdep", "shuffled", "foreign")]
            rows.append([name, form, str(one["seqdep"]["texts"]), *gains])
    if not rows:
        return []
    text = "SeqDep of training texts, nats a token, under SmolLM2-135M ([seqdep.md](seqdep.md) says how to read it):"
    return [text, "", *table(["texts of", "form", "texts", "SeqDep", "shuffled", "another text"], rows), ""]


def _seq(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "–"
    return spread(Interval(*(found["per_token"][key] for key in ("value", "low", "high"))))


def _aup_lines(records: Records, curves: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    rows = []
    scored = {name: points for name, points in curves.items() if len(points) > 1 and max(y for _, y in points) > 0}
    for name, one in (aup.compare(scored) if scored else {}).items():
        lost = ", ".join(f"{y:.1f} % at {x:.2f}" for x, y in one.dropped) or "–"
        rows.append([name, number(_arness(records, name), 3), number(one.value, 1), str(len(one.points)), lost])
    if not rows:
        return []
    text = (
        "AUP, accuracy under parallelism, over the tokens a step of the tables above; the best accuracy of all rows is "
        "the measure of each. Rows of different problem sets cannot be compared. ARness is that at 1 token a step, "
        "chance-corrected:"
    )
    return [
        text,
        "",
        *table(["model, rule", "ARness, corrected", "AUP", "points", "dropped (too far below the first)"], rows),
    ]


def _arness(records: Records, name: str) -> float | None:
    """Of the rules' sweeps alone: others have runs of the same name on other canvases."""
    for study in RULED:
        for run in at(runs(records[study], "rules"), 1) if study in records else []:
            if f"{run.row['label']}, {rule(run.row)}" == name:
                value = run.row.get("arness_corrected")
                return None if value is None else float(value)
    return None
