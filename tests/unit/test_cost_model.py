"""Seconds of the cost model by hand, and a machine recovered from points that a known one made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_runtime.cli.app import main
from nap_runtime.errors import DataError, UsageError
from nap_runtime.job import SyncPolicy
from nap_runtime.study.cost.calibrate import FITTED, Point, calibrate, least_squares, read_points
from nap_runtime.study.cost.counts import Exchange, Forward, Moment
from nap_runtime.study.cost.predict import DEVICES, LINKS, Device, Link, Machine, Work, layer_weights, predict
from nap_runtime.study.cost.scenario import Scenario

TINY = Scenario(
    shape="llada-tiny", paths=2, path_tokens=6, summary_tokens=2, prompt_tokens=3, header_tokens=1, workers=2,
    dtype="float32", sync=SyncPolicy("kv", every=4),
)  # fmt: skip
# 2 layers, d 64, 4 heads of 16, FFN 96, vocabulary 96: 4 · 64 · 64 + 3 · 64 · 96 = 34816 weights a layer
WEIGHTS, CANVAS = 34816, 3 + 2 * 7 + 3


def test_a_forward_by_hand() -> None:
    work = Work.of(replace(TINY, batch=2))
    assert layer_weights(work.model) == WEIGHTS
    forward = Forward(step=1, rows=5, extra_rows=0, scored=3)
    flops = 2 * 5 * 2 * (2 * WEIGHTS + 4 * CANVAS * 64) + 2 * 3 * 2 * 96 * 64
    read = 4 * (2 * WEIGHTS + 96 * 64 + 2 * CANVAS * 2 * 2 * 64)
    assert (work.flops(forward), work.bytes_read(forward)) == (flops, read)
    slow = Device(flops=1e3, memory=1e12, launch=2.0, forward=5.0, score=0.5)
    assert work.forward_seconds(forward, slow) == pytest.approx(flops / 1e3 + 2 * 2.0 + 5.0 + 2 * 3 * 96 * 0.5)
    starved = Device(flops=1e12, memory=1e3, launch=2.0, forward=5.0, score=0.5)
    assert work.forward_seconds(forward, starved) == pytest.approx(read / 1e3 + 4.0 + 5.0 + 288.0)
    threads = Work.of(replace(TINY, batch=2, threads=2))
    assert threads.forward_seconds(forward, slow) == pytest.approx(flops / 2e3 + 4.0 + 5.0 + 288.0)


def test_fp8_is_read_by_hand() -> None:
    """A layer's weight takes a byte, the head stays float32; a key of 16 numbers takes 16 + 4 bytes, not 64."""
    forward = Forward(step=1, rows=5, extra_rows=0, scored=3)
    layers, head, heads = 2 * WEIGHTS, 96 * 64, 2 * CANVAS * 2 * 2 * 4
    read = {
        stored: Work.of(replace(TINY, batch=2, weights=stored[0], kv=stored[1])).bytes_read(forward)
        for stored in (("native", "native"), ("fp8", "native"), ("native", "fp8"), ("fp8", "fp8"))
    }
    assert read["native", "native"] == 4 * layers + 4 * head + 64 * heads
    assert read["fp8", "native"] == layers + 4 * head + 64 * heads
    assert read["native", "fp8"] == 4 * layers + 4 * head + 20 * heads
    assert read["fp8", "fp8"] == layers + 4 * head + 20 * heads
    with pytest.raises(UsageError, match="kv: unknown value 'fp4'"):
        replace(TINY, kv="fp4")


def test_fp8_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "cost",
        "predict",
        "--shape",
        "llada-8b",
        "--paths",
        "2",
        "--sync",
        "kv",
        "--every",
        "8",
        "--link",
        "1g",
        "--json",
    ]
    sent = []
    for more in ([], ["--kv", "fp8"]):
        assert main([*argv, *more]) == 0
        sent.append(json.loads(capsys.readouterr().out)["rows"][1])
    native, fp8 = ((row["scenario"]["kv"], row["sync_seconds"]) for row in sent)
    assert (native[0], fp8[0]) == ("native", "fp8")
    assert 0.5 < fp8[1] / native[1] < 0.53  # 132 of 256 bytes, and latency


def test_a_head_that_is_not_used_is_not_read() -> None:
    work = Work.of(TINY)
    used, unused = (work.bytes_read(Forward(step=0, rows=1, extra_rows=0, scored=n)) for n in (1, 0))
    assert used - unused == 4 * 96 * 64


def test_an_exchange_by_hand() -> None:
    link = Link(latency=0.5, bandwidth=100.0)
    assert link.seconds(3, 2, 1000) == 2 * 2 * (0.5 + 10.0)
    assert link.seconds(1, 2, 1000) == 0.0


