"""What each rule is and which options it uses: one table for the config's checks, the schedule and the workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nap_runtime.errors import UsageError
from nap_runtime.values import LARGEST, one_of

Rule = Literal[
    "parallel-forced",
    "confidence",
    "left-to-right",
    "random",
    "blockwise",
    "threshold",
    "factor",
    "prophet",
    "p2",
]
CacheKind = Literal["prefix", "dual", "dkv", "closed"]
PATH_CACHES: tuple[CacheKind, ...] = ("closed", "dkv")  # of paths, between two syncs; the others are of a plain canvas

FAST_BLOCK = 32  # slots of a block where the rule has blocks of no fixed number of steps (Fast-dLLM's default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """One rule.

    Attributes:
        ranks: looks at confidences, so `confidence` and `eos_weight` mean something.
        adaptive: commits as many slots as are sure enough, so there are no quotas and `steps` means nothing.
        commits_early: has quotas, but may commit all that is left before they do.
        remasks: may mask a slot again.
        blocks: uses `block_length`.
        value: the config field with the rule's own number, and its default.
        args: keys of `rule_args`.
        caches: caches of a plain canvas that it can run with.
    """

    ranks: bool = True
    adaptive: bool = False
    commits_early: bool = False
    remasks: bool = False
    blocks: bool = False
    value: tuple[str, float] | None = None
    args: tuple[str, ...] = ()
    caches: tuple[CacheKind, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether the quotas alone say how many slots each step commits for good."""
        return not (self.adaptive or self.commits_early or self.remasks)

    @property
    def path_caches(self) -> tuple[CacheKind, ...]:
        """Caches of paths that it can run with: what may be masked again is not kept, and `dkv` counts on quotas."""
        return () if self.remasks else PATH_CACHES if self.fixed else ("closed",)


TRAITS: dict[Rule, Traits] = {
    "parallel-forced": Traits(),
    "confidence": Traits(args=("schedule",), caches=("dkv",)),
    "left-to-right": Traits(ranks=False, args=("schedule",), caches=("dkv",)),
    "random": Traits(ranks=False, args=("schedule",), caches=("dkv",)),
    "blockwise": Traits(blocks=True, caches=("prefix", "dual", "dkv")),
    "threshold": Traits(adaptive=True, blocks=True, value=("threshold", 0.9), caches=("prefix", "dual")),
    "factor": Traits(adaptive=True, blocks=True, value=("factor", 1.0), caches=("prefix", "dual")),
    "prophet": Traits(commits_early=True, blocks=True, args=("answer",)),
    "p2": Traits(remasks=True, args=("eta", "score")),
}


def check_arguments(rule: Rule, args: Mapping[str, str], *, over_canvas: bool, layout: str) -> None:
    """Check `rule_args`.

    Raises:
        UsageError: the rule does not use a key, or its value is wrong.
    """
    for key, value in args.items():
        usable = (
            key in TRAITS[rule].args and (over_canvas or key != "schedule") and (layout == "plain" or key != "answer")
        )
        if not usable:
            raise UsageError(f"rule_args: rule '{rule}' does not use '{key}' here", field="rule_args")
        if key in _CHOICES:
            one_of(f"rule_args: {key}", value, _CHOICES[key])
        elif key == "eta":
            weight_argument(args)
        else:
            answer_slots(args)


_CHOICES = {"schedule": ("llada", "dream"), "score": ("candidate", "token")}


def weight_argument(args: Mapping[str, str]) -> float:
    """`eta` of `p2` (1 where it is not given).

    Raises:
        UsageError: it is no finite number between 0 and `LARGEST`.
    """
    try:
        eta = float(args.get("eta", 1))
    except (TypeError, ValueError):
        eta = math.nan
    if not 0 <= eta < math.inf:
        text = f"rule_args: eta: {args['eta']!r} is not a finite number of at least 0"
        raise UsageError(text, field="rule_args")
    if eta > LARGEST:
        raise UsageError(f"rule_args: eta: {eta:g} is more than the {LARGEST:,.0f} that is taken", field="rule_args")
    return eta


def answer_slots(args: Mapping[str, str]) -> range | None:
    """`answer` of `prophet`: slots of the region, counted from 0; None where it is not given.

    Raises:
        UsageError: it is not START:STOP with START before STOP.
    """
    if "answer" not in args:
        return None
    start, colon, stop = str(args["answer"]).partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        text = f"rule_args: answer: {args['answer']!r} is not START:STOP, slots counted from 0"
        raise UsageError(text, field="rule_args")
    return range(int(start), int(stop))
