"""`--sync auto`: from settings with a sync to be chosen to settings with one, before anything is decoded."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nap_runtime.cli.settings import Settings
from nap_runtime.errors import UsageError

if TYPE_CHECKING:
    from nap_runtime.auto import AutoSync
    from nap_runtime.decoding.layout import CanvasLayout
    from nap_runtime.distributed.probe import LinkProbe
    from nap_runtime.executor.base import Executor
    from nap_runtime.job import DecodeConfig
    from nap_runtime.models.config import ModelConfig
    from nap_runtime.models.loading import ModelCard
    from nap_runtime.policy import SyncPolicy
    from nap_runtime.service.gate import Chooser
    from nap_runtime.service.settings import GroupSettings
    from nap_runtime.study.cost.choose import Choice
    from nap_runtime.study.cost.predict import Machine


def settle(card: ModelCard, settings: Settings, question: str | None = None) -> Settings:
    """Choose now where nothing has to be measured for it; else the settings as they are, for `measured`.

    Raises:
        UsageError, DataError: the link is unknown, or its file no calibration.
    """
    asked = settings.auto
    if asked is None or (asked.link is None and settings.on_ray):
        return settings
    from nap_runtime.study.cost.ask import gpu_name
    from nap_runtime.study.cost.choose import device_of, machine_of
    from nap_runtime.study.cost.predict import LINKS, Machine

    if asked.link is None:  # threads of one process, or one worker
        device = device_of(settings.device, gpu_name(settings.device))
        machine, where = Machine(device=device, link=LINKS["nvlink"]), "in one process"
    else:
        machine = machine_of(asked.link, settings.device, gpu_name(settings.device))
        where = f"over link {asked.link}"
    return _chosen(card, settings, question, machine, where)


def measured(card: ModelCard, settings: Settings, executor: Executor, question: str | None = None) -> Settings:
    """Measure what the workers talk over, and choose.

    Raises:
        UsageError: there is no preset for the device.
        WorkerError: a worker is gone.
    """
    if settings.auto is None:
        return settings
    from nap_runtime.study.cost.choose import device_of
    from nap_runtime.study.cost.predict import Link, Machine

    found = executor.probe()
    assert found is not None, "only groups of processes are measured"
    hosts = len({place.host for place in executor.places})
    where = (
        f"on {hosts} {'host' if hosts == 1 else 'hosts'}, measured {1e3 * found.latency:.2f} ms and "
        f"{found.bandwidth / 1e6:.0f} MB/s"
    )
    link = Link(latency=found.latency, bandwidth=found.bandwidth)
    machine = Machine(device=device_of(settings.device, found.device), link=link)
    return _chosen(card, settings, question, machine, where)


def _chosen(card: ModelCard, settings: Settings, question: str | None, machine: Machine, where: str) -> Settings:
    from nap_runtime.models.prompting import build_layout, prompt_ids
    from nap_runtime.study.cost.ask import PROMPT_TOKENS
    from nap_runtime.study.cost.choose import Decode, choose

    assert settings.auto is not None, "there is nothing to choose"
    tokens = PROMPT_TOKENS if question is None else len(prompt_ids(card, question))
    decode = Decode(
        layout=build_layout(card, settings.config, tokens),
        config=settings.config,
        model=card.config,
        workers=settings.workers,
        dtype=settings.dtype,
        batch=settings.batch_size,
        storage=settings.storage,
        threads=1 if settings.device == "cuda" else max(1, (os.cpu_count() or 1) // settings.workers),
    )
    choice = choose(settings.auto.on(settings.config.sync.topology), decode, machine)
    print(f"nap: {_line(choice, settings.workers, where)}", file=sys.stderr, flush=True)
    return replace(settings, config=settings.config.with_values(sync=choice.policy), auto=None).resolved(card)


def chooser(group: GroupSettings, link: str | None = None) -> Chooser:
    """How a server chooses: by the named link or file, else by what its groups measured, the slowest of it.

    Raises:
        UsageError, DataError: the link is unknown, or its file no calibration.
    """
    from nap_runtime.study.cost.choose import Decode, choose, machine_of

    if link is not None:
        machine_of(link, "cpu")  # that it is one

    def chosen(
        asked: AutoSync, config: DecodeConfig, layout: CanvasLayout, model: ModelConfig, links: Sequence[LinkProbe]
    ) -> tuple[SyncPolicy, str]:
        machine, where = _of_groups(group, link, links)
        threads = 1 if group.device == "cuda" else max(1, (os.cpu_count() or 1) // group.workers)
        decode = Decode(
            layout=layout,
            config=config,
            model=model,
            workers=group.workers,
            dtype=group.dtype,
            threads=threads,
            storage=group.storage,
        )
        choice = choose(asked.on(config.sync.topology), decode, machine)
        return choice.policy, _line(choice, group.workers, where)

    return chosen


def _of_groups(group: GroupSettings, link: str | None, links: Sequence[LinkProbe]) -> tuple[Machine, str]:
    """The machine to choose for, and where it is."""
    from nap_runtime.study.cost.ask import gpu_name
    from nap_runtime.study.cost.choose import device_of, machine_of
    from nap_runtime.study.cost.predict import LINKS, Link, Machine

    if link is not None:
        return machine_of(link, group.device, gpu_name(group.device)), f"over link {link}"
    if not group.on_ray:
        device = device_of(group.device, gpu_name(group.device))
        return Machine(device=device, link=LINKS["nvlink"]), "in one process"
    if not links:
        text = "sync: no group has measured its link; start the server with --link, or give a mode"
        raise UsageError(text, field="sync")
    slow = Link(latency=max(p.latency for p in links), bandwidth=min(p.bandwidth for p in links))
    where = f"measured {1e3 * slow.latency:.2f} ms and {slow.bandwidth / 1e6:.0f} MB/s"
    return Machine(device=device_of(group.device, links[0].device), link=slow), where


def _line(choice: Choice, workers: int, where: str) -> str:
    every = "" if choice.policy.every is None else f" every {choice.policy.every}"
    group = f"{workers} {'worker' if workers == 1 else 'workers'}"
    return f"sync auto: {choice.policy.mode}{every}, {group} {where}: {choice.reason}"
