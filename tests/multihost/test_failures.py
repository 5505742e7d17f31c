"""Hosts that are cut off, killed, slow, new, or the head: noticed in seconds, work goes on, no id changes.

Prints what happened when (`pytest -s`); docs/cluster/failures.md shows one such run. All but the first are soak tests.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import Cluster, missing
from stand import BIN, ENVIRONMENT, Lines, Stand

from nap_runtime import api
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.shapes import make_model_dir

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
    pytest.mark.timeout(600),
]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
FIFTY = [f"{first} {second}" for first in WORDS for second in WORDS[:5]]
CONFIG = DecodeConfig(
    paths=3,
    path_tokens=20,
    summary_tokens=4,
    control_every=4,
    temperature=1.0,
    eos_weight=0.0,
    sync=SyncPolicy("exact"),
)
LONG = CONFIG.with_values(path_tokens=40, sync=SyncPolicy("tokens"))  # at every step: exact, with fewer exchanges
MODEL = ("--model", "/mnt/model", "--workers", "3")
LIVENESS = 4.0


@contextlib.contextmanager
def hosts(n: int) -> Iterator[Cluster]:
    with Cluster(n, path=[BIN], env=ENVIRONMENT) as cluster:
        make_model_dir("llada-tiny", cluster.mnt / "model", seed=0, dtype=torch.float64, scale=10.0)
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[list[int]]]:
    """The ids of decodes that nothing happens to: the same workers, as threads of this process."""
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)

    def ids(questions: list[str], config: DecodeConfig = CONFIG) -> list[list[int]]:
        found = api.decode(questions, config, model=folder, workers=3, simulate=True, dtype="float64", batch_size=25)
        return [result.record.final_ids.tolist() for result in found]

    return ids


class Story:
    """What happened, with the seconds since the blow."""

    def __init__(self) -> None:
        self.began = time.time()
        print()

    def blow(self, what: str) -> None:
        self.began = time.time()
        self.say(what)

    def say(self, what: str) -> float:
        seconds = time.time() - self.began
        print(f"{seconds:8.2f} s  {what}", flush=True)
        return seconds


def answers(asked: Lines, n: int, seconds: float = 300.0) -> list[list[int]]:
    asked.wait(lambda line: line.get("job") == n - 1, seconds)
    return [line["tokens"] for line in asked.lines if "job" in line]


def recovered(log: Lines, since: int = 0, seconds: float = 120.0) -> dict[str, Any]:
    """The log's word that a group goes on."""
    return log.wait(lambda line: line.get("event") == "group.recovered", seconds, since)


def places(stand: Stand, wanted: Callable[[list[str]], bool], seconds: float = 60.0) -> list[str]:
    """Hosts of the first group's workers, once they are as wanted. Workers move between two batches: one is decoded."""
    deadline = time.monotonic() + seconds
    while not wanted(found := stand.status()["groups"][0]["hosts"]):
        assert time.monotonic() < deadline, f"the workers are on {found}"
        stand.ask(["one two"], CONFIG, f"move {time.time()}").wait(lambda line: "job" in line, 60)
        time.sleep(1.0)
    return found


def workers_on(cluster: Cluster, number: int) -> int:
    return int(cluster[number].run("ps -eo args | grep -c '^ray::WorkerActor'; true").stdout)


def test_one_of_three_hosts_is_cut_off_during_fifty_decodes(undisturbed: Any) -> None:
    """Ray has its defaults, and would notice after a minute: the coordinator does."""
    story = Story()
    with hosts(3) as cluster:
        stand = Stand(cluster, quick=False)
        story.say("three hosts and Ray are up")
        log = stand.serve(*MODEL, "--batch", "5", "--liveness", str(LIVENESS))
        used = stand.status()["groups"][0]["hosts"]
        assert sorted(used) == ["node0", "node1", "node2"]
        story.say("nap serve is ready, a worker on each host")
        asked = stand.ask(FIFTY, CONFIG, "fifty")
        asked.wait(lambda line: line.get("job") == 19, 120)
        cluster[2].cut()
        story.blow("20 of 50 answers are there; node2 is cut off")
        noticed = recovered(log)
        took = noticed["seen"] - story.began
        detected = took - noticed["seconds"]
        story.say(f"noticed after {detected:.2f} s ({noticed['reason']})")
        story.say(
            f"repaired in {noticed['seconds']:.2f} s, weights from a {noticed['weights']}, step {noticed['step']}"
        )
        assert noticed["lost"] == [used.index("node2")]
        assert detected < LIVENESS + 4
        assert "node2" not in stand.status()["groups"][0]["hosts"]
        cluster[2].heal()
        story.say("node2 is healed")
        got = answers(asked, 50)
        story.say("all 50 answers are there")
        assert got == undisturbed(FIFTY)
        story.say("their ids are those of an undisturbed run")
        found = places(stand, lambda on: sorted(on) == ["node0", "node1", "node2"])
        story.say(f"node2 is used again: workers on {' '.join(found)}")
        deadline = time.monotonic() + 30
        while (left := workers_on(cluster, 2)) != 1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert left == 1, "the worker of the old epoch is still there"
        story.say("its worker of before is gone")


