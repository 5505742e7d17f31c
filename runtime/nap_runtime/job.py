"""What a caller asks for and what comes back: `DecodeConfig`, `SyncPolicy`, `DecodeJob`, `DecodeResult`.

Configs are frozen and keyword-only; unknown keys and unused options are errors, never ignored.
Values left at `None` are filled in by `nap_runtime.models.prompting.resolve`, which knows the model's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from nap_runtime.errors import NotBuiltError, UsageError

if TYPE_CHECKING:
    from nap_runtime.decoding.record import DecodeRecord
    from nap_runtime.metrics.report import RunMetrics

LayoutKind = Literal["nap", "plain"]
Rule = Literal["parallel-forced", "confidence", "left-to-right", "random", "blockwise"]
Scope = Literal["canvas", "path"]
Confidence = Literal["max-prob", "margin", "entropy"]
SyncMode = Literal["exact", "tokens", "shared", "kv", "none"]
Topology = Literal["full", "hub", "isolated"]
SummaryMode = Literal["gather"]
Device = Literal["cpu", "cuda"]
DType = Literal["float32", "float64", "bfloat16"]
DEVICES: tuple[Device, ...] = get_args(Device)
DTYPES: tuple[DType, ...] = get_args(DType)

MAX_PATHS = 6  # NAP's tags run from <think 1> to <think 6>
MAX_CANVAS = 65_536  # positions travel as u16
MAX_ID = 2**32  # ids travel as u32

_RULES_TO_COME = ("threshold", "factor", "prophet", "p2")
_SUMMARIES_TO_COME = ("consensus", "live")
_SCHEDULES = ("llada", "dream")


def one_of(name: str, value: str, allowed: tuple[str, ...], to_come: tuple[str, ...] = ()) -> None:
    """UsageError unless the value is allowed; NotBuiltError if it is one `to_come`."""
    if value in to_come:
        raise NotBuiltError(f"{name}: '{value}' is not built yet; use one of {', '.join(allowed)}", field=name)
    if value not in allowed:
        raise UsageError(f"{name}: unknown value '{value}'; use one of {', '.join(allowed)}", field=name)


def at_least(name: str, value: object, low: int) -> None:
    """UsageError unless the value is an integer, no bool, of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"{name}: {value!r} is not an integer of at least {low}", field=name)


def _number(name: str, value: object, kind: type[int] | type[float]) -> None:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        what = "an integer" if kind is int else "a number"
        raise UsageError(f"{name}: {value!r} is not {what}", field=name)


