"""What the tests share: small random models, small canvases, a decode on simulated workers, slow references.

Test files cannot import each other, so helpers come as fixtures that return functions or classes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import floor, log
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.decoding.placement import Assignment
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.shapes import make_model
from nap_runtime.worker import Denoiser, Outcome, Report, Task

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# An eighth of the toy vocabulary is end of text, so that random models close paths and `eos_weight` matters.
ENDS = tuple(range(12))
HEADER_IDS = (20, 21, 22, 23, 24, 25, 26)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that compile run as they are written: the same work, without minutes of a compiler."""
    monkeypatch.setattr(CompileOptions, "compiled", lambda self, function: function)


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """The module of a file that stands in no package."""

    def load(file: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def walk() -> Callable[[Any], Iterator[tuple[str, Any]]]:
    """Every key and value of a nested document."""

    def walked(thing: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(thing, dict):
            for key, value in thing.items():
                yield str(key), value
                yield from walked(value)
        elif isinstance(thing, list):
            for value in thing:
                yield from walked(value)

    return walked


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One core a test run: toy models gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`(shape, seed=0, dtype=float64, scale=10)` → a random model whose logits differ, the more the larger the scale.

    The best candidates have probabilities from 0.1 to 0.3; with scale 20 from 0.1 to 0.8, with 40 from 0.3 to 1.
    """

    @cache
    def make(shape: str, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 10.0) -> Any:
        return make_model(shape, seed=seed, dtype=dtype, scale=scale, end_ids=ENDS)[1].requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def nap_layout() -> Callable[..., CanvasLayout]:
    """`(budgets, summary=4, prompt=5, ends=…)` → a canvas for the toy vocabulary (mask 95, fill 94)."""

    def make(budgets: Sequence[int], summary: int = 4, prompt: int = 5, ends: tuple[int, ...] = ENDS) -> CanvasLayout:
        return CanvasLayout(
            kind="nap",
            prompt_tokens=prompt,
            headers=tuple((HEADER_IDS[j],) for j in range(len(budgets))),
            budgets=tuple(budgets),
            summary_header=(HEADER_IDS[-1], HEADER_IDS[0]),
            summary_budget=summary,
            end_ids=(ends,) * (len(budgets) + 1),
            mask_id=95,
            fill_id=94,
        )

    return make


@pytest.fixture(scope="session")
def plain_layout() -> Callable[..., CanvasLayout]:
    """`(slots, prompt=5)` → a prompt and one region."""

    def make(slots: int, prompt: int = 5) -> CanvasLayout:
        return CanvasLayout(
            kind="plain",
            prompt_tokens=prompt,
            headers=((),),
            budgets=(slots,),
            summary_header=(),
            summary_budget=0,
            end_ids=((94, 92), (94, 92)),
            mask_id=95,
            fill_id=94,
        )

    return make


@pytest.fixture(scope="session")
def prompt_of() -> Callable[..., tuple[int, ...]]:
    """`(seed, tokens=5)` → random prompt ids."""

    def make(seed: int, tokens: int = 5) -> tuple[int, ...]:
        return tuple(np.random.default_rng(seed).integers(30, 90, tokens).tolist())

    return make


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One batch's decode: a record a canvas, outcomes by rank, and every report in the order of arrival."""

    records: tuple[DecodeRecord, ...]
    outcomes: tuple[Outcome, ...]
    reports: tuple[Report, ...]

    @property
    def ids(self) -> list[list[int]]:
        """Final ids of each canvas, as the workers hold them."""
        return [record.final_ids.tolist() for record in self.records]

    def commits(self, canvas: int = 0) -> list[tuple[int, int, int]]:
        """(step, position, id) of every commit, sorted."""
        return sorted(
            (delta.step, int(position), int(token))
            for delta in self.records[canvas].commits
            for position, token in zip(delta.positions, delta.ids, strict=True)
        )

    def decisions(self) -> list[list[tuple[int, int, int, float]]]:
        """Of each canvas (step, position, id, score) of every commit, sorted, the scores as they are."""
        return [
            sorted(
                (delta.step, int(position), int(token), float(score))
                for delta in record.commits
                for position, token, score in zip(delta.positions, delta.ids, delta.log_confidence, strict=True)
            )
            for record in self.records
        ]


def gather(task: Task, outcomes: Sequence[Outcome], reports: Sequence[Report]) -> Decoded:
    """Records from what the workers gave back; the reports must replay to the workers' own canvas."""
    records = []
    for canvas, prompt in enumerate(task.prompts):
        final = task.layout_of(canvas).initial_ids(prompt)
        for outcome in outcomes:
            final[outcome.slots - task.pads[canvas]] = outcome.ids[canvas]
        deltas = [delta for report in reports for delta in report.deltas[canvas]]
        record = DecodeRecord(
            layout=task.layout_of(canvas),
            prompt_ids=prompt,
            config=task.plan.config.to_mapping(),
            assignment=task.plan.assignment,
            model={},
            path_steps=task.plan.path_steps,
            steps=task.plan.schedule.steps,
            deltas=tuple(sorted(deltas, key=lambda d: (d.step, d.worker, d.kind))),
            syncs=outcomes[0].events,
            forwards=tuple(outcome.forwards for outcome in outcomes),
            final_ids=final,
        )
        np.testing.assert_array_equal(record.canvas(), final)
        records.append(record)
    return Decoded(records=tuple(records), outcomes=tuple(outcomes), reports=tuple(reports))


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """`(layout, config, prompts, workers or assignment)` → what workers are given."""

    def make(
        layout: CanvasLayout,
        config: DecodeConfig,
        prompts: Sequence[tuple[int, ...]],
        placed: int | Sequence[int] = 1,
    ) -> Task:
        even = isinstance(placed, int)
        assignment = Assignment.even(layout.n_paths, placed) if even else Assignment(tuple(placed))  # type: ignore[arg-type]
        return Task(plan=Plan.of(layout, config, assignment), prompts=tuple(prompts))

    return make


@pytest.fixture(scope="session")
def collect() -> Callable[..., Decoded]:
    """`(executor, task, cancelled=…)` → run it and put the records together."""

    def run(executor: Any, task: Task, *, cancelled: Callable[[], bool] = lambda: False) -> Decoded:
        reports: list[Report] = []
        outcomes = executor.run(task, on_report=reports.append, cancelled=cancelled)
        return gather(task, outcomes, reports)

    return run


@pytest.fixture(scope="session")
def decode_inline(make_task: Callable[..., Task], collect: Callable[..., Decoded]) -> Callable[..., Decoded]:
    """`(model, layout, config, prompts, placed=1, dtype=float64, …)` → the decode on simulated workers."""

    def run(
        model: Denoiser,
        layout: CanvasLayout,
        config: DecodeConfig,
        prompts: Sequence[tuple[int, ...]],
        placed: int | Sequence[int] = 1,
        dtype: torch.dtype = torch.float64,
        cancelled: Callable[[], bool] = lambda: False,
        narrow: bool = True,
    ) -> Decoded:
        task = replace(make_task(layout, config, prompts, placed), narrow=narrow)
        executor = InlineExecutor(model, workers=task.plan.assignment.workers, dtype=dtype)
        return collect(executor, task, cancelled=cancelled)

    return run


class SlowCanvas:
    """One true canvas and the plainest possible parallel-forced commits, one slot at a time in Python.

    Written from DESIGN section 3. Shares with the runtime only the layout and the uniform draws.
    """

    def __init__(self, layout: CanvasLayout, prompt: Sequence[int], config: DecodeConfig) -> None:
        self.layout, self.config = layout, config
        self.ids = layout.initial_ids(prompt).tolist()
        self.open = set(layout.slots)
        self.commits: list[tuple[int, int, int]] = []
        paths, summary, steps = sum(layout.budgets), layout.summary_budget, config.steps or layout.n_slots
        share = floor(Fraction(steps * paths, paths + summary) + Fraction(1, 2))
        self.steps, self.path_steps = steps, 1 if steps == 1 else min(max(share, 1), steps - 1)

    def quota(self, path: int, step: int) -> int:
        """⌊(s+1)·L_j/T_p + j/m⌋ − ⌊s·L_j/T_p + j/m⌋."""
        lag, rate = Fraction(path, self.layout.n_paths), Fraction(self.layout.budgets[path], self.path_steps)
        return floor((step + 1) * rate + lag) - floor(step * rate + lag)

    def summary_quota(self, step: int) -> int:
        """The summary's even share of its own steps."""
        rate = Fraction(self.layout.summary_budget, max(self.steps - self.path_steps, 1))
        at = 0 if self.steps == 1 else step - self.path_steps
        return floor((at + 1) * rate) - floor(at * rate)

    def candidate(self, logits_V: Tensor, slot: int, step: int) -> tuple[float, int]:
        """(weighed log-probability, id) of a slot; that the mask id is never predicted is our choice."""
        logits_V = logits_V.double().clone()
        logits_V[self.layout.mask_id] = -torch.inf
        noisy_V = logits_V
        if self.config.temperature:
            draws_V = uniform(
                self.config.seed,
                ids=torch.arange(len(logits_V)),
                positions=torch.tensor(slot),
                step=step,
                purpose=Purpose.TOKEN,
            )
            noisy_V = logits_V - self.config.temperature * torch.log(-torch.log(draws_V))
        token = int(noisy_V.argmax())
        score = float(logits_V.log_softmax(-1)[token])
        if self.config.eos_weight is not None and token in ENDS:
            score = score + log(self.config.eos_weight) if self.config.eos_weight else -1e30
        return score, token

    def commit(self, block: int, quota: int, candidates: dict[int, tuple[float, int]], step: int) -> None:
        """The quota of a block's open slots, surest first, ties to the left; close the block if it ended."""
        slots = self.layout.blocks[block].slots
        best = sorted((s for s in slots if s in self.open), key=lambda s: (-candidates[s][0], s))[:quota]
        for slot in best:
            self.ids[slot] = candidates[slot][1]
            self.open.discard(slot)
            self.commits.append((step, slot, self.ids[slot]))
        if quota:
            self._close(block)

    def _close(self, block: int) -> None:
        for slot in self.layout.blocks[block].slots:
            if slot in self.open:
                return
            if self.ids[slot] in self.layout.blocks[block].end_ids:
                break
        else:
            return
        for rest in self.layout.blocks[block].slots:
            if rest in self.open:
                self.ids[rest] = self.layout.fill_id
                self.open.discard(rest)


@pytest.fixture(scope="session")
def slow_canvas() -> type[SlowCanvas]:
    """The class `SlowCanvas`."""
    return SlowCanvas