@pytest.mark.soak
@pytest.mark.parametrize("spares", [0, 1])
def test_a_host_is_switched_off_and_comes_back(undisturbed: Any, spares: int) -> None:
    story = Story()
    with hosts(3 + spares) as cluster:
        stand = Stand(cluster)
        log = stand.serve(*MODEL, "--batch", "2", *(["--spares", "1"] if spares else []))
        hit = stand.status()["groups"][0]["hosts"][1]
        host = next(host for host in cluster if host.name == hit)
        if host is cluster[0]:  # the server is there
            host = next(one for one in cluster if one.name == stand.status()["groups"][0]["hosts"][2])
        asked = stand.ask(FIFTY[:10], LONG, "off")
        asked.wait(lambda line: line.get("job") == 1, 120)
        host.power_off()
        story.blow(f"2 of 10 answers are there; {host.name} is switched off")
        noticed = recovered(log)
        story.say(f"going on; {noticed['reason']}; repaired in {noticed['seconds']:.2f} s by a {noticed['weights']}")
        assert noticed["weights"] == ("spare" if spares else "peer")
        assert answers(asked, 10) == undisturbed(FIFTY[:10], LONG)
        story.say("all answers are there, ids as undisturbed")
        host.heal()
        host.start()
        stand.join(host)
        stand.wait_for_hosts(3 + spares)
        story.say(f"{host.name} is switched on again, and has joined")
        if not spares:
            places(stand, lambda on: len(set(on)) == 3)
            story.say("its worker is back there")


@pytest.mark.soak
def test_a_frozen_host_counts_as_lost_until_it_thaws(undisturbed: Any) -> None:
    """Its kernel takes connections, and nobody behind them answers."""
    story = Story()
    with hosts(3) as cluster:
        stand = Stand(cluster, quick=False)
        log = stand.serve(*MODEL, "--batch", "2", "--liveness", str(LIVENESS))
        asked = stand.ask(FIFTY[:10], LONG, "frozen")
        asked.wait(lambda line: line.get("job") == 1, 120)
        cluster[1].freeze()
        story.blow("node1 is frozen")
        noticed = recovered(log)
        story.say(f"going on; {noticed['reason']}; repaired in {noticed['seconds']:.2f} s")
        assert noticed["seen"] - story.began < LIVENESS + 30
        cluster[1].thaw()
        story.say("node1 goes on")
        assert answers(asked, 10) == undisturbed(FIFTY[:10], LONG)
        places(stand, lambda on: len(set(on)) == 3)
        story.say("all answers are there, ids as undisturbed; node1 is used again")


@pytest.mark.soak
@pytest.mark.parametrize("spares", [0, 1])
def test_a_slow_host_is_noticed_and_replaced_by_a_spare(undisturbed: Any, spares: int) -> None:
    story = Story()
    with hosts(3 + spares) as cluster:
        stand = Stand(cluster)
        more = ["--metrics", "127.0.0.1:9464", *(["--spares", "1"] if spares else [])]
        log = stand.serve(*MODEL, "--batch", "2", *more)
        used = stand.status()["groups"][0]["hosts"]
        name = next(one for one in used if one != "node0")
        host = next(one for one in cluster if one.name == name)
        gauge = f'nap_stragglers{{host="{name}"}} 1.0'
        asked = stand.ask(FIFTY[:12], LONG, "slow")
        asked.wait(lambda line: line.get("job") == 1, 120)
        with host.slowed(0.1):
            story.blow(f"{name} runs at a tenth of its speed")
            slow = log.wait(lambda line: line.get("event") == "worker.slow", 60)
            story.say(f"noticed: worker {slow['worker']} on {slow['host']}, {slow['factor']} times as long")
            assert slow["host"] == name
            assert slow["seen"] - story.began < 20
            if spares:
                noticed = recovered(log)
                story.say(f"replaced by a {noticed['weights']} in {noticed['seconds']:.2f} s ({noticed['reason']})")
                assert name not in stand.status()["groups"][0]["hosts"]
                got = answers(asked, 12)
                story.say("all answers are there")
            else:
                # It is told while it lasts, and a host that is stopped and let go by turns is not slow at every moment.
                shown, figures = "", ""
                until = time.monotonic() + 30
                while f"on {name}: its steps take" not in shown or gauge not in figures:
                    assert time.monotonic() < until, f"{shown}\n{figures}"
                    shown = stand.head.run([BIN / "nap", "status"], cwd="/tmp").stdout
                    figures = stand.head.run(["curl", "-s", "http://127.0.0.1:9464/metrics"]).stdout
                print(shown)
        if not spares:
            got = answers(asked, 12)
        assert got == undisturbed(FIFTY[:12], LONG)


