"""SeqDep: how much earlier segments of a text help an autoregressive scorer to predict later ones (paper, Eq. 4).

With a prompt x and segments s_1 … s_N

    SeqDep(x, s) = 1/(N − 1) · Σ_{n = 2 … N} [log p(s_n | x, s_<n) − log p(s_n | x)]        in nats per segment

Every segment is tokenised by itself, so that it has the same tokens in both contexts. Per token means: the gains of all
texts over the tokens of their segments 2 … N. Intervals are bootstraps over problems: texts of one problem stay
together.

Shapes: N segments, C clusters (problems), R resamples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from math import factorial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import UsageError

Floats = npt.NDArray[np.float64]
Pieces = Sequence[Sequence[int]]

_ENDS = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?=\s+\S)|(?=\n)")
_ABBREVIATIONS = re.compile(r"(?:^|[\s(])(?:mr|mrs|ms|dr|st|vs|no|fig|eq|e\.g|i\.e|etc|approx|jr|sr|prof)\.$")
_MAX_ORDERS = 24
UNITS = ("sentence", "line")


class Scorer(Protocol):
    """An autoregressive language model, as far as SeqDep needs it."""

    @property
    def start(self) -> list[int]:
        """Ids that every context begins with, never empty."""
        ...

    @property
    def context(self) -> int:
        """Most ids of one sequence."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        ...

    def log_probs(self, sequences: Pieces) -> list[Floats]:
        """For each sequence log p(id | the ids before it) of every id but the first, in nats."""
        ...


# -- segments --------------------------------------------------------------------------------------


def split(text: str, unit: str = "sentence") -> list[str]:
    """Segments that join to the text again: sentences (line breaks end them too) or lines.

    White space stands at the beginning of what follows it. Abbreviations and numbers ("Mr.", "2.") end no sentence.
    """
    if unit not in UNITS:
        raise UsageError(f"unit: unknown value '{unit}'; use one of {', '.join(UNITS)}", field="unit")
    text = text.strip()
    return _joined(re.split(r"(?=\n)", text) if unit == "line" else _ENDS.split(text), unit)


def _joined(parts: Sequence[str], unit: str) -> list[str]:
    segments: list[str] = []
    for part in parts:
        waits = bool(segments) and (
            not segments[-1].strip() or (unit == "sentence" and _unfinished(segments[-1], part))
        )
        if waits:
            segments[-1] += part
        elif part:
            segments.append(part)
    if len(segments) > 1 and not segments[-1].strip():
        segments[-2:] = [segments[-2] + segments[-1]]
    return segments


def _unfinished(segment: str, following: str) -> bool:
    if following.startswith("\n"):
        return False
    last = segment.lower().rstrip()
    number = re.search(r"(?:^|\n)\s*\d+\.$", last)  # "1." at the beginning of a line: a list, not an end
    return bool(number) or bool(_ABBREVIATIONS.search(last))


# -- one text --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependence:
    """Gains of one text. `gain_N` and `tokens_N` hold segments 2 … N; an average over orders may be fractional."""

    gain_N: tuple[float, ...]
    tokens_N: tuple[float, ...]

    @property
    def per_segment(self) -> float:
        """SeqDep of the text."""
        return sum(self.gain_N) / len(self.gain_N)


def dependence(scorer: Scorer, prompt: Sequence[int], segments: Pieces) -> Dependence:
    """Gains of segments 2 … N in their own order; N is at least 2.

    Raises:
        UsageError: prompt and segments are longer than the scorer's context.
    """
    return ordered(scorer, prompt, segments, [tuple(range(len(segments)))])


def across(scorer: Scorer, prompt: Sequence[int], paths: Pieces, *, seed: int = 0) -> Dependence:
    """Gains of whole paths, averaged over their orders: all of up to 4 paths, else 24 random ones."""
    return ordered(scorer, prompt, paths, orders(len(paths), seed=seed))


