"""Whether two decodes agree: the same decisions up to a near-tie that rounding may turn either way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.errors import RecordError
from nap_runtime.metrics.order import config_of

Decision = tuple[int, int]  # position, id


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two records compare.

    Attributes:
        identical: every step commits the same ids at the same positions.
        agrees: identical, or the scores at the first difference are closer than `rtol`.
        step: the first step that differs; None where identical.
        positions: positions decided differently at that step, ascending.
        relative_gap: largest relative difference of the paired scores there, |u − v| / max(u, v) as
            probabilities; infinite where one record decides something the other has no counterpart for. None
            where identical.
    """

    identical: bool
    agrees: bool
    step: int | None = None
    positions: tuple[int, ...] = ()
    relative_gap: float | None = None


def compare(a: DecodeRecord, b: DecodeRecord, *, rtol: float) -> Agreement:
    """Compare the commits of two records step by step; fills are no decisions.

    At the first differing step the decisions of one record alone are paired with those of the other alone:
    first at equal positions, then within each quota's slots from the highest score down. `rtol` is 1e-4 for
    float32, 2e-2 for bfloat16, 0 for float64 (only identical records agree). Records read from a file hold
    scores rounded to f16 (about 5e-4): a smaller `rtol` wants them as decoded.

    Raises:
        RecordError: the records are of different canvases or prompts.
    """
    if a.layout != b.layout or a.prompt_ids != b.prompt_ids:
        raise RecordError("agreement: the records are of different canvases or prompts")
    ours, theirs = _decisions(a), _decisions(b)
    for step in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(step, {}), theirs.get(step, {})
        if one.keys() != other.keys():
            only_a = {key: score for key, score in one.items() if key not in other}
            only_b = {key: score for key, score in other.items() if key not in one}
            gap = _largest_gap(only_a, only_b, _pools(a))
            positions = sorted({position for position, _ in (*only_a, *only_b)})
            return Agreement(
                identical=False, agrees=gap < rtol, step=step, positions=tuple(positions), relative_gap=gap
            )
    return Agreement(identical=True, agrees=True)


def _decisions(record: DecodeRecord) -> dict[int, dict[Decision, float]]:
    """Per step: (position, id) → score as a probability."""
    steps: dict[int, dict[Decision, float]] = {}
    for delta in record.decisions:
        for position, token, score in zip(delta.positions, delta.ids, delta.log_confidence, strict=True):
            steps.setdefault(delta.step, {})[int(position), int(token)] = math.exp(score)
    return steps


def _pools(record: DecodeRecord) -> dict[int, int]:
    """Position → the quota it is drawn under: its block's, or with scope `canvas` the canvas's."""
    by_block = config_of(record).picks_over == "path"
    blocks = enumerate(record.layout.blocks)
    return {position: index * by_block for index, block in blocks for position in block.slots}


def _largest_gap(a: dict[Decision, float], b: dict[Decision, float], pool_of: dict[int, int]) -> float:
    ours = {position: score for (position, _), score in a.items()}
    theirs = {position: score for (position, _), score in b.items()}
    both = ours.keys() & theirs.keys()
    gaps = [_gap(ours.pop(position), theirs.pop(position)) for position in both]
    for pool in {pool_of[position] for position in (*ours, *theirs)}:
        one, other = (
            sorted((score for position, score in scores.items() if pool_of[position] == pool), reverse=True)
            for scores in (ours, theirs)
        )
        gaps += [math.inf] if len(one) != len(other) else map(_gap, one, other)
    return max(gaps)


def _gap(u: float, v: float) -> float:
    return abs(u - v) / max(u, v) if u != v else 0.0
