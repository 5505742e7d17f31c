"""`choose_sync`: what `nap decode --sync auto` does, from Python."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from nap_runtime.api import check_device, check_dtype, measure_link, runs_elsewhere
from nap_runtime.auto import OVERHEAD, AutoSync
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, Device, DType, at_least
from nap_runtime.models.loading import read_card
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.storage import NATIVE, Storage
from nap_runtime.study.cost.choose import Choice, Decode, choose, device_of, machine_of
from nap_runtime.study.cost.predict import Link, Machine

PROMPT_TOKENS = 64  # of a prompt that is not known yet


def choose_sync(
    config: DecodeConfig | None = None,
    *,
    workers: int,
    model: str | Path = "nap-tiny",
    link: str | None = None,
    overhead: float = OVERHEAD,
    prompt: str | None = None,
    device: Device = "cpu",
    dtype: DType = "float32",
    batch_size: int = 1,
    storage: Storage = NATIVE,
) -> Choice:
    """Choose a sync for a decode: the freshest with a predicted overhead of at most `overhead`.

    `decode(prompt, config.with_values(sync=choice.policy), workers=workers)` decodes with it. Of the config's own sync
    only topology, summary, `top` and `settle` count.

    Args:
        link: a named link, or a file of `nap cost calibrate`; None brings the workers up and measures. They stay warm.
        overhead: a share of the time, above 0 and below 1.
        prompt: whose length counts (None: 64 tokens).
        storage: how workers hold numbers; FP8 keys and values make syncs smaller.

    Raises:
        UsageError, ModelError, WorkerError: see `nap_runtime.errors`.
    """
    check_device(device, elsewhere=runs_elsewhere(on_ray=workers > 1, address=None))
    check_dtype(dtype)
    for name, value in (("workers", workers), ("batch_size", batch_size)):
        at_least(name, value, 1)
    card = read_card(model)
    defaults, config = DecodeDefaults.of(card.path), config or DecodeConfig()
    given = config.sync
    config = resolve(config.with_values(sync=replace(given, topology=given.sees)), defaults)
    if workers > config.n_paths:
        raise UsageError(f"workers: {workers} workers for {config.n_paths} paths", field="workers")
    kept = {name: getattr(given, name) for name in ("topology", "summary", "top", "settle")}
    tokens = PROMPT_TOKENS if prompt is None else len(prompt_ids(card, prompt))
    decode = Decode(
        layout=build_layout(card, config, tokens),
        config=config,
        model=card.config,
        workers=workers,
        dtype=dtype,
        batch=batch_size,
        storage=storage,
        threads=1 if device == "cuda" else max(1, (os.cpu_count() or 1) // workers),
    )
    machine = _machine(model, workers, link, device, dtype)
    asked = AutoSync(link=link, overhead=overhead, **kept)
    return choose(asked if config.layout == "plain" else asked.on(defaults.topology), decode, machine)


def _machine(model: str | Path, workers: int, link: str | None, device: Device, dtype: DType) -> Machine:
    name = gpu_name(device)
    if link is not None:
        return machine_of(link, device, name)
    if workers == 1:
        return machine_of("nvlink", device, name)  # nothing goes over it
    found = measure_link(model, workers=workers, device=device, dtype=dtype)
    link_found = Link(latency=found.latency, bandwidth=found.bandwidth)
    return Machine(device=device_of(device, found.device), link=link_found)


def gpu_name(device: str) -> str:
    """The product name of this host's GPU; empty on a CPU, and where only the workers have one."""
    import torch

    return torch.cuda.get_device_name(0) if device == "cuda" and torch.cuda.is_available() else ""
