"""Decode cases, with some paths given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nap_runtime.decoding.given import give
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import UsageError
from nap_runtime.executor.coordinator import Batch, Coordinator, JobFailure, Observer
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult
from nap_runtime.models.prompting import build_layout, prompt_ids
from nap_runtime.study.controls.cases import Case
from nap_runtime.worker import Task

MASKED = None  # a path that stays masked
Given = Mapping[int, str | None]  # path → its text, or MASKED
_Placed = list[tuple[int, tuple[int, ...]]]  # case and prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A model with its workers, and how it decodes. `config` is resolved and has a summary."""

    coordinator: Coordinator
    config: DecodeConfig
    batch_size: int = 1
    cancelled: Callable[[], bool] = lambda: False

    def with_config(self, config: DecodeConfig) -> Lab:
        """The same workers, another config."""
        return replace(self, config=self.coordinator.resolve(config))

    def decode(self, cases: Sequence[Case], given: Sequence[Given] | None = None) -> list[DecodeResult]:
        """Decode every case; `given[case]` are paths that get a text, or stay masked, instead of being decoded.

        Raises:
            UsageError: a text does not fit its path, or the config cannot take given paths.
            NapError: a decode failed.
        """
        results: dict[int, DecodeResult] = {}
        for layout, placed in self._by_layout(cases).items():
            for start in range(0, len(placed), self.batch_size):
                part = placed[start : start + self.batch_size]
                results |= zip((at for at, _ in part), self._run(layout, part, cases, given), strict=True)
        return [results[at] for at in range(len(cases))]

    def _by_layout(self, cases: Sequence[Case]) -> dict[CanvasLayout, _Placed]:
        groups: dict[CanvasLayout, _Placed] = {}
        for at, case in enumerate(cases):
            prompt = prompt_ids(self.coordinator.card, case.problem.question)
            groups.setdefault(build_layout(self.coordinator.card, self.config, len(prompt)), []).append((at, prompt))
        return groups

    def _run(
        self, layout: CanvasLayout, part: _Placed, cases: Sequence[Case], given: Sequence[Given] | None
    ) -> list[DecodeResult]:
        plan = Plan.of(layout, self.config, Assignment.even(layout.n_paths, self.coordinator.executor.workers))
        deltas = () if given is None else tuple(give(plan, self._ids(layout, given[at])) for at, _ in part)
        task = Task(plan=plan, prompts=tuple(prompt for _, prompt in part), given=deltas)
        problems = [cases[at].problem for at, _ in part]
        jobs = tuple(DecodeJob(question=p.question, index=p.index, id=p.id, gold=p.gold) for p in problems)
        return [_or_raise(one) for one in self.coordinator.run(Batch(jobs=jobs, task=task), Observer(), self.cancelled)]

    def _ids(self, layout: CanvasLayout, given: Given) -> dict[int, list[int]]:
        return {path: self.path_ids(layout, path, text) for path, text in given.items()}

    def path_ids(self, layout: CanvasLayout, path: int, text: str | None) -> list[int]:
        """The slots of a path that holds a text: its tokens, its end tag, filled up. Masks for `MASKED`.

        Raises:
            UsageError: the text does not fit, or the model has no tokenizer.
        """
        budget, tokenizer = layout.budgets[path], self.coordinator.card.tokenizer
        if text is MASKED:
            return [layout.mask_id] * budget
        if tokenizer is None:
            raise UsageError("model: it has no tokenizer; given texts need one", field="model")
        ids = [*tokenizer.encode(text), layout.end_ids[path][0]]
        if len(ids) > budget:
            said = f"path_tokens: a given text needs {len(ids)} slots, path {path + 1} has {budget}; use more"
            raise UsageError(said, field="path_tokens")
        return ids + [layout.fill_id] * (budget - len(ids))


def _or_raise(result: DecodeResult | JobFailure) -> DecodeResult:
    if isinstance(result, JobFailure):
        raise result.error
    return result
