"""Steps that need no host commit what the selector commits, whatever their number, and in any number to a graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.decoding import rules
from nap_runtime.decoding.layout import ThinkBlock
from nap_runtime.decoding.state import CanvasState, Region
from nap_runtime.distributed.comm import Solo
from nap_runtime.distributed.wire import Clock, Wire
from nap_runtime.errors import UsageError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.compilations import COMPILATIONS
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.worker import BlockWorker, station, stepping
from nap_runtime.worker.advance import Canvas, Choice, Slots, closing, picked, settle

GRAPH = CompileOptions(mode="graph")
ABLE: list[tuple[str, dict[str, Any]]] = [
    ("nap", {"steps": 7}),
    ("nap", {"steps": 1}),
    ("nap", {"temperature": 1.0, "eos_weight": 0.0}),
    ("nap", {"confidence": "margin", "steps": 9}),
    ("nap", {"confidence": "entropy", "temperature": 0.5, "steps": 11}),
    ("nap", {"rule": "left-to-right", "scope": "path", "steps": 8}),
    ("nap", {"rule": "random", "scope": "path", "seed": 5}),
    ("nap", {"rule": "blockwise", "scope": "path", "block_length": 1}),
    ("nap", {"rule": "confidence", "steps": 6}),
    ("nap", {"sync": SyncPolicy("kv", every=3), "eos_weight": 0.5, "control_every": 9}),
    ("nap", {"sync": SyncPolicy("tokens", every=2, topology="isolated")}),
    ("nap", {"sync": SyncPolicy("none", summary="consensus"), "steps": 9}),
    ("nap", {"sync": SyncPolicy("kv", every=2, summary="live")}),
    ("nap", {"sync": SyncPolicy("kv", every=9), "cache": "closed", "rule": "left-to-right", "scope": "path"}),
    ("nap", {"sync": SyncPolicy("none"), "cache": "dkv", "temperature": 1.0}),
    ("plain", {"rule": "confidence", "steps": 9}),
    ("plain", {"rule": "blockwise", "block_length": 4, "steps": 12, "temperature": 1.0}),
    ("plain", {"rule": "random", "rule_args": {"schedule": "dream"}, "steps": 6}),
]
BY_HAND: list[dict[str, Any]] = [
    {"rule": "threshold", "threshold": 0.2, "block_length": 8},
    {"rule": "p2", "steps": 8},
    {"rule": "confidence", "cfg": 1.0, "steps": 8},
    {"rule": "blockwise", "block_length": 8, "cache": "dual", "steps": 9},
]


class Replayed:
    """Stands in for CUDA graphs: what was captured first is done again, whatever step is due."""

    def __init__(self, wire: Any, beside: Any = None) -> None:
        self.captured: dict[Hashable, Callable[[], None]] = {}
        self.runs: list[Hashable] = []
        Replayed.last = self

    last: Replayed

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        self.runs.append(key)
        self.captured.setdefault(key, work)()


@pytest.fixture
def uncompiled(without_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled functions are themselves, and graphs are replayed by hand."""
    monkeypatch.setattr(station, "StepGraphs", Replayed)


class _Worker:
    """An executor of one worker that takes options as they are."""

    def __init__(self, model: Any, options: CompileOptions) -> None:
        place = {"dtype": torch.float64, "device": torch.device("cpu")}
        self.worker = BlockWorker(model, Solo(), compiling=options, **place)  # type: ignore[arg-type]

    def run(self, task: Any, **hooks: Any) -> list[Any]:
        return [self.worker.run(task, **hooks)]


def same(one: Any, other: Any, canvases: int = 1) -> None:
    assert other.ids == one.ids
    assert [other.commits(c) for c in range(canvases)] == [one.commits(c) for c in range(canvases)]
    assert other.outcomes[0].forwards == one.outcomes[0].forwards
    for mine, its in zip(one.outcomes, other.outcomes, strict=True):
        assert (mine.committed == its.committed).all()
        assert (mine.step == its.step).all()
        counts = ("forwards", "rows_computed", "rows_recomputed", "syncs", "payload_bytes", "wire_bytes")
        assert [getattr(mine.meters, c) for c in counts] == [getattr(its.meters, c) for c in counts]


