"""One worker in a host of its own: the runtime's worker and communicator, led by JSON lines instead of Ray.

    python rank.py MODEL RANK WORLD ADDRESS

Rank 0 prints its group's port; each command on stdin is answered by a line. All ranks get the same commands in turn:
`{"do": "join", "port": …, "host": …}`, `{"do": "gather", "bytes": …, "times": …}`, `{"do": "decode", "scenario": …}`;
`{"do": "alone", "scenario": …}` is for one rank, which then decodes the canvas by itself.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch

from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.distributed.comm import Solo
from nap_runtime.distributed.torch_group import GroupAddress, TorchCommunicator, join_store, open_store
from nap_runtime.models.loading import load_weights, read_card
from nap_runtime.models.prompting import DecodeDefaults, build_layout, resolve
from nap_runtime.study.cost.scenario import Scenario
from nap_runtime.worker import BlockWorker, Report, Task

_CPU, _PATIENCE = torch.device("cpu"), timedelta(seconds=300)


class Rank:
    """A worker, and what it is asked for."""

    def __init__(self, model: str, rank: int, world: int, address: str) -> None:
        torch.set_num_threads(1)
        self._rank, self._world, self._address = rank, world, address
        self._card = read_card(model)
        self._weights = load_weights(self._card, dtype=torch.float32, device=_CPU)
        self._alone_worker = BlockWorker(self._weights, Solo(), dtype=torch.float32, device=_CPU)
        self._store: Any = None

    def open(self) -> int:
        """Rank 0: the port of the group's store."""
        if self._rank != 0:
            return 0
        self._store, address = open_store(self._address, _PATIENCE)
        return address.port

    def do(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a command."""
        answer: dict[str, Any] = getattr(self, f"_{asked.pop('do')}")(**asked)
        return answer

    def _join(self, port: int, host: str) -> dict[str, Any]:
        store = self._store or join_store(GroupAddress(host=host, port=port), _PATIENCE)
        self._comm = TorchCommunicator(store, rank=self._rank, world=self._world, device=_CPU, timeout=_PATIENCE)
        self._worker = BlockWorker(self._weights, self._comm, dtype=torch.float32, device=_CPU)
        return {}

    def _gather(self, bytes: int, times: int) -> dict[str, Any]:
        inp, out = torch.zeros(bytes, dtype=torch.uint8), torch.zeros((self._world, bytes), dtype=torch.uint8)
        self._comm.all_gather(out, inp)
        began = time.perf_counter()
        for _ in range(times):
            self._comm.all_gather(out, inp)
        return {"seconds": (time.perf_counter() - began) / times}

    def _decode(self, scenario: dict[str, Any]) -> dict[str, Any]:
        task = self._task(Scenario.from_mapping(scenario))
        self._gather(bytes=1, times=1)  # all begin at once
        return _timed(self._worker, task)

    def _alone(self, scenario: dict[str, Any]) -> dict[str, Any]:
        return _timed(self._alone_worker, self._task(Scenario.from_mapping(scenario)))

    def _task(self, scenario: Scenario) -> Task:
        """One canvas whose paths never close, so that every slot is committed as the cost model counts."""
        config = resolve(scenario.config.with_values(eos_weight=0.0), DecodeDefaults.of(self._card.path))
        layout = build_layout(self._card, config, scenario.prompt_tokens)
        layout = replace(layout, end_ids=((layout.mask_id,),) * (scenario.paths + 1))  # the mask is never predicted
        plan = Plan.of(layout, config, Assignment.even(scenario.paths, scenario.workers))
        return Task(plan=plan, prompts=(tuple(2 + at % 50 for at in range(scenario.prompt_tokens)),))


def _timed(worker: BlockWorker, task: Task) -> dict[str, Any]:
    began = time.perf_counter()
    outcome = worker.run(task, on_report=_nobody_listens, cancelled=lambda: False)
    seconds, meters = time.perf_counter() - began, outcome.meters
    return {
        "seconds": seconds,
        "blocked": meters.blocked_seconds,
        "compute": meters.compute_seconds,
        "wire_bytes": meters.wire_bytes,
        "ids": outcome.ids[0].tolist(),
    }


def _nobody_listens(_: Report) -> None:
    """Reports are made, as in the runtime."""


def main() -> None:
    """See the module."""
    model, rank, world, address = sys.argv[1:]
    led = Rank(model, int(rank), int(world), address)
    print(json.dumps({"port": led.open()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(led.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
