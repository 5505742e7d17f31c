"""The figures of one decode by name, and their means over a run: the columns of a study's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nap_runtime.job import DecodeResult
from nap_runtime.metrics.report import MeanMax

Value = float | int | None

# What each decode is measured by. Bytes, seconds and recomputed rows are a canvas's share of its batch.
MEASURES: Mapping[str, str] = {
    "arness": "global ARness@1, set-based, content slots, mean of the paths",
    "arness_corrected": "the same, chance-corrected",
    "arness_random": "what chance scores on the same quotas",
    "arness_step_ordered": "global ARness@1, step-ordered, content slots, mean of the paths",
    "arness_local": "local ARness@1, content slots, mean of the paths",
    "arness_canvas": "global ARness@1, set-based, content slots of the whole canvas",
    "arness_canvas_all": "the same over all slots",
    "layout_null": "what the canvas scores from geometry alone",
    "nfe_steps": "steps at which any worker ran the network",
    "nfe_critical": "most runs of one worker",
    "nfe_total": "runs of all workers",
    "nfe_rows": "rows through the network, all workers",
    "tpf": "content tokens a step that ran the network",
    "useful_tokens": "content tokens, no end of text",
    "syncs": "exchanges",
    "payload_bytes": "bytes that workers had to tell, all workers",
    "wire_bytes": "bytes that workers sent, all workers",
    "staleness_mean": "age in steps of what was read of peers' paths, mean",
    "staleness_max": "the same, largest",
    "rows_recomputed": "rows that only a sync asked for, all workers",
    "compute_seconds": "network, head, selection; mean over workers",
    "blocked_seconds": "waiting for exchanges; mean over workers",
    "overlapped_seconds": "exchanges beside compute; mean over workers",
    "recompute_seconds": "the share of compute that went to recomputed rows; mean over workers",
    "seconds": "a canvas's share of its batch's seconds",
    "first_commit_seconds": "until the batch's first commit",
}

# What only a whole run has.
SHARES: Mapping[str, str] = {
    "accuracy": "share of right answers of the summary (or region)",
    "path_accuracy": "share of right answers of single paths, mean",
    "majority_accuracy": "share of right answers of the paths' vote",
    "any_path_accuracy": "share of problems that any path gets right",
    "path_agree": "share of pairs of paths with equal answers",
    "path_same_wrong": "of pairs that are both wrong, the share with one answer",
    "path_wrong_correlation": "correlation of two paths' being wrong",
    "bytes_per_token": "wire bytes of all workers for each useful token",
    "tokens_per_second": "useful tokens a second",
    "failed": "problems that could not be decoded",
    "no_answer": "decodes without a readable answer",
}
METRICS = {**SHARES, **MEASURES}
_SIMULATED = ("compute_seconds", "blocked_seconds", "overlapped_seconds", "recompute_seconds", "seconds",
              "first_commit_seconds", "tokens_per_second")  # fmt: skip


def measures_of(result: DecodeResult) -> dict[str, Value]:
    """Every measure of one decode."""
    metrics = result.metrics
    sync, arness, batch = metrics.sync, metrics.arness, metrics.batch
    null = arness.layout_null.content
    return {
        "arness": arness.path_mean["set_based"],
        "arness_corrected": arness.path_mean["set_based_corrected"],
        "arness_random": arness.path_mean["set_based_random"],
        "arness_step_ordered": arness.path_mean["step_ordered"],
        "arness_local": arness.path_mean["local"],
        "arness_canvas": arness.canvas.content.set_based,
        "arness_canvas_all": arness.canvas.all.set_based,
        "layout_null": None if null is None else null[0],
        "nfe_steps": metrics.nfe.steps,
        "nfe_critical": metrics.nfe.critical,
        "nfe_total": metrics.nfe.total,
        "nfe_rows": metrics.nfe.rows,
        "tpf": metrics.tpf,
        "useful_tokens": metrics.useful_tokens,
        "syncs": sync.syncs,
        "payload_bytes": sum(sync.payload_bytes) / batch,
        "wire_bytes": sum(sync.wire_bytes) / batch,
        "staleness_mean": None if sync.staleness is None else sync.staleness.mean,
        "staleness_max": None if sync.staleness is None else sync.staleness.max,
        "rows_recomputed": sync.rows_recomputed,
        "compute_seconds": _share(sync.compute_seconds, batch),
        "blocked_seconds": _share(sync.blocked_seconds, batch),
        "overlapped_seconds": _share(sync.overlapped_seconds, batch),
        "recompute_seconds": _share(sync.recompute_seconds, batch),
        "seconds": metrics.seconds / batch,
        "first_commit_seconds": metrics.seconds_first_commit,
    }


def _share(seconds: MeanMax | None, batch: int) -> float | None:
    return None if seconds is None else seconds.mean / batch


def run_columns(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, simulated: bool) -> dict[str, Value]:
    """The columns of a run: shares from `evaluation.summarise`, means of the measures, intervals of the two main ones.

    Simulated workers share one device and give no times: these columns are null.
    """
    done = [row["measures"] for row in rows if "measures" in row]
    values: dict[str, Value] = {name: mean_of([one[name] for one in done]) for name in MEASURES}
    values["accuracy"] = summary["accuracy"]["share"]
    values["accuracy_low"], values["accuracy_high"] = summary["accuracy"]["interval"]
    values["arness_low"], values["arness_high"] = bootstrap([one["arness"] for one in done])
    values |= _paths(summary)
    values["failed"], values["no_answer"] = summary["failed"], summary["no_answer"]
    tokens, seconds = values["useful_tokens"], values["seconds"]
    values["bytes_per_token"] = (values["wire_bytes"] or 0) / tokens if tokens else None
    values["tokens_per_second"] = tokens / seconds if tokens and seconds else None
    if simulated:
        values |= dict.fromkeys(_SIMULATED)
    return values


def _paths(summary: Mapping[str, Any]) -> dict[str, Value]:
    names = ("path_accuracy", "majority_accuracy", "any_path_accuracy", "path_agree", "path_same_wrong")
    if "paths" not in summary:
        return dict.fromkeys((*names, "path_wrong_correlation"))
    agreement = summary["agreement"]
    return {
        "path_accuracy": mean_of([path["share"] for path in summary["paths"]]),
        "majority_accuracy": summary["majority"]["share"],
        "any_path_accuracy": summary["any_path"]["share"],
        "path_agree": agreement["agree"],
        "path_same_wrong": agreement["same_wrong"],
        "path_wrong_correlation": agreement["wrong_correlation"],
    }


def mean_of(values: Sequence[Value]) -> float | None:
    """The mean of what is known; None of nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def bootstrap(values: Sequence[Value], *, resamples: int = 2000, seed: int = 0) -> tuple[float | None, float | None]:
    """A 95% percentile bootstrap interval of the mean over problems."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return None, None
    counts = np.random.default_rng(seed).multinomial(len(known), [1 / len(known)] * len(known), size=resamples)
    low, high = np.percentile(counts @ known / len(known), [2.5, 97.5])
    return float(low), float(high)