@pytest.fixture
def task_of(nap_layout: Any, plain_layout: Any, prompt_of: Any, make_task: Any) -> Callable[..., Any]:
    def make(kind: str, options: dict[str, Any], canvases: int = 2, workers: int = 1) -> Any:
        layout = nap_layout((9, 5, 7)) if kind == "nap" else plain_layout(24)
        size = {"paths": 3} if kind == "nap" else {"gen_length": 24}
        config = DecodeConfig(layout=kind, **size, **options)  # type: ignore[arg-type]
        prompts = [prompt_of(seed, tokens=5 - seed % 2) for seed in range(canvases)]
        return make_task(layout, config, prompts, workers)

    return make


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("unroll", [1, 3])
@pytest.mark.parametrize(("kind", "options"), ABLE, ids=str)
def test_a_replayed_step_is_the_selectors(
    tiny_model: Any, task_of: Any, collect: Any, kind: str, options: dict[str, Any], unroll: int
) -> None:
    shape = "dream-tiny" if kind == "plain" else "llada-tiny"
    model, task = tiny_model(shape, 1), task_of(kind, options)
    one = collect(InlineExecutor(model, dtype=torch.float64), task)
    same(one, collect(_Worker(model, CompileOptions(mode="graph", unroll=unroll)), task), 2)
    graphs = Replayed.last
    if options.get("steps") != 1:
        assert len(graphs.runs) > len(graphs.captured), "nothing was replayed"
    if unroll > 1 and options.get("steps") is None:
        assert any(len(key) == unroll for key in graphs.captured), "nothing was unrolled"  # type: ignore[arg-type]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"sync": SyncPolicy("tokens", every=2), "steps": 9}], ids=str
)
def test_a_batch_of_the_same_shape_uses_the_graphs_of_the_last(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, options: dict[str, Any]
) -> None:
    model, layout = tiny_model("llada-tiny", 1), nap_layout((9, 5, 7))
    kept = _Worker(model, GRAPH)
    captured = set()
    for seed in range(3):
        config = DecodeConfig(paths=3, seed=seed, **options)
        task = make_task(layout, config, [prompt_of(seed), prompt_of(seed + 9, tokens=4)])
        same(collect(InlineExecutor(model, dtype=torch.float64), task), collect(kept, task), 2)
        captured.add((id(Replayed.last), len(Replayed.last.captured)))
    assert len(captured) == 1, "something was captured again"


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("tokens", [5, 4], ids=["equal prompts", "padded ones"])
def test_a_batch_that_narrows_keeps_graphs_for_each_size(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, tokens: int
) -> None:
    """Batches of four that shrink to two and one, one after another over the same tensors."""
    model, layout = tiny_model("llada-tiny", 2), nap_layout((9, 5, 7), ends=tuple(range(24)))
    kept, seen = _Worker(model, GRAPH), set()
    left: dict[str, Any] = {"rule": "left-to-right", "scope": "path", "control_every": 1, "temperature": 1.0}
    for seed in range(4):
        config = DecodeConfig(paths=3, seed=seed, sync=SyncPolicy("kv", every=3), **left)
        prompts = [prompt_of(seed + at, tokens=tokens if at % 2 else 5) for at in range(4)]
        task = make_task(layout, config, prompts)
        got = collect(kept, task)
        same(collect(InlineExecutor(model, dtype=torch.float64), task), got, 4)
        assert got.outcomes[0].ids.tolist() == [
            collect(InlineExecutor(model, dtype=torch.float64), make_task(layout, config, [prompt]))
            .outcomes[0]
            .ids[0]
            .tolist()
            for prompt in prompts
        ]
        seen.add(any(got.outcomes[0].away))
    (only,) = kept.worker.stations._kept.values()
    sizes = {len(pads) for pads in only._sections}
    assert True in seen
    assert sizes <= {1, 2, 4}
    assert len(sizes) > 1
    assert len(only._sections) == len(sizes) if tokens == 5 else len(only._sections) <= station._SECTIONS


