"""Batches: a canvas's ids depend neither on the batch's size, nor on its order, nor on its neighbours' prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.errors import UsageError
from nap_runtime.executor.coordinator import Batch, Coordinator, Observer
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
from nap_runtime.metrics.agreement import compare
from nap_runtime.models.loading import ModelCard, load_model, read_card
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.worker import Resume

CONFIG = DecodeConfig(paths=2, path_tokens=5, summary_tokens=3, steps=6, temperature=0.6, seed=3)


class Batches(Observer):
    """Remembers which prompts went together, and how wide the batch was."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def on_batch(self, batch: Batch) -> None:
        """Note it."""
        self.seen.append((batch.task.plan.layout.prompt_tokens, [len(p) for p in batch.task.prompts]))


@pytest.fixture(scope="module")
def card(tmp_path_factory: Any) -> ModelCard:
    folder: Path = tmp_path_factory.mktemp("toy") / "model"
    make_model_dir("llada-tiny", folder, seed=4, scale=10.0)
    return read_card(folder)


def coordinator(card: ModelCard, dtype: torch.dtype = torch.float64, workers: int = 1) -> Coordinator:
    model = load_model(card.path, dtype=dtype).model
    return Coordinator(card, InlineExecutor(model, workers=workers, dtype=dtype))


def decoded(lead: Coordinator, questions: Sequence[str], config: DecodeConfig, **how: Any) -> list[DecodeResult]:
    """Results in the order of the questions."""
    jobs = [DecodeJob(question=question, index=index) for index, question in enumerate(questions)]
    found: list[Any] = sorted(lead.decode(jobs, config, **how), key=lambda result: result.job.index)
    assert all(isinstance(result, DecodeResult) for result in found)
    return found


def commits(result: DecodeResult) -> list[Any]:
    """(step, position, id) of every commit. Which worker tells a summary slot may depend on the batch's columns."""
    return sorted(
        (delta.step, int(position), int(token))
        for delta in result.record.commits
        for position, token in zip(delta.positions, delta.ids, strict=True)
    )


questions = st.lists(st.text("abcdefgh ", min_size=1, max_size=40).filter(str.strip), min_size=2, max_size=5)
policies = st.sampled_from(
    [SyncPolicy(), SyncPolicy("kv", every=2), SyncPolicy("shared", every=2), SyncPolicy("none", topology="isolated")]
)


@settings(max_examples=25)
@given(questions, st.integers(2, 5), st.sampled_from([1, 8, 64]), policies, st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_a_batch(
    card: ModelCard, asked: list[str], size: int, bucket: int, policy: SyncPolicy, order: Any
) -> None:
    lead, config = coordinator(card, workers=2), CONFIG.with_values(sync=policy)
    alone = [commits(result) for result in decoded(lead, asked, config)]
    shuffled = list(range(len(asked)))
    order.shuffle(shuffled)
    together = decoded(lead, [asked[at] for at in shuffled], config, batch_size=size, bucket=bucket)
    assert [commits(result) for result in together] == [alone[at] for at in shuffled]
    for result, at in zip(together, shuffled, strict=True):
        assert result.record.layout.prompt_tokens == len(asked[at].encode())


@settings(max_examples=10)
@given(questions)
def test_in_float32_they_agree(card: ModelCard, asked: list[str]) -> None:
    lead, config = coordinator(card, torch.float32), CONFIG
    alone, together = decoded(lead, asked, config), decoded(lead, asked, config, batch_size=4, bucket=64)
    for one, other in zip(alone, together, strict=True):
        assert compare(one.record, other.record, rtol=1e-4).agrees


def test_prompts_of_a_bucket_share_a_batch_as_wide_as_its_longest(card: ModelCard) -> None:
    seen = Batches()
    asked = ["a" * n for n in (3, 20, 8, 7, 24, 1)]
    decoded(coordinator(card), asked, CONFIG, batch_size=2, bucket=8, observer=seen)
    assert seen.seen == [(8, [3, 8]), (24, [20, 24]), (7, [7, 1])]
    seen = Batches()
    decoded(coordinator(card), ["a" * n for n in (3, 9, 3)], CONFIG, batch_size=2, bucket=1, observer=seen)
    assert seen.seen == [(3, [3, 3]), (9, [9])]


def test_a_batch_of_one_has_no_padding(card: ModelCard) -> None:
    seen = Batches()
    decoded(coordinator(card), ["a" * n for n in (3, 9)], CONFIG, observer=seen)
    assert seen.seen == [(3, [3]), (9, [9])]


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_a_padded_batch_goes_on_after_a_failure(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, shape: str
) -> None:
    """Deltas of a resumed decode go by positions, and meet the canvas in its columns."""
    prompts, config = [prompt_of(1, 6), prompt_of(2, 2)], DecodeConfig(paths=2, steps=7, temperature=0.5)
    task = make_task(nap_layout([4, 5], prompt=6), config, prompts, 2)
    executor = InlineExecutor(tiny_model(shape), workers=2, dtype=torch.float64)
    whole = collect(executor, task).records
    past = tuple(tuple(delta for delta in record.deltas if delta.step < 3) for record in whole)
    reports: list[Any] = []
    executor.run(replace(task, resume=Resume(step=3, deltas=past)), on_report=reports.append, cancelled=lambda: False)
    for canvas, record in enumerate(whole):
        later = [delta for report in reports for delta in report.deltas[canvas]]
        key = [(d.step, d.worker, int(d.kind), d.positions.tolist(), d.ids.tolist()) for d in later]
        kept = [d for d in record.deltas if d.step >= 3]
        assert sorted(key) == sorted(
            (d.step, d.worker, int(d.kind), d.positions.tolist(), d.ids.tolist()) for d in kept
        )


def test_nothing_reads_the_padding(tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any) -> None:
    """The columns before a short prompt hold whatever they hold: other ids there change nothing."""
    found = []
    for fill in (94, 40):
        layout = replace(nap_layout([4, 4], prompt=9, ends=(1,)), fill_id=fill)
        task = make_task(layout, DecodeConfig(paths=2, steps=9), [prompt_of(1, 9), prompt_of(2, 3)])
        executor = InlineExecutor(tiny_model("llada-tiny"), dtype=torch.float64)
        (outcome,) = executor.run(task, on_report=None, cancelled=lambda: False)
        found.append((outcome.ids[1].tolist(), outcome.step[1].tolist()))
    assert found[0] == found[1]


def test_a_bucket_is_at_least_one(card: ModelCard) -> None:
    with pytest.raises(UsageError, match="bucket: 0"):
        next(coordinator(card).decode([DecodeJob(question="a")], CONFIG, bucket=0))