def _from_mapping(cls: type[Any], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            raise UsageError(f"{prefix}{key}: unknown key; known are {', '.join(sorted(known))}", field=str(key))
    return dict(values)


def _check_weight(name: str, value: float) -> None:
    _number(name, value, float)
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{name}: {value} is not a finite number of at least 0", field=name)


@dataclass(frozen=True, slots=True)
class SyncPolicy:
    """What workers exchange, and how often.

    Args:
        mode: what travels (see `docs/architecture.md`, "Sync modes").
        every: K, steps between syncs; `tokens`, `shared` and `kv` only (None: 1).
        warmup: steps that are exact before K applies; `tokens`, `shared` and `kv` only.
        overlap: not built yet.
        topology: who sees whom (None: `hub` for `shared`, else `full`).
        summary: how the summary is decoded (None: `gather`).

    Raises:
        UsageError: a value is unknown, or the mode does not use it.
    """

    mode: SyncMode = "exact"
    _: KW_ONLY
    every: int | None = None
    warmup: int = 0
    overlap: bool = False
    topology: Topology | None = None
    summary: SummaryMode | None = None

    def __post_init__(self) -> None:
        one_of("sync", self.mode, get_args(SyncMode))
        if self.summary is not None:
            one_of("summary", self.summary, get_args(SummaryMode), _SUMMARIES_TO_COME)
        if self.topology is not None:
            one_of("topology", self.topology, get_args(Topology))
        if self.every is not None:
            at_least("every", self.every, 1)
        at_least("warmup", self.warmup, 0)
        if self.overlap:
            raise NotBuiltError("overlap: not built yet; leave it out", field="overlap")
        self._check_mode()

    def _check_mode(self) -> None:
        if self.mode in ("exact", "none"):
            for name, given in (("every", self.every is not None), ("warmup", self.warmup > 0)):
                if given:
                    raise UsageError(f"{name}: sync '{self.mode}' does not use it; leave it out", field=name)
        if self.mode == "shared" and self.topology not in (None, "hub"):
            raise UsageError(f"topology: sync 'shared' needs 'hub', not '{self.topology}'", field="topology")
        if self.mode == "kv" and self.topology not in (None, "full"):
            raise UsageError(f"topology: sync 'kv' needs 'full', not '{self.topology}'", field="topology")

    @property
    def period(self) -> int:
        """K with its default applied."""
        return 1 if self.every is None else self.every

    @property
    def sees(self) -> Topology:
        """The topology with its default applied."""
        return self.topology or ("hub" if self.mode == "shared" else "full")

    @property
    def refreshes_every_step(self) -> bool:
        """Whether every row is recomputed at every step, so that one device is equalled."""
        return self.mode == "exact" or (self.mode in ("tokens", "shared") and self.period == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How to lay out and decode a canvas. `None` means: the model's, or the rule's, own default.

    Args:
        layout: `nap` (prompt, think-blocks, summary) or `plain` (prompt and one region).
        paths: m, number of think-blocks (1 to 6; None: one per budget, else the model's).
        path_tokens: slots of each path, one number or one per path.
        summary_tokens: slots of the summary.
        gen_length: slots of the `plain` region.
        block_length: slots of one `blockwise` block.
        headers: `nap` (tags), `text` (the paper's wording) or a JSON file.
        steps: T, denoising steps from 1 to the number of slots (None: one token a step).
        rule, scope, confidence: which slots are committed, picked over what, scored how.
        eos_weight: factor on the confidence of end-of-text candidates (0: last of all).
        temperature: Gumbel noise on the logits; 0 is greedy.
        seed: key of the Philox noise.
        rule_args: further options of the rule (`schedule`: `llada` or `dream`).
        sync: the `SyncPolicy`.
        control_every: R, steps between reports off the critical path.

    Raises:
        UsageError: a value is out of range, or the layout or rule does not use it.
    """

    layout: LayoutKind = "nap"
    paths: int | None = None
    path_tokens: int | tuple[int, ...] | None = None
    summary_tokens: int | None = None
    gen_length: int | None = None
    block_length: int | None = None
    headers: str | None = None
    steps: int | None = None
    rule: Rule | None = None
    scope: Scope | None = None
    confidence: Confidence = "max-prob"
    eos_weight: float | None = None
    temperature: float = 0.0
    seed: int = 0
    rule_args: Mapping[str, str] = field(default_factory=dict)
    sync: SyncPolicy = field(default_factory=SyncPolicy)
    control_every: int = 8

    def __post_init__(self) -> None:
        one_of("layout", self.layout, get_args(LayoutKind))
        if self.rule is not None:
            one_of("rule", self.rule, get_args(Rule), _RULES_TO_COME)
        if self.scope is not None:
            one_of("scope", self.scope, get_args(Scope))
        one_of("confidence", self.confidence, get_args(Confidence))
        self._check_kinds()
        self._check_numbers()
        self._check_layout()
        self._check_rule()

    def _check_kinds(self) -> None:
        """Values that parsed YAML or JSON may bring in a wrong type."""
        if not isinstance(self.sync, SyncPolicy):
            raise UsageError(f"sync: {self.sync!r} is not a mapping with `mode`", field="sync")
        if not isinstance(self.rule_args, Mapping):
            raise UsageError(f"rule_args: {self.rule_args!r} is not a mapping", field="rule_args")
        if self.headers is not None and not isinstance(self.headers, str):
            raise UsageError(f"headers: {self.headers!r} is not 'nap', 'text' or a file's name", field="headers")

    def _check_numbers(self) -> None:
        for name in ("steps", "summary_tokens", "gen_length", "block_length", "control_every"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        if self.paths is not None:
            at_least("paths", self.paths, 1)
            if self.paths > MAX_PATHS:
                raise UsageError(
                    f"paths: {self.paths} is more than the {MAX_PATHS} that NAP has tags for", field="paths"
                )
        if self.path_tokens is not None:
            for budget in self.path_tokens if isinstance(self.path_tokens, tuple) else (self.path_tokens,):
                at_least("path_tokens", budget, 1)
        _check_weight("temperature", self.temperature)
        if self.eos_weight is not None:
            _check_weight("eos_weight", self.eos_weight)
        _number("seed", self.seed, int)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed: {self.seed} is not between 0 and 2^63 - 1", field="seed")

    def _check_layout(self) -> None:
        unused = ("gen_length",) if self.layout == "nap" else ("paths", "path_tokens", "summary_tokens", "headers")
        for name in unused:
            if getattr(self, name) is not None:
                raise UsageError(f"{name}: layout '{self.layout}' does not use it; leave it out", field=name)
        if self.layout == "plain" and self.sync.summary is not None:
            raise UsageError("summary: layout 'plain' does not use it; leave it out", field="summary")
        if isinstance(self.path_tokens, tuple) and len(self.path_tokens) != self.n_paths:
            raise UsageError(
                f"path_tokens: {len(self.path_tokens)} budgets for {self.n_paths} paths", field="path_tokens"
            )

    def _check_rule(self) -> None:
        if self.layout == "plain" and self.rule == "parallel-forced":
            raise UsageError("rule: 'parallel-forced' needs layout 'nap'", field="rule")
        if self.block_length is not None and self.picks_by != "blockwise":
            raise UsageError(f"block_length: rule '{self.picks_by}' does not use it", field="block_length")
        if not self.ranks_by_confidence and self.confidence != "max-prob":
            raise UsageError(f"confidence: rule '{self.picks_by}' does not use it", field="confidence")
        if not self.ranks_by_confidence and self.eos_weight is not None:
            raise UsageError(f"eos_weight: rule '{self.picks_by}' does not use it", field="eos_weight")
        if self.picks_over == "canvas" and self.sync.warmup:
            raise UsageError("warmup: scope 'canvas' does not use it; every step is exact", field="warmup")
        if self.picks_by == "parallel-forced" and self.scope == "canvas":
            raise UsageError("scope: rule 'parallel-forced' picks within each path; use 'path'", field="scope")
        for key, value in self.rule_args.items():
            if key != "schedule" or self.picks_over != "canvas" or self.picks_by == "blockwise":
                raise UsageError(f"rule_args: rule '{self.picks_by}' does not use '{key}'", field="rule_args")
            one_of("rule_args: schedule", value, _SCHEDULES)
        if self.picks_over == "canvas" and not (self.sync.mode == "exact" or self.tokens_each_step):
            raise UsageError(
                f"sync: scope 'canvas' needs every candidate at every step: use 'exact' or 'tokens' with every 1, "
                f"not '{self.sync.mode}' (or scope 'path')",
                field="sync",
            )

    @property
    def tokens_each_step(self) -> bool:
        """Whether the sync is `tokens` at K = 1."""
        return self.sync.mode == "tokens" and self.sync.period == 1

    @property
    def ranks_by_confidence(self) -> bool:
        """Whether the rule looks at confidences at all."""
        return self.picks_by not in ("left-to-right", "random")

    @property
    def n_paths(self) -> int:
        """m; a plain region counts as one path."""
        if self.layout == "plain":
            return 1
        return self.paths or (len(self.path_tokens) if isinstance(self.path_tokens, tuple) else 3)

    @property
    def picks_by(self) -> Rule:
        """The rule with its default applied."""
        return self.rule or ("parallel-forced" if self.layout == "nap" else "confidence")

    @property
    def picks_over(self) -> Scope:
        """The scope with its default applied."""
        return self.scope or ("path" if self.picks_by == "parallel-forced" else "canvas")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DecodeConfig:
        """Build from parsed YAML or JSON; lists become tuples, `sync` a `SyncPolicy`.

        Raises:
            UsageError: a key is unknown or a value wrong.
        """
        kwargs = _from_mapping(cls, values, "")
        if isinstance(kwargs.get("path_tokens"), list):
            kwargs["path_tokens"] = tuple(kwargs["path_tokens"])
        if isinstance(kwargs.get("sync"), Mapping):
            kwargs["sync"] = SyncPolicy(**_from_mapping(SyncPolicy, kwargs["sync"], "sync."))
        return cls(**kwargs)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for YAML, JSON and the trace; `from_mapping` is its inverse."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["sync"] = {f.name: getattr(self.sync, f.name) for f in fields(SyncPolicy) if f.name != "_"}
        values["rule_args"] = dict(self.rule_args)
        if isinstance(self.path_tokens, tuple):
            values["path_tokens"] = list(self.path_tokens)
        return values

    def with_values(self, **changes: Any) -> DecodeConfig:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeJob:
    """One prompt to decode.

    Args:
        index: place in the batch (0-based).
        id: the caller's name for it.
        question: the prompt as text.
        gold: the right answer, when it is known.
    """

    question: str
    index: int = 0
    id: str = ""
    gold: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeResult:
    """What one decode gives back.

    `answer` is None when the summary holds none; `correct` says whether it is the gold one ("$1,000" is 1000.0), None
    without a gold answer. `record` is the trace, `metrics` every meter of the run.
    """

    job: DecodeJob
    answer: str | None
    answer_source: str | None
    summary: str
    paths: tuple[str, ...]
    record: DecodeRecord
    metrics: RunMetrics
    unknown_words: tuple[str, ...] = ()
    correct: bool | None = None
