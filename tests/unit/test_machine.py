"""The state machine's instructions, mode by mode, against lists written by hand.

Two paths of 3 slots, a summary of 2, T = 8: steps 0 … 5 for the paths (T_p = 6), 6 and 7 for the summary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nap_runtime.decoding.machine import (
    Arrive,
    Control,
    Coordination,
    Finish,
    Instruction,
    Layerwise,
    Plan,
    Rows,
    Step,
    Summarise,
    Sync,
)
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy

ROWS = {
    Rows.ALL: "all",
    Rows.OWN: "own",
    Rows.OPEN: "open",
    Rows.OWN_AND_SHARED: "own+shared",
    Rows.OWN_AND_SHARE: "own+share",
    Rows.SUMMARY: "summary",
    Rows.BLOCK: "block",
    Rows.FROM_BLOCK: "from block",
    Rows.CHANGED: "changed",
}


def say(todo: Instruction) -> str:
    """An instruction in a few words: step, rows, exchange inside the layers, phase."""
    if isinstance(todo, Sync):
        return f"{todo.step} {'begin' if todo.overlap else 'sync'} {todo.mode}"
    if isinstance(todo, Arrive):
        return f"{todo.step} arrive {todo.mode}"
    if isinstance(todo, Summarise):
        return f"{todo.step} summarise"
    if isinstance(todo, Finish):
        return "cancelled" if todo.cancelled else "finish"
    words = [str(todo.step), ROWS[todo.rows]]
    words += [] if todo.layerwise is Layerwise.NOTHING else [f"/{todo.layerwise.value}"]
    words += ["lead"] if todo.lead_only else []
    words += [f"S{todo.summary}"] if todo.summary is not None else []
    words += [f"C{todo.canvas}"] if todo.canvas is not None else []
    words += [f"block {todo.block}"] if todo.block is not None else []
    words += ["live"] if todo.live else []
    return " ".join(words)


@pytest.fixture
def machine(nap_layout: Any) -> Callable[..., Coordination]:
    def make(sync: SyncPolicy, workers: int = 2, **options: Any) -> Coordination:
        config = DecodeConfig(paths=2, sync=sync, **options)
        return Coordination(Plan.of(nap_layout((3, 3), summary=2), config, Assignment.even(2, workers)))

    return make


def run(machine: Coordination, words: dict[int, Control] | None = None) -> list[str]:
    """All instructions; `words` are the control words, by the step before which they are read."""
    said: list[str] = []
    words = dict(words or {})
    while not said or said[-1] not in ("finish", "cancelled"):
        control = words.pop(machine.step, None) if machine.between_steps else None
        said.append(say(machine.next(control)))
        assert len(said) < 100
    return said


MODES: dict[tuple[str, int | None, int], list[str]] = {
    ("exact", None, 0): [
        "0 all",
        *(f"{step} own+share /exact" for step in range(1, 6)),
        "6 own+share /exact S1",
        "7 own+share /exact S1",
    ],
    ("tokens", 1, 0): [
        "0 all",
        *(text for step in range(1, 6) for text in (f"{step} sync tokens", f"{step} all")),
        "6 summarise",
        "6 all lead S1",
        "7 all lead S1",
    ],
    ("tokens", 2, 0): [
        "0 all",
        "1 own",
        "2 sync tokens",
        "2 all",
        "3 own",
        "4 sync tokens",
        "4 all",
        "5 own",
        "6 summarise",
        "6 all lead S1",
        "7 summary lead S1",
    ],
    ("tokens", 2, 2): [
        "0 all",
        "1 own+share /exact",
        "2 own+share /exact",
        "3 own",
        "4 sync tokens",
        "4 all",
        "5 own",
        "6 summarise",
        "6 all lead S1",
        "7 summary lead S1",
    ],
    ("tokens", 6, 0): [
        "0 all",
        *(f"{step} own" for step in range(1, 6)),
        "6 summarise",
        "6 all lead S1",
        "7 summary lead S1",
    ],
    ("tokens", 1, 9): [
        "0 all",
        *(f"{step} own+share /exact" for step in range(1, 6)),
        "6 summarise",
        "6 all lead S1",
        "7 all lead S1",
    ],
    ("kv", 1, 0): [
        "0 all",
        *(text for step in range(1, 6) for text in (f"{step} sync kv", f"{step} own+shared")),
        "6 summarise",
        "6 all lead S1",
        "7 summary lead S1",
    ],
    ("kv", 3, 1): [
        "0 all",
        "1 own+share /exact",
        "2 own",
        "3 own",
        "4 sync kv",
        "4 own+shared",
        "5 own",
        "6 summarise",
        "6 all lead S1",
        "7 summary lead S1",
    ],
    ("shared", 1, 0): [
        "0 all",
        *(f"{step} own+shared /shared" for step in range(1, 6)),
        "6 own+shared /shared S1",
        "7 own+shared /shared S1",
    ],
    ("shared", 2, 0): [
        "0 all",
        "1 own",
        "2 own+shared /shared",
        "3 own",
        "4 own+shared /shared",
        "5 own",
        "6 own+shared /shared S1",
        "7 summary /shared S1",
    ],
    ("shared", 2, 1): [
        "0 all",
        "1 own+share /exact",
        "2 own",
        "3 own+shared /shared",
        "4 own",
        "5 own+shared /shared",
        "6 own+shared /shared S1",
        "7 summary /shared S1",
    ],
    ("none", None, 0): [
        "0 all",
        *(f"{step} own" for step in range(1, 6)),
        "6 summarise",
        "6 all lead S1",
        "7 summary lead S1",
    ],
}


@pytest.mark.parametrize("cache", ["closed", "dkv"])
@pytest.mark.parametrize("mode", [("tokens", 2, 0), ("kv", 3, 1)], ids=str)
def test_a_cache_of_paths_spares_rows_between_syncs_only(
    machine: Callable[..., Coordination], mode: Any, cache: str
) -> None:
    kind, every, warmup = mode
    wanted = [said.replace("own", "open") if said.endswith(" own") else said for said in MODES[mode]]
    assert run(machine(SyncPolicy(kind, every=every, warmup=warmup), cache=cache)) == [*wanted, "finish"]
    assert any(" open" in said for said in wanted)


@pytest.mark.parametrize("policy", MODES, ids=str)
def test_instructions(machine: Callable[..., Coordination], policy: tuple[Any, int | None, int]) -> None:
    mode, every, warmup = policy
    assert run(machine(SyncPolicy(mode, every=every, warmup=warmup))) == [*MODES[policy], "finish"]


@pytest.mark.parametrize(
    ("policy", "events"),
    [
        (SyncPolicy("exact"), [(step, "exact", step) for step in range(1, 8)]),
        (SyncPolicy("tokens", every=2), [(2, "tokens", 2), (4, "tokens", 4), (6, "gather", 6)]),
        (SyncPolicy("kv", every=2), [(2, "kv", 1), (4, "kv", 3), (6, "gather", 6)]),
        (
            SyncPolicy("kv", every=3, warmup=1),
            [(1, "exact", 1), (4, "kv", 3), (6, "gather", 6)],
        ),
        (
            SyncPolicy("shared", every=3),
            [(3, "shared", 3), (6, "shared", 6), (7, "shared", 7)],
        ),
        (SyncPolicy("none"), [(6, "gather", 6)]),
    ],
)
def test_events_say_what_every_worker_knows(
    machine: Callable[..., Coordination], policy: SyncPolicy, events: list[tuple[int, str, int]]
) -> None:
    several, alone = machine(policy), machine(policy, workers=1)
    run(several)
    run(alone)
    assert [(e.step, e.kind, e.sources) for e in several.events] == [
        (step, kind, ((source,) * 2,) * 2) for step, kind, source in events
    ]
    assert alone.events == []


def test_one_worker_exchanges_nothing_inside_a_layer(machine: Callable[..., Coordination]) -> None:
    said = run(machine(SyncPolicy("exact"), workers=1))
    assert said == [*(f"{step} all" for step in range(6)), "6 all S1", "7 all S1", "finish"]


def test_quotas_go_with_the_steps(machine: Callable[..., Coordination]) -> None:
    coordination = machine(SyncPolicy("none"))
    quotas = []
    while not isinstance(todo := coordination.next(), Finish):
        if isinstance(todo, Step):
            quotas.append((todo.paths, todo.summary))
    # path 0 at ⌊s/2⌋, path 1 half a token ahead
    assert quotas == [*[((0, 1), None), ((1, 0), None)] * 3, (None, 1), (None, 1)]


@pytest.mark.parametrize("mode", ["exact", "tokens", "kv", "shared", "none"])
def test_one_step_commits_everything_at_once(machine: Callable[..., Coordination], mode: Any) -> None:
    coordination = machine(SyncPolicy(mode), steps=1)
    todo = coordination.next()
    assert isinstance(todo, Step)
    assert (todo.rows, todo.layerwise, todo.paths, todo.summary) == (Rows.ALL, Layerwise.NOTHING, (3, 3), 2)
    assert say(coordination.next()) == "finish"


def test_scope_canvas_has_one_phase(machine: Callable[..., Coordination]) -> None:
    exact = run(machine(SyncPolicy("exact"), rule="confidence", steps=3))
    assert exact == ["0 all C3", "1 own+share /exact C3", "2 own+share /exact C2", "finish"]
    tokens = machine(SyncPolicy("tokens"), rule="confidence", steps=3)
    assert run(tokens) == ["0 all C3", "1 all C3", "2 all C2", "finish"]
    assert [(event.step, event.kind) for event in tokens.events] == [(1, "tokens"), (2, "tokens")]


def test_layout_plain_has_no_summary(plain_layout: Any) -> None:
    config = DecodeConfig(layout="plain", scope="path", steps=3)
    plan = Plan.of(plain_layout(6), config, Assignment((0,)))
    assert plan.path_steps == 3
    assert run(Coordination(plan)) == ["0 all", "1 all", "2 all", "finish"]


OVERLAPPED: dict[tuple[str, int, int], list[str]] = {
    ("kv", 2, 0): [
        "0 all",
        "1 own",
        *("2 begin kv", "2 own", "3 arrive kv", "3 own+shared"),
        *("4 begin kv", "4 own", "5 arrive kv", "5 own+shared"),
    ],
    ("kv", 1, 0): [
        "0 all",
        *("1 begin kv", "1 own"),
        *(t for s in range(2, 5) for t in (f"{s} arrive kv", f"{s} begin kv", f"{s} own+shared")),
        *("5 arrive kv", "5 own+shared"),  # an exchange begun at 5 would tell nothing that is not gathered at 6
    ],
    ("tokens", 3, 1): [
        *("0 all", "1 own+share /exact", "2 own", "3 own"),
        *("4 begin tokens", "4 own", "5 arrive tokens", "5 all"),
    ],
}
GATHERED = ["6 summarise", "6 all lead S1", "7 summary lead S1"]


@pytest.mark.parametrize("policy", OVERLAPPED, ids=str)
def test_an_overlapped_sync_begins_before_a_step_and_ends_before_the_next(
    machine: Callable[..., Coordination], policy: tuple[Any, int, int]
) -> None:
    mode, every, warmup = policy
    coordination = machine(SyncPolicy(mode, every=every, warmup=warmup, overlap=True))
    assert run(coordination) == [*OVERLAPPED[policy], *GATHERED, "finish"]
    sent = 1 if mode == "kv" else 0  # kv tells what was computed a step before it was sent, a step ago
    for event in coordination.events:
        if event.kind == mode:
            assert event.sources == ((event.step - 1 - sent,) * 2,) * 2


def test_an_exchange_under_way_is_dropped_when_the_paths_have_closed(machine: Callable[..., Coordination]) -> None:
    coordination = machine(SyncPolicy("kv", every=2, overlap=True))
    said = run(coordination, {3: CLOSED})
    assert said == [*OVERLAPPED["kv", 2, 0][:4], *GATHERED, "finish"]
    assert [(event.step, event.kind) for event in coordination.events] == [(6, "gather")]


def test_with_consensus_nothing_is_gathered(machine: Callable[..., Coordination]) -> None:
    coordination = machine(SyncPolicy("kv", every=2, summary="consensus"))
    assert run(coordination) == [*MODES["kv", 1, 0][:1], "1 own", "2 sync kv", "2 own+shared", "3 own", "4 sync kv",
                                 "4 own+shared", "5 own", "6 own+shared S1", "7 summary S1", "finish"]  # fmt: skip
    last = [(event.step, event.kind, event.sources[0][0]) for event in coordination.events[-2:]]
    assert last == [(6, "consensus", 3), (7, "consensus", 3)]


def test_with_consensus_the_paths_are_left_early_only_where_nothing_is_told(
    machine: Callable[..., Coordination],
) -> None:
    told = run(machine(SyncPolicy("kv", every=2, summary="consensus")), {3: CLOSED})
    assert told == run(machine(SyncPolicy("kv", every=2, summary="consensus")))
    silent = run(machine(SyncPolicy("none", summary="consensus")), {3: CLOSED})
    assert silent == ["0 all", "1 own", "2 own", "6 own+shared S1", "7 summary S1", "finish"]


def test_live_scores_the_summary_at_syncs(machine: Callable[..., Coordination]) -> None:
    said = run(machine(SyncPolicy("tokens", every=2, warmup=1, summary="live")))
    assert [text for text in said if "live" in text] == ["3 all live", "5 all live"]
    said = run(machine(SyncPolicy("exact", summary="live")))
    assert [text for text in said if "live" in text] == [f"{step} own+share /exact live" for step in range(1, 6)]


@pytest.mark.parametrize(
    ("options", "words", "said"),
    [
        (
            {"cache": "dual", "rule": "blockwise", "steps": 6},
            {},
            ["0 all C1 block 0", "1 block C1 block 0", "2 block C1 block 0", "3 all C1 block 1", "4 block C1 block 1",
             "5 block C1 block 1"],
        ),
        (
            {"cache": "prefix", "rule": "threshold"},
            {2: Control(blocks_done=1)},
            ["0 all C3 block 0", "1 from block C3 block 0", "3 all C3 block 1", "4 from block C3 block 1",
             "5 from block C3 block 1"],
        ),
        ({"cache": "dual", "rule": "threshold"}, {1: Control(blocks_done=2)}, ["0 all C3 block 0"]),
        (
            {"cache": "dkv", "rule": "confidence", "steps": 6, "cache_every": 4, "block_length": None},
            {},
            ["0 all C1", "1 changed C1", "2 changed C1", "3 changed C1", "4 all C1", "5 changed C1"],
        ),
    ],
    ids=lambda value: value.get("cache") if isinstance(value, dict) else None,
)  # fmt: skip
def test_caches_leave_rows_out_and_blocks_are_left_when_they_are_done(
    plain_layout: Any, options: dict[str, Any], words: dict[int, Control], said: list[str]
) -> None:
    config = DecodeConfig(layout="plain", **{"block_length": 3, **options})
    assert run(Coordination(Plan.of(plain_layout(6), config, Assignment((0,)))), words) == [*said, "finish"]


CLOSED, DONE, CANCEL = (
    Control(paths_closed=True),
    Control(paths_closed=True, all_closed=True),
    Control(cancel=True),
)


@pytest.mark.parametrize(
    ("policy", "words", "said"),
    [
        (SyncPolicy("none"), {3: CLOSED}, ["0 all", "1 own", "2 own", *MODES["none", None, 0][6:]]),
        (SyncPolicy("tokens", every=2), {2: CLOSED}, ["0 all", "1 own", *MODES["tokens", 2, 0][8:]]),
        (SyncPolicy("exact"), {1: CLOSED}, ["0 all", *MODES["exact", None, 0][6:]]),
        (
            SyncPolicy("shared", every=2),
            {5: CLOSED},
            [*MODES["shared", 2, 0][:5], *MODES["shared", 2, 0][6:]],
        ),
        # Known only in the summary phase: nothing is left out.
        (SyncPolicy("none"), {6: CLOSED, 7: CLOSED}, MODES["none", None, 0]),
        (SyncPolicy("none"), {7: DONE}, MODES["none", None, 0][:-1]),
        (SyncPolicy("exact"), {2: DONE}, MODES["exact", None, 0][:2]),
        (SyncPolicy("kv"), {2: Control()}, MODES["kv", 1, 0]),
    ],
    ids=lambda value: value.mode if isinstance(value, SyncPolicy) else None,
)
def test_control_words_close_early(
    machine: Callable[..., Coordination], policy: SyncPolicy, words: dict[int, Control], said: list[str]
) -> None:
    assert run(machine(policy), words) == [*said, "finish"]


def test_a_jump_to_the_summary_keeps_the_summarys_steps_and_quotas(
    machine: Callable[..., Coordination],
) -> None:
    coordination = machine(SyncPolicy("none"))
    coordination.next()
    todo = coordination.next(CLOSED)
    assert todo == Summarise(step=6)
    first = coordination.next()
    assert isinstance(first, Step)
    assert (first.step, first.summary, coordination.step) == (6, 1, 7)


@pytest.mark.parametrize("mode", ["exact", "tokens", "kv", "shared", "none"])
@pytest.mark.parametrize("step", [0, 1, 5, 6, 7])
def test_cancel_ends_at_the_step_it_is_read(machine: Callable[..., Coordination], mode: Any, step: int) -> None:
    said = run(machine(SyncPolicy(mode)), {step: CANCEL})
    assert said[-1] == "cancelled"
    assert {int(text.split()[0]) for text in said[:-1]} == set(range(step))


def test_control_words_are_read_between_steps_only(machine: Callable[..., Coordination]) -> None:
    coordination = machine(SyncPolicy("kv"))
    between = [coordination.between_steps]
    for _ in range(4):
        coordination.next()
        between.append(coordination.between_steps)
    # step 0 | sync 1, step 1 | sync 2, step 2
    assert between == [True, True, False, True, False]


def test_replicas_agree_whatever_they_are_asked(machine: Callable[..., Coordination]) -> None:
    for policy in (SyncPolicy("kv", every=2, warmup=1), SyncPolicy("shared", every=2)):
        replicas = [machine(policy) for _ in range(3)]
        said = [run(replica, {4: CLOSED}) for replica in replicas]
        assert said[0] == said[1] == said[2]
        assert replicas[0].events == replicas[1].events == replicas[2].events


def test_an_assignment_of_other_paths_is_refused(nap_layout: Any) -> None:
    with pytest.raises(UsageError, match="3 paths assigned, the layout has 2"):
        Plan.of(nap_layout((3, 3)), DecodeConfig(paths=2), Assignment((0, 0, 1)))
