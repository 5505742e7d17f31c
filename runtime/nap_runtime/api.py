"""`decode`: questions in, results out, wherever the workers are."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch

from nap_runtime.distributed.probe import LinkProbe
from nap_runtime.errors import UsageError
from nap_runtime.executor.base import Executor
from nap_runtime.executor.coordinator import Coordinator, JobFailure
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import (
    DEVICES,
    DTYPES,
    CompileMode,
    DecodeConfig,
    DecodeJob,
    DecodeResult,
    Device,
    DType,
    at_least,
    one_of,
)
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.loading import LoadedModel, ModelCard, load_model, read_card
from nap_runtime.models.quantised import FP8, check_storage, is_quantised, quantise
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.numerics import Numerics, check_numerics
from nap_runtime.policy import Placement
from nap_runtime.storage import NATIVE, Storage


def check_device(device: str, *, elsewhere: bool = False) -> None:
    """Fail with the mend when a device cannot be used. `elsewhere`: it is that of a cluster's workers, not this host's.

    Raises:
        UsageError: it is unknown, or there is no GPU.
    """
    one_of("device", device, DEVICES)
    if device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise UsageError("device: torch sees no CUDA device; use cpu", field="device")


def runs_elsewhere(*, on_ray: bool, address: str | None) -> bool:
    """Whether workers run on a cluster that is there already: this host need not have what they have."""
    return on_ray and bool(address or os.environ.get("RAY_ADDRESS"))


def check_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        UsageError: it is unknown.
    """
    one_of("dtype", dtype, DTYPES)
    kind: torch.dtype = getattr(torch, dtype)
    return kind


def make_executor(
    card: ModelCard,
    *,
    workers: int,
    dtype: str = "float32",
    device: str = "cpu",
    compile: CompileMode = "none",
    model: LoadedModel | None = None,
    simulate: bool = False,
    address: str | None = None,
    placement: Placement = "pack",
    storage: Storage = NATIVE,
    numerics: Numerics = "fast",
) -> Executor:
    """One worker (or W simulated ones) in this process, or W > 1 Ray actors.

    Raises:
        UsageError: device, dtype, compile, storage or numerics cannot be used, or the cluster has no room.
    """
    on_ray = workers > 1 and not simulate
    check_device(device, elsewhere=runs_elsewhere(on_ray=on_ray, address=address))
    check_numerics(numerics, compile=compile, device=device, dtype=dtype, storage=storage)
    kind, compiling = check_dtype(dtype), CompileOptions(mode=compile, numerics=numerics)
    if not on_ray:
        if model is None:
            network = load_stored(card, dtype=kind, device=device, storage=storage).model
        else:
            network = _stored(model, storage)
        kv = FP8 if storage.kv == "fp8" else kind
        return InlineExecutor(network, workers=workers, dtype=kv, device=device, compiling=compiling)
    from nap_runtime.executor.ray_executor import ClusterOptions, RayExecutor

    cluster = ClusterOptions(address=address, placement=placement)
    more: dict[str, Any] = {"compile": compile, "storage": storage, "cluster": cluster, "numerics": numerics}
    return RayExecutor(card.reference, workers=workers, dtype=kind, device=device, **more)


def load_stored(card: ModelCard, *, dtype: torch.dtype, device: str, storage: Storage) -> LoadedModel:
    """A model whose weights are held as asked for.

    Raises:
        UsageError: the device cannot.
        ModelError: the folder is damaged.
    """
    check_storage(storage, device=device, dtype=dtype)
    loaded = load_model(card.path, dtype=dtype, device=device)
    if storage.weights == "fp8":
        quantise(loaded.model)
    return loaded


def _stored(loaded: LoadedModel, storage: Storage) -> DiffusionTransformer:
    """A model that is the caller's is not changed."""
    if storage.weights == "fp8" and not is_quantised(loaded.model):
        text = "weights: a loaded model keeps its own; give its folder, or quantise it first"
        raise UsageError(text, field="weights")
    return loaded.model


_Key = tuple[str, str, int, str, str, bool, int, CompileMode, Storage, Numerics]
_warm: dict[_Key, Coordinator] = {}


def _on_ray(key: _Key) -> bool:
    _, _, workers, _, _, simulate, *_ = key
    return workers > 1 and not simulate


@contextmanager
def _coordinator(card: ModelCard, key: _Key, model: LoadedModel | None) -> Iterator[Coordinator]:
    """A warm group for the same model, workers, dtype and device; kept until another is needed, or fails."""
    if key not in _warm:
        for other in [k for k in _warm if _on_ray(k) == _on_ray(key)]:
            _warm.pop(other).executor.close()  # one warm group of each kind: more would compete for the same devices
        _, _, workers, dtype, device, simulate, _, compile, storage, numerics = key
        where: dict[str, Any] = {"workers": workers, "dtype": dtype, "device": device, "simulate": simulate}
        how: dict[str, Any] = {"compile": compile, "storage": storage, "numerics": numerics}
        executor = make_executor(card, model=model, **how, **where)
        _warm[key] = Coordinator(card.stored(storage), executor)
    try:
        yield _warm[key]
    except UsageError:
        raise  # nothing has run: the group is as good as before
    except BaseException:
        _warm.pop(key).executor.close()
        raise


