"""Which figures a study's rows give: metrics against what a sweep varies, costs against scores, orders of decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.errors import RecordError
from nap_runtime.metrics import aup
from nap_runtime.metrics.aup import Aup
from nap_runtime.metrics.order import DecodeOrder
from nap_runtime.study.figures import Series, curves, order_figure, stacked
from nap_runtime.study.measures import METRICS
from nap_runtime.study.spec import PLACE

Row = Mapping[str, Any]
Found = tuple[str, Any, str]  # name, figure, caption

# Columns that a run is told by, in the order in which they are shown.
KEYS = (
    *("label", "model", "problems_set", "layout", "rule", "scope", "confidence", "sync_mode", "sync_every"),
    *("sync_warmup", "sync_topology", "sync_overlap", "sync_summary", "paths", "path_tokens", "summary_tokens"),
    *("gen_length", "workers", "execution", "steps", "tokens_per_step", "temperature", "eos_weight", "threshold"),
    *("factor", "cfg", "cache", "cache_every", "block_length", "headers", "rule_args", "dtype", "weights", "kv"),
    *("device", "batch_size", "bucket", "seed", "problems_seed", "problems_ask"),
)
_MOST_ORDERS = 6
_LOG = ("sync_every", "wire_bytes", "payload_bytes", "bytes_per_token")
_SAME = {"steps": "tokens_per_step"}  # one follows from the other


def varying(rows: Sequence[Row]) -> list[str]:
    """The keys in which some rows differ; at least one."""
    found = [key for key in KEYS if len({text(row.get(key)) for row in rows}) > 1]
    found = [key for key in found if _SAME.get(key) not in found]
    return found or ["model"]


def text(value: Any) -> str:
    """A value as it is shown."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def name_of(row: Row, keys: Sequence[str]) -> str:
    """What tells a row apart, in a few words."""
    parts = [text(row[key]) if key in ("label", "model", "rule", "sync_mode", "problems_set") else _pair(key, row[key])
             for key in keys if row.get(key) is not None]  # fmt: skip
    return ", ".join(parts) or "all"


def _pair(key: str, value: Any) -> str:
    short = {"sync_every": "K", "sync_topology": "topology", "tokens_per_step": "tokens a step", "paths": "m"}
    return f"{short.get(key, key.replace('sync_', '').replace('_', ' '))} {text(value)}"


# -- one sweep -------------------------------------------------------------------------------------


def of_sweep(sweep: Mapping[str, Any], rows: Sequence[Row], keys: Sequence[str]) -> Iterator[Found]:
    """Each metric against x, a curve for each combination of the other keys that vary; seeds are averaged over."""
    x = column_of(sweep["x"]) if sweep.get("x") else _first_number(rows, keys)
    if x is None:
        return
    by = _curve_keys(sweep, keys, x)
    for metric in sweep["metrics"]:
        series = list(_series(rows, x, by, metric))
        if series:
            figure = curves(series, x=_axis(x), y=metric, log_x=x in _LOG, log_y=metric in _LOG)
            yield f"{sweep['name']}-{metric}", figure, f"{METRICS[metric]}, against {_axis(x)}"


def _curve_keys(sweep: Mapping[str, Any], keys: Sequence[str], x: str) -> list[str]:
    """The columns that tell the curves of a sweep apart."""
    named = [column_of(key) for key in sweep["by"]]
    return named or [key for key in keys if key not in (x, _SAME.get(x)) and "seed" not in key]


def column_of(key: str) -> str:
    """A key of a study's file as a column of its table."""
    return key if key in PLACE else key.replace(".", "_")


def _axis(key: str) -> str:
    names = {
        "sync_every": "K, steps between exchanges",
        "tokens_per_step": "tokens committed a step",
        "paths": "paths m",
    }
    return names.get(key, key.replace("_", " "))


def _first_number(rows: Sequence[Row], keys: Sequence[str]) -> str | None:
    for key in keys:
        if all(_is_number(row.get(key)) or row.get(key) is None for row in rows) and "seed" not in key:
            return key
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _series(rows: Sequence[Row], x: str, by: Sequence[str], metric: str) -> Iterator[Series]:
    groups: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if _is_number(row.get(x)) and _is_number(row.get(metric)):
            groups.setdefault(name_of(row, by), {}).setdefault(float(row[x]), []).append(row)
    for name, points in groups.items():
        ys = [sum(row[metric] for row in some) / len(some) for some in points.values()]
        bounds = [_bounds(some, metric) for some in points.values()]
        known = all(low is not None for low, _ in bounds)
        yield Series(
            name=name,
            x=list(points),
            y=ys,
            low=[low for low, _ in bounds if low is not None] if known else None,
            high=[high for _, high in bounds if high is not None] if known else None,
        )


