"""The tables, in the shape of the paper's. Each is a heading's worth of Markdown lines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nap_trainer.miniature import stats
from nap_trainer.miniature.arms import ARMS
from nap_trainer.miniature.records import Record
from nap_trainer.miniature.report import contrasts
from nap_trainer.miniature.report.results import Results
from nap_trainer.miniature.report.text import MISSING, UNDEFINED, number, p_value, signed, spread, table
from nap_trainer.miniature.stats import Interval

AO, PF = "ao-e0", "pf-e0"
HEADLINE = "path_set"


def accuracy_of(record: Record) -> Interval:
    """Share of right summaries of one decode."""
    return stats.wilson(int(record.right_n.sum()), len(record))


def arness_of(record: Record, figure: str) -> Interval:
    """Mean of one ARness figure."""
    return stats.mean_interval(record.figure(figure))


def rules_of(results: Results) -> list[str]:
    """The order settings that any decode has, in the study's order."""
    return list(results.study.order_rules)


def arness_by_rule(results: Results, per_step: int) -> list[str]:
    """Table 1: ARness by decoding rule (columns) and training data (rows)."""
    rows = []
    for arm in results.arms:
        row = [ARMS[arm].title]
        for rule in rules_of(results):
            record = results.orders.get((arm, arm, rule, per_step))
            fits = rule != PF or ARMS[arm].clamped
            row.append(_two(record) if fits else UNDEFINED)
        rows.append(row)
    return table(["trained on", *(f"`{rule}`" for rule in rules_of(results))], rows)


def _two(record: Record | None) -> str:
    if record is None:
        return MISSING
    return f"{spread(arness_of(record, 'set_content'))}; per path {number(arness_of(record, HEADLINE).value)}"


READINGS = (
    ("canvas, content", "set_content"),
    ("canvas, all slots", "set"),
    ("chance-corrected", "corrected_content"),
    ("step-ordered", "ordered_content"),
    ("per path", "path_set"),
    ("per path, corrected", "path_corrected"),
    ("layout null", "null_content"),
)


def every_reading(results: Results, per_step: int) -> list[str]:
    """All readings of ARness beside accuracy, one row an order decode."""
    rows = []
    for (weights, canvas, rule, number_), record in results.orders.items():
        if number_ != per_step:
            continue
        name = weights if weights == canvas else f"{weights} on {canvas}'s canvas"
        cells = [spread(arness_of(record, figure)) if figure == HEADLINE else number(arness_of(record, figure).value)
                 for _, figure in READINGS]  # fmt: skip
        tokens = number(float(np.nanmean(record.figure("content_tokens"))), 1)
        rows.append([name, f"`{rule}`", spread(accuracy_of(record)), *cells, tokens, str(len(record))])
    head = ["arm", "rule", "accuracy", *(title for title, _ in READINGS), "content tokens", "n"]
    return table(head, rows)


def data_and_arness(results: Results) -> list[str]:
    """Table 2: ARness under arbitrary order at one token a step, and its change against the short chain."""
    base = results.orders.get(("short", "short", AO, 1))
    rows = []
    for arm in results.arms:
        record = results.orders.get((arm, arm, AO, 1))
        if record is None:
            rows.append([ARMS[arm].title, *[MISSING] * 5])
            continue
        changes = [_change(record, base, figure) for figure in ("set_content", HEADLINE)]
        own = [spread(arness_of(record, figure)) for figure in ("set_content", HEADLINE)]
        rows.append([ARMS[arm].title, own[0], changes[0], own[1], changes[1], str(len(record.arness_kF))])
    return table(["trained on", "canvas", "minus short", "per path", "minus short", "n"], rows)


def _change(record: Record, base: Record | None, figure: str) -> str:
    if base is None or base is record:
        return UNDEFINED if base is record else MISSING
    return signed(stats.mean_interval(record.figure(figure) - base.figure(figure)))


