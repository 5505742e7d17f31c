"""Canvases that are done leave a batch's forwards; no id, no step, no delta depends on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.distributed.torch_group import open_store
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
from nap_runtime.metrics.verify import verify
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.loading import load_model, read_card
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.worker import Resume

BUDGETS = (14, 11, 12)
ENDS = tuple(range(30))  # a third of the vocabulary: paths close early, and each when it likes
LEFT: dict[str, Any] = {"rule": "left-to-right", "scope": "path", "control_every": 1}  # closes at many a step
POLICIES = [
    SyncPolicy("exact"),
    SyncPolicy("exact", topology="hub", overlap=True),
    SyncPolicy("tokens"),
    SyncPolicy("tokens", every=3, overlap=True),
    SyncPolicy("tokens", every=5, warmup=2),
    SyncPolicy("shared", every=2),
    SyncPolicy("kv", every=2),
    SyncPolicy("kv", overlap=True),
    SyncPolicy("kv", every=3, summary="consensus"),
    SyncPolicy("none", summary="consensus"),
    SyncPolicy("none", topology="isolated"),
    SyncPolicy("kv", every=2, overlap=True, summary="live"),
    SyncPolicy("tokens", every=2, summary="live", settle=3),
    SyncPolicy("exact", summary="live", settle=3),
]
RULES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 3, "steps": 14},
    {"rule": "threshold", "scope": "path", "threshold": 0.4, "block_length": 4},
    {"rule": "prophet", "scope": "path"},
    {"rule": "left-to-right", "scope": "path"},
    {"rule": "p2", "scope": "path", "steps": 14},
]


def name(policy: SyncPolicy) -> str:
    parts = (policy.mode, policy.every, "overlap" * policy.overlap, policy.summary, policy.topology)
    return "-".join(str(part) for part in parts if part)


def told(decoded: Any, canvas: int) -> list[Any]:
    """Every delta of a canvas but provisional ones, which go on where the batch's others have syncs."""
    return [
        (d.step, d.worker, int(d.kind), d.positions.tolist(), d.ids.tolist(), d.log_confidence.tolist())
        for d in decoded.records[canvas].deltas
        if d.kind.name != "PROVISIONAL"
    ]


def same(one: Any, other: Any) -> None:
    """Ids, and each commit and fill with its step, worker and score."""
    assert other.ids == one.ids
    for canvas in range(len(one.ids)):
        mine, its = told(one, canvas), told(other, canvas)
        assert [delta[:5] for delta in its] == [delta[:5] for delta in mine]
        for a, b in zip(mine, its, strict=True):
            assert b[5] == pytest.approx(a[5], rel=1e-9)
    for mine, its in zip(one.outcomes, other.outcomes, strict=True):
        # A phase may end a step earlier: canvases that leave make the host read what it would else hear a report later.
        skipped = sorted(set(mine.forwards) - set(its.forwards))
        assert sorted({*its.forwards, *skipped}) == list(mine.forwards)
        assert len(skipped) <= 1
        assert its.events == mine.events


def lane_rows(decoded: Any) -> int:
    """Rows that went through the network, over all canvases."""
    batch = len(decoded.ids)
    return sum(outcome.meters_of(canvas).rows_computed for outcome in decoded.outcomes for canvas in range(batch))


@pytest.mark.parametrize(
    ("policy", "workers"),
    [(policy, 3) for policy in POLICIES] + [(policy, 1) for policy in POLICIES[::3]],
    ids=lambda what: name(what) if isinstance(what, SyncPolicy) else str(what),
)
def test_commits_are_those_of_the_whole_batch(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, policy: SyncPolicy, workers: int
) -> None:
    run = (tiny_model("llada-tiny", 2), nap_layout(BUDGETS, summary=4, ends=ENDS))
    prompts = [prompt_of(seed, tokens=5 - seed % 2) for seed in range(6)]
    config = DecodeConfig(paths=3, sync=policy, temperature=1.0, **LEFT)
    whole = decode_inline(*run, config, prompts, workers, narrow=False)
    got = decode_inline(*run, config, prompts, workers)
    same(whole, got)
    for canvas, record in enumerate(got.records):
        if canvas < 2:
            assert got.commits(canvas) == decode_inline(*run, config, [prompts[canvas]], workers).commits()
        verify(replace(record, forwards=tuple(one.forwards_of(canvas) for one in got.outcomes)))
    assert lane_rows(got) < lane_rows(whole), "nobody left: the test shows nothing"
    if policy.mode == "tokens":
        payload = [[one.meters.payload_bytes for one in decoded.outcomes] for decoded in (whole, got)]
        assert payload[0] == payload[1]
    if workers > 1 and policy.mode != "none":
        assert sum(o.meters.wire_bytes for o in got.outcomes) < sum(o.meters.wire_bytes for o in whole.outcomes)


