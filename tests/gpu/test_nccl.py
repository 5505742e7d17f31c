"""Two GPUs over NCCL give one GPU's ids. Needs two CUDA devices; skips itself elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nap_runtime import DecodeConfig, DecodeResult, SyncPolicy, close, decode
from nap_runtime.metrics.agreement import compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
EXACT = [
    SyncPolicy("exact"),
    SyncPolicy("tokens", every=1),
    SyncPolicy("shared", every=1),
    SyncPolicy("none", topology="isolated"),
]


@pytest.fixture(scope="module", autouse=True)
def _groups() -> Iterator[None]:
    yield
    close()


def run(sync: SyncPolicy, temperature: float, **where: object) -> DecodeResult:
    config = DecodeConfig(paths=2, steps=23, sync=sync, temperature=temperature, seed=3)
    return decode(QUESTION, config, device="cuda", dtype="float64", **where)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sync", EXACT, ids=lambda sync: sync.mode)
def test_two_gpus_give_one_gpus_ids(sync: SyncPolicy, temperature: float) -> None:
    alone = run(SyncPolicy("exact", topology=sync.sees), temperature)
    together = run(sync, temperature, workers=2)
    assert together.record.final_ids.tolist() == alone.record.final_ids.tolist()


CAPTURED = [
    SyncPolicy("exact"),
    SyncPolicy("exact", topology="hub"),
    SyncPolicy("exact", overlap=True),
    SyncPolicy("tokens", every=1),
]


@pytest.mark.parametrize("sync", CAPTURED, ids=lambda sync: f"{sync.mode}-{sync.sees}{'-overlap' * sync.overlap}")
def test_captured_exchanges_give_one_gpus_ids(sync: SyncPolicy) -> None:
    """Collectives inside CUDA graphs, and between them; the second decode replays what the first captured."""
    alone = run(SyncPolicy("exact", topology=sync.sees), 1.0)
    for _ in range(2):
        together = run(sync, 1.0, workers=2, compile="graph")
        assert together.record.final_ids.tolist() == alone.record.final_ids.tolist()


def test_captured_steps_between_stale_syncs_give_the_ids_of_plain_ones() -> None:
    sync = SyncPolicy("kv", every=4)
    plain = run(sync, 0.0, workers=2)
    captured = [run(sync, 0.0, workers=2, compile="graph") for _ in range(2)]
    assert {tuple(result.record.final_ids.tolist()) for result in captured} == {tuple(plain.record.final_ids.tolist())}


def test_exact_in_bfloat16_agrees_with_one_gpu() -> None:
    """Keys written by the kernel that rotates them into what is sent, and read where they arrive."""
    config = DecodeConfig(paths=2, steps=23, sync=SyncPolicy("exact"))
    where: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "compile": "graph"}
    alone, together = decode(QUESTION, config, **where), decode(QUESTION, config, workers=2, **where)
    found = compare(alone.record, together.record, rtol=0.02)
    assert found.agrees, found


STALE = [
    SyncPolicy("kv", every=4),
    SyncPolicy("tokens", every=3),
    SyncPolicy("none"),
    SyncPolicy("kv", overlap=True),
    SyncPolicy("tokens", every=3, overlap=True),
    SyncPolicy("kv", every=4, summary="consensus"),
    SyncPolicy("tokens", every=2, summary="live", settle=2),
]


@pytest.mark.parametrize("sync", STALE, ids=lambda s: f"{s.mode}{'-overlap' * s.overlap}-{s.summary}")
def test_the_simulation_gives_the_ids_of_real_workers(sync: SyncPolicy) -> None:
    simulated = run(sync, 0.0, workers=2, simulate=True)
    real = run(sync, 0.0, workers=2)
    assert real.record.final_ids.tolist() == simulated.record.final_ids.tolist()


def test_each_worker_has_a_device_of_its_own() -> None:
    from nap_runtime.api import make_executor
    from nap_runtime.models.loading import read_card

    close()  # the warm group of the tests before holds both devices
    executor = make_executor(read_card("nap-tiny"), workers=2, device="cuda")
    try:
        assert len({place.device for place in executor.places}) == 2
        assert len({place.process for place in executor.places}) == 2
    finally:
        executor.close()