def accuracy_by_steps(results: Results) -> list[str]:
    """Table 3: accuracy by tokens a step, every arm with its own chosen setting, and what NAP gains."""
    rows = []
    for per_step in sorted(results.numbers, reverse=True):
        slots = results.study.geometry.rows - 1 - 3  # NAP's slots: rows less four headers
        gains = [contrasts.difference(results, "nap", other, per_step) for other in ("cot-clamped", "cot")]
        cells = [_cell(results.accuracy(arm, per_step)) for arm in results.arms]
        steps = str(-(-slots // per_step))
        rows.append([steps, str(per_step), *cells, *(signed(gain.interval) for gain in gains)])
    head = ["steps", "tokens a step", *(f"`{arm}`" for arm in results.arms), "nap − cot-clamped", "nap − cot"]
    return table(head, rows)


def _cell(found: tuple[Interval, int, int] | None) -> str:
    if found is None:
        return MISSING
    interval, seeds, n = found
    return f"{spread(interval)} ({seeds} seed{'s' * (seeds > 1)}, n {n})"


def by_seed(results: Results, per_step: int) -> list[str]:
    """Accuracy of every training by itself."""
    seeds = range(max(results.study.seeds.values()))
    rows = []
    for arm in results.arms:
        found = [results.tests.get((arm, seed, per_step)) for seed in seeds]
        wanted = results.study.seeds[arm]
        cells = [UNDEFINED if s >= wanted else _share(record) for s, record in enumerate(found)]
        rows.append([f"`{arm}`", *cells])
    return table(["arm", *(f"seed {seed}" for seed in seeds)], rows)


def _share(record: Record | None) -> str:
    return MISSING if record is None else number(accuracy_of(record).value)


def data_and_decoding(results: Results) -> list[str]:
    """Table 4: training data × decoding, all on NAP's canvas, first seed."""
    numbers = sorted(results.study.order_per_step, reverse=True)
    rows = []
    for weights in ("cot-clamped", "nap"):
        for rule, title in ((AO, "arbitrary order"), (PF, "parallel-forced")):
            records = [results.orders.get((weights, "nap", rule, number_)) for number_ in numbers]
            cells = [MISSING if record is None else spread(accuracy_of(record)) for record in records]
            rows.append([ARMS[weights].title, title, *cells])
    return table(["training data", "decoding", *(f"{number_} a step" for number_ in numbers)], rows)


def width(results: Results) -> list[str]:
    """Table 5: one, two and three paths at an equal total budget."""
    rows = []
    for per_step in results.numbers:
        cells = [_cell(results.accuracy(arm, per_step)) for arm in ("short", "nap-2", "nap")]
        rows.append([str(per_step), *cells])
    return table(["tokens a step", "1 path (`short`)", "2 paths (`nap-2`)", "3 paths (`nap`)"], rows)


def paths_and_votes(results: Results, per_step: int) -> list[str]:
    """What the paths say beside what the summary says; means over seeds."""
    rows = []
    for arm in results.arms:
        records = [results.tests[arm, seed, per_step] for seed in results.seeds(arm, per_step)]
        if not records:
            rows.append([f"`{arm}`", *[MISSING] * 7])
            continue
        shares = np.array([list(_shares(record)) for record in records])
        with np.errstate(all="ignore"):
            means = [float(np.nanmean(column)) if np.isfinite(column).any() else float("nan") for column in shares.T]
        rows.append([f"`{arm}`", *(number(mean) for mean in means), f"{len(records)} × {len(records[0])}"])
    head = ["arm", "summary", "mean path", "vote", "any path", "summary where the vote is wrong",
            "summary where every path is wrong", "seeds × n"]  # fmt: skip
    return table(head, rows)


def _shares(record: Record) -> Iterator[float]:
    def among(where: np.ndarray) -> float:
        return float(record.right_n[where].mean()) if where.any() else float("nan")

    yield float(record.right_n.mean())
    yield float(record.path_right_nm.mean())
    yield float(record.vote_right_n.mean())
    yield float(record.any_right_n.mean())
    yield among(~record.vote_right_n)
    yield among(~record.any_right_n)


def by_depth(results: Results, per_step: int) -> list[str]:
    """Accuracy by the problems' depth, all seeds pooled; the interval takes problems of several seeds as one."""
    depths = sorted({int(d) for record in results.tests.values() for d in np.unique(record.depth_n)})
    rows = []
    for arm in results.arms:
        records = [results.tests[arm, seed, per_step] for seed in results.seeds(arm, per_step)]
        cells = [_depth_cell(records, depth) for depth in depths]
        rows.append([f"`{arm}`", *cells])
    return table(["arm", *(f"depth {depth}" for depth in depths)], rows)


def _depth_cell(records: list[Record], depth: int) -> str:
    right = [record.right_n[record.depth_n == depth] for record in records]
    return number(float(np.concatenate(right).mean())) if right and len(right[0]) else MISSING


def comparisons(results: Results) -> list[str]:
    """The planned contrasts."""
    found = contrasts.planned(results)
    corrected = {
        name: p for family in ("secondary", "same weights") for name, p in contrasts.adjusted(found, family).items()
    }
    rows = []
    for one in found:
        each = ", ".join(f"{'+' if value > 0 else ''}{number(value)}" for value in one.each) or UNDEFINED
        holm = p_value(corrected[one.name]) if one.name in corrected else UNDEFINED
        rows.append([one.family, one.name, signed(one.interval), p_value(one.p), holm, each, str(one.n or MISSING)])
    head = ["family", "contrast", "difference [95%]", "p", "p (Holm)", "each seed", "n"]
    return table(head, rows)


def choices(results: Results) -> list[str]:
    """What the search chose, with its accuracy on the development set."""
    rows = []
    by_key = {(row["arm"], row["per_step"]): row for row in results.store.choice_rows()}
    for arm in results.arms:
        cells = []
        for per_step in results.numbers:
            row = by_key.get((arm, per_step))
            cells.append(MISSING if row is None else f"`{row['setting']}` ({number(row['search'][row['setting']])})")
        rows.append([f"`{arm}`", *cells])
    return table(["arm", *(f"{number_} a step" for number_ in results.numbers)], rows)


def trainings(results: Results) -> list[str]:
    """Seeds, target tokens and seconds of the trainings."""
    notes = results.notes()
    rows = []
    for arm, count in results.study.seeds.items():
        mine = [note for model in results.study.models() if model.arm == arm and (note := notes[model.name])]
        seconds = sum(note["seconds"] for note in mine)
        targets = number(mine[0]["targets"], 1) if mine else MISSING
        budgets = "+".join(str(budget) for budget in results.study.geometry.budgets(ARMS[arm]))
        slots = f"{budgets}+{results.study.summary_tokens}" if ARMS[arm].clamped else budgets
        rows.append([f"`{arm}`", ARMS[arm].title, f"{len(mine)} of {count}", slots, targets, number(seconds, 0)])
    return table(["arm", "what it is", "seeds trained", "slots", "target tokens", "seconds in all"], rows)


def ledger(results: Results) -> list[str]:
    """Seconds by kind, device and stage."""
    totals: dict[tuple[str, str, str], list[float]] = {}
    for row in results.store.ledger():
        stage = row["name"].split("/")[0] if row["kind"] == "decode" else ""
        totals.setdefault((row["kind"], stage, row.get("device", "cpu")), []).append(row["seconds"])
    rows = [
        [kind, stage or UNDEFINED, device, str(len(seconds)), number(sum(seconds), 0)]
        for (kind, stage, device), seconds in totals.items()
    ]
    on_gpu = sum(sum(seconds) for (_, _, device), seconds in totals.items() if device != "cpu")
    return [*table(["work", "stage", "device", "units", "seconds"], rows), "", f"On accelerators: {on_gpu:.0f} s."]


def commands(results: Results) -> list[str]:
    """The commands that made the numbers, each once."""
    seen = dict.fromkeys(row["command"] for row in results.store.ledger() if row["kind"] != "data")
    return [f"    {command}" for command in seen]
