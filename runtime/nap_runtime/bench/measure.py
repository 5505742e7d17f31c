"""Cases in turns on warm workers: seconds, peaks of memory, and the decodes that a batch is held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from nap_runtime.bench.cases import Case, Sample
from nap_runtime.bench.spec import BenchSpec

_ALONE = 4  # canvases of a batch that are held against a decode of their own
Progress = Callable[[str], None]


@dataclass(slots=True)
class Timed:
    """A case and its samples; `peak` bytes, None where nobody can see them; `error` where it could not be decoded."""

    case: Case
    samples: list[Sample] = field(default_factory=list)
    peak: int | None = None
    alone: list[Sample] = field(default_factory=list)
    error: str | None = None

    @property
    def last(self) -> Sample:
        """The newest sample."""
        return self.samples[-1]

    def median(self, name: str) -> float:
        """Of one of the samples' numbers."""
        return float(statistics.median(getattr(sample, name) for sample in self.samples))


def in_turns(timed: Sequence[Timed], spec: BenchSpec, progress: Progress, after: Callable[[], None]) -> None:
    """Each case once a round, so that what drifts drifts for all; the first round warms up and is not counted.

    On a group that captures graphs each case's rounds follow each other: its workers keep few shapes captured. A case
    that fails is left out from there on. `after` is called when a round of all has been counted.
    """
    captured = any(one.case.how == "graph" and one.case.workers > 1 for one in timed)
    rounds, every = range(spec.repeats + 1), range(len(timed))
    turns = [(t, n) for n in every for t in rounds] if captured else [(t, n) for t in rounds for n in every]
    for turn, number in turns:
        progress(f"round {turn} of {spec.repeats}: {timed[number].case.key}")
        _attempt(timed[number], spec, partial(_once, spec=spec, counts=turn > 0))
        if turn == 1 and number == every[-1]:
            after()
    for one in timed:
        _attempt(one, spec, _alone)
    after()


def _attempt(one: Timed, spec: BenchSpec, work: Callable[[Timed], None]) -> None:
    """Do something with a case, unless it has failed."""
    if one.error is not None:
        return
    try:
        work(one)
    except Exception as error:  # out of memory, a kernel that a device lacks: the others are worth having
        one.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if spec.device == "cuda":
            torch.cuda.empty_cache()


def _alone(one: Timed) -> None:
    if one.case.alone is not None:
        one.alone = [one.case.alone(canvas) for canvas in range(min(one.case.batch, _ALONE))]


def _once(one: Timed, spec: BenchSpec, *, counts: bool) -> None:
    """Decode once; what is not counted warms up."""
    here = one.case.workers == 1
    if here:
        _reset_peak(spec)
    sample = one.case.decode()
    if counts:
        one.samples.append(sample)
        one.peak = max(one.peak or 0, _peak(spec)) if here else None


def _reset_peak(spec: BenchSpec) -> None:
    if spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak(spec: BenchSpec) -> int:
    """Bytes: what torch has allocated on the device, weights included; on a CPU the process's largest resident size."""
    if spec.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
