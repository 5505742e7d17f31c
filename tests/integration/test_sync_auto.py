"""`--sync auto` from end to end, and where the workers stand for a sync."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nap_runtime import DecodeConfig, SyncPolicy, choose_sync
from nap_runtime.cli.app import main
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.distributed.comm import ThreadGroup
from nap_runtime.distributed.probe import fit, probe
from nap_runtime.errors import UsageError
from nap_runtime.executor.ray_cluster import ClusterOptions, reserve
from nap_runtime.policy import placement_for

SMALL = ["--workers", "2", "--simulate", "--paths", "2", "--path-tokens", "8", "--steps", "6"]


# --- the command line ---


def test_what_was_chosen_is_said_and_recorded(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.nap"
    args = ["decode", *SMALL, "--sync", "auto", "--link", "wan", "--json", "--trace", str(trace)]
    assert main(args) == 0
    out, said = capsys.readouterr()
    assert said.count("\n") == 1
    assert said.startswith("nap: sync auto: none, 2 workers over link wan: predicted overhead ")
    found = json.loads(out)
    assert found["config"]["sync"]["mode"] == found["sync"]["mode"] == "none"
    assert DecodeRecord.from_bytes(trace.read_bytes()).config["sync"]["mode"] == "none"
    assert "auto" not in out


def test_print_config_prints_what_was_chosen(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["decode", *SMALL, "--sync", "auto", "--link", "nvlink", "--overhead", "0.5", "--print-config"]
    assert main(args) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["sync"]["mode"] == "exact"
    assert not {"link", "overhead", "auto"} & yaml.safe_load(text).keys()
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert main(["decode", "--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == text


def test_a_file_may_ask_for_it_and_options_win(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("sync: {mode: auto, topology: hub}\nlink: nvlink\noverhead: 0.9\n")
    assert main(["decode", *SMALL, "--config", str(file), "--link", "wan", "--print-config"]) == 0
    chosen = yaml.safe_load(capsys.readouterr().out)["sync"]
    assert chosen["topology"] == "hub"
    assert chosen["mode"] != "exact"  # 30 ms twice a layer and step


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--link", "1g"], "--link: only sync 'auto' uses it"),
        (["--overhead", "0.2"], "--overhead: only sync 'auto' uses it"),
        (["--sync", "auto", "--every", "4"], "--every: sync 'auto' chooses it"),
        (["--sync", "auto", "--overlap"], "--overlap: sync 'auto' chooses it"),
        (["--sync", "auto", "--link", "7g"], "--link: '7g' is neither a file nor one of nvlink"),
        (["--sync", "auto", "--overhead", "2"], "--overhead: 2.0 is no share"),
        (["--placement", "spread"], "--placement: only several workers run on Ray"),
        (["--placement", "tight"], "--placement: unknown value 'tight'"),
    ],
)
def test_wrong_options_are_one_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", *SMALL, *args]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_server_knows_its_link(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sync: {mode: auto}\nlink: 25g\n")
    assert main(["submit", "--config", str(tmp_path / "c.yaml"), "A question"]) == 2
    assert "link: the server decides it" in capsys.readouterr().err
    assert main(["serve", "--link", "7g"]) == 2
    assert "--link: '7g' is neither a file nor one of nvlink" in capsys.readouterr().err


def test_commands_that_measure_nothing_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "words", "--workers", "2", "--sync", "auto"]) == 2
    assert "--link: this command measures none for --sync auto" in capsys.readouterr().err


# --- Python ---


def test_from_python() -> None:
    config = DecodeConfig(paths=2, path_tokens=8, steps=6, sync=SyncPolicy(topology="isolated"))
    choice = choose_sync(config, workers=2, link="1g")
    assert choice.policy == SyncPolicy("none", topology="isolated")
    assert choose_sync(config, workers=1).policy.mode == "exact"
    with pytest.raises(UsageError, match="workers: 3 workers for 2 paths"):
        choose_sync(config, workers=3, link="1g")


# --- measuring ---


def test_a_fit_by_hand() -> None:
    """Two rounds of 1 ms and 0.5 s a MB: 2 · (0.001 + 0.0005) and 2 · (0.001 + 0.5) seconds."""
    found = fit(3, 0.003, 1.002, small_bytes=1000, large_bytes=1_000_000)
    assert found.bandwidth == pytest.approx(2e6)
    assert found.latency == pytest.approx(1e-3)
    faster = fit(2, 0.002, 0.001, small_bytes=64, large_bytes=1_000_000)
    assert faster.bandwidth > 1e12


def test_a_group_measures_itself() -> None:
    from concurrent.futures import ThreadPoolExecutor

    members = ThreadGroup(2).members()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda comm: probe(comm, torch.device("cpu")), members))
    assert all(0 < one.latency < 1 and one.bandwidth > 1e6 for one in found)


# --- placement, on three hosts of one CPU and one of two ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for cpus in (1, 1, 2):
        made.add_node(num_cpus=cpus)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def hosts_of(bundles: int, placement: Any) -> tuple[int, str]:
    from ray.util.placement_group import placement_group_table, remove_placement_group

    group, got = reserve({"CPU": 1.0}, bundles, ClusterOptions(placement=placement, start_timeout=20))
    nodes = set(placement_group_table(group)["bundles_to_node_id"].values())
    remove_placement_group(group)
    return len(nodes), got


def test_exact_and_kv_stay_on_a_host_that_has_room(cluster: Any) -> None:
    assert {placement_for("exact"), placement_for("kv")} == {"one-host"}
    assert hosts_of(2, "one-host") == (1, "strict-pack")
    assert hosts_of(2, "strict-pack") == (1, "strict-pack")


def test_where_none_has_room_they_stand_apart(cluster: Any) -> None:
    hosts, got = hosts_of(3, "one-host")
    assert (hosts > 1, got) == (True, "pack")


def test_the_others_spread(cluster: Any) -> None:
    assert {placement_for("tokens"), placement_for("shared"), placement_for("none")} == {"spread"}
    assert hosts_of(3, "spread") == (3, "spread")


def test_a_strict_pack_that_cannot_be_names_the_mend_at_once(cluster: Any) -> None:
    text = "placement: no host has room for 3 workers of 1 CPU each; the largest has 2. Use pack or spread"
    with pytest.raises(UsageError, match=text):
        hosts_of(3, "strict-pack")


def test_a_cluster_without_room_says_so(cluster: Any) -> None:
    options = ClusterOptions(placement="spread", start_timeout=1)
    with pytest.raises(UsageError, match="the cluster has 5 CPU where 6 workers need 1 each"):
        reserve({"CPU": 1.0}, 6, options)


# --- workers on a cluster of their own: measured, chosen, decoded ---


def test_measured_chosen_decoded(cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["decode", "--workers", "2", "--paths", "2", "--path-tokens", "8", "--steps", "6", "--overhead", "0.9"]
    assert main([*args, "--sync", "auto", "--address", cluster.address, "--placement", "spread", "--json"]) == 0
    out, err = capsys.readouterr()
    (said,) = [line for line in err.splitlines() if line.startswith("nap: sync auto: ")]
    assert " 2 workers on 1 host, measured " in said  # four nodes of one host
    found = json.loads(out)
    assert said.startswith(f"nap: sync auto: {found['sync']['mode']}")
    assert found["config"]["placement"] == "spread"
