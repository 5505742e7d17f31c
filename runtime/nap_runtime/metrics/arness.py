"""ARness: how far a decode committed from left to right (paper, Eq. 2 and 3; Gong et al. 2025, appendix A.2).

With p_c the position committed c-th and M the masked set just before it, global ARness@k is the share of
commits with p_c among the k smallest of M. Neither source says what several commits in one step are; here:

* set-based (the headline): a step's n commits against the n·k leftmost masked positions before the step;
* step-ordered: one after the other in a uniformly random order within the step, in expectation. Left to right
  at 4 a step scores 1.0 set-based, and (1 + 1/2 + 1/3 + 1/4) / 4 = 0.52 step-ordered.

Chance is a decode that picks uniformly among what is masked, on the same quotas: the same number of commits
at the same steps from the same pools (see `DecodeOrder.pool`). Its expectations are exact here, nothing is
sampled, and (A − A_rand) / (1 − A_rand) is the chance-corrected score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from nap_runtime.decoding.layout import Ids
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.decoding.schedule import UnmaskingSchedule
from nap_runtime.errors import RecordError, UsageError
from nap_runtime.metrics.order import DecodeOrder, config_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArnessScore:
    """ARness@k of one order. Scores lie in [0, 1]; None where nothing is committed.

    Attributes:
        tokens: L, commits scored.
        steps: steps that commit any of them.
        set_based, step_ordered: global ARness@k in its two readings.
        set_based_random, step_ordered_random: A_rand, what chance scores on the same quotas.
        set_based_corrected, step_ordered_corrected: (A − A_rand) / (1 − A_rand), 0 for chance and below 0 for
            less; None where undefined: a single step holds no order, and where A_rand is 1 none can be told
            from chance.
        local: share of commits whose k predecessors are exactly the k positions before them, within a step in
            expectation over its orders. The first k commits have too few and score 0, as in Gong et al.
    """

    tokens: int
    steps: int
    set_based: float | None
    step_ordered: float | None
    set_based_random: float | None
    step_ordered_random: float | None
    set_based_corrected: float | None
    step_ordered_corrected: float | None
    local: float | None

    @classmethod
    def of(cls, order: DecodeOrder, *, k: int = 1) -> ArnessScore:
        """Score an order.

        Raises:
            UsageError: k is not at least 1.
        """
        if k < 1:
            raise UsageError(f"k: {k} is not at least 1", field="k")
        if not order.committed.any():
            return cls(tokens=0, steps=0, **dict.fromkeys([field.name for field in fields(cls)][2:]))
        tokens, by_step = int(order.committed.sum()), _StepCounts.of(order)
        set_based, step_ordered = global_arness(order, k)
        set_random = by_step.set_based_hits(k) / tokens
        step_random = by_step.step_ordered_hits(k) / tokens
        one_step = len(by_step.taken) == 1
        return cls(
            tokens=tokens,
            steps=len(by_step.taken),
            set_based=set_based,
            step_ordered=step_ordered,
            set_based_random=set_random,
            step_ordered_random=step_random,
            set_based_corrected=None if one_step else _corrected(set_based, set_random),
            step_ordered_corrected=None if one_step else _corrected(step_ordered, step_random),
            local=local_arness(order, k),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArnessPair:
    """One order over all its slots, and over its content slots alone (with a masked set of their own)."""

    all: ArnessScore
    content: ArnessScore

    @classmethod
    def of(cls, order: DecodeOrder, *, k: int = 1) -> ArnessPair:
        """Score an order both ways."""
        return cls(all=ArnessScore.of(order, k=k), content=ArnessScore.of(order.only(order.content), k=k))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutNull:
    """What the layout alone scores: every path strictly left to right on the same schedule.

    Attributes:
        planned: (set-based, step-ordered) of the schedule as planned; None where it sets no path's pace.
        all, content: the same of the schedule as it went (paths that closed early take fewer steps), over all
            slots and over content slots: what `ArnessReport.canvas` compares with.
    """

    planned: tuple[float, float] | None
    all: tuple[float, float] | None
    content: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArnessReport:
    """Every ARness of one decode at one k. @1 is the primary measure.

    Attributes:
        k: how many leftmost masked positions count as left to right.
        canvas: over the whole canvas.
        paths: each path by itself: its own slots, its own masked set.
        path_mean: mean of the paths' content scores, by name, over the paths where each is defined: what
            claims about NAP use.
        layout_null: what the canvas scores from geometry alone.
    """

    k: int
    canvas: ArnessPair
    paths: tuple[ArnessPair, ...]
    path_mean: dict[str, float | None]
    layout_null: LayoutNull

    @classmethod
    def of(cls, order: DecodeOrder, *, k: int = 1, planned: DecodeOrder | None = None) -> ArnessReport:
        """Score an order; `planned` is the left-to-right order of its schedule (`DecodeOrder.planned`).

        Raises:
            UsageError: k is not at least 1.
        """
        canvas = ArnessPair.of(order, k=k)
        paths = tuple(ArnessPair.of(order.only(order.region == path), k=k) for path in range(order.n_paths))
        sorted_all = order.left_to_right_in_regions()
        sorted_content = order.only(order.content).left_to_right_in_regions()
        return cls(
            k=k,
            canvas=canvas,
            paths=paths,
            path_mean=_means([path.content for path in paths]),
            layout_null=LayoutNull(
                planned=None if planned is None else global_arness(planned, k),
                all=global_arness(sorted_all, k) if canvas.all.tokens else None,
                content=global_arness(sorted_content, k) if canvas.content.tokens else None,
            ),
        )

    @classmethod
    def of_record(cls, record: DecodeRecord, *, k: int = 1) -> ArnessReport:
        """Score a decode.

        Raises:
            RecordError: its config does not fit its layout.
            UsageError: k is not at least 1.
        """
        try:
            schedule = UnmaskingSchedule.plan(record.layout, config_of(record))
        except UsageError as error:
            raise RecordError(f"trace: config: {error}") from error
        planned = DecodeOrder.planned(record.layout, schedule)
        return cls.of(DecodeOrder.from_record(record), k=k, planned=planned)

    def to_json(self) -> dict[str, Any]:
        """Plain values: `k`, `all`, `content`, `paths` (both for each), `path_mean`, `layout_null`."""
        null = {name: _named(getattr(self.layout_null, name)) for name in ("planned", "all", "content")}
        return {
            "k": self.k,
            **asdict(self.canvas),
            "paths": [asdict(path) for path in self.paths],
            "path_mean": dict(self.path_mean),
            "layout_null": null,
        }


def global_arness(order: DecodeOrder, k: int) -> tuple[float, float]:
    """Global ARness@k, set-based and step-ordered, of an order with at least one commit.

    A commit with `a` later-leaving and `b` same-step positions to its left is, in a random order of its step,
    among the k smallest when fewer than k − a of those b follow it; how many follow is uniform on 0 … b.
    """
    rank = _count_before(order.step)[order.committed]
    step = order.step[order.committed]
    together = _count_same_before(step)
    n = _count_same(step)
    room = np.clip(k - (rank - together), 0, together + 1)
    return float((rank < n * k).mean()), float((room / (together + 1)).mean())


def local_arness(order: DecodeOrder, k: int) -> float:
    """Local ARness@k, within a step in expectation over its orders, of an order with at least one commit."""
    steps = order.steps
    if k >= int(order.committed.sum()):
        return 0.0
    index = {position: at for at, positions in enumerate(steps) for position in positions}
    hits = sum(_local_chance(position, at, steps, index, k) for position, at in index.items())
    return hits / len(index)


def _local_chance(position: int, at: int, steps: Sequence[tuple[int, ...]], index: dict[int, int], k: int) -> float:
    """Probability that the k commits before `position` are those of the k positions to its left.

    Walking back through the steps, each must hold none but wanted positions at the end of its order: in its
    own step they stand right before the commit, and where they do not suffice, nothing else stands before it.
    """
    wanted = [index.get(position - back, -1) for back in range(1, k + 1)]
    if min(wanted) < 0 or max(wanted) > at:
        return 0.0
    here, n = wanted.count(at), len(steps[at])
    if here == k:
        return 1 / math.comb(n, k)
    chance, left = 1 / ((n - here) * math.comb(n, here)), k - here  # here!·(n − here − 1)! / n!
    while at > 0:
        at -= 1
        here, n = wanted.count(at), len(steps[at])
        if here == left:
            return chance * (1 / math.comb(n, here))
        if here < n:
            return 0.0
        left -= here
    return 0.0


@dataclass(frozen=True, slots=True)
class _StepCounts:
    """Per step that commits (first axis) and pool (second): masked slots before it, and commits in it."""

    masked: Ids
    taken: Ids

    @classmethod
    def of(cls, order: DecodeOrder) -> _StepCounts:
        steps = np.unique(order.step[order.committed])
        shape = (len(steps), int(order.pool.max()) + 1)
        taken, last_masked = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        at = np.searchsorted(steps, order.step, side="right") - 1  # the last commits before which it was masked
        np.add.at(taken, (at[order.committed], order.pool[order.committed]), 1)
        np.add.at(last_masked, (at[at >= 0], order.pool[at >= 0]), 1)
        return cls(np.cumsum(last_masked[::-1], axis=0)[::-1], taken)

    def set_based_hits(self, k: int) -> float:
        """Expected commits of chance among the n·k leftmost: each pool fills what earlier ones leave."""
        before = np.cumsum(self.masked, axis=1) - self.masked
        inside = np.clip(self.taken.sum(axis=1, keepdims=True) * k - before, 0, self.masked)
        return float((self.taken * inside / np.maximum(self.masked, 1)).sum())

    def step_ordered_hits(self, k: int) -> float:
        """Expected commits of chance among the k smallest, ties within a step in expectation.

        A pool takes n of its r masked slots. Expected commits with exactly a untaken and b taken to their
        left: C(a + b, b)·C(r − 1 − a − b, n − 1 − b) / C(r, n). Earlier pools add their own to a and to b.
        """
        ahead = np.cumsum(self.taken, axis=1) - self.taken
        behind = np.cumsum(self.masked, axis=1) - self.masked - ahead
        rows, cols = np.nonzero((self.taken > 0) & (behind < k))
        sizes = self.taken[rows, cols]
        cell = np.repeat(np.arange(len(rows)), sizes)
        b = np.arange(len(cell)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        r, n = self.masked[rows, cols][cell], sizes[cell]
        a0, b0 = behind[rows, cols][cell], ahead[rows, cols][cell]
        logs, hits = _log_factorials(int(self.masked.max())), 0.0
        for a in range(min(k, int((r - n).max(initial=0)) + 1)):
            use = (a + a0 < k) & (a <= r - n)
            share = np.minimum(k - a - a0, b + b0 + 1) / (b + b0 + 1)
            hits += float((share * _expected(logs, a, b, r, n, use))[use].sum())
        return hits


def _expected(logs: Floats, a: int, b: Ids, r: Ids, n: Ids, use: npt.NDArray[np.bool_]) -> Floats:
    """C(a + b, b)·C(r − 1 − a − b, n − 1 − b) / C(r, n) where `use`, else 0."""
    b, r, n = np.where(use, b, 0), np.where(use, r, a + 1), np.where(use, n, 1)
    ways = _log_choose(logs, a + b, b) + _log_choose(logs, r - 1 - a - b, n - 1 - b) - _log_choose(logs, r, n)
    return np.where(use, np.exp(ways), 0.0)


def _log_factorials(n: int) -> Floats:
    """log 0!, log 1!, …, log n!. Shape [n + 1]."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def _log_choose(logs: Floats, n: Ids, k: Ids) -> Floats:
    return np.asarray(logs[n] - logs[k] - logs[n - k])