@settings(max_examples=20)
@given(
    st.sampled_from(POLICIES),
    st.sampled_from(RULES),
    st.integers(2, 7),
    st.integers(1, 5),
    st.sampled_from([1, (1, 0, 1), 3]),
    st.integers(0, 10**6),
)
def test_under_every_rule(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    policy: SyncPolicy,
    rule: dict[str, Any],
    batch: int,
    control_every: int,
    placed: Any,
    seed: int,
) -> None:
    refused = {"prophet": policy.summary == "consensus", "p2": policy.settle is not None}
    if refused.get(rule.get("rule", "")):
        return
    run = (tiny_model("dream-tiny", seed % 3, scale=20.0), nap_layout(BUDGETS, summary=3, ends=ENDS))
    prompts = [prompt_of(seed + at, tokens=5 - (seed + at) % 3) for at in range(batch)]
    every = None if policy.settle else control_every
    config = DecodeConfig(paths=3, sync=policy, control_every=every, **rule)
    same(*(decode_inline(*run, config, prompts, placed, narrow=narrow) for narrow in (False, True)))


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "threshold", "threshold": 0.6, "block_length": 6},
        {"rule": "threshold", "threshold": 0.5, "block_length": 6, "cache": "dual"},
        {"rule": "factor", "factor": 1.2, "block_length": 6, "cache": "prefix", "cfg": 0.5},
        {"rule": "prophet", "cfg": 1.0},
    ],
    ids=str,
)
def test_plain_canvases_leave_as_they_end(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any, options: dict[str, Any]
) -> None:
    """With guidance each canvas stands twice in the keys and values, and both are moved."""
    run = (tiny_model("llada-tiny", 1, scale=25.0), plain_layout(18))
    config, prompts = DecodeConfig(layout="plain", gen_length=18, **options), [prompt_of(seed) for seed in range(5)]
    whole, got = (decode_inline(*run, config, prompts, narrow=narrow) for narrow in (False, True))
    same(whole, got)
    assert lane_rows(got) < lane_rows(whole), "nobody left: the test shows nothing"


@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[3], POLICIES[5], POLICIES[7]], ids=name)
def test_a_batch_that_lost_a_worker_narrows_again(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, policy: SyncPolicy
) -> None:
    config = DecodeConfig(paths=3, sync=policy, temperature=1.0, **LEFT)
    task = make_task(nap_layout(BUDGETS, summary=4, ends=ENDS), config, [prompt_of(seed) for seed in range(4)], 3)
    executor = InlineExecutor(tiny_model("llada-tiny", 2), workers=3, dtype=torch.float64)
    past = tuple(
        tuple(delta for delta in record.deltas if delta.step < 6) for record in collect(executor, task).records
    )
    resumed = replace(task, resume=Resume(step=6, deltas=past))
    found = []
    for narrow in (False, True):
        reports: list[Any] = []
        outcomes = executor.run(replace(resumed, narrow=narrow), on_report=reports.append, cancelled=lambda: False)
        found.append([(one.ids.tolist(), one.step.tolist()) for one in outcomes])
        assert any(any(one.away) for one in outcomes) == narrow
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{}, {"sync": SyncPolicy("kv", every=3)}, {"sync": SyncPolicy("exact")}], ids=str)
def test_compiled_steps_narrow_too(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    make_task: Any,
    collect: Any,
    without_compiler: None,
    options: dict[str, Any],
) -> None:
    """The steps that compile, without a compiler."""
    config = DecodeConfig(paths=3, temperature=1.0, **LEFT, **options)
    for workers in (1, 3):
        task = make_task(
            nap_layout(BUDGETS, summary=4, ends=ENDS), config, [prompt_of(seed) for seed in range(6)], workers
        )
        executor = InlineExecutor(
            tiny_model("llada-tiny", 2), workers=workers, dtype=torch.float64, compiling=CompileOptions(mode="default")
        )
        whole, got = (collect(executor, replace(task, narrow=narrow)) for narrow in (False, True))
        same(whole, got)
        assert lane_rows(got) < lane_rows(whole)


def test_fp8_keys_and_values_move_too(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any
) -> None:
    config = DecodeConfig(paths=3, temperature=1.0, **LEFT, sync=SyncPolicy("kv", every=3))
    task = make_task(nap_layout(BUDGETS, summary=4, ends=ENDS), config, [prompt_of(seed) for seed in range(6)], 3)
    executor = InlineExecutor(tiny_model("llada-tiny", 2), workers=3, dtype=torch.float8_e4m3fn)
    whole, got = (collect(executor, replace(task, narrow=narrow)) for narrow in (False, True))
    same(whole, got)
    assert lane_rows(got) < lane_rows(whole)


