"""The trace of one decode: initial canvas, deltas, syncs, assignment. It replays what *each worker* saw.

On disk and on the wire a record is msgpack with a version number; a token entry is u32 id, u16 position, f16
confidence. Nothing is unpickled, and sizes are bounded before anything is allocated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.layout import CanvasLayout, Ids
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import RecordError
from nap_runtime.job import MAX_CANVAS, MAX_ID, MAX_PATHS

VERSION = 1
MAX_BYTES = 16 << 20
_TOKEN = np.dtype([("id", "<u4"), ("position", "<u2"), ("confidence", "<f2")])


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasDelta:
    """What one worker changed at one step. Arrays have one entry per token, positions ascending.

    Attributes:
        kind: `COMMIT`; `FILL` for what a closed block is filled with (counts in no metric); `REMASK` for slots that
            lost their token again; `PROVISIONAL` for what summary slots would have got, which changes nothing.
        positions, ids: canvas positions and token ids; int64 (the mask id for a remask).
        log_confidence: natural logarithm of the confidence; float64 (0 for a fill).
    """

    step: int
    worker: int
    kind: Kind
    positions: Ids
    ids: Ids
    log_confidence: npt.NDArray[np.float64]

    def only(self, keep: npt.NDArray[np.bool_]) -> CanvasDelta:
        """Some of its tokens."""
        names = ("positions", "ids", "log_confidence")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def to_wire(self) -> list[Any]:
        """`[step, worker, kind, packed tokens]`; confidences are rounded to f16."""
        tokens = np.empty(len(self.ids), dtype=_TOKEN)
        tokens["id"], tokens["position"] = self.ids, self.positions
        tokens["confidence"] = np.exp(self.log_confidence)
        return [self.step, self.worker, int(self.kind), tokens.tobytes()]

    @classmethod
    def from_wire(cls, values: Sequence[Any]) -> CanvasDelta:
        """Inverse of `to_wire`.

        Raises:
            RecordError: the entry is malformed.
        """
        try:
            step, worker, kind, packed = values
            tokens = np.frombuffer(packed, dtype=_TOKEN)
            with np.errstate(divide="ignore"):
                confidence = np.log(tokens["confidence"].astype(np.float64))
            return cls(
                step=int(step),
                worker=int(worker),
                kind=Kind(kind),
                positions=tokens["position"].astype(np.int64),
                ids=tokens["id"].astype(np.int64),
                log_confidence=confidence,
            )
        except (OverflowError, TypeError, ValueError) as error:
            raise RecordError(f"trace: malformed delta ({error})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncEvent:
    """An exchange, and what every worker knows of every path from then on.

    Attributes:
        step: the step at whose start (or, for `exact` and `shared`, inside which) it happened.
        kind: `exact`, `tokens`, `shared`, `kv`, `gather` (ids of all paths, before the summary) or `refresh` (after a
            worker was lost: all begin again from the same canvas).
        sources: `sources[worker][path]` is the step of the canvas that the worker's view of that path was computed
            from; a canvas step c holds every commit of the steps before c. Own paths are always current.
    """

    step: int
    kind: str
    sources: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRecord:
    """Everything needed to replay one decode.

    Attributes:
        layout, prompt_ids: what was decoded; `config` how, as `DecodeConfig.to_mapping` gives it.
        assignment: path → worker.
        model: name and fingerprint of the weights.
        path_steps: T_p, where the summary phase begins (scope `canvas` and layout `plain`: T).
        steps: T, logical steps of the schedule.
        deltas: ordered by step, then worker.
        syncs: ordered by step.
        forwards: `forwards[worker]` lists the steps at which that worker ran the network.
        final_ids: the canvas as the workers held it at the end, gathered apart from the deltas.
    """

    layout: CanvasLayout
    prompt_ids: tuple[int, ...]
    config: Mapping[str, Any]
    assignment: Assignment
    model: Mapping[str, str]
    path_steps: int
    steps: int
    deltas: tuple[CanvasDelta, ...]
    syncs: tuple[SyncEvent, ...]
    forwards: tuple[tuple[int, ...], ...]
    final_ids: Ids

    @property
    def commits(self) -> tuple[CanvasDelta, ...]:
        """The commits that stood to the end: no fills, and nothing that was masked again."""
        commits = tuple(delta for delta in self.deltas if delta.kind is Kind.COMMIT)
        remasks = [delta for delta in self.deltas if delta.kind is Kind.REMASK]
        if not remasks:
            return commits
        masked_at = np.full(self.layout.size, -1, dtype=np.int64)
        for delta in remasks:
            masked_at[delta.positions] = delta.step
        stood = (delta.only(delta.step > masked_at[delta.positions]) for delta in commits)
        return tuple(delta for delta in stood if len(delta.positions))

    @property
    def decisions(self) -> tuple[CanvasDelta, ...]:
        """Every commit and remask, also those that did not stand."""
        return tuple(delta for delta in self.deltas if delta.kind in (Kind.COMMIT, Kind.REMASK))

    @property
    def provisional(self) -> dict[int, Ids]:
        """What the summary would have been, by step: ids of its slots [S], with summary `live`."""
        summaries: dict[int, Ids] = {}
        if self.layout.summary is None:
            return summaries
        first, last = self.layout.summary.slots.start, self.layout.summary.slots.stop
        for delta in self.deltas:
            if delta.kind is Kind.PROVISIONAL:
                ids = summaries.setdefault(delta.step, np.full(last - first, self.layout.mask_id, dtype=np.int64))
                ids[delta.positions - first] = delta.ids
        return summaries

    @property
    def nfe_steps(self) -> int:
        """Logical steps at which any worker ran the network."""
        return len({step for steps in self.forwards for step in steps})

    def canvas(self, step: int | None = None) -> Ids:
        """The true canvas just before `step` (None: at the end). Shape [N]."""
        return self._replay(lambda delta: step is None or delta.step < step)

    def view(self, worker: int, step: int) -> Ids:
        """The canvas as `worker` saw it while it computed `step`. Shape [N]."""
        known = self.sources(worker, step)
        limits = np.full(self.layout.size, step, dtype=np.int64)
        for path, block in enumerate(self.layout.paths):
            limits[block.slots.start : block.slots.stop] = known[path]
        ids = self.layout.initial_ids(self.prompt_ids)
        for delta in self._changes:
            seen = limits[delta.positions] > delta.step
            ids[delta.positions[seen]] = delta.ids[seen]
        return ids

    def sources(self, worker: int, step: int) -> tuple[int, ...]:
        """For each path, the step of the canvas that `worker` knows at `step`."""
        events = [event for event in self.syncs if event.step <= step]
        told = events[-1].sources[worker] if events else (0,) * self.layout.n_paths
        mine = self.assignment.worker_of
        return tuple(step if mine[path] == worker else min(told[path], step) for path in range(self.layout.n_paths))

    def _replay(self, wanted: Any) -> Ids:
        ids = self.layout.initial_ids(self.prompt_ids)
        for delta in filter(wanted, self._changes):
            ids[delta.positions] = delta.ids
        return ids

    @property
    def _changes(self) -> Iterator[CanvasDelta]:
        return (delta for delta in self.deltas if delta.kind is not Kind.PROVISIONAL)

    def order(self) -> list[list[float | int]]:
        """`[step, worker, position, id, confidence]` of every commit that stood, for JSON."""
        return [
            [delta.step, delta.worker, int(position), int(token), float(np.exp(score))]
            for delta in self.commits
            for position, token, score in zip(delta.positions, delta.ids, delta.log_confidence, strict=True)
        ]

    def to_bytes(self) -> bytes:
        """The record as msgpack, sealed with a SHA-256 over its content."""
        body = msgpack.packb(self._to_mapping())
        return bytes(msgpack.packb({"v": VERSION, "sha256": hashlib.sha256(body).digest(), "body": body}))

    @classmethod
    def from_bytes(cls, data: bytes) -> DecodeRecord:
        """Read a record and check its seal.

        Raises:
            RecordError: too large, not msgpack, another version, a broken seal, or malformed.
        """
        outer = _unpack(data, max_array_len=0, max_map_len=3, max_str_len=16)
        if outer.get("v") != VERSION:
            raise RecordError(f"trace: version {outer.get('v')!r} is not {VERSION}")
        body = outer.get("body")
        if not isinstance(body, bytes) or hashlib.sha256(body).digest() != outer.get("sha256"):
            raise RecordError("trace: the content does not match its SHA-256; the file was changed or cut short")
        return cls._from_mapping(_unpack(body, max_array_len=2 * MAX_CANVAS, max_map_len=64))

    def _to_mapping(self) -> dict[str, Any]:
        return {
            "layout": self.layout.to_mapping(),
            "prompt_ids": list(self.prompt_ids),
            "config": dict(self.config),
            "assignment": list(self.assignment.worker_of),
            "model": dict(self.model),
            "path_steps": self.path_steps,
            "steps": self.steps,
            "deltas": [delta.to_wire() for delta in self.deltas],
            "syncs": [[event.step, event.kind, [list(row) for row in event.sources]] for event in self.syncs],
            "forwards": [list(steps) for steps in self.forwards],
            "final_ids": self.final_ids.astype("<u4").tobytes(),
        }

    @classmethod
    def _from_mapping(cls, values: Mapping[str, Any]) -> DecodeRecord:
        try:
            if unknown := set(values) - _KEYS:
                raise ValueError(f"unknown keys {sorted(map(str, unknown))}")
            return cls(
                layout=CanvasLayout.from_mapping(values["layout"]),
                prompt_ids=_ints(values["prompt_ids"], MAX_ID),
                config=_mapping(values["config"]),
                assignment=Assignment(_ints(values["assignment"], MAX_PATHS)),
                model={str(key): str(value) for key, value in _mapping(values["model"]).items()},
                path_steps=_int(values["path_steps"]),
                steps=_int(values["steps"]),
                deltas=tuple(CanvasDelta.from_wire(delta) for delta in values["deltas"]),
                syncs=tuple(_sync(event) for event in values["syncs"]),
                forwards=tuple(_ints(steps) for steps in values["forwards"]),
                final_ids=np.frombuffer(values["final_ids"], dtype="<u4").astype(np.int64),
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise RecordError(f"trace: malformed ({error})") from error


_KEYS = {
    *("layout", "prompt_ids", "config", "assignment", "model", "path_steps", "steps"),
    *("deltas", "syncs", "forwards", "final_ids"),
}


def _int(value: object, high: int = MAX_CANVAS + 1) -> int:
    if type(value) is not int or not 0 <= value < high:
        raise ValueError(f"{value!r} is not an integer from 0 to {high - 1}")
    return value


def _ints(values: Sequence[object], high: int = MAX_CANVAS + 1) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{type(values).__name__} where a list belongs")
    return tuple(_int(value, high) for value in values)


def _mapping(values: object) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise TypeError(f"{type(values).__name__} where a mapping belongs")
    return values


def _sync(values: Sequence[Any]) -> SyncEvent:
    step, kind, sources = values
    return SyncEvent(step=_int(step), kind=str(kind), sources=tuple(_ints(row) for row in sources))


def _unpack(data: bytes, **limits: int) -> dict[str, Any]:
    """Unpack with every length bounded before anything of that length is made."""
    if len(data) > MAX_BYTES:
        raise RecordError(f"trace: {len(data)} bytes exceed the limit of {MAX_BYTES}")
    try:
        values = msgpack.unpackb(data, max_ext_len=0, **limits)
    except Exception as error:  # msgpack raises several unrelated types for malformed input
        raise RecordError(f"trace: not msgpack ({error})") from error
    if not isinstance(values, dict):
        raise RecordError("trace: not a record")
    return values


def deltas_between(
    arrays: Mapping[str, npt.NDArray[Any]], positions: Ids, *, worker: int, first: int, last: int
) -> Iterable[CanvasDelta]:
    """Deltas of the steps first … last from a canvas's `ids`, `step`, `kind` and `score` at `positions`.

    Ordered by step; commits, fills, remasks.
    """
    steps, kinds = arrays["step"], arrays["kind"]
    for step in np.unique(steps[(steps >= first) & (steps <= last)]):
        for kind in (Kind.COMMIT, Kind.FILL, Kind.REMASK):
            here = (steps == step) & (kinds == kind)
            if here.any():
                yield CanvasDelta(
                    step=int(step),
                    worker=worker,
                    kind=kind,
                    positions=positions[here],
                    ids=arrays["ids"][here],
                    log_confidence=arrays["score"][here].astype(np.float64),
                )
