"""A host without a GPU may drive workers that have one: the head of a cluster, a Kubernetes submitter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nap_runtime.api import check_device, runs_elsewhere
from nap_runtime.cli.session import open_card
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import UsageError
from nap_runtime.service import group
from nap_runtime.service.settings import GroupSettings
from nap_runtime.study.run import Reader, _checked
from nap_runtime.study.spec import RunSpec


@pytest.fixture(autouse=True)
def no_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_where_workers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_elsewhere(on_ray=True, address="head:6379")
    assert not runs_elsewhere(on_ray=True, address=None)  # a local cluster is started
    assert not runs_elsewhere(on_ray=False, address="head:6379")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # as in a job of `ray job submit`
    assert runs_elsewhere(on_ray=True, address=None)


def test_an_unknown_device_is_one_everywhere() -> None:
    for elsewhere in (True, False):
        with pytest.raises(UsageError, match="device"):
            check_device("tpu", elsewhere=elsewhere)


def test_a_decode() -> None:
    assert open_card(Settings(workers=3, device="cuda", address="head:6379")).name == "nap-tiny"
    for settings in (Settings(workers=3, device="cuda"), Settings(device="cuda")):
        with pytest.raises(UsageError, match="no CUDA device"):
            open_card(settings)


def test_a_group_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def executor(reference: str, **options: Any) -> Any:
        asked.update(options, reference=reference)
        raise UsageError("workers: the cluster has no room", field="workers")

    monkeypatch.setattr("nap_runtime.executor.ray_executor.RayExecutor", executor)
    with pytest.raises(UsageError, match="no room"):
        group.make_coordinator(GroupSettings(workers=3, device="cuda", address="head:6379"))
    assert (asked["reference"], asked["device"]) == ("nap-tiny", "cuda")
    with pytest.raises(UsageError, match="no CUDA device"):
        group.make_coordinator(GroupSettings(workers=3, device="cuda"))


@pytest.mark.parametrize(("address", "fits"), [("head:6379", True), (None, False)])
def test_a_study(address: str | None, fits: bool) -> None:
    values = {"workers": 3, "device": "cuda", "steps": 33} | ({"address": address} if address else {})
    spec = RunSpec(values=values)
    if fits:
        assert _checked(Reader(), spec, "s").card.name == "nap-tiny"
    else:
        with pytest.raises(UsageError, match="no CUDA device"):
            _checked(Reader(), spec, "s")