def _bounds(rows: Sequence[Row], metric: str) -> tuple[float | None, float | None]:
    """The interval of one run; of several (seeds) the span of their values."""
    if len(rows) > 1:
        values = [row[metric] for row in rows]
        return min(values), max(values)
    return rows[0].get(f"{metric}_low"), rows[0].get(f"{metric}_high")


def aup_of_sweep(sweep: Mapping[str, Any], rows: Sequence[Row], keys: Sequence[str]) -> dict[str, Aup]:
    """AUP of each curve of accuracy against tokens a forward; empty where x is not the number of tokens a step."""
    if column_of(sweep.get("x") or "") not in ("tokens_per_step", "steps") or "accuracy" not in sweep["metrics"]:
        return {}
    by = _curve_keys(sweep, keys, column_of(sweep["x"]))
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("tpf") and row.get("accuracy") is not None:
            points.setdefault(name_of(row, by), []).append((row["tpf"], 100 * row["accuracy"]))
    several = {name: some for name, some in points.items() if len(some) > 1}
    return aup.compare(several) if several else {}


# -- the whole study -------------------------------------------------------------------------------


def across_study(rows: Sequence[Row]) -> Iterator[Found]:
    """Pareto plots, staleness, agreement and measured overhead over all runs with several workers."""
    several = [row for row in rows if row["workers"] > 1]
    if len(several) < 2:
        return
    for metric in ("accuracy", "arness"):
        yield from _scatter(several, "bytes_per_token", metric, f"Bytes a token against {metric}")
    for metric in ("accuracy", "arness", "path_same_wrong"):
        yield from _scatter(several, "staleness_mean", metric, f"Staleness against {metric}")
    yield from _overhead(several)


def _scatter(rows: Sequence[Row], x: str, metric: str, caption: str) -> Iterator[Found]:
    series = [
        Series(name=one.name, x=one.x, y=one.y, low=one.low, high=one.high)
        for one in _series(
            rows, x, [k for k in ("label", "model", "sync_mode", "tokens_per_step") if k in varying(rows)], metric
        )
    ]
    if sum(len(one.x) for one in series) > 1:
        figure = curves(series, x=METRICS[x], y=metric, title="", log_x=x == "bytes_per_token", joined=False)
        yield f"all-{metric}-{x}", figure, f"{caption}; a point a run"


def _overhead(rows: Sequence[Row]) -> Iterator[Found]:
    """Compute, blocked and overlapped seconds by paths, of real workers with one path each."""
    real = [row for row in rows if row["execution"] == "ray" and row["workers"] == row["paths"]]
    for mode in dict.fromkeys((row["sync_mode"], row["sync_every"]) for row in real):
        some = sorted(
            (row for row in real if (row["sync_mode"], row["sync_every"]) == mode), key=lambda row: row["paths"]
        )
        if len(some) < 2:
            continue
        parts = [
            (part, [row[f"{part}_seconds"] or 0.0 for row in some]) for part in ("compute", "blocked", "overlapped")
        ]
        every = "" if mode[1] is None else f", K {mode[1]}"
        figure = stacked([str(row["paths"]) for row in some], parts, x="paths, a worker each", y="seconds a canvas",
                         title=f"{mode[0]}{every}")  # fmt: skip
        yield f"overhead-{mode[0]}-{mode[1] or 0}", figure, "Seconds of real workers, mean over workers"


def order_maps(folder: Path, rows: Sequence[Row]) -> Any | None:
    """Heat maps of the first problem, one for each model and rule; None without a trace."""
    found: list[tuple[str, DecodeOrder]] = []
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        kind = tuple(row.get(key) for key in ("label", "model", "layout", "rule", "scope"))
        file = folder / "traces" / f"{row['run_id']}.nap"
        if kind in seen or not file.is_file() or len(found) == _MOST_ORDERS:
            continue
        try:
            order = DecodeOrder.from_record(DecodeRecord.from_bytes(file.read_bytes()))
        except RecordError:
            continue  # a trace that was cut short says nothing; the rows do not depend on it
        seen.add(kind)
        found.append((f"{row.get('label') or row['model']}\n{row['rule']}", order))
    return order_figure(found) if found else None
