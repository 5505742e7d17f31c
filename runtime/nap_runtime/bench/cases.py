"""Ways of decoding as cases that can be timed: ours, one device under our policies, and the peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from nap_runtime.bench import peers
from nap_runtime.bench.canvases import Canvases
from nap_runtime.bench.roofline import wait
from nap_runtime.bench.views import BatchedViews
from nap_runtime.decoding.layout import CanvasLayout, Ids
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.executor.coordinator import Coordinator, JobFailure, Observer
from nap_runtime.job import DecodeConfig, DecodeResult, SyncPolicy
from nap_runtime.models.compiled import CompileMode
from nap_runtime.storage import Stored
from nap_runtime.worker import Denoiser

Family = Literal["ours", "one device", "peer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One decode: seconds, what it did in them, and what it said (`ids`: of the slots, a canvas a row)."""

    seconds: float
    first_commit: float
    steps: int
    rows: float
    tokens: int
    useful: int
    ids: tuple[Ids, ...]
    records: tuple[DecodeRecord, ...] = ()
    sync_share: float | None = None
    syncs: int | None = None
    wire_bytes: int | None = None
    staleness: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is timed.

    Attributes:
        against: the case whose ids it is held against; `must_agree` where both are the same computation.
        alone: decodes canvas i of a batch by itself, which a batch is held against.
        how: how steps are carried out.
    """

    name: str
    family: Family
    decode: Callable[[], Sample]
    workers: int = 1
    batch: int = 1
    how: CompileMode = "none"
    weights: Stored = "native"
    kv: Stored = "native"
    against: str = ""
    must_agree: bool = False
    alone: Callable[[int], Sample] | None = None

    @property
    def key(self) -> str:
        """What tells it from every other case of a run."""
        more = [f"{self.workers} workers"] * (self.workers > 1) + [f"batch {self.batch}"] * (self.batch > 1)
        more += [f"weights {self.weights}"] * (self.weights != "native") + [f"kv {self.kv}"] * (self.kv != "native")
        more += [self.how] * (self.how != "none")
        return ", ".join([self.name, *more])


WHOLE, OWN, PLAIN, ORDER = "whole canvas", "paths' rows, none", "plain whole canvas", "confidence order"


def policy_name(policy: SyncPolicy) -> str:
    """`kv, K = 8`."""
    return policy.mode if policy.every is None else f"{policy.mode}, K = {policy.every}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where cases run. `coordinator` gives each case one: in this process its own, so that what it captured stays."""

    coordinator: Callable[[], Coordinator]
    workers: int
    how: CompileMode
    weights: Stored
    kv: Stored

    @property
    def values(self) -> dict[str, Any]:
        """What a case says of it."""
        return {"workers": self.workers, "how": self.how, "weights": self.weights, "kv": self.kv}


