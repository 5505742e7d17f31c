"""Random combinations of layout, rule, scope, cache, sync and summary, and what must hold for each of them.

A record verifies, also after a file; a canvas is decoded as it would be alone, whatever the length of its prompt and of
its neighbours'; a decode that is resumed where every row
is fresh goes on as if nothing had happened. Combinations that a config refuses are skipped.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nap_runtime.decoding.record import CanvasDelta, DecodeRecord
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import UsageError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig
from nap_runtime.metrics.arness import ArnessReport
from nap_runtime.metrics.verify import verify
from nap_runtime.traits import TRAITS
from nap_runtime.worker import Resume

Events = list[tuple[int, int, int, int]]


def maybe(draw: random.Random, chance: float, **options: Any) -> dict[str, Any]:
    return options if draw.random() < chance else {}


def way(draw: random.Random) -> dict[str, Any]:
    """A config as a mapping; often one that is refused."""
    plain, rule = draw.random() < 0.35, draw.choice(sorted(TRAITS))
    m = draw.randint(1, 4)
    place = {"layout": "plain", "gen_length": draw.randint(3, 20)} if plain else {"paths": m}
    summaries = maybe(draw, 0.5 * (not plain), summary=draw.choice(["gather", "consensus", "live"]))
    return {
        **place,
        "rule": rule,
        "temperature": draw.choice([0.0, 0.7]),
        "seed": draw.randint(0, 6),
        **maybe(draw, 0.5 * (not TRAITS[rule].adaptive), steps=draw.randint(1, 12)),
        **maybe(draw, 0.5, scope=draw.choice(["canvas", "path"])),
        **maybe(draw, 0.4 * TRAITS[rule].blocks, block_length=draw.randint(1, 8)),
        **maybe(draw, 0.3, cfg=1.0),
        **maybe(draw, 0.6 * plain, cache=draw.choice(["prefix", "dual", "dkv"])),
        **maybe(draw, 0.3 * TRAITS[rule].ranks, eos_weight=draw.choice([0.0, 0.5])),
        **maybe(draw, rule == "threshold", threshold=draw.choice([0.2, 0.6, 0.9])),
        **maybe(draw, 0.5 * (rule == "p2"), rule_args={"eta": draw.choice("013"), "score": "token"}),
        **maybe(draw, 0.3, control_every=draw.randint(1, 9)),
        "sync": {
            "mode": draw.choice(["exact", "tokens", "shared", "kv", "none"]),
            **maybe(draw, 0.5, every=draw.randint(1, 4)),
            **maybe(draw, 0.2, warmup=draw.randint(1, 3)),
            **maybe(draw, 0.3, overlap=True),
            **summaries,
            **maybe(draw, 0.5 * (summaries.get("summary") == "live"), settle=draw.randint(1, 3)),
        },
    }


def events(deltas: tuple[CanvasDelta, ...]) -> Events:
    """Everything that was decided. A provisional summary is not: paths that are done early see fewer syncs."""
    return sorted(
        (delta.step, int(delta.kind), int(position), int(token))
        for delta in deltas
        if delta.kind is not Kind.PROVISIONAL
        for position, token in zip(delta.positions, delta.ids, strict=True)
    )


@pytest.fixture
def check(
    tiny_model: Any, nap_layout: Any, plain_layout: Any, prompt_of: Any, make_task: Any, collect: Any
) -> Callable[[int], bool]:
    """Check the `seed`-th way; False where it is refused."""

    def run(seed: int) -> bool:
        draw = random.Random(seed)
        try:
            config = DecodeConfig.from_mapping(way(draw))
            placed: list[int] = [0]
            if config.layout == "nap":
                workers = draw.randint(1, config.n_paths)
                rest = config.n_paths - workers
                placed = [*range(workers), *(draw.randrange(workers) for _ in range(rest))]
                draw.shuffle(placed)
                ends = draw.choice([tuple(range(12)), (94,), tuple(range(30))])
                budgets = [draw.randint(1, 9) for _ in range(config.n_paths)]
                layout = nap_layout(budgets, summary=draw.randint(1, 5), ends=ends)
            else:
                layout = plain_layout(config.gen_length)
            lengths = [draw.choice([5, 5, 2, 3]) for _ in range(draw.randint(1, 3))]
            prompts = [prompt_of(seed + i, length) for i, length in enumerate(lengths)]
            task = make_task(layout, config, prompts, placed)
        except UsageError:
            return False
        model = tiny_model(draw.choice(["llada-tiny", "dream-tiny"]), seed % 3, scale=draw.choice([10.0, 30.0]))
        executor = InlineExecutor(model, workers=task.plan.assignment.workers, dtype=torch.float64)
        got = collect(executor, task)
        for record in got.records:
            verify(record)
            verify(DecodeRecord.from_bytes(record.to_bytes()))
            ArnessReport.of_record(record)
        canvas = draw.randrange(len(prompts))
        task = make_task(task.layout_of(canvas), config, [prompts[canvas]], placed)  # with no column before it
        alone = collect(executor, task)
        assert alone.records[0].layout == got.records[canvas].layout
        assert events(got.records[canvas].deltas) == events(alone.records[0].deltas), config
        # Where every row is computed at every step, one refresh changes nothing.
        policy = config.sync
        if policy.refreshes_every_step and config.cache is None and policy.summary in (None, "gather"):
            record = alone.records[0]
            cut = draw.randint(1, max(record.steps - 1, 1))
            past = tuple(delta for delta in record.deltas if delta.step < cut)
            reports: list[Any] = []
            resumed = replace(task, resume=Resume(step=cut, deltas=(past,)))
            executor.run(resumed, on_report=reports.append, cancelled=lambda: False)
            later = tuple(delta for report in reports for delta in report.deltas[0])
            assert events((*past, *later)) == events(record.deltas), (config, cut)
        return True

    return run


def test_some_ways(check: Callable[[int], bool]) -> None:
    assert sum(map(check, range(250))) > 30


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(20))
def test_many_ways(check: Callable[[int], bool], block: int) -> None:
    assert sum(map(check, range(1000 * (block + 1), 1000 * (block + 2)))) > 100
