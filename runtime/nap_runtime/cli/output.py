"""What a decode prints: one JSON object a line, or plain text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nap_runtime.cli.jobs import BadLine
from nap_runtime.cli.settings import Settings
from nap_runtime.study.environment import commit

if TYPE_CHECKING:
    from nap_runtime.executor.base import WorkerPlace
    from nap_runtime.executor.coordinator import JobFailure
    from nap_runtime.job import DecodeResult, LiveAnswer
    from nap_runtime.metrics.report import RunMetrics

SCHEMA = "nap.decode/1"
_WORDS, _LETTERS = 10, 40  # named in a warning, and of each
Row = tuple[str, str]


def dumps(values: Any) -> str:
    """One line of JSON; in ASCII where it holds what stdout cannot encode, such as a lone surrogate."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(values, allow_nan=False)
    return text


def result_json(result: DecodeResult, settings: Settings, places: Sequence[WorkerPlace]) -> dict[str, Any]:
    """The contract's object of one prompt; `settings` are resolved."""
    meters, record = result.metrics.to_json(), result.record
    values = {
        "schema": SCHEMA,
        "index": result.job.index,
        "id": result.job.id,
        "answer": result.answer,
        "answer_source": result.answer_source,
        "summary": result.summary,
        "paths": list(result.paths),
        "tokens": record.final_ids.tolist(),
        "layout": record.layout.to_mapping(),
        "order": record.order(),
        "config": settings.to_mapping(),
        **{key: meters[key] for key in ("steps", "nfe", "tpf", "arness")},
        "sync": meters["sync"] | {key: meters[key] for key in ("batch", "useful_tokens", "useful_tokens_per_second")},
        "seconds": meters["seconds"],
        "workers": [asdict(place) for place in places],
        "seed": settings.config.seed,
        "unknown_words": list(result.unknown_words),
        "commit": commit(),
    }
    if settings.config.sync.summary == "live":
        values["live"] = [asdict(answer) for answer in result.live]
    if result.job.gold is not None:
        values |= {"gold": result.job.gold, "correct": result.correct}
    return values


def failure_json(failure: JobFailure | BadLine) -> dict[str, Any]:
    """The object of a prompt that could not be decoded."""
    if isinstance(failure, BadLine):
        index, name, error = failure.index, failure.id, f"line {failure.line}: {failure.error}"
    else:
        index, name, error = failure.job.index, failure.job.id, " ".join(str(failure.error).split())
    return {"schema": SCHEMA, "index": index, "id": name or str(index), "error": error}


def plain(result: DecodeResult, settings: Settings, note: str = "") -> str:
    """Everything a reader wants of one result, as text: question, paths, summary, answer, costs."""
    rows = [("question", result.job.question), *([("", f"({note})")] if note else [])]
    rows += _texts(result)
    rows += [("answer", answer_line(result)), ("", ""), *cost_rows(result.metrics, settings)]
    return align(rows)


def _texts(result: DecodeResult) -> list[Row]:
    if result.record.layout.summary is None:
        return [("text", result.summary)]
    owners = result.record.assignment.worker_of
    rows = [(f"path {j + 1}", f"[worker {owners[j]}] {text}") for j, text in enumerate(result.paths)]
    live = [(f"at step {answer.step}", answer.summary) for answer in _changes(result.live)]
    return [*rows, *live, ("summary", result.summary)]


def _changes(live: Sequence[LiveAnswer]) -> list[LiveAnswer]:
    """Where a provisional summary differs from the one before."""
    pairs = zip([None, *live], live, strict=False)
    return [answer for before, answer in pairs if before is None or before.summary != answer.summary]


def answer_line(result: DecodeResult) -> str:
    """The answer, and how it compares with the gold one."""
    answer = "none (the text holds no \\boxed{…})" if result.answer is None else result.answer
    if result.correct is None:
        return answer
    return f"{answer}  ({'correct' if result.correct else f'wrong: the right answer is {result.job.gold}'})"


def cost_rows(metrics: RunMetrics, settings: Settings) -> list[Row]:
    """Name and value of each line of the cost block."""
    rows = [("sync", _sync(metrics, settings)), ("network", _network(metrics)), ("ARness", _arness(metrics))]
    rate = metrics.useful_tokens_per_second
    speed = "" if rate is None else f", {rate:.0f} content tokens/s"
    time = f"first commit after {metrics.seconds_first_commit:.2f} s, all after {metrics.seconds:.2f} s{speed}"
    if settings.workers > 1:
        rows.insert(1, ("bytes", _bytes(metrics)))
    return [*rows, ("time", time)]


def _sync(metrics: RunMetrics, settings: Settings) -> str:
    sync, policy = metrics.sync, settings.config.sync
    every = "" if sync.every is None else f" every {sync.every}"
    workers = f"{settings.workers} {'workers' if settings.workers > 1 else 'worker'}"
    how = " simulated in one process" if settings.simulate else ""
    stale = "" if sync.staleness is None else f", staleness {sync.staleness.mean:.1f} steps"
    blocked = ""
    if settings.workers > 1 and sync.blocked_seconds is not None and metrics.seconds > 0:
        blocked = f", {100 * sync.blocked_seconds.mean / metrics.seconds:.0f} % of the time blocked"
    counted = f"{sync.syncs} {'sync' if sync.syncs == 1 else 'syncs'}"
    return f"{sync.mode}{every} ({policy.sees}) on {workers}{how}: {counted}{blocked}{stale}"


def _bytes(metrics: RunMetrics) -> str:
    sync = metrics.sync
    return f"payload {_per_worker(sync.payload_bytes)}, on the wire {_per_worker(sync.wire_bytes)}"


def _per_worker(sizes: Sequence[int]) -> str:
    if len(set(sizes)) == 1:
        return f"{size_text(sizes[0])} a worker"
    return " + ".join(map(size_text, sizes))


def size_text(size: float) -> str:
    """Bytes for people: 1.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _network(metrics: RunMetrics) -> str:
    nfe = metrics.nfe
    tpf = "" if metrics.tpf is None else f"; {metrics.tpf:.2f} content tokens a step (TPF)"
    return f"{nfe.steps} steps (NFE), {nfe.critical} on the busiest worker, {nfe.total} in all{tpf}"


def _arness(metrics: RunMetrics) -> str:
    report = metrics.arness
    canvas, null = report.canvas.content, report.layout_null.content
    if len(report.paths) == 1:
        return f"@{report.k} {number(canvas.set_based)}, chance {number(canvas.set_based_random)}"
    paths = " ".join(number(path.content.set_based) for path in report.paths)
    mean, chance = report.path_mean["set_based"], report.path_mean["set_based_random"]
    layout = number(null[0] if null else None)
    return (
        f"@{report.k} of each path {paths} (mean {number(mean)}, chance {number(chance)}); "
        f"canvas {number(canvas.set_based)}, of which the layout alone gives {layout}"
    )


def number(value: float | None) -> str:
    """Two digits, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def align(rows: Iterable[Row]) -> str:
    """Names in a column of their own."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in listed)


def unknown_words_line(result: DecodeResult, model: str) -> str:
    """A warning that names the words the model has never seen; empty where there are none."""
    if not result.unknown_words:
        return ""
    named = [word if len(word) <= _LETTERS else f"{word[:_LETTERS]}…" for word in result.unknown_words[:_WORDS]]
    more = len(result.unknown_words) - len(named)
    words = ", ".join(named) + (f" and {more} more" if more else "")
    limit = "; it knows word problems only" if model == "nap-tiny" else ""
    return f"warning: {model} has never seen: {words}{limit}"
