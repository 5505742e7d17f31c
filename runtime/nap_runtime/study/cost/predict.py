"""Seconds of a decode: a roofline for each forward, latency and bandwidth for each collective, waits between them.

    forward   = max(FLOP / flops, bytes read / memory) + layers · launch + forward + scored logits · score
    exchange  = collectives · ((W − 1) · latency + (W − 1) · buffer / bandwidth)

The second is a ring all-gather: W − 1 rounds, each with the latency of the link. Workers wait for the slowest at every
exchange; an overlapped one is waited for where it arrives. Several workers cost `start` once a decode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from nap_runtime.decoding.machine import Plan
from nap_runtime.errors import UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.storage import NATIVE, Storage
from nap_runtime.study.cost.counts import Counts, Forward, Moment, count, head_bytes
from nap_runtime.study.cost.scenario import ITEM_BYTES, Scenario
from nap_runtime.values import known_keys, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a worker computes with. All values are positive.

    Attributes:
        flops: FLOP/s that its matrix products reach (of one thread, where there are several).
        memory: bytes/s that it reads weights at.
        launch: seconds that a layer costs besides.
        forward: seconds that a forward costs besides: head, selection, report.
        score: seconds for each logit that is scored.
    """

    flops: float
    memory: float
    launch: float = 1e-5
    forward: float = 1e-4
    score: float = 1e-12

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What workers talk over. All values are positive.

    Attributes:
        latency: seconds before the first byte arrives.
        bandwidth: bytes/s after it.
        start: seconds that a decode by several workers costs once: calls, and the group's first meeting.
    """

    latency: float
    bandwidth: float
    start: float = 1e-6

    def __post_init__(self) -> None:
        _check(self)

    def seconds(self, workers: int, times: int, buffer_bytes: int) -> float:
        """So many all-gathers of buffers of that size."""
        return times * (workers - 1) * (self.latency + buffer_bytes / self.bandwidth)


def _check(values: Any) -> None:
    for each in fields(values):
        value = getattr(values, each.name)
        number(each.name, value, float)
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{each.name}: {value} is not a number above 0", field=each.name)


# Data-sheet rates of dense bfloat16 and memory; launch and forward are assumptions for eager PyTorch. Calibrate.
DEVICES: Mapping[str, Device] = {
    "h100": Device(flops=989e12, memory=3.35e12, launch=2e-4, forward=5e-4),
    "h200": Device(flops=989e12, memory=4.8e12, launch=2e-4, forward=5e-4),
    "a100": Device(flops=312e12, memory=2.0e12, launch=2e-4, forward=5e-4),
    "cpu": Device(flops=5e10, memory=1e10, launch=5e-5, forward=5e-4, score=1e-9),
}
# Bandwidths are the names' own; latencies are assumptions.
LINKS: Mapping[str, Link] = {
    "nvlink": Link(latency=1e-5, bandwidth=450e9),
    "100g": Link(latency=2e-5, bandwidth=12.5e9),
    "25g": Link(latency=3e-5, bandwidth=3.125e9),
    "10g": Link(latency=5e-5, bandwidth=1.25e9),
    "1g": Link(latency=1e-4, bandwidth=0.125e9),
    "wan": Link(latency=3e-2, bandwidth=0.0125e9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A device and a link."""

    device: Device
    link: Link

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """From parsed JSON: `device` and `link`, each a name or a mapping.

        Raises:
            UsageError: a key is unknown, or a value wrong.
        """
        given = known_keys(cls, values, "")
        for key in ("device", "link"):
            if key not in given:
                raise UsageError(f"{key}: missing", field=key)
        return cls(device=_named("device", given["device"]), link=_named("link", given["link"]))


