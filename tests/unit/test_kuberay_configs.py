"""Files for Kubernetes against their schemas, and what they promise.

Kubernetes' own objects: the strict schemas of Kubernetes that kubernetes-validate carries. RayCluster and RayJob:
tests/data/kuberay-1.7.schema.yaml, and the CRDs themselves where NAP_KUBERAY_CRDS names a folder with them.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import nap_runtime
from nap_runtime.cli.app import build_parser
from nap_runtime.cli.parser import parse

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = sorted((ROOT / "cluster_configs").glob("kuberay/*.yaml"))
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
KUBERNETES = "1.37"


def objects() -> list[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object: a name for test ids, and the object."""
    found = []
    for path in KUBERAY:
        for thing in yaml.safe_load_all(path.read_text()):
            found.append((f"{path.name}-{thing['kind']}-{thing['metadata']['name']}", thing))
    return found


OBJECTS = objects()


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [thing for _, thing in OBJECTS if thing["kind"] == kind]


def the(kind: str, name: str) -> dict[str, Any]:
    return next(thing for thing in of_kind(kind) if thing["metadata"]["name"] == name)


def registry() -> Any:
    """Kubernetes' strict definitions, by the name that our schema calls them."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    from referencing import Registry, Resource

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    return Resource.from_contents(json.loads((folder / "_definitions.json").read_text())) @ Registry()


def kuberay_errors(thing: dict[str, Any]) -> list[str]:
    """What the schema of KubeRay has against an object."""
    import jsonschema
    from referencing import Resource

    schema = yaml.safe_load((ROOT / "tests" / "data" / "kuberay-1.7.schema.yaml").read_text())
    schema |= {"$ref": f"#/$defs/{thing['kind']}"}
    validator = jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ registry())
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(thing)
    ]


def of_ray(thing: dict[str, Any]) -> bool:
    return bool(thing["apiVersion"] == "ray.io/v1")


@pytest.mark.parametrize(("name", "thing"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_every_object_fits_its_schema(name: str, thing: dict[str, Any]) -> None:
    if of_ray(thing):
        assert kuberay_errors(thing) == []
    else:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", [os.environ.get("NAP_KUBERAY_CRDS")])
def test_every_object_fits_the_crds_where_they_are_given(folder: str | None) -> None:
    """NAP_KUBERAY_CRDS: a folder with KubeRay's CRD files, as `kubectl get crd … -o yaml` or its chart has them."""
    if folder is None:
        pytest.skip("NAP_KUBERAY_CRDS names no folder with KubeRay's CRDs")
    import jsonschema

    schemas = {}
    for path in Path(folder).glob("*.yaml"):
        for crd in yaml.safe_load_all(path.read_text()):
            for version in crd["spec"]["versions"]:
                if version["name"] == "v1":
                    schemas[crd["spec"]["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
    for thing in filter(of_ray, (thing for _, thing in OBJECTS)):
        jsonschema.Draft202012Validator(schemas[thing["kind"]]).validate(thing)


BREAKS: list[tuple[str, Any]] = [
    ("spec/workerGroupSpecs/0/maxReplicas", "six"),
    ("spec/workerGroupSpecs/0/replica", 1),
    ("spec/workerGroupSpecs/0/rayStartParams/num-gpus", 1),
    ("spec/authOptions/mode", "tokens"),
    ("spec/autoscalerOptions/version", "v3"),
    ("spec/headGroupSpec/template/spec/containers/0/livenessProbe/httpGet/prt", 1),
    ("spec/headGroupSpec/template/spec/containers/0/resources/limit", {}),
    ("spec/gcsFaultToleranceOptions/redisPassword", "plain"),
    ("spec/headGroupSpec/template/spec/volumes/0/emptydir", {}),
]


@pytest.mark.parametrize(("where", "value"), BREAKS, ids=[where for where, _ in BREAKS])
def test_the_schema_notices(where: str, value: Any) -> None:
    thing = copy.deepcopy(the("RayCluster", "nap"))
    assert kuberay_errors(thing) == []
    *path, last = where.split("/")
    part: Any = thing
    for step in path:
        part = part[int(step)] if isinstance(part, list) else part[step]
    part[last] = value
    assert kuberay_errors(thing) != []


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod that the files lead to."""
    cluster = the("RayCluster", "nap")["spec"]
    found = [("head", cluster["headGroupSpec"]["template"])]
    found += [(group["groupName"], group["template"]) for group in cluster["workerGroupSpecs"]]
    found += [(job["metadata"]["name"], job["spec"]["submitterPodTemplate"]) for job in of_kind("RayJob")]
    found += [(thing["metadata"]["name"], thing["spec"]["template"]) for thing in of_kind("StatefulSet")]
    return found


PODS = pods()


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_pods_run_under_the_restricted_standard(name: str, pod: dict[str, Any]) -> None:
    """Kubernetes' pod security standard `restricted`, which the namespace enforces; and limits, and probes."""
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"secret", "emptyDir", "configMap", "projected", "downwardAPI", "persistentVolumeClaim"}
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    assert all(set(volume) - {"name"} <= allowed for volume in volumes.values())
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert re.search(r":[\w.]*\d[\w.-]*$", container["image"]), f"not pinned: {container['image']}"
        known = set(volumes) | {claim["metadata"]["name"] for thing in of_kind("StatefulSet") for claim in
                                thing["spec"]["volumeClaimTemplates"]}  # fmt: skip
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= known
    if "restartPolicy" not in spec:
        assert all({"livenessProbe", "readinessProbe"} <= set(container) for container in spec["containers"])


@pytest.mark.parametrize(("name", "pod"), [pod for pod in PODS if pod[0] in ("head", "gpu-spot", "gpu-on-demand")])
def test_ray_pods_have_token_and_tls(name: str, pod: dict[str, Any]) -> None:
    """Only the init container sees the authority's key; Ray's container finds what that one leaves."""
    spec = pod["spec"]
    assert the("RayCluster", "nap")["spec"]["authOptions"] == {"mode": "token", "secretName": "nap-ray-token"}
    environment = {entry["name"]: entry["value"] for entry in spec["containers"][0]["env"]}
    assert environment["RAY_USE_TLS"] == "1"
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["tls"] == {"name": "tls", "mountPath": "/etc/ray/tls", "readOnly": True}
    assert "ca" not in mounts
    for key, file in (("CA_CERT", "ca.crt"), ("SERVER_CERT", "tls.crt"), ("SERVER_KEY", "tls.key")):
        assert environment[f"RAY_TLS_{key}"] == f"/etc/ray/tls/{file}"
    (init,) = spec["initContainers"]
    assert init["image"] == spec["containers"][0]["image"]
    assert init["command"][:4] == ["ray-tls", "node", "/etc/ray/ca", "/etc/ray/tls"]


def test_the_certificates_command_makes_what_ray_needs(tmp_path: Path) -> None:
    """The very command of the init container, with its folders here; OpenSSL says what came out."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    script = ROOT / "scripts" / "ray-tls.sh"
    subprocess.run([script, "ca", tmp_path / "ca"], check=True)
    command = the("RayCluster", "nap")["spec"]["headGroupSpec"]["template"]["spec"]["initContainers"][0]["command"]
    here = {"/etc/ray/ca": str(tmp_path / "ca"), "/etc/ray/tls": str(tmp_path / "tls"), "$(POD_IP)": "10.1.2.3"}
    subprocess.run([script, *(here.get(word, word) for word in command[1:])], check=True)
    for option, value in (("-verify_ip", "10.1.2.3"), ("-verify_hostname", "nap-head-svc.nap.svc.cluster.local"),
                          ("-verify_hostname", "other-head-svc.nap.svc"), ("-verify_ip", "127.0.0.1")):  # fmt: skip
        verify = ["openssl", "verify", "-CAfile", tmp_path / "ca" / "ca.crt", option, value]
        subprocess.run([*verify, tmp_path / "tls" / "tls.crt"], check=True, capture_output=True)
    wrong = ["openssl", "verify", "-CAfile", tmp_path / "ca" / "ca.crt", "-verify_ip", "10.1.2.4"]
    assert subprocess.run([*wrong, tmp_path / "tls" / "tls.crt"], check=False, capture_output=True).returncode != 0
    assert (tmp_path / "tls" / "tls.key").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "tls" / "ca.key").exists()
    again = subprocess.run([script, "ca", tmp_path / "ca"], check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_versions_are_this_release_s(walk: Callable[[Any], Iterator[tuple[str, Any]]]) -> None:
    assert the("RayCluster", "nap")["spec"]["rayVersion"] == PINS["ray"]
    images = {value for _, thing in OBJECTS for key, value in walk(thing) if key == "image" and "nap-runtime" in value}
    assert images == {f"registry.example/nap-runtime:{nap_runtime.__version__}-{kind}" for kind in ("cpu", "cuda")}


@pytest.mark.parametrize("job", of_kind("RayJob"), ids=lambda job: job["metadata"]["name"])
def test_entrypoints_are_commands_of_ours(job: dict[str, Any]) -> None:
    words = job["spec"]["entrypoint"].split()
    assert words[0] == "nap"
    parse(build_parser(), words[1:])
    (labels,) = [cluster["metadata"]["name"] for cluster in of_kind("RayCluster")]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": labels}


# -- who may talk to whom ------------------------------------------------------------------------------------------

RAY = {"ray.io/is-ray-node": "yes", "ray.io/cluster": "nap"}
WHO: dict[str, dict[str, Any]] = {
    "head": {"namespace": "nap", "labels": RAY | {"ray.io/node-type": "head"}},
    "worker": {"namespace": "nap", "labels": RAY | {"ray.io/node-type": "worker"}},
    "redis": {"namespace": "nap", "labels": {"app.kubernetes.io/name": "nap-redis"}},
    "cleanup": {"namespace": "nap", "labels": {"ray.io/node-type": "redis-cleanup", "ray.io/cluster": "nap"}},
    "submitter": {"namespace": "nap", "labels": {"nap-runtime/submitter": "true"}},
    "client": {"namespace": "shop", "labels": {"nap-runtime/client": "true"}},
    "stranger": {"namespace": "nap", "labels": {}},
    "operator": {"namespace": "kuberay-system", "labels": {"app.kubernetes.io/name": "kuberay-operator"}},
    "prometheus": {"namespace": "monitoring", "labels": {"app.kubernetes.io/name": "prometheus"}},
    "dns": {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
    "storage": {"address": "203.0.113.5"},
    "metadata": {"address": "169.254.169.254"},
}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def is_peer(peer: dict[str, Any], who: dict[str, Any]) -> bool:
    """As Kubernetes reads a peer: a pod selector alone means the policy's own namespace."""
    if "ipBlock" in peer:
        address = who.get("address")
        block = peer["ipBlock"]
        return bool(address) and in_network(address, block["cidr"]) and not any(
            in_network(address, network) for network in block.get("except", [])
        )  # fmt: skip
    if "address" in who:
        return False
    names = {"kubernetes.io/metadata.name": who["namespace"]}
    there = selects(peer["namespaceSelector"], names) if "namespaceSelector" in peer else who["namespace"] == "nap"
    return there and selects(peer.get("podSelector", {}), who["labels"])


def in_network(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


def permits(side: str, one: dict[str, Any], other: dict[str, Any], port: int, protocol: str) -> bool:
    """Whether `one`'s side of the connection is allowed: by no policy at all, or by a rule of one."""
    if "address" in one or one["namespace"] != "nap":
        return True  # no policy of ours
    policies = [
        policy["spec"]
        for policy in of_kind("NetworkPolicy")
        if selects(policy["spec"]["podSelector"], one["labels"]) and side.title() in policy["spec"]["policyTypes"]
    ]
    assert policies, "deny-all selects every pod"
    for rule in (rule for policy in policies for rule in policy.get(side, [])):
        ports = [(entry["protocol"], entry["port"]) for entry in rule.get("ports", [])]
        peers = rule.get("from" if side == "ingress" else "to", [])
        if any(is_peer(peer, other) for peer in peers) and (not ports or (protocol, port) in ports):
            return True
    return False


def may(source: str, target: str, port: int, protocol: str = "TCP") -> bool:
    one, other = WHO[source], WHO[target]
    return permits("egress", one, other, port, protocol) and permits("ingress", other, one, port, protocol)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("worker", "head", 6379), ("head", "worker", 52365), ("worker", "worker", 40123),
        ("head", "head", 8265), ("head", "redis", 6379), ("cleanup", "redis", 6379),
        ("worker", "storage", 443), ("head", "storage", 6443), ("submitter", "head", 8265),
        ("operator", "head", 8265), ("client", "head", 50051), ("prometheus", "head", 8080),
        ("prometheus", "worker", 8080), ("worker", "dns", 53), ("submitter", "dns", 53),
        ("cleanup", "dns", 53),
    ],
)  # fmt: skip
def test_who_may(source: str, target: str, port: int) -> None:
    assert may(source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("stranger", "head", 6379), ("stranger", "head", 8265), ("stranger", "worker", 40123),
        ("stranger", "redis", 6379), ("client", "head", 8265), ("client", "head", 6379),
        ("client", "worker", 50051), ("stranger", "head", 50051), ("submitter", "head", 6379),
        ("submitter", "worker", 8265), ("operator", "head", 6379), ("operator", "worker", 8265),
        ("prometheus", "head", 8265), ("prometheus", "redis", 6379), ("client", "redis", 6379),
        ("worker", "metadata", 80), ("worker", "metadata", 443), ("worker", "storage", 80),
        ("redis", "storage", 443), ("stranger", "storage", 443), ("submitter", "storage", 443),
        ("cleanup", "head", 6379),
    ],
)  # fmt: skip
def test_who_may_not(source: str, target: str, port: int) -> None:
    assert not may(source, target, port)