def test_a_canvas_is_metered_by_its_own_forwards(tmp_path: Path) -> None:
    """As it is alone, up to the wait for the group's word: what its neighbours need is not counted."""
    make_model_dir("llada-tiny", tmp_path / "model", seed=4, scale=10.0, end_ids=tuple(range(20)))
    card = read_card(tmp_path / "model")
    model = load_model(card.path, dtype=torch.float64).model
    lead = Coordinator(card, InlineExecutor(model, dtype=torch.float64))
    config = DecodeConfig(paths=2, path_tokens=24, summary_tokens=4, temperature=1.0, **LEFT)
    jobs = [
        DecodeJob(question=question, index=index) for index, question in enumerate(["abc", "What?", "17 + 4", "a b c"])
    ]

    def decoded(jobs: Sequence[DecodeJob], size: int) -> list[DecodeResult]:
        found: list[Any] = list(lead.decode(jobs, config, batch_size=size))
        return found

    together = decoded(jobs, 4)
    alone = [decoded([job], 1)[0] for job in jobs]
    for one, other in zip(alone, together, strict=True):
        verify(other.record)
        assert one.metrics.nfe.steps <= other.metrics.nfe.steps
        assert other.metrics.nfe.steps == len(other.record.forwards[0])
        assert other.metrics.nfe.rows < sum(48 + 40 for _ in other.record.forwards[0])
    assert len({other.metrics.nfe.steps for other in together}) > 1, "all leave at once: the test shows nothing"
    assert len({other.metrics.nfe.rows for other in together}) > 1


MEMBER = """
import sys
from dataclasses import replace
from datetime import timedelta
import torch
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.distributed.torch_group import GroupAddress, TorchCommunicator, join_store
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.shapes import make_model
from nap_runtime.worker import BlockWorker, Task

torch.set_num_threads(1)
rank, port, timeout = int(sys.argv[1]), int(sys.argv[2]), timedelta(seconds=30)
store = join_store(GroupAddress(host="127.0.0.1", port=port), timeout)
comm = TorchCommunicator(store, rank=rank, world=2, device=torch.device("cpu"), timeout=timeout)
ends = tuple(range(12))
model = make_model("llada-tiny", seed=2, dtype=torch.float64, scale=10.0, end_ids=ends)[1].requires_grad_(False)
layout = CanvasLayout(kind="nap", prompt_tokens=5, headers=((20,), (21,)), budgets=(14, 11), summary_header=(26, 20),
                      summary_budget=6, end_ids=(tuple(range(30)),) * 3, mask_id=95, fill_id=94)
prompts = tuple(tuple(30 + (7 * at + 3 * b) % 60 for at in range(5 - b % 2)) for b in range(5))
worker = BlockWorker(model, comm, dtype=torch.float64, device=torch.device("cpu"))
for policy in (SyncPolicy("exact"), SyncPolicy("kv", every=2), SyncPolicy("kv", overlap=True), SyncPolicy("tokens"),
               SyncPolicy("shared", every=2), SyncPolicy("kv", every=3, summary="consensus")):
    config = DecodeConfig(paths=2, sync=policy, control_every=1, temperature=1.0, rule="left-to-right", scope="path")
    task = Task(plan=Plan.of(layout, config, Assignment((0, 1))), prompts=prompts)
    whole, got = (worker.run(replace(task, narrow=narrow), on_report=None) for narrow in (False, True))
    assert (got.ids == whole.ids).all() and (got.step == whole.step).all(), policy
    assert got.forwards == whole.forwards and got.meters.wire_bytes < whole.meters.wire_bytes, policy
    assert any(got.away), policy
    print(policy.mode, [[(part.steps.start, part.steps.stop) for part in canvas] for canvas in got.away], flush=True)
comm.close()
"""


@pytest.mark.timeout(120)
def test_processes_leave_the_same_canvases_out_at_the_same_steps() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    _store, address = open_store("127.0.0.1", timedelta(seconds=30))
    line = [sys.executable, "-W", "ignore", "-c", MEMBER]
    members = [
        subprocess.Popen(
            [*line, str(rank), str(address.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        ended = [member.communicate(timeout=100) for member in members]
    finally:
        for member in members:
            member.kill()
    assert [member.returncode for member in members] == [0, 0], ended[0][1] + ended[1][1]
    first, second = (out.splitlines() for out, _ in ended)
    assert len(first) == 6
    for mine, its in zip(first, second, strict=True):
        if mine.split()[0] in ("exact", "shared"):  # the others leave worker 0 alone with the summary
            assert mine == its
