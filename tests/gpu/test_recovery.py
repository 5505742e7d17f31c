"""A worker of an NCCL group that is killed or frozen is replaced in seconds. Needs two CUDA devices; skips itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nap_runtime import DecodeConfig, DecodeResult, SyncPolicy, decode
from nap_runtime.executor.coordinator import Coordinator, Observer
from nap_runtime.job import DecodeJob
from nap_runtime.models.loading import read_card

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
CONFIG = DecodeConfig(paths=2, sync=SyncPolicy("exact"), temperature=1.0, seed=3, control_every=2)


@pytest.fixture(scope="module")
def group() -> Iterator[Any]:
    from nap_runtime.executor.ray_executor import ClusterOptions, RayExecutor

    options = ClusterOptions(timeout=600, liveness=3.0)
    executor = RayExecutor("nap-tiny", workers=2, dtype=torch.float64, device="cuda", cluster=options)
    yield executor
    executor.close()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=lambda sign: sign.name)
def test_a_lost_nccl_peer_is_aborted_not_waited_for(group: Any, sign: signal.Signals) -> None:
    """The collectives' own timeout is ten minutes; the group is whole again long before."""
    alone = decode(QUESTION, CONFIG, device="cuda", dtype="float64")

    class Strike(Observer):
        struck = 0.0
        seconds = 0.0

        def on_report(self, batch: Any, report: Any) -> None:
            if not self.struck and report.step >= 8:
                self.struck = time.monotonic()
                os.kill(group.places[1].process, sign)

        def on_recovery(self, batch: Any, recovery: Any) -> None:
            self.seconds = time.monotonic() - self.struck
            print(f"\n{sign.name}: {recovery}, {self.seconds:.2f} s after the signal")

    strike = Strike()
    coordinator = Coordinator(read_card("nap-tiny"), group)
    (result,) = coordinator.decode([DecodeJob(question=QUESTION)], CONFIG, observer=strike)
    assert isinstance(result, DecodeResult)
    assert result.record.final_ids.tolist() == alone.record.final_ids.tolist()
    assert 0 < strike.seconds < 60
