"""A run's figures, from its stored arrays: ARness and answers by question, intervals, the 2 × 2 contrast.

Shapes: Q questions, S slots. NaN: undefined for that question (no content, or a single step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from nap_runtime.metrics.answers import extract_boxed, same_answer
from nap_runtime.metrics.arness import ArnessScore
from nap_runtime.metrics.order import OPEN_STEP, DecodeOrder
from nap_runtime.models.tokenizer import Tokenizer
from nap_trainer.adapt.arms import Arm, arms_of
from nap_trainer.adapt.config import Logits, Start
from nap_trainer.adapt.folder import RunFolder
from nap_trainer.miniature.decoding import Decoded
from nap_trainer.miniature.stats import Interval, mean_interval, paired_bootstrap, wilson

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[Any]
RESAMPLES = 10_000
MEASURES = ("arness", "corrected", "local", "arness_all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One decode, question by question.

    Attributes:
        arness_Q: global ARness@1, set-based, over content slots. The headline.
        corrected_Q: the same, chance-corrected. local_Q: local ARness@1 over content slots.
        arness_all_Q: global ARness@1, set-based, over all slots.
        content_Q: content slots: those before the first end of text.
        correct_Q: whether the boxed answer is right.
    """

    arness_Q: Floats
    corrected_Q: Floats
    local_Q: Floats
    arness_all_Q: Floats
    content_Q: npt.NDArray[np.int64]
    correct_Q: npt.NDArray[np.bool_]

    def interval(self, measure: str) -> Interval:
        """Mean over the questions where it is defined, with a bootstrap interval over questions."""
        return mean_interval(getattr(self, f"{measure}_Q"), resamples=RESAMPLES)

    @property
    def accuracy(self) -> Interval:
        """Share of right answers with Wilson's interval."""
        return wilson(int(self.correct_Q.sum()), len(self.correct_Q))

    @property
    def defined(self) -> int:
        """Questions with any content."""
        return int((~np.isnan(self.arness_Q)).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One arm at one number of adaptation tokens: its note, and scores by tokens a step."""

    arm: Arm
    step: int
    tokens: int
    held_loss: dict[str, float]
    train_loss: float | None
    scores: dict[int, Scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """What start and shift do to ARness, over the questions that are defined in all four arms.

    Attributes:
        start: pretrained − random, mean over the two shifts. shift: shifted − unshifted, mean over the two starts.
        interaction: how much larger the effect of the shift is with the pretrained start.
        both: (pretrained, shifted) − (random, unshifted): what a comparison that changes both would show.
        questions: how many.
    """

    start: Interval
    shift: Interval
    interaction: Interval
    both: Interval
    questions: int


def order_of(ids_S: Ids, step_S: Ids, committed_S: Ids, end_ids: Sequence[int]) -> DecodeOrder:
    """The order of one canvas's region; content is what stands before the first committed end of text."""
    ended_S = np.cumsum(np.isin(ids_S, end_ids) & committed_S) > 0
    zero_S = np.zeros(len(ids_S), dtype=np.int64)
    return DecodeOrder(
        positions=np.arange(len(ids_S)),
        step=np.where(step_S < 0, OPEN_STEP, step_S).astype(np.int64),
        committed=committed_S.astype(np.bool_),
        content=committed_S & ~ended_S,
        region=zero_S,
        pool=zero_S,
        n_paths=1,
    )


def score(decoded: Decoded, end_ids: Sequence[int], tokenizer: Tokenizer, gold: Sequence[str]) -> Scores:
    """Score every canvas of a decode."""
    rows, content, correct = [], [], []
    for ids_S, step_S, committed_S, right in zip(
        decoded.ids_nS, decoded.step_mS, decoded.committed_mS, gold, strict=True
    ):
        order = order_of(ids_S, step_S, committed_S, end_ids)
        inner, whole = ArnessScore.of(order.only(order.content)), ArnessScore.of(order)
        rows.append([inner.set_based, inner.set_based_corrected, inner.local, whole.set_based])
        content.append(int(order.content.sum()))
        correct.append(same_answer(extract_boxed(tokenizer.decode(_text_ids(ids_S, end_ids))), right))
    table_Q4 = np.array(rows, dtype=np.float64).reshape(-1, len(MEASURES))  # None becomes NaN
    return Scores(
        **{f"{name}_Q": table_Q4[:, at] for at, name in enumerate(MEASURES)},
        content_Q=np.array(content, dtype=np.int64),
        correct_Q=np.array(correct, dtype=np.bool_),
    )


def _text_ids(ids_S: Ids, end_ids: Sequence[int]) -> list[int]:
    ends = np.flatnonzero(np.isin(ids_S, end_ids))
    return [int(token) for token in (ids_S[: ends[0]] if len(ends) else ids_S)]


def read_points(folder: RunFolder, tokenizer: Tokenizer) -> list[Point]:
    """Every measured point of a run, arm by arm."""
    config, data, facts = folder.config(), folder.data(), folder.facts()
    end_ids, rates = facts["model"]["end_ids"], {config.decode.tokens_per_step, *config.decode.last_tokens_per_step}
    points = []
    for arm in arms_of(config):
        for step in config.points:
            if folder.done(arm.name, step):
                note = folder.note(arm.name, step)
                found = {rate: folder.decode(arm.name, step, rate) for rate in sorted(rates)}
                scores = {rate: score(d, end_ids, tokenizer, data.gold) for rate, d in found.items() if d is not None}
                points.append(
                    Point(
                        arm=arm,
                        step=step,
                        tokens=int(note["tokens"]),
                        held_loss=note["held_loss"],
                        train_loss=note["train_loss"],
                        scores=scores,
                    )
                )
    return points


def contrast(points: Sequence[Point], step: int, rate: int, measure: str = "arness") -> Contrast | None:
    """The 2 × 2 contrast at a step; None unless all four arms are measured there."""
    cells = {
        (point.arm.start, point.arm.logits): getattr(point.scores[rate], f"{measure}_Q")
        for point in points
        if point.step == step and rate in point.scores
    }
    wanted: list[tuple[Start, Logits]] = [(start, logits) for start in get_args(Start) for logits in get_args(Logits)]
    if set(cells) != set(wanted):
        return None
    table_4Q = np.stack([cells[key] for key in wanted])
    ps, pu, rs, ru = table_4Q[:, ~np.isnan(table_4Q).any(0)]

    def over(values_Q: Floats) -> Interval:
        return paired_bootstrap(values_Q, resamples=RESAMPLES)

    return Contrast(
        start=over((ps + pu - rs - ru) / 2),
        shift=over((ps - pu + rs - ru) / 2),
        interaction=over((ps - pu) - (rs - ru)),
        both=over(ps - ru),
        questions=len(ps),
    )
