"""What a benchmark measures: model, canvas, and the ways of decoding it that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, Literal, get_args

from nap_runtime.errors import UsageError
from nap_runtime.job import DEVICES, DTYPES, Device, DType, SyncMode, SyncPolicy, at_least, one_of
from nap_runtime.models.compiled import COMPILE_MODES, AttentionKernel, CompileMode, CompileOptions, Gemm
from nap_runtime.numerics import Numerics, check_numerics, check_sync
from nap_runtime.storage import STORED, Storage, Stored

Method = Literal["ours", "views", "llada", "prefix", "dual", "branches", "sequence"]
METHODS: tuple[Method, ...] = get_args(Method)
PERIODIC = ("tokens", "shared", "kv")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpec:
    """One benchmark.

    Args:
        model: a bundled model's name or a folder; `shape` random weights of a shape in its place.
        paths, path_tokens, summary_tokens: the canvas (None: the model's own).
        prompt_tokens: of random weights' prompt.
        tokens_per_step: slots a step commits, over all paths.
        methods: `ours` each sync on one worker (`exact`) and on groups; `views` one device under the same sync policy;
            `llada` LLaDA's own loop; `prefix` and `dual` Fast-dLLM's caches; `branches` as LoPA; `sequence` the whole
            canvas in LLaDA's order over a group.
        workers: sizes of groups; 1 is this process.
        sync, every: modes, and K of those that have one.
        batch_size: canvases decoded together, of `ours`.
        compile: how steps are carried out; peers run with `none`, and compiled where that helps them.
        numerics: of `ours` and `sequence` and of the caches. `invariant`: ids that must agree must be equal.
        weights, kv: of `ours` and `views`.
        branches: of `branches`, beside the anchor.
        repeats: decodes of each case after one to warm up.

    Raises:
        UsageError: a value is unknown or out of range.
    """

    model: str = "nap-tiny"
    shape: str | None = None
    device: Device = "cpu"
    dtype: DType = "float32"
    paths: int = 3
    path_tokens: int | None = None
    summary_tokens: int | None = None
    prompt_tokens: int = 128
    tokens_per_step: float = 4
    methods: tuple[Method, ...] = METHODS
    workers: tuple[int, ...] = (1,)
    sync: tuple[SyncMode, ...] = ("exact", "kv", "tokens", "shared", "none")
    every: tuple[int, ...] = (8,)
    batch_size: tuple[int, ...] = (1,)
    compile: tuple[CompileMode, ...] = ("none",)
    gemm: Gemm = "library"
    numerics: Numerics = "fast"
    attention: AttentionKernel = "auto"
    unroll: int = 1
    weights: tuple[Stored, ...] = ("native",)
    kv: tuple[Stored, ...] = ("native",)
    branches: int = 3
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("device", self.device, DEVICES)
        one_of("dtype", self.dtype, DTYPES)
        allowed = {
            "methods": METHODS,
            "sync": get_args(SyncMode),
            "compile": COMPILE_MODES,
            "weights": STORED,
            "kv": STORED,
        }
        for name, known in allowed.items():
            _listed(name, getattr(self, name))
            for value in getattr(self, name):
                one_of(name, value, known)
        for name in ("workers", "every", "batch_size"):
            _listed(name, getattr(self, name))
            for value in getattr(self, name):
                at_least(name, value, 1)
        for name in ("paths", "prompt_tokens", "branches", "repeats"):
            at_least(name, getattr(self, name), 1)
        if not self.tokens_per_step > 0:
            raise UsageError(f"tokens_per_step: {self.tokens_per_step} is not above 0", field="tokens_per_step")
        if max(self.workers) > self.paths:
            text = f"workers: {max(self.workers)} workers for {self.paths} paths; use at most {self.paths}"
            raise UsageError(text, field="workers")

        self._check_numerics()

    def _check_numerics(self) -> None:
        how = {"device": self.device, "dtype": self.dtype}
        for mode, weights, kv in product(self.compile, self.weights, self.kv):
            check_numerics(self.numerics, compile=mode, storage=Storage(weights=weights, kv=kv), **how)
        for policy in self.policies():
            check_sync(self.numerics, policy)

    def policies(self) -> Iterator[SyncPolicy]:
        """Every sync policy that is compared."""
        for mode in self.sync:
            for every in self.every if mode in PERIODIC else (None,):
                yield SyncPolicy(mode, every=every)

    def compile_options(self, mode: CompileMode) -> CompileOptions:
        """The same in one of the modes, of what goes through a coordinator."""
        return replace(self.fast_options(mode), numerics=self.numerics)

    def fast_options(self, mode: CompileMode) -> CompileOptions:
        """Of views and of peers' loops, which bring attention of their own."""
        if mode == "none":
            return CompileOptions(attention=self.attention)
        return CompileOptions(mode=mode, gemm=self.gemm, attention=self.attention, unroll=self.unroll)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def canvas_key(self) -> dict[str, Any]:
        """What two runs must have in common for their ratios to be compared: model, canvas, precision, device kind."""
        names = ("model", "shape", "device", "dtype", "paths", "path_tokens", "summary_tokens", "prompt_tokens")
        common = {f.name: getattr(self, f.name) for f in fields(self) if f.name in (*names, "tokens_per_step")}
        return common if self.numerics == "fast" else {**common, "numerics": self.numerics}


def _listed(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise UsageError(f"{name}: it is empty; name at least one", field=name)
    if len(set(values)) != len(values):
        raise UsageError(f"{name}: a value stands twice", field=name)