class Clockwork(Work):
    """Work whose forwards take as many seconds as they have rows."""

    def forward_seconds(self, forward: Forward, device: Device) -> float:
        """Rows."""
        return float(forward.rows)


def run(*moments: Moment) -> Any:
    work = Work.of(TINY)
    counts = replace(work.counts, moments=moments)
    machine = Machine(device=DEVICES["cpu"], link=Link(latency=1.0, bandwidth=1e9, start=0.25))
    return Clockwork(work.plan, work.model, counts, work.item_bytes).on(machine)


def rows(*numbers: int, **more: Any) -> Moment:
    forwards = [Forward(step=0, rows=n, extra_rows=0, scored=0) if n else None for n in numbers]
    return Moment(forwards=tuple(forwards), **more)


SYNC = (Exchange(step=0, kind="kv", times=1, buffer_bytes=0, payload_bytes=(0, 0)),)  # one second on two workers


def test_workers_wait_for_the_slowest() -> None:
    found = run(rows(3, 5), rows(0, 0, exchanges=SYNC), rows(4, 1))
    assert found.seconds == 0.25 + 5 + 1 + 4
    assert found.compute_seconds == 7
    assert found.blocked_seconds == 3  # worker 0: two seconds for worker 1, one for the exchange
    assert found.sync_seconds == 1


def test_an_overlapped_exchange_is_waited_for_where_it_arrives() -> None:
    hidden = run(rows(3, 3), rows(0, 0, exchanges=SYNC, begins=True), rows(4, 4), rows(0, 0, arrives=True), rows(1, 1))
    assert (hidden.seconds, hidden.blocked_seconds, hidden.sync_seconds) == (8.25, 0, 1)
    late = run(rows(3, 5), rows(0, 0, exchanges=SYNC, begins=True), rows(1, 0), rows(0, 0, arrives=True))
    assert (late.seconds, late.blocked_seconds) == (6.25, 2)  # done at 5 + 1; worker 0 came at 4


def test_slower_links_and_more_talk_cost_more() -> None:
    def seconds(sync: SyncPolicy, link: str) -> float:
        return predict(replace(TINY, sync=sync), Machine(device=DEVICES["h100"], link=LINKS[link])).seconds

    order = [seconds(SyncPolicy("kv", every=2), link) for link in ("nvlink", "100g", "25g", "10g", "1g", "wan")]
    assert order == sorted(order)
    assert seconds(SyncPolicy("kv", every=1), "1g") > seconds(SyncPolicy("kv", every=4), "1g")
    assert seconds(SyncPolicy("exact"), "1g") > seconds(SyncPolicy("tokens", every=1), "1g")


def test_figures_of_a_prediction() -> None:
    found = predict(TINY, Machine(device=DEVICES["h100"], link=LINKS["1g"]))
    assert found.steps == found.tokens == 14
    assert found.step_seconds == found.seconds / 14
    assert found.bytes_per_token == found.wire_bytes / 14
    assert 0 < found.blocked_share < 1


# --- calibration ---

TRUE = Machine(
    device=Device(flops=1e11, memory=1e12, launch=2e-4, forward=9e-4, score=1e-9),
    link=Link(latency=2e-4, bandwidth=3e7, start=3e-3),
)
START = Machine(device=replace(DEVICES["cpu"], memory=1e12), link=LINKS["10g"])


def points(noise: float = 0.0) -> list[Point]:
    rng, found = np.random.default_rng(0), []
    for workers in (1, 2, 3):
        for tokens in (8, 40):
            for sync in (
                SyncPolicy("exact"),
                SyncPolicy("kv", every=2),
                SyncPolicy("tokens", every=4),
                SyncPolicy("none"),
            ):
                shape = "llada-tiny" if tokens == 8 else "nap-tiny"  # one depth cannot tell launch from forward
                scenario = replace(TINY, shape=shape, paths=3, path_tokens=tokens, workers=workers, sync=sync, steps=20)
                seconds = predict(scenario, TRUE).seconds * (1 + noise * rng.standard_normal())
                name = f"w{workers} {tokens} {sync.mode}"
                found.append(Point(name=name, scenario=scenario, seconds=seconds, hold_out=workers == 3))
    return found


def test_a_known_machine_is_recovered() -> None:
    found = calibrate(points(), START)
    for name in FITTED:
        kind = "link" if name in ("latency", "bandwidth", "start") else "device"
        want, got = getattr(getattr(TRUE, kind), name), getattr(getattr(found.machine, kind), name)
        assert got == pytest.approx(want, rel=1e-2), name
    assert found.error(held_out=True)[1] < 5e-3  # type: ignore[index]
    assert len(found.held_out) == 8