@pytest.mark.soak
def test_a_joining_host_is_used_for_waiting_jobs(undisturbed: Any) -> None:
    """Two groups of two workers on three hosts of one processor each: one group waits for a fourth."""
    story = Story()
    with hosts(4) as cluster:
        stand = Stand(cluster, quick=False, without=1)
        log = stand.serve("--model", "/mnt/model", "--workers", "2", "--groups", "2", "--batch", "2")
        waits = log.wait(lambda line: line.get("event") == "group.start_failed", 120)
        story.say(f"ready with one group; the other: {waits['reason']}")
        asked = stand.ask(FIFTY[:30], LONG, "join")
        asked.wait(lambda line: line.get("job") == 3, 120)
        since = len(log.lines)
        stand.join(cluster[3])
        story.blow("4 of 30 answers are there; node3 joins")
        log.wait(lambda line: line.get("event") == "group.ready", 90, since)
        story.say("the second group is ready")
        log.wait(lambda line: line.get("event") == "job.running" and line["group"] == waits["group"], 90, since)
        story.say("it decodes")
        assert answers(asked, 30) == undisturbed(FIFTY[:30], LONG)


@pytest.mark.soak
def test_the_head_restarts_and_no_acknowledged_job_is_lost(undisturbed: Any) -> None:
    """node0 is switched off with Ray's head, the server and its clients; its disk, with the journal, is kept."""
    story = Story()
    with hosts(3) as cluster:
        stand = Stand(cluster)
        stand.serve(*MODEL, "--batch", "3")
        asked = stand.ask(FIFTY[:15], LONG, "head")
        asked.wait(lambda line: line.get("job") == 5, 120)
        assert asked.lines[0]["submitted"] == 15
        cluster[0].kill()
        story.blow("15 jobs are acknowledged, 6 answered; the head is switched off")
        time.sleep(2.0)
        cluster[0].start()
        stand.start_head()
        stand.wait_for_hosts(3, 180)
        story.say("it is on again, and Ray has its three hosts")
        stand.serve(*MODEL, "--batch", "3")
        story.say("nap serve is ready again")
        again = stand.ask(FIFTY[:15], LONG, "head")  # the same keys: the same jobs, not new ones
        got = answers(again, 15)
        story.say("all 15 answers are there")
        jobs = stand.head.run([BIN / "nap", "jobs", "--limit", "100", "--json"], cwd="/tmp").stdout.splitlines()
        assert len(jobs) == 15
        assert got == undisturbed(FIFTY[:15], LONG)


@pytest.mark.soak
def test_ray_s_head_alone_is_lost(undisturbed: Any) -> None:
    """`nap serve` lives on; its group is started again as soon as there is a cluster."""
    story = Story()
    with hosts(3) as cluster:
        stand = Stand(cluster)
        log = stand.serve(*MODEL, "--batch", "3")
        asked = stand.ask(FIFTY[:15], LONG, "gcs")
        asked.wait(lambda line: line.get("job") == 5, 120)
        stand.stop_ray(cluster[0])
        story.blow("6 of 15 answers are there; Ray's head and its processes on node0 are killed")
        lost = log.wait(lambda line: line.get("event") in ("group.lost", "group.recovered"), 180)
        story.say(f"{lost['event']}: {lost['reason']}")
        stand.start_head()
        stand.wait_for_hosts(3, 180)
        story.say("Ray has its three hosts again")
        got = answers(asked, 15)
        story.say("all answers are there")
        assert got == undisturbed(FIFTY[:15], LONG)
        assert Path(cluster[0].tmp / "jobs.db").exists()