def orders(n: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """All orders of n things where these are 24 or fewer, else 24 random ones."""
    if n < 10 and factorial(n) <= _MAX_ORDERS:
        return list(permutations(range(n)))
    generator = np.random.default_rng(seed)
    return [tuple(generator.permutation(n).tolist()) for _ in range(_MAX_ORDERS)]


def ordered(scorer: Scorer, prompt: Sequence[int], segments: Pieces, given: Sequence[tuple[int, ...]]) -> Dependence:
    """Gains at places 2 … N of each order, averaged over the orders."""
    if len(segments) < 2:
        raise UsageError("seqdep: a text of one segment has no dependence between segments")
    start = [*scorer.start, *prompt]
    chains = [[*start, *(token for at in order for token in segments[at])] for order in given]
    alone = [[*start, *segment] for segment in segments]
    scored = scorer.log_probs([*chains, *alone])
    alone_N = [_last(scores, len(segment)) for scores, segment in zip(scored[len(chains) :], segments, strict=True)]
    gains = np.array([_gains(scored[i], order, segments, alone_N) for i, order in enumerate(given)])
    tokens = np.array([[len(segments[at]) for at in order[1:]] for order in given], dtype=np.float64)
    return Dependence(gain_N=tuple(gains.mean(0).tolist()), tokens_N=tuple(tokens.mean(0).tolist()))


def _last(scores: Floats, n: int) -> float:
    return float(scores[len(scores) - n :].sum())


def _gains(scores: Floats, order: tuple[int, ...], segments: Pieces, alone_N: Sequence[float]) -> list[float]:
    at = len(scores) - sum(len(segments[i]) for i in order)
    gains = []
    for i in order:
        end = at + len(segments[i])
        gains.append(float(scores[at:end].sum()) - alone_N[i])
        at = end
    return gains[1:]


def foreign(scorer: Scorer, prompt: Sequence[int], segments: Pieces, other: Pieces) -> Dependence:
    """A control: each segment after as many segments of another text as it has before it in its own.

    What is gained here comes from format and style, not from what the text says.
    """
    start, count = [*scorer.start, *prompt], len(segments)
    before = [[token for at in range(n) for token in other[at % len(other)]] for n in range(1, count)]
    chains = [[*start, *prefix, *segment] for prefix, segment in zip(before, segments[1:], strict=True)]
    alone = [[*start, *segment] for segment in segments[1:]]
    scored = scorer.log_probs([*chains, *alone])
    ends = [_last(scores, len(s)) for scores, s in zip(scored, [*segments[1:], *segments[1:]], strict=True)]
    gains = [with_other - by_itself for with_other, by_itself in zip(ends[: count - 1], ends[count - 1 :], strict=True)]
    return Dependence(gain_N=tuple(gains), tokens_N=tuple(float(len(s)) for s in segments[1:]))


# -- many texts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean and its 95% interval; None of no text."""

    value: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """`value`, `low`, `high`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """SeqDep over texts: nats per segment (mean over texts) and per token (of all segments 2 … N)."""

    texts: int
    segments: int
    tokens: float
    per_segment: Estimate
    per_token: Estimate

    @classmethod
    def of(cls, texts: Sequence[tuple[Any, Dependence]], *, resamples: int = 10_000, seed: int = 0) -> Measured:
        """From (problem, dependence) pairs; texts of one problem are resampled together."""
        clusters: dict[Any, list[Dependence]] = {}
        for name, text in texts:
            clusters.setdefault(name, []).append(text)
        sums_C4 = np.array([_sums(some) for some in clusters.values()]).reshape(-1, 4)
        total = sums_C4.sum(0)
        draws = _resampled(sums_C4, resamples, seed)
        return cls(
            texts=len(texts),
            segments=sum(len(text.gain_N) for _, text in texts),
            tokens=float(total[3]),
            per_segment=_estimate(total[0], total[1], draws[:, 0], draws[:, 1]),
            per_token=_estimate(total[2], total[3], draws[:, 2], draws[:, 3]),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _sums(texts: Sequence[Dependence]) -> list[float]:
    """Σ SeqDep, texts, Σ gain, Σ tokens."""
    return [
        sum(text.per_segment for text in texts),
        len(texts),
        sum(sum(text.gain_N) for text in texts),
        sum(sum(text.tokens_N) for text in texts),
    ]


def _resampled(sums_C4: Floats, resamples: int, seed: int) -> Floats:
    """Sums of resampled clusters. Shape [R, 4]."""
    if not len(sums_C4):
        return np.zeros((0, 4))
    generator = np.random.default_rng(seed)
    counts_RC = generator.multinomial(len(sums_C4), [1 / len(sums_C4)] * len(sums_C4), size=resamples)
    return np.asarray(counts_RC @ sums_C4, dtype=np.float64)


def _estimate(above: float, below: float, above_R: Floats, below_R: Floats) -> Estimate:
    if not below:
        return Estimate(value=None, low=None, high=None)
    low, high = np.percentile(above_R / below_R, [2.5, 97.5])
    return Estimate(value=float(above / below), low=float(low), high=float(high))


def by_place(texts: Sequence[tuple[Any, Dependence]], *, most: int = 12) -> list[dict[str, float | int]]:
    """Mean gain of the second, third, … segment: whether later ones depend on more."""
    rows: list[dict[str, float | int]] = []
    for place in range(most):
        found = [(text.gain_N[place], text.tokens_N[place]) for _, text in texts if len(text.gain_N) > place]
        if found:
            gain, tokens = (sum(values) for values in zip(*found, strict=True))
            rows.append({"segment": place + 2, "texts": len(found), "per_segment": gain / len(found),
                         "per_token": gain / tokens if tokens else 0.0})  # fmt: skip
    return rows


def by_length(
    texts: Sequence[tuple[Any, Dependence]], lengths: Sequence[int], edges: Sequence[int], **options: int
) -> list[dict[str, Any]]:
    """`Measured` of texts by their length in tokens: below the first edge, between edges, from the last on."""
    bounds = [0, *edges]
    rows = []
    for at, low in enumerate(bounds):
        high = bounds[at + 1] if at + 1 < len(bounds) else None
        some = [t for t, n in zip(texts, lengths, strict=True) if low <= n and (high is None or n < high)]
        if some:
            rows.append({"from": low, "below": high, **Measured.of(some, **options).to_json()})
    return rows


def read_dependence(values: Mapping[str, Any]) -> Dependence:
    """Inverse of `asdict`."""
    return Dependence(gain_N=tuple(values["gain_N"]), tokens_N=tuple(values["tokens_N"]))
