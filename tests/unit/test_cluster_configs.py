"""Files for `ray up`: Ray's own `prepare_config` and `validate_config` (ray-schema.json) take them, its own scheduler
prefers spot and falls back to on-demand, and they keep what they promise. Kubernetes: test_kuberay_configs.py.
"""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "cluster_configs"
RAY_UP = sorted(path for path in CONFIGS.glob("*.yaml") if "provider" in yaml.safe_load(path.read_text()))
CLOUDS = [CONFIGS / "aws.yaml", CONFIGS / "gcp.yaml"]
KUBERAY = sorted(CONFIGS.glob("kuberay/*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_yaml_is_overlooked() -> None:
    known = {*RAY_UP, *KUBERAY, CONFIGS / "prometheus.yml", CONFIGS / "alerts.yml"}
    known |= set(CONFIGS.glob("grafana/provisioning/**/*.y*ml"))
    assert set(CONFIGS.rglob("*.y*ml")) == known
    assert {"aws.yaml", "gcp.yaml"} <= {path.name for path in RAY_UP}


# -- ray up --------------------------------------------------------------------------------------------------------


def prepared(path: Path) -> dict[str, Any]:
    """The file as `ray up` would use it: with Ray's defaults for what it leaves out."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(yaml.safe_load(path.read_text())))
    return config


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_ray_takes_the_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import validate_config

    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the local provider keeps a file about its hosts
    validate_config(prepared(path))


@pytest.mark.parametrize("path", CLOUDS, ids=name_of)
@pytest.mark.parametrize("wrong", [{"max_wrkers": 3}, {"head_node_type": "heat"}, {"max_workers": -1}])
def test_ray_refuses_what_is_wrong(path: Path, wrong: dict[str, Any]) -> None:
    """The oracle notices: else the test above would say nothing."""
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    config = prepared(path) | wrong
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(config)


@pytest.mark.parametrize("path", CLOUDS, ids=name_of)
def test_what_is_to_be_edited_says_so(path: Path) -> None:
    """Placeholders are marked where they stand first, and nothing that looks real stands in their place."""
    lines = path.read_text().splitlines()
    first: dict[str, int] = {}
    for number, line in enumerate(lines):
        for word in re.findall(r"[\w./@-]*EDIT[\w./@-]*", line):
            first.setdefault(word, number)
    assert first
    for word, number in first.items():
        assert any("# edit" in line for line in lines[number - 1 : number + 1]), word
    assert not re.search(r"\bami-[0-9a-f]{8,}|\bsg-[0-9a-f]{8,}|\bsubnet-[0-9a-f]{8,}", path.read_text())


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.y*ml")), ids=name_of)
def test_no_secret_is_in_a_file(path: Path, walk: Callable[[Any], Iterator[tuple[str, Any]]]) -> None:
    text = path.read_text()
    assert not re.search(r"BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}|\b[0-9a-f]{40,}\b", text)
    for thing in yaml.safe_load_all(text):
        for key, value in walk(thing):
            if re.search(r"(?i)password|token|secret$", key) and isinstance(value, str):
                assert value in ("token", "required") or key == "automountServiceAccountToken", (key, value)
        assert not isinstance(thing, dict) or thing.get("kind") != "Secret"


@pytest.mark.parametrize("path", CLOUDS, ids=name_of)
def test_nodes_get_what_on_prem_hosts_get(path: Path) -> None:
    """One way to set a host up: the same files, the same script, the same secrets."""
    config, on_prem = yaml.safe_load(path.read_text()), yaml.safe_load((CONFIGS / "on-prem.yaml").read_text())
    home = "/home/ubuntu/"
    ours = {there.removeprefix(home): here for there, here in config["file_mounts"].items()}
    assert ours == {there.removeprefix("~/"): here for there, here in on_prem["file_mounts"].items()}
    assert all((ROOT / here).exists() for here in ours.values())
    synced = [there.removeprefix(home) for there in config["cluster_synced_files"]]
    assert synced == [there.removeprefix("~/") for there in on_prem["cluster_synced_files"]]
    for key in ("head_setup_commands", "worker_setup_commands"):
        assert config[key][0] == on_prem[key][0]


@pytest.mark.parametrize("path", CLOUDS, ids=name_of)
def test_commands_are_shell_and_versions_are_pinned(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    commands = [line for key, lines in config.items() if key.endswith("_commands") for line in lines]
    assert len(commands) >= 9
    for command in commands:
        checked = subprocess.run(["bash", "-n"], input=command, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
        if "pip install" in command:
            assert "-c ~/nap-runtime/constraints.txt" in command
            extras = re.split(r"\]\"?", command)[-1].split()
            assert all("==" in word for word in extras), f"not pinned: {extras}"


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_the_dashboard_stays_on_loopback(path: Path) -> None:
    """Whoever reaches it may run code: tunnels do."""
    for command in prepared(path)["head_start_ray_commands"]:
        assert "dashboard-host" not in command.replace("--dashboard-host=127.0.0.1", "")


def test_aws_nodes_ask_for_a_token_at_the_metadata_service_and_encrypt_their_disks() -> None:
    for node in yaml.safe_load((CONFIGS / "aws.yaml").read_text())["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])
        assert node["node_config"]["SecurityGroupIds"], "Ray's own group is open to the world on port 22"


# -- spot, and on-demand where there is none ---------------------------------------------------------------------------


def launched(path: Path, recovered: dict[str, float], gpus: int = 3, group: bool = True) -> dict[str, int]:
    """What Ray's scheduler would start, of the file's node types, for a group of workers with one GPU each."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest

    config = AutoscalingConfig(configs=yaml.safe_load(path.read_text()), skip_content_hash=True)
    requests = [ResourceRequestUtil.make({"GPU": 1.0}) for _ in range(gpus)]
    demand: dict[str, Any] = {"resource_requests": ResourceRequestUtil.group_by_count(requests)}
    if group:
        demand = {"gang_resource_requests": [GangResourceRequest(requests=requests)]}
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_worker_nodes(),
        recoverable_resource_availabilities=recovered,
        disable_launch_config_check=True,
        **demand,
    )
    # The event logger needs a cluster; its absence is allowed.
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    found: dict[str, int] = {}
    for launch in reply.to_launch:
        found[launch.instance_type] = found.get(launch.instance_type, 0) + launch.count
    return found


@pytest.mark.parametrize("path", CLOUDS, ids=name_of)
@pytest.mark.parametrize("group", [True, False], ids=["placement group", "tasks"])
def test_spot_comes_first_and_on_demand_after_a_failed_start(path: Path, group: bool) -> None:
    assert launched(path, {}, group=group) == {"spot": 3}
    assert launched(path, {"spot": 0.0}, group=group) == {"on-demand": 3}
    assert launched(path, {"spot": 0.5}, group=group) == {"on-demand": 3}  # half of the waiting time has passed
    assert launched(path, {"spot": 1.0}, group=group) == {"spot": 3}