def ours_alone(canvases: Canvases, place: Place) -> Iterator[Case]:
    """One worker: the whole canvas at each batch size; the plain canvas and the caches, where they are asked for."""
    spec, steps = canvases.spec, canvases.steps
    if "ours" in spec.methods:
        yield from _ours(canvases, place, WHOLE, SyncPolicy(), against="")
        if "none" in spec.sync:
            yield from _ours(canvases, place, OWN, SyncPolicy("none"), against=WHOLE)
    native = place.weights == place.kv == "native"
    wanted = {"llada", "prefix", "dual", "branches"} & set(spec.methods)
    if wanted and native:
        slots = canvases.plain_slots
        plain: dict[str, Any] = {"layout": "plain", "gen_length": slots, "steps": steps, "eos_weight": 1.0}
        yield _case(canvases, place, PLAIN, canvases.config(SyncPolicy(), rule="confidence", **plain), family="ours")
        for cache in ("prefix", "dual"):
            if cache in spec.methods:
                length = _block(slots)
                blocks = {"rule": "blockwise", "block_length": length, "cache": cache}
                blocks["steps"] = _whole_blocks(steps, slots // length)
                config = canvases.config(SyncPolicy(), **{**plain, **blocks})
                yield _case(canvases, place, f"Fast-dLLM {cache} cache", config, family="peer", against=PLAIN)
    if "sequence" in spec.methods and max(spec.workers) > 1 and native:
        config = canvases.config(SyncPolicy(), rule="confidence", scope="canvas", steps=steps)
        yield _case(canvases, place, ORDER, config, family="ours", against=WHOLE)


def _block(slots: int) -> int:
    """The largest divisor of the slots up to 32."""
    return next(length for length in range(32, 0, -1) if slots % length == 0)


def _whole_blocks(steps: int, blocks: int) -> int:
    """Steps as near as they can be that all blocks share evenly."""
    return max(round(steps / blocks), 1) * blocks


def ours_together(canvases: Canvases, place: Place) -> Iterator[Case]:
    """A group of workers: every sync policy, and the whole canvas in LLaDA's order, which is sequence parallel."""
    spec = canvases.spec
    if "ours" in spec.methods:
        for policy in spec.policies():
            same = policy.mode == "exact" or (policy.mode in ("tokens",) and policy.every == 1)
            yield from _ours(canvases, place, policy_name(policy), policy, against=WHOLE, must_agree=same)
    if "sequence" in spec.methods and place.weights == place.kv == "native":
        config = canvases.config(SyncPolicy(), rule="confidence", scope="canvas", steps=canvases.steps)
        name = "sequence parallel, confidence order"
        yield _case(canvases, place, name, config, family="peer", against=ORDER, must_agree=True)


def _ours(
    canvases: Canvases, place: Place, name: str, policy: SyncPolicy, *, against: str, must_agree: bool = False
) -> Iterator[Case]:
    for batch in canvases.spec.batch_size:
        config = canvases.config(policy, steps=canvases.steps)
        same = must_agree and place.weights == place.kv == "native"
        yield _case(canvases, place, name, config, batch=batch, against=against, must_agree=same)


def _case(
    canvases: Canvases,
    place: Place,
    name: str,
    config: DecodeConfig,
    *,
    family: Family = "ours",
    batch: int = 1,
    against: str = "",
    must_agree: bool = False,
) -> Case:
    coordinator = place.coordinator()

    def decode(size: int = batch, first: int = 0) -> Sample:
        return _through(coordinator, canvases.batch(config, size=size, workers=place.workers, first=first))

    return Case(
        name=name,
        family=family,
        decode=decode,
        batch=batch,
        against=against,
        must_agree=must_agree,
        alone=(lambda canvas: decode(1, canvas)) if batch > 1 else None,
        **place.values,
    )


def _through(coordinator: Coordinator, batch: Any) -> Sample:
    """A decode through the coordinator, as a user's is."""
    results = coordinator.run(batch, Observer(), lambda: False)
    done: list[DecodeResult] = []
    for result in results:
        if isinstance(result, JobFailure):
            raise result.error
        done.append(result)
    first, size = done[0].metrics, len(done)
    sync, workers = first.sync, coordinator.executor.workers
    share = None
    if workers > 1 and sync.blocked_seconds is not None and sync.recompute_seconds is not None:
        share = (sync.blocked_seconds.mean + sync.recompute_seconds.mean) / first.seconds
    return Sample(
        seconds=first.seconds,
        first_commit=first.seconds_first_commit,
        steps=first.nfe.steps,
        rows=first.nfe.rows * size,
        tokens=sum(len(delta.positions) for result in done for delta in result.record.commits),
        useful=sum(result.metrics.useful_tokens for result in done),
        ids=tuple(_slots(result.record.final_ids, result.record.layout) for result in done),
        records=tuple(result.record for result in done),
        sync_share=share,
        syncs=sync.syncs if workers > 1 else None,
        wire_bytes=max(sync.wire_bytes) if workers > 1 else None,
        staleness=None if sync.staleness is None else sync.staleness.mean,
    )


def _slots(ids: Ids, layout: CanvasLayout) -> Ids:
    return ids[list(layout.slots)]


def one_device(canvases: Canvases, model: Denoiser, how: CompileMode, *, dtype: torch.dtype) -> Iterator[Case]:
    """Views: the policies of groups on this device. Their ids are those of as many workers as there are paths."""
    spec, device = canvases.spec, torch.device(canvases.spec.device)
    for policy in spec.policies() if "views" in spec.methods and spec.paths > 1 else ():
        if policy.mode not in ("kv", "tokens", "none"):
            continue
        config = canvases.config(policy, steps=canvases.steps)
        layout = canvases.layout_of(config, canvases.prompts[:1])
        plan = Plan.of(layout, config, Assignment.even(spec.paths, spec.paths))

        def decode(plan: Plan = plan) -> Sample:
            return _views(BatchedViews(model, plan, canvases.prompts[0], dtype=dtype, device=device), device)

        same = policy.mode == "tokens" and policy.every == 1
        name = f"views, {policy_name(policy)}"
        yield Case(name=name, family="one device", decode=decode, how=how, against=WHOLE, must_agree=same)


def _views(views: BatchedViews, device: torch.device) -> Sample:
    wait(device)
    began = time.perf_counter()
    first = views.run()
    wait(device)
    seconds = time.perf_counter() - began
    committed = views.order[1].cpu().numpy()
    ids, layout = views.ids.cpu().numpy(), views.plan.layout
    return Sample(
        seconds=seconds,
        first_commit=first - began,
        steps=views.steps,
        rows=views.rows,
        tokens=int(committed.sum()),
        useful=_content(ids, layout, committed),
        ids=(_slots(ids, layout),),
    )


def peer_loops(canvases: Canvases, model: Denoiser, how: CompileMode) -> Iterator[Case]:
    """LLaDA's loop and branches, on a plain canvas of as many slots."""
    spec, device, slots = canvases.spec, torch.device(canvases.spec.device), canvases.plain_slots
    prompt = canvases.prompts[0]
    layout = canvases.layout_of(canvases.config(SyncPolicy(), layout="plain", gen_length=slots), [prompt])

    def sample(found: peers.PeerRun) -> Sample:
        ids = found.ids.cpu().numpy()
        return Sample(
            seconds=found.seconds,
            first_commit=found.first_commit,
            steps=found.steps,
            rows=found.rows,
            tokens=found.committed,
            useful=_content(ids, layout, np.ones(len(ids), dtype=np.bool_)),
            ids=(_slots(ids, layout),),
        )

    at: dict[str, Any] = {"slots": slots, "steps": canvases.steps, "device": device}
    if "llada" in spec.methods and how == "none":
        yield Case(
            name="LLaDA generate",
            family="peer",
            decode=lambda: sample(peers.llada(model, prompt, **at)),
            against=PLAIN,
        )
    if "branches" in spec.methods:
        yield Case(
            name=f"branches, {spec.branches}",
            family="peer",
            decode=lambda: sample(peers.branches(model, prompt, branches=spec.branches, **at)),
            how=how,
            against=PLAIN,
        )


def _content(ids: Ids, layout: CanvasLayout, committed: Any) -> int:
    """Committed slots before each block's first end id that are no padding."""
    total = 0
    for block in layout.blocks:
        here = slice(block.slots.start, block.slots.stop)
        ended = np.cumsum(np.isin(ids[here], block.end_ids) & committed[here]) > 0
        total += int((committed[here] & ~ended & (ids[here] != layout.fill_id)).sum())
    return total