@pytest.mark.usefixtures("uncompiled")
def test_only_so_many_shapes_are_kept(tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any) -> None:
    kept = _Worker(tiny_model("llada-tiny", 1), GRAPH)
    seen = []
    for budget in (3, 4, 3, 5, 3, 4):
        task = make_task(nap_layout((budget,)), DecodeConfig(paths=1), [prompt_of(0)])
        kept.run(task, on_report=None)
        seen.append(id(Replayed.last))
        assert len(kept.worker.stations._kept) <= station.KEPT
    assert len(set(seen)) == 4, "a shape that was used lately was forgotten, or one was kept too long"


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("options", BY_HAND, ids=str)
def test_what_does_not_only_rank_is_done_by_hand(
    tiny_model: Any, task_of: Any, collect: Any, options: dict[str, Any]
) -> None:
    model, task = tiny_model("llada-tiny", 1), task_of("plain", options)
    one = collect(InlineExecutor(model, dtype=torch.float64), task)
    same(one, collect(_Worker(model, GRAPH), task), 2)
    assert not Replayed.last.runs


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "sync", [SyncPolicy("exact"), SyncPolicy("kv", every=2), SyncPolicy("tokens", every=3, overlap=True)], ids=str
)
def test_workers_commit_what_they_commit_by_hand(tiny_model: Any, task_of: Any, collect: Any, sync: SyncPolicy) -> None:
    model = tiny_model("llada-tiny", 2)
    task = task_of("nap", {"sync": sync, "steps": 10}, workers=3)
    executors = [InlineExecutor(model, workers=3, dtype=torch.float64, compiling=o) for o in (
        CompileOptions(), CompileOptions(mode="default"),
    )]  # fmt: skip
    executors[1]._denoiser = model
    one, other = (collect(executor, task) for executor in executors)
    same(one, other, 2)


@pytest.mark.usefixtures("uncompiled")
def test_the_head_is_no_larger_than_what_is_open(tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any,
                                                 collect: Any) -> None:  # fmt: skip
    layout = nap_layout((200,), ends=())
    task = make_task(layout, DecodeConfig(paths=1, steps=17), [prompt_of(0)])
    collect(_Worker(tiny_model("llada-tiny", 1), GRAPH), task)
    sizes = [key[0].size for key in Replayed.last.runs if key[0].kind.part == "paths"]  # type: ignore[index]
    assert sizes[0] == 200
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {200, 192, 128, 64}


def test_a_step_that_compiles_says_nothing_of_a_workers_pace() -> None:
    wire = Wire(Solo(), Clock(torch.device("cpu")))
    for step in range(6):
        wire.begin_step(rows=8, extra_rows=0)
        if step == 3:
            before = COMPILATIONS.begun
            CompileOptions(mode="default").compiled(lambda x: x + 1)(torch.ones(3))
            assert COMPILATIONS.begun > before
            assert wire.pace().current == 0.0
        wire.end_step(committed=True)
    wire.begin_step(rows=8, extra_rows=0)
    assert wire.pace().steps == 4  # without the first, which warms up, and the fourth
    assert wire.pace().current > 0.0


# --- the parts against the rules and the state ---

EIGHTHS = st.integers(-16, 0).map(lambda n: n / 8)


def slots_of(groups: list[int], ends: list[int], quotas: dict[int, int], turns: list[int] | None = None) -> Slots:
    n = len(groups)
    numbers, group_S = torch.arange(n), torch.tensor(groups)
    quota_TG = torch.tensor([[quotas.get(g, 0) for g in range(max(groups) + 1)]])
    turn_S = torch.tensor(turns or [0] * n)
    return Slots(numbers, numbers, numbers, group_S, group_S, turn_S, torch.tensor([ends] * n), quota_TG)


