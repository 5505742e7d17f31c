"""What a caller asks for and what comes back: `DecodeConfig`, `SyncPolicy`, `DecodeJob`, `DecodeResult`.

Configs are frozen and keyword-only; unknown keys and unused options are errors, never ignored.
Values left at `None` are filled in by `nap_runtime.models.prompting.resolve`, which knows the model's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from nap_runtime.errors import UsageError
from nap_runtime.policy import SummaryMode as SummaryMode
from nap_runtime.policy import SyncMode as SyncMode
from nap_runtime.policy import SyncPolicy as SyncPolicy
from nap_runtime.policy import Topology as Topology
from nap_runtime.traits import FAST_BLOCK, PATH_CACHES, TRAITS, Traits, check_arguments
from nap_runtime.traits import CacheKind as CacheKind
from nap_runtime.traits import Rule as Rule
from nap_runtime.values import at_least as at_least
from nap_runtime.values import known_keys, number, weight
from nap_runtime.values import one_of as one_of

if TYPE_CHECKING:
    from nap_runtime.decoding.record import DecodeRecord
    from nap_runtime.metrics.report import RunMetrics

LayoutKind = Literal["nap", "plain"]
Scope = Literal["canvas", "path"]
Confidence = Literal["max-prob", "margin", "entropy"]
Device = Literal["cpu", "cuda"]
DType = Literal["float32", "float64", "bfloat16"]
CompileMode = Literal["none", "default", "graph"]
DEVICES: tuple[Device, ...] = get_args(Device)
DTYPES: tuple[DType, ...] = get_args(DType)
COMPILE_MODES: tuple[CompileMode, ...] = get_args(CompileMode)

MAX_PATHS = 6  # NAP's tags run from <think 1> to <think 6>
MAX_CANVAS = 65_536  # positions travel as u16
MAX_ID = 2**32  # ids travel as u32

CONTROL_EVERY = 8  # steps between reports where quotas say how many slots are committed
CACHE_EVERY = 8  # steps between full refreshes of the cache `dkv`


def check_compile(mode: CompileMode, *, device: str, simulated: bool) -> None:
    """Whether workers on a kind of device can carry out their steps so.

    Raises:
        UsageError: graphs need a GPU, and one worker a process.
    """
    one_of("compile", mode, COMPILE_MODES)
    if mode == "graph" and device != "cuda":
        raise UsageError(f"compile: 'graph' needs a CUDA device, not {device}; use 'default'", field="compile")
    if mode == "graph" and simulated:
        raise UsageError("compile: 'graph' cannot run with simulated workers; use 'default'", field="compile")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How to lay out and decode a canvas. `None` means: the model's, or the rule's, own default.

    Args:
        layout: `nap` (prompt, think-blocks, summary) or `plain` (prompt and one region).
        paths: m, number of think-blocks (1 to 6; None: one per budget, else the model's).
        path_tokens: slots of each path, one number or one per path.
        summary_tokens: slots of the summary.
        gen_length: slots of the `plain` region.
        block_length: slots of one block, of `blockwise`, `threshold`, `factor` and `prophet`.
        headers: `nap` (tags), `text` (the paper's wording), a JSON file, or the JSON itself (`nap_runtime.headers`).
        steps: T, denoising steps from 1 to the number of slots (None: one token a step). `threshold` and `factor`
            take as many as they need.
        rule, scope, confidence: which slots are committed, picked over what, scored how.
        eos_weight: factor on the confidence of end-of-text candidates (0: last of all).
        temperature: Gumbel noise on the logits; 0 is greedy.
        seed: key of the Philox noise.
        threshold, factor: the rule's own number (None: 0.9; 1).
        cfg: classifier-free guidance: logits are un + (cfg + 1)·(cond − un), where `un` reads the canvas with its
            prompt masked (None or 0: none). Doubles the rows that are computed.
        cache: which rows are not computed again at every step (None: none are spared). Of a `plain` canvas `prefix`,
            `dual` or `dkv`; of paths, between two syncs, those of a path that is closed (`closed`), or of every token
            from one step after its commit (`dkv`).
        cache_every: steps between full refreshes, of cache `dkv` and layout `plain` (None: 8).
        rule_args: further options of the rule: `schedule` (`llada` or `dream`, of the rules with scope `canvas`),
            `answer` (`START:STOP` slots that `prophet` watches), `eta` and `score` (of `p2`).
        sync: the `SyncPolicy`.
        control_every: R, steps between reports off the critical path (None: 8; 1 where steps are not counted
            beforehand, as nothing but a report tells that all is done).

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
    threshold: float | None = None
    factor: float | None = None
    cfg: float | None = None
    cache: CacheKind | None = None
    cache_every: int | None = None
    rule_args: Mapping[str, str] = field(default_factory=dict)
    sync: SyncPolicy = field(default_factory=SyncPolicy)
    control_every: int | None = None

    def __post_init__(self) -> None:
        one_of("layout", self.layout, get_args(LayoutKind))
        if self.rule is not None:
            one_of("rule", self.rule, get_args(Rule))
        if self.scope is not None:
            one_of("scope", self.scope, get_args(Scope))
        one_of("confidence", self.confidence, get_args(Confidence))
        self._check_kinds()
        self._check_numbers()
        self._check_layout()
        self._check_rule()
        check_arguments(self.picks_by, self.rule_args, over_canvas=self.picks_over == "canvas", layout=self.layout)
        self._check_summary()
        self._check_cache()

    def _check_kinds(self) -> None:
        """Values that parsed YAML or JSON may bring in a wrong type."""
        if not isinstance(self.sync, SyncPolicy):
            raise UsageError(f"sync: {self.sync!r} is not a mapping with `mode`", field="sync")
        if not isinstance(self.rule_args, Mapping):
            raise UsageError(f"rule_args: {self.rule_args!r} is not a mapping", field="rule_args")
        if self.headers is not None and not isinstance(self.headers, str):
            raise UsageError(f"headers: {self.headers!r} is not 'nap', 'text' or a file's name", field="headers")

    def _check_numbers(self) -> None:
        for name in ("steps", "summary_tokens", "gen_length", "block_length", "cache_every", "control_every"):
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
        for name in ("temperature", "eos_weight", "threshold", "factor", "cfg"):
            if name == "temperature" or getattr(self, name) is not None:
                weight(name, getattr(self, name))
        if self.threshold is not None and self.threshold > 1:
            raise UsageError(f"threshold: {self.threshold} is no probability; use at most 1", field="threshold")
        number("seed", self.seed, int)
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
        rule, traits = self.picks_by, self.traits
        if self.layout == "plain" and rule == "parallel-forced":
            raise UsageError("rule: 'parallel-forced' needs layout 'nap'", field="rule")
        unused = {
            "block_length": self.block_length is not None and not traits.blocks,
            "steps": self.steps is not None and traits.adaptive,
            "confidence": self.confidence != "max-prob" and not traits.ranks,
            "eos_weight": self.eos_weight is not None and not traits.ranks,
            **{name: getattr(self, name) is not None and rule != name for name in ("threshold", "factor")},
        }
        for name, wrong in unused.items():
            if wrong:
                raise UsageError(f"{name}: rule '{rule}' does not use it; leave it out", field=name)
        if rule == "parallel-forced" and self.scope == "canvas":
            raise UsageError("scope: rule 'parallel-forced' picks within each path; use 'path'", field="scope")
        if self.picks_over == "canvas":
            self._check_canvas_scope()

    def _check_canvas_scope(self) -> None:
        if self.sync.warmup:
            raise UsageError("warmup: scope 'canvas' does not use it; every step is exact", field="warmup")
        if not (self.sync.mode == "exact" or self.tokens_each_step):
            raise UsageError(
                f"sync: scope 'canvas' needs every candidate at every step: use 'exact' or 'tokens' with every 1, "
                f"not '{self.sync.mode}'{' with overlap' if self.sync.overlap else ''} (or scope 'path')",
                field="sync",
            )

    def _check_summary(self) -> None:
        how = self.sync.summary
        if how in ("consensus", "live") and self.picks_over == "canvas":
            raise UsageError(f"summary: '{how}' needs scope 'path', which has a summary phase", field="summary")
        if self.sync.settle is not None and self.traits.remasks:
            raise UsageError(f"settle: rule '{self.picks_by}' may mask again what is filled", field="settle")
        if how != "consensus":
            return
        if self.confidence != "max-prob":
            raise UsageError("confidence: summary 'consensus' averages max-prob only; leave it out", field="confidence")
        if self.picks_by == "prophet" or self.rule_args.get("score") == "token":
            text = "rule 'prophet'" if self.picks_by == "prophet" else "score 'token'"
            raise UsageError(f"summary: 'consensus' does not tell what {text} needs; use 'gather'", field="summary")

    def _check_cache(self) -> None:
        if self.cache is None:
            if self.cache_every is not None:
                raise UsageError("cache_every: only cache 'dkv' uses it; give it too", field="cache_every")
            return
        one_of("cache", self.cache, get_args(CacheKind))
        on_paths = self.layout == "nap" and self.cache in PATH_CACHES
        if on_paths:
            self._check_path_cache()
        elif self.layout != "plain" or self.picks_over != "canvas" or self.cache == "closed":
            needs = "'nap' and scope 'path'" if self.cache == "closed" else "'plain' and scope 'canvas'"
            raise UsageError(f"cache: '{self.cache}' needs layout {needs}", field="cache")
        caches = self.traits.path_caches if on_paths else self.traits.caches
        if self.cache not in caches:
            able = ", ".join(caches) or "none"
            text = f"cache: rule '{self.picks_by}' cannot run with '{self.cache}'; caches it can run with: {able}"
            raise UsageError(text, field="cache")
        if self.cache_every is not None and (self.cache != "dkv" or on_paths):
            what = "on paths, which are refreshed at syncs," if on_paths else ""
            text = f"cache_every: cache '{self.cache}' {what} does not use it; leave it out".replace("  ", " ")
            raise UsageError(text, field="cache_every")

    def _check_path_cache(self) -> None:
        """A sync computes every own row: what is computed at every step is never kept."""
        if self.sync.mode != "none" and self.sync.period == 1:
            every = "" if self.sync.mode == "exact" else " with every 1"
            text = (
                f"cache: '{self.cache}' spares rows between syncs, and sync '{self.sync.mode}'{every} has one at every "
            )
            text += "step; use 'tokens', 'shared' or 'kv' with every 2 or more, or 'none'"
            raise UsageError(text, field="cache")
        if self.picks_over != "path":
            raise UsageError("cache: of layout 'nap' it needs scope 'path'", field="cache")

    @property
    def traits(self) -> Traits:
        """What the rule is."""
        return TRAITS[self.picks_by]

    @property
    def own_value(self) -> float:
        """The rule's own number, its default applied; 0 for a rule without one."""
        name, default = self.traits.value or ("", 0.0)
        given = getattr(self, name) if name else None
        return default if given is None else given

    @property
    def reports_every(self) -> int:
        """R with its default applied."""
        counted = (self.traits.fixed or self.traits.remasks) and self.sync.settle is None
        return self.control_every or (CONTROL_EVERY if counted else 1)

    @property
    def fast_block(self) -> int:
        """Slots of a block of `threshold` and `factor`, the default applied; the last may be shorter."""
        return self.block_length or FAST_BLOCK

    def defaults_of_rule(self) -> dict[str, Any]:
        """The values of fields that are not given but that rule, cache and reports go by."""
        values: dict[str, Any] = {"control_every": self.reports_every}
        if self.traits.value is not None:
            values[self.traits.value[0]] = self.own_value
        if self.traits.adaptive:
            values["block_length"] = self.fast_block
        if self.cache == "dkv" and self.layout == "plain":
            values["cache_every"] = self.refresh_every
        return values

    @property
    def refresh_every(self) -> int:
        """Steps between full refreshes of cache `dkv`, the default applied."""
        return self.cache_every or CACHE_EVERY

    @property
    def tokens_each_step(self) -> bool:
        """Whether the sync is `tokens` at K = 1."""
        return self.sync.mode == "tokens" and self.sync.period == 1 and not self.sync.overlap

    @property
    def ranks_by_confidence(self) -> bool:
        """Whether the rule looks at confidences at all."""
        return self.traits.ranks

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
        kwargs = known_keys(cls, values, "")
        if isinstance(kwargs.get("path_tokens"), list):
            kwargs["path_tokens"] = tuple(kwargs["path_tokens"])
        if isinstance(kwargs.get("sync"), Mapping):
            kwargs["sync"] = SyncPolicy(**known_keys(SyncPolicy, kwargs["sync"], "sync."))
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
class LiveAnswer:
    """What the summary would have been at a sync (summary `live`), and the answer in it, None where it holds none."""

    step: int
    answer: str | None
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeResult:
    """What one decode gives back.

    `answer` is None when the summary holds none; `correct` says whether it is the gold one ("$1,000" is 1000.0), None
    without a gold answer. `record` is the trace, `metrics` every meter of the run. `live` holds the answer against the
    step, with summary `live`.
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
    live: tuple[LiveAnswer, ...] = ()
