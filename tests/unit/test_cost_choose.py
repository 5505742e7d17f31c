"""`--sync auto`: which sync is chosen, by overheads that were worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nap_runtime.auto import AutoSync
from nap_runtime.errors import DataError, UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.study.cost.choose import Choice, Decode, choose, device_of, machine_of
from nap_runtime.study.cost.counts import Exchange, Forward, Moment
from nap_runtime.study.cost.predict import DEVICES, LINKS, Device, Link, Machine, Work
from nap_runtime.study.cost.scenario import Scenario

# Two paths of 6 slots and a summary of 2 on two workers, one slot a step: 14 steps, 12 of them for the paths. 2 layers.
TINY = Scenario(
    shape="llada-tiny", paths=2, path_tokens=6, summary_tokens=2, prompt_tokens=3, header_tokens=1, workers=2,
    dtype="float32",
)  # fmt: skip
SECOND = Device(flops=1e30, memory=1e30, launch=1e-30, forward=1.0, score=1e-30)  # a forward, whatever its rows
# Collectives, each as long as the latency: `exact` has 2 in each of 13 steps and one of candidates in both summary
# steps; kv and tokens have one a sync (at K, 2K, … below 12) and gather once.
COLLECTIVES = {"exact": 2 * 13 + 2, 1: 11 + 1, 2: 5 + 1, 4: 2 + 1, 8: 1 + 1, "none": 1}


def decode_of(config: DecodeConfig | None = None, scenario: Scenario = TINY) -> Decode:
    return Decode(
        layout=scenario.plan.layout, config=config or scenario.config, model=scenario.model,
        workers=scenario.workers, dtype=scenario.dtype,
    )  # fmt: skip


def chosen(latency: float, asked: AutoSync | None = None, config: DecodeConfig | None = None) -> Choice:
    machine = Machine(device=SECOND, link=Link(latency=latency, bandwidth=1e30, start=1e-30))
    return choose(asked or AutoSync(), decode_of(config), machine)


# n collectives of L seconds beside 14 seconds of forwards: n·L / (14 + n·L) ≤ 1/10 where L ≤ 14 / (9·n).
@pytest.mark.parametrize(
    ("latency", "mode", "every"),
    [
        (0.055, "exact", None),  # 14/252 = 0.0556
        (0.056, "tokens", 1),
        (0.129, "tokens", 1),  # 14/108 = 0.1296
        (0.130, "tokens", 2),
        (0.259, "tokens", 2),  # 14/54
        (0.260, "tokens", 4),
        (0.518, "tokens", 4),  # 14/27
        (0.519, "tokens", 8),
        (0.777, "tokens", 8),  # 14/18
        (0.778, "none", None),
        (30.0, "none", None),
    ],
)
def test_the_freshest_below_the_limit(latency: float, mode: str, every: int | None) -> None:
    choice = chosen(latency)
    assert (choice.policy.mode, choice.policy.every) == (mode, every)
    for candidate in choice.candidates:
        n = COLLECTIVES[candidate.policy.every or candidate.policy.mode]
        assert candidate.seconds == pytest.approx(14 + n * latency)
        assert candidate.overhead == pytest.approx(n * latency / (14 + n * latency))


def test_a_higher_limit_allows_more_talk() -> None:
    assert chosen(0.49, AutoSync(overhead=0.5)).policy == SyncPolicy("exact")  # 28 · 0.49 = 13.7 of 14
    assert chosen(0.51, AutoSync(overhead=0.5)).policy == SyncPolicy("tokens", every=1)


def test_the_reason_names_the_share_the_limit_and_what_was_turned_down() -> None:
    said = chosen(0.26).reason  # 3 · 0.26 / 14.78; exact 7.28 / 21.28; tokens every 2: 1.56 / 15.56
    assert said == "predicted overhead 5.3 % of at most 10 %; exact 34.2 %, tokens every 2 10.0 %"
    assert chosen(30.0).reason.startswith("predicted overhead 68.2 %, nothing stays below 10 %; exact 98.4 %")


def test_rows_that_only_a_sync_asks_for_are_overhead() -> None:
    """At a sync `tokens` computes all 20 rows, `kv` a worker's 7 and 6 shared ones: where rows cost, kv wins."""
    rows = Device(flops=1e9, memory=1e30, launch=1e-30, forward=1e-30, score=1e-30)
    free = Machine(device=rows, link=Link(latency=1e-30, bandwidth=1e30, start=1e-30))
    choice = choose(AutoSync(overhead=0.5, summary="consensus"), decode_of(), free)  # consensus: exact is out
    assert choice.policy == SyncPolicy("kv", every=1, summary="consensus")
    tokens, kv = choice.candidates
    assert 0.5 < tokens.overhead < 13 / 20
    assert 0.3 < kv.overhead < 6 / 13