def _count_before(keys: Ids) -> Ids:
    """For each i the number of j < i with keys[j] ≥ keys[i], by merging, in O(N·log² N). Shape [N]."""
    by_key, counts, width = np.argsort(-keys, kind="stable"), np.zeros(len(keys), dtype=np.int64), 1
    while width < len(keys):
        index = by_key[np.argsort(by_key // (2 * width), kind="stable")]
        left = index // width % 2 == 0
        earlier = np.cumsum(left) - index // (2 * width) * width  # every earlier pair has `width` on its left
        counts[index[~left]] += earlier[~left]
        width *= 2
    return counts


def _count_same(keys: Ids) -> Ids:
    """How often each entry's key occurs. Shape [N]."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse])


def _count_same_before(keys: Ids) -> Ids:
    """For each i the number of j < i with the same key. Shape [N]."""
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], keys[order], side="left")
    counts = np.empty_like(order)
    counts[order] = np.arange(len(keys)) - first
    return counts


def _corrected(score: float, random: float) -> float | None:
    return None if random > 1 - 1e-12 else (score - random) / (1 - random)


def _means(scores: Sequence[ArnessScore]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in [field.name for field in fields(ArnessScore)][2:]:
        defined = [value for score in scores if (value := getattr(score, name)) is not None]
        means[name] = float(np.mean(defined)) if defined else None
    return means


def _named(pair: tuple[float, float] | None) -> dict[str, float] | None:
    return None if pair is None else {"set_based": pair[0], "step_ordered": pair[1]}