@settings(max_examples=60)
@given(data=st.data(), block=st.sampled_from([None, 1, 2, 3]))
def test_picked_is_pick_of_each_group(data: Any, block: int | None) -> None:
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    n, groups = sum(sizes), [g for g, size in enumerate(sizes) for _ in range(size)]
    scores = torch.tensor([data.draw(st.lists(EIGHTHS, min_size=n, max_size=n)) for _ in range(2)])
    open_BS = torch.tensor([data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for _ in range(2)])
    quotas = {g: data.draw(st.integers(0, size)) for g, size in enumerate(sizes)}
    turns = None if block is None else [at // block for size in sizes for at in range(size)]
    slots = slots_of(groups, [-1], quotas, turns)
    quota_S = torch.tensor([quotas[g] for g in groups])
    parts = [
        rules.pick(s, o, quotas[g], block_length=block)
        for g, (s, o) in enumerate(zip(scores.split(sizes, -1), open_BS.split(sizes, -1), strict=True))
    ]
    assert torch.equal(picked(scores, open_BS & (quota_S > 0), slots, quota_S), torch.cat(parts, -1))


@settings(max_examples=60)
@given(data=st.data())
def test_closing_is_the_states(data: Any) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    n, groups = sum(sizes), [g for g, size in enumerate(sizes) for _ in range(size)]
    ids = torch.tensor([data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for _ in range(2)])
    masked = torch.tensor([data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for _ in range(2)])
    state = CanvasState(ids.clone(), masked.clone(), *(torch.zeros_like(ids) for _ in range(3)))
    at = 0
    for size in sizes:
        block = ThinkBlock(header=range(at, at), slots=range(at, at + size), end_ids=(2, 3))
        state.close(Region.of(block, torch.device("cpu")), 7, 0)
        at += size
    assert torch.equal(closing(ids, masked, slots_of(groups, [2, 3], {})), masked & ~state.masked)


def test_what_is_written_of_a_commit_and_a_fill() -> None:
    ids, masked = torch.tensor([[9, 9, 9, 5]]), torch.tensor([[True, True, True, False]])
    canvas = Canvas(ids, masked, *(torch.full_like(ids, v, dtype=d) for v, d in (
        (-1, torch.int64), (0, torch.uint8), (0, torch.float64),
    )))  # fmt: skip
    slots, choice = slots_of([0, 0, 0, 0], [2], {0: 1}), Choice("confidence", "max-prob", 0.0, 1.0, 9, 4, True, False)
    found = torch.tensor([[2, 2, 1, 1]]), torch.tensor([[-0.5, -0.25, -0.25, 0.0]])
    step, seed = torch.tensor(0), torch.tensor(0)
    settle(canvas, slots, step, seed, *found, choice)  # of equal scores the left one: an end behind a masked slot
    assert canvas.ids.tolist() == [[9, 2, 9, 5]]
    settle(canvas, slots, step, seed, *found, choice._replace(rule="left-to-right"))  # an end with nothing before it
    assert canvas.ids.tolist() == [[2, 2, 4, 5]]
    assert canvas.kind.tolist() == [[1, 1, 2, 0]]
    assert canvas.score.tolist() == [[-0.5, -0.25, 0.0, 0.0]]
    assert canvas.step.tolist() == [[0, 0, 0, -1]]
    assert not canvas.masked.any()


# --- what is refused ---


def test_graphs_need_a_gpu_and_one_worker() -> None:
    with pytest.raises(UsageError, match="needs a CUDA device"):
        GRAPH.check(torch.device("cpu"))
    with pytest.raises(UsageError, match="simulated"):
        GRAPH.check(torch.device("cuda"), simulated=True)
    GRAPH.check(torch.device("cuda"))
    CompileOptions(mode="default").check(torch.device("cpu"), simulated=True)


@pytest.mark.parametrize("wrong", [{"mode": "fast"}, {"gemm": "own"}, {"attention": "x"}, {"unroll": 0}], ids=str)
def test_unknown_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CompileOptions(**wrong)


def test_wide_canvases_are_ranked_by_sorting(
    tiny_model: Any, task_of: Any, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepping, "WIDEST", 20)
    _Worker(tiny_model("llada-tiny", 1), GRAPH).run(task_of("nap", {"steps": 4}), on_report=None)
    assert not Replayed.last.runs


def test_settings_refuse_what_cannot_be_compiled() -> None:
    from nap_runtime.cli.settings import Settings

    for wrong in ({"compile": "graph"}, {"compile": "graph", "simulate": True, "workers": 3}, {"compile": "fast"}):
        with pytest.raises(UsageError, match="compile: "):
            Settings.from_mapping(wrong)
    assert Settings.from_mapping({"compile": "default"}).to_mapping()["compile"] == "default"