def test_points_that_are_held_out_change_nothing() -> None:
    bent = [replace(p, seconds=p.seconds * 7) if p.hold_out else p for p in points()]
    found = calibrate(bent, START)
    assert found.machine.device.flops == pytest.approx(1e11, rel=1e-2)
    median, largest = found.error(held_out=True)  # type: ignore[misc]
    assert (median, largest) == (pytest.approx(6 / 7, rel=1e-2), pytest.approx(6 / 7, rel=1e-2))
    assert found.errors["w3 8 none"] == pytest.approx(1 / 7 - 1, rel=1e-2)


def test_noise_of_a_hundredth_leaves_errors_of_that_size() -> None:
    found = calibrate(points(noise=0.01), START)
    assert found.error(held_out=True)[0] < 0.03  # type: ignore[index]


def test_what_no_point_informs_stays_where_it_was() -> None:
    alone = [p for p in points() if p.scenario.workers == 1]
    found = calibrate([replace(p, hold_out=False) for p in alone], START)
    assert found.machine.link.bandwidth == pytest.approx(START.link.bandwidth)
    assert found.error(held_out=True) is None


def test_what_runs_off_to_where_no_point_feels_it_is_put_back() -> None:
    """A link without any cost for a byte: the best bandwidth is endless, and a high one hardly worse."""
    free = replace(TRUE, link=replace(TRUE.link, bandwidth=1e30))
    made = [replace(p, hold_out=False, seconds=predict(p.scenario, free).seconds) for p in points()]
    fast = replace(START, link=replace(START.link, bandwidth=2e10))  # points feel this one by 1 % at most
    found = calibrate(made, fast)
    assert "bandwidth" not in found.fitted
    assert found.machine.link.bandwidth == 2e10
    assert found.machine.link.latency == pytest.approx(2e-4, rel=1e-2)
    assert set(found.fitted) == set(FITTED) - {"bandwidth"}


def test_what_runs_off_is_not_put_back_where_points_speak_against_it() -> None:
    free = replace(TRUE, link=replace(TRUE.link, bandwidth=1e30))
    made = [replace(p, hold_out=False, seconds=predict(p.scenario, free).seconds) for p in points()]
    slow = replace(START, link=replace(START.link, bandwidth=1e6))
    found = calibrate(made, slow)
    assert found.machine.link.bandwidth > 1e9
    assert found.error(held_out=False)[1] < 1e-2  # type: ignore[index]


def test_what_nothing_informs_at_all() -> None:
    """Two parameters of a link, one worker: the machine is the one that was given."""
    alone = [replace(p, hold_out=False) for p in points() if p.scenario.workers == 1]
    found = calibrate(alone, START, fitted=("latency", "start"))
    assert (found.machine, found.fitted) == (START, ())


def test_least_squares_of_a_line() -> None:
    x, y = np.arange(5.0), np.array([1.0, 3.0, 5.0, 7.0, 9.5])
    theta = least_squares(lambda t: t[0] + t[1] * x - y, np.array([0.0, 0.0]))
    assert theta == pytest.approx(np.polyfit(x, y, 1)[::-1], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fitted": ("speed",)}, "unknown parameter 'speed'"),
        ({"points": points()[:3]}, "3 points for 6 parameters"),
        ({"points": points() + points()}, "two have the same name"),
    ],
)
def test_what_cannot_be_fitted(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        calibrate(**{"points": points(), "start": START, **change})


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "points.json", tmp_path / "machine.json"
    listed = [{"name": p.name, "scenario": p.scenario.to_mapping(), "seconds": p.seconds} for p in points()]
    file.write_text(json.dumps({"points": listed}))
    assert [p.scenario for p in read_points(file)] == [p.scenario for p in points()]
    assert main(["cost", "calibrate", str(file), "--hold-out", "w3*", "--out", str(out)]) == 0
    assert "8 points held out" in capsys.readouterr().out
    machine = json.loads(out.read_text())
    assert machine["error"]["held_out"]["max"] < 0.05  # memory is not fitted
    args = ["cost", "predict", "--machine", str(out), "--shape", "llada-tiny", "--paths", "2", "--json"]
    assert main([*args, "--sync", "kv", "--every", "2", "--path-tokens", "8", "--prompt-tokens", "3"]) == 0
    one, two = json.loads(capsys.readouterr().out)["rows"]
    assert (one["scenario"]["workers"], two["scenario"]["workers"]) == (1, 2)
    assert two["link"] == "calibrated"
    listed[1]["seconds"] = -1
    file.write_text(json.dumps({"points": listed}))
    with pytest.raises(DataError, match="point 2: seconds: -1 is not a number above 0"):
        read_points(file)


def test_wrong_names_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--device", "z1"], ["--link", "2g"], ["--shape", "nosuch"], ["--sync", "sometimes"]):
        assert main(["cost", "predict", *args]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert args[1] in said