def _named(key: str, value: Any) -> Any:
    """A preset by its name, or one of our own."""
    kind, presets = (Device, DEVICES) if key == "device" else (Link, LINKS)
    if isinstance(value, Mapping):
        values = known_keys(kind, value, f"{key}.")
        missing = [f.name for f in fields(kind) if f.name not in values]
        if missing:
            raise UsageError(f"{key}.{missing[0]}: missing", field=key)
        return kind(**values)
    if value not in presets:
        raise UsageError(f"{key}: unknown name '{value}'; use one of {', '.join(presets)}", field=key)
    return presets[value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a decode costs.

    Attributes:
        seconds: all of it; `compute_seconds` of the busiest worker, `blocked_seconds` the largest of any worker.
        sync_seconds: what the exchanges take by themselves, overlapped ones too.
        steps: T. rows: through the network, all workers; `extra_rows` of them for syncs.
        payload_bytes, wire_bytes: of all workers.
        tokens: slots committed.
    """

    seconds: float
    compute_seconds: float
    blocked_seconds: float
    sync_seconds: float
    steps: int
    rows: int
    extra_rows: int
    payload_bytes: int
    wire_bytes: int
    tokens: int

    @property
    def step_seconds(self) -> float:
        """Seconds a step."""
        return self.seconds / self.steps

    @property
    def blocked_share(self) -> float:
        """The share of the time in which the worker that waits longest does so."""
        return self.blocked_seconds / self.seconds

    @property
    def bytes_per_token(self) -> float:
        """Wire bytes of all workers for each token."""
        return self.wire_bytes / self.tokens


@dataclass(frozen=True, slots=True)
class Work:
    """A decode with its counts, which do not depend on the machine.

    Attributes:
        item_bytes: of a number of the dtype: weights, keys and values, but for what `storage` holds in FP8.
        batch: canvases decoded together.
        threads: of each worker, which share the compute of a CPU.
    """

    plan: Plan
    model: ModelConfig
    counts: Counts
    item_bytes: int
    batch: int = 1
    threads: int = 1
    storage: Storage = NATIVE

    @classmethod
    def of(cls, scenario: Scenario) -> Work:
        """Count a scenario.

        Raises:
            UsageError: the scenario does not fit together.
        """
        how: dict[str, Any] = {key: getattr(scenario, key) for key in ("batch", "threads", "storage")}
        return cls.of_plan(scenario.plan, scenario.model, ITEM_BYTES[scenario.dtype], **how)

    @classmethod
    def of_plan(
        cls,
        plan: Plan,
        model: ModelConfig,
        item_bytes: int,
        *,
        batch: int = 1,
        threads: int = 1,
        storage: Storage = NATIVE,
    ) -> Work:
        """Count a plan.

        Raises:
            UsageError: the plan's steps are not known beforehand, or it has a cache.
        """
        counts = count(plan, model, item_bytes=item_bytes, batch=batch, storage=storage)
        return cls(plan, model, counts, item_bytes, batch, threads, storage)

    @property
    def canvas(self) -> int:
        """Positions of a canvas."""
        return self.plan.layout.size

    @property
    def steps(self) -> int:
        """T."""
        return self.plan.schedule.steps

    def without_syncs(self) -> Work:
        """The same with every exchange, and every row that only a sync asks for, taken out."""
        moments = tuple(Moment(forwards=tuple(map(_bare, moment.forwards))) for moment in self.counts.moments)
        return replace(self, counts=replace(self.counts, moments=moments))

    def forward_seconds(self, forward: Forward, device: Device) -> float:
        """One run of the network."""
        flops, read = self.flops(forward), self.bytes_read(forward)
        scored = forward.scored * self.batch * self.model.vocab_size
        bound = max(flops / (device.flops * self.threads), read / device.memory)
        return bound + self.model.n_layers * device.launch + device.forward + scored * device.score

    def flops(self, forward: Forward) -> float:
        """Multiplications and additions: layers, attention over the whole canvas, head."""
        model, batch = self.model, self.batch
        attention = 4 * self.canvas * model.n_heads * model.head_dim
        rows = batch * forward.rows * model.n_layers * (2 * layer_weights(model) + attention)
        return float(rows + batch * forward.scored * 2 * model.vocab_size * model.d_model)

    def bytes_read(self, forward: Forward) -> float:
        """Weights of the layers and, where it is used, the head; keys and values of the canvas."""
        model, item = self.model, self.item_bytes
        layers = model.n_layers * layer_weights(model) * (1 if self.storage.weights == "fp8" else item)
        head = model.vocab_size * model.d_model * item if forward.scored else 0
        heads = 2 * model.n_layers * model.n_kv_heads * self.batch * self.canvas
        return float(layers + head + heads * head_bytes(model, item, self.storage))

    def on(self, machine: Machine) -> Prediction:
        """Follow every worker's clock."""
        clocks = _Clocks(self, machine)
        for moment in self.counts.moments:
            clocks.pass_by(moment)
        counts = self.counts
        return Prediction(
            seconds=max(clocks.now),
            compute_seconds=max(clocks.computed),
            blocked_seconds=max(clocks.blocked),
            sync_seconds=clocks.exchanged,
            steps=self.steps,
            rows=sum(counts.rows),
            extra_rows=sum(counts.extra_rows),
            payload_bytes=sum(counts.payload_bytes),
            wire_bytes=counts.wire_bytes * counts.workers,
            tokens=self.batch * len(self.plan.layout.slots),
        )


def _bare(forward: Forward | None) -> Forward | None:
    """A forward without what only a sync asks for; None where nothing is left."""
    rows = 0 if forward is None else forward.rows - forward.extra_rows
    return replace(forward, rows=rows, extra_rows=0) if forward is not None and rows else None


def layer_weights(model: ModelConfig) -> int:
    """Weights of one layer's matrices."""
    attention = model.d_model * model.head_dim * 2 * (model.n_heads + model.n_kv_heads)
    return attention + 3 * model.d_model * model.d_ff


class _Clocks:
    """Every worker's time, and what it did with it, in seconds."""

    def __init__(self, work: Work, machine: Machine) -> None:
        self._work, self._machine = work, machine
        n = work.counts.workers
        self.computed, self.blocked = [0.0] * n, [0.0] * n
        self.now = [machine.link.start if n > 1 else 0.0] * n
        self.exchanged = 0.0
        self._ready = 0.0  # when the exchange that runs beside will be done
        self._known: dict[tuple[int, int], float] = {}  # seconds of a forward, by rows and scored slots

    def pass_by(self, moment: Any) -> None:
        """Compute, then wait for each other."""
        for worker, forward in enumerate(moment.forwards):
            if forward is not None:
                seconds = self._forward(forward)
                self.now[worker] += seconds
                self.computed[worker] += seconds
        if moment.arrives:
            self._wait_until(self._ready)
        if not moment.exchanges:
            return
        took = sum(self._machine.link.seconds(len(self.now), e.times, e.buffer_bytes) for e in moment.exchanges)
        self.exchanged += took
        done = max(self.now) + took
        if moment.begins:
            self._ready = done
        else:
            self._wait_until(done)

    def _forward(self, forward: Forward) -> float:
        key = forward.rows, forward.scored
        if key not in self._known:
            self._known[key] = self._work.forward_seconds(forward, self._machine.device)
        return self._known[key]

    def _wait_until(self, done: float) -> None:
        for worker, now in enumerate(self.now):
            self.blocked[worker] += max(done - now, 0.0)
            self.now[worker] = max(now, done)


def predict(scenario: Scenario, machine: Machine) -> Prediction:
    """What a scenario costs on a machine.

    Raises:
        UsageError: the scenario does not fit together.
    """
    return Work.of(scenario).on(machine)