@atexit.register
def close() -> None:
    """Stop every warm group. Called at exit; call it to give the devices back earlier."""
    while _warm:
        _warm.popitem()[1].executor.close()


@overload
def decode(
    prompt: str,
    config: DecodeConfig | None = None,
    *,
    model: str | Path | LoadedModel = "nap-tiny",
    workers: int = 1,
    device: Device = "cpu",
    dtype: DType = "float32",
    compile: CompileMode = "none",
    storage: Storage = NATIVE,
    numerics: Numerics = "fast",
    batch_size: int = 1,
    simulate: bool = False,
) -> DecodeResult: ...
@overload
def decode(
    prompt: list[str],
    config: DecodeConfig | None = None,
    *,
    model: str | Path | LoadedModel = "nap-tiny",
    workers: int = 1,
    device: Device = "cpu",
    dtype: DType = "float32",
    compile: CompileMode = "none",
    storage: Storage = NATIVE,
    numerics: Numerics = "fast",
    batch_size: int = 1,
    simulate: bool = False,
) -> list[DecodeResult]: ...
def decode(
    prompt: str | list[str],
    config: DecodeConfig | None = None,
    *,
    model: str | Path | LoadedModel = "nap-tiny",
    workers: int = 1,
    device: Device = "cpu",
    dtype: DType = "float32",
    compile: CompileMode = "none",
    storage: Storage = NATIVE,
    numerics: Numerics = "fast",
    batch_size: int = 1,
    simulate: bool = False,
) -> DecodeResult | list[DecodeResult]:
    """Decode one question, or several.

    Args:
        prompt: a question, or a list of questions (then a list comes back, in their order).
        config: how; defaults to three paths, one token a step, exact sync.
        model: a bundled model's name, a checkpoint folder, its URL, or a `LoadedModel` (inline only).
        workers: W; 1 runs in this process, more run as Ray actors, on a local cluster unless one is there.
        device, dtype: where and in what precision; a `LoadedModel` keeps its own, whatever is given.
        compile: `default` compiles steps, `graph` captures them in CUDA graphs too; worth it for many decodes.
        storage: FP8 weights, keys and values; a `LoadedModel` has its own weights.
        numerics: `invariant`: bits do not depend on the batch, nor under `exact` on the workers; compiled, on GPUs.
        batch_size: canvases decoded together, with prompts of one bucket of 32 tokens.
        simulate: run W workers as threads of this process, with the ids of real ones.

    Raises:
        UsageError, ModelError, WorkerError: see `nap_runtime.errors`. With several questions the first failure raises.
    """
    config = DecodeConfig() if config is None else config
    questions = [prompt] if isinstance(prompt, str) else prompt
    _check_arguments(questions, config, workers, batch_size)
    loaded = model if isinstance(model, LoadedModel) else None
    if loaded is not None and workers > 1 and not simulate:
        raise UsageError("model: a loaded model runs inline; give its folder, or simulate=True", field="model")
    if loaded is not None:
        weight = next(loaded.model.parameters())
        device, dtype = weight.device.type, str(weight.dtype).removeprefix("torch.")  # type: ignore[assignment]
    card = loaded.card if loaded is not None else read_card(model)  # type: ignore[arg-type]
    jobs = [DecodeJob(question=question, index=index) for index, question in enumerate(questions)]
    # Not the fingerprint alone: a loaded model's weights may have been changed since, or its folder been edited.
    weights = 0 if loaded is None else id(loaded.model)
    key = (card.fingerprint, str(card.path), workers, dtype, device, simulate, weights, compile, storage, numerics)
    with _coordinator(card, key, loaded) as coordinator:
        results = sorted(coordinator.decode(jobs, config, batch_size=batch_size), key=lambda result: result.job.index)
    done = [_or_raise(result) for result in results]
    return done[0] if isinstance(prompt, str) else done


def measure_link(
    model: str | Path = "nap-tiny", *, workers: int, device: Device = "cpu", dtype: DType = "float32"
) -> LinkProbe:
    """Bring a group of Ray workers up, as `decode` would, and measure what they talk over; the group stays warm.

    Raises:
        UsageError, ModelError, WorkerError: see `nap_runtime.errors`.
    """
    at_least("workers", workers, 2)
    card = read_card(model)
    with _coordinator(
        card, (card.fingerprint, str(card.path), workers, dtype, device, False, 0, "none", NATIVE, "fast"), None
    ) as coordinator:
        found = coordinator.executor.probe()
    assert found is not None, "workers on Ray have a network between them"
    return found


def _check_arguments(questions: object, config: object, workers: object, batch_size: object) -> None:
    if not isinstance(questions, list) or not all(isinstance(question, str) for question in questions):
        raise UsageError("prompt: give a question as text, or a list of them", field="prompt")
    if not isinstance(config, DecodeConfig):
        raise UsageError("config: give a DecodeConfig (see DecodeConfig.from_mapping)", field="config")
    for name, value in (("workers", workers), ("batch_size", batch_size)):
        at_least(name, value, 1)


def _or_raise(result: DecodeResult | JobFailure) -> DecodeResult:
    if isinstance(result, JobFailure):
        raise result.error
    return result
