"""`Numerics`: whether the bits of a row may depend on how many others are computed with it."""

from __future__ import annotations

from typing import Literal, get_args

from nap_runtime.errors import UsageError
from nap_runtime.policy import SyncPolicy
from nap_runtime.storage import Storage
from nap_runtime.values import one_of

Numerics = Literal["fast", "invariant"]
NUMERICS: tuple[Numerics, ...] = get_args(Numerics)


def check_numerics(numerics: Numerics, *, compile: str, device: str, dtype: str, storage: Storage) -> None:
    """Whether workers can compute so, as far as it can be told from afar.

    Raises:
        UsageError: `invariant` is for compiled steps of a GPU, for numbers of 16 or 32 bits.
    """
    one_of("numerics", numerics, NUMERICS)
    if numerics == "fast":
        return
    check_device(device)
    check_compiled(compile)
    if dtype == "float64":
        text = "numerics: 'invariant' takes at most 32 bits a number; float64 gives equal ids with 'fast'"
        raise UsageError(text, field="numerics")
    if "fp8" in (storage.weights, storage.kv):
        raise UsageError("numerics: 'invariant' has no FP8; use weights and kv 'native'", field="numerics")


def check_device(device: str) -> None:
    """UsageError where `invariant` has no kernels for a kind of device."""
    if device != "cuda":
        raise UsageError(f"numerics: 'invariant' needs a CUDA device, not {device}; use 'fast'", field="numerics")


def check_compiled(compile: str) -> None:
    """UsageError where steps run operation by operation, which `invariant` does not."""
    if compile == "none":
        raise UsageError("numerics: 'invariant' needs compile 'default' or 'graph'", field="numerics")


def check_sync(numerics: Numerics, policy: SyncPolicy) -> None:
    """Whether rows can be computed so under a sync.

    Raises:
        UsageError: it adds up parts of a row's attention by worker.
    """
    if numerics == "fast":
        return
    if policy.mode == "shared":
        text = "numerics: 'invariant' has no order of sums for sync 'shared'; use exact, tokens, kv or none"
        raise UsageError(text, field="numerics")
    if policy.overlap and (policy.mode == "exact" or policy.warmup):
        text = "numerics: 'invariant' cannot attend to own keys first, as exact steps with overlap do; leave it out"
        raise UsageError(text, field="numerics")