def test_what_is_left_without_syncs_by_hand() -> None:
    forward = Forward(step=1, rows=5, extra_rows=2, scored=1)
    alone = Forward(step=1, rows=4, extra_rows=4, scored=0)
    exchange = Exchange(step=1, kind="kv", times=1, buffer_bytes=8, payload_bytes=(8, 8))
    work = Work.of(replace(TINY, sync=SyncPolicy("kv", every=2)))
    moments = (Moment(forwards=(forward, alone), exchanges=(exchange,)),)
    bare = replace(work, counts=replace(work.counts, moments=moments)).without_syncs().counts.moments
    assert bare == (Moment(forwards=(replace(forward, rows=3, extra_rows=0), None)),)


def test_isolated_paths_need_no_sync() -> None:
    choice = chosen(0.001, AutoSync(topology="isolated"))
    assert choice.policy == SyncPolicy("none", topology="isolated")
    assert choice.reason == "under topology isolated it equals one device"


def test_only_what_goes_with_the_rest_is_chosen() -> None:
    assert chosen(0.001, AutoSync(summary="consensus")).policy.mode == "tokens"  # exact has no consensus
    live = chosen(30.0, AutoSync(summary="live", settle=2)).policy  # none has no syncs to be live at
    assert (live.mode, live.every, live.summary, live.settle) == ("tokens", 8, "live", 2)
    canvas = DecodeConfig(paths=2, path_tokens=6, summary_tokens=2, rule="confidence")
    assert chosen(0.01, config=canvas).policy == SyncPolicy("exact")
    assert chosen(30.0, config=canvas).policy == SyncPolicy("tokens", every=1)  # it needs all candidates at every step


@pytest.mark.parametrize("rule", ["threshold", "factor"])
def test_rules_without_quotas_are_counted_as_if_they_had_some(rule: Any) -> None:
    config = DecodeConfig(paths=2, path_tokens=6, summary_tokens=2, rule=rule, scope="path")
    assert chosen(0.2, config=config).policy == SyncPolicy("tokens", every=2)


def test_one_worker_is_exact() -> None:
    machine = Machine(device=SECOND, link=LINKS["wan"])
    choice = choose(AutoSync(), decode_of(scenario=replace(TINY, workers=1)), machine)
    assert (choice.policy, choice.reason) == (SyncPolicy("exact"), "one worker has nobody to talk to")


def test_named_links() -> None:
    """nvlink's 10 µs are nothing beside a forward of a second; 30 ms are everything beside an H100's."""
    fast, far = Machine(device=SECOND, link=LINKS["nvlink"]), Machine(device=DEVICES["h100"], link=LINKS["wan"])
    assert choose(AutoSync(), decode_of(), fast).policy.mode == "exact"
    assert choose(AutoSync(), decode_of(), far).policy.mode == "none"


def test_equal_inputs_give_equal_choices() -> None:
    assert chosen(0.3) == chosen(0.3)


# --- machines ---


def test_links_by_name_and_by_file(tmp_path: Path) -> None:
    assert machine_of("10g", "cuda", "NVIDIA H200") == Machine(device=DEVICES["h200"], link=LINKS["10g"])
    file = tmp_path / "here.json"
    file.write_text(json.dumps({"device": "cpu", "link": {"latency": 1e-3, "bandwidth": 1e6, "start": 1e-3}, "x": 1}))
    assert machine_of(str(file), "cpu").link == Link(latency=1e-3, bandwidth=1e6, start=1e-3)
    file.write_text("{}")
    with pytest.raises(DataError, match="it has 'device' and 'link'"):
        machine_of(str(file), "cpu")
    with pytest.raises(UsageError, match="'2g' is neither a file nor one of nvlink, 100g"):
        machine_of("2g", "cpu")
    with pytest.raises(UsageError, match="no preset for the device 'NVIDIA T4'"):
        device_of("cuda", "NVIDIA T4")


# --- requests ---


def test_requests() -> None:
    asked = AutoSync.from_mapping({"mode": "auto", "topology": "hub", "every": None, "warmup": 0}, {"link": "1g"})
    assert asked == AutoSync(topology="hub", link="1g")
    for sync, own, said in (
        ({"every": 8}, {}, "every: sync 'auto' chooses it"),
        ({"overlap": True}, {}, "overlap: sync 'auto' chooses it"),
        ({}, {"overhead": 1.0}, "overhead: 1.0 is no share"),
        ({}, {"overhead": "x"}, "overhead: 'x' is not a number"),
        ({}, {"link": 3}, "link: 3 is neither"),
        ({"topology": "ring"}, {}, "topology: unknown value 'ring'"),
        ({"top": 3}, {}, "top: only summary 'consensus' uses it"),
    ):
        with pytest.raises(UsageError, match=said):
            AutoSync.from_mapping({"mode": "auto", **sync}, own)
