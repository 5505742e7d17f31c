"""The processes of one training: who they are, and what they tell each other beside gradients.

A launcher (`deepspeed`, torchrun, Ray) describes the processes by environment variables: RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT. Without them a process is alone, and its group needs no port. What is said here goes over the
CPU and is text or numbers, never pickled objects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
from torch import Tensor
from torch import distributed as dist

from nap_runtime.errors import ModelError, NapError, UsageError

_LET_GO = 0.1  # seconds
TIMEOUT = timedelta(minutes=30)  # rank 0 may read, convert or write a large checkpoint while the others wait
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's rank and device among the `world` processes of a training (or alone)."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def of_environment(cls, local_rank: int | None = None) -> Self:
        """Read the launcher's variables; without them this process is alone. Starts nothing.

        `local_rank` is what a `--local_rank` argument said; LOCAL_RANK goes before it.

        Raises:
            UsageError: a variable is malformed or missing, or this machine has fewer GPUs than ranks.
        """
        world, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
        local = _number("LOCAL_RANK", local_rank or 0)
        missing = [name for name in _NEEDED if name not in os.environ]
        if world > 1 and missing:
            raise UsageError(f"{missing[0]} is not set, but WORLD_SIZE is {world}: start through a launcher")
        if not 0 <= rank < world:
            raise UsageError(f"RANK is {rank}, but WORLD_SIZE is {world}: start through a launcher")
        if not torch.cuda.is_available():
            return cls(rank, world, torch.device("cpu"))
        gpus = torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(f"LOCAL_RANK is {local}, but this machine has {gpus} GPUs: start fewer ranks")
        return cls(rank, world, torch.device("cuda", local))

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def connect(self) -> None:
        """Join the process group, a group of one where this process is alone. Later calls do nothing."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if dist.is_initialized():
            return
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        if self.world == 1:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)
        else:
            dist.init_process_group(backend, rank=self.rank, world_size=self.world, timeout=TIMEOUT)

    def disconnect(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
            # Gloo's thread lets go of the last collective's tensors a moment after we hear of its end, and needs the
            # interpreter for that. If the interpreter is on its way out by then, the process aborts.
            time.sleep(_LET_GO)

    def barrier(self) -> None:
        """Wait until every rank is here; over the CPU."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))

    def total(self, values: Tensor) -> Tensor:
        """Replace a tensor by its sum over the ranks, and return it."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def agreed(self, value: float) -> float:
        """Rank 0's value, over the CPU so that no GPU waits."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared.item())

    def agree_on(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with rank 0's."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def told(self, text: str) -> str:
        """Rank 0's text; what the others give is ignored."""
        if self.world == 1:
            return text
        size = int(self.agreed(len(text.encode())))
        letters = torch.zeros(size, dtype=torch.uint8)
        if self.leads:
            letters = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if size else letters
        if size:
            dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()

    def complaint(self, text: str) -> str:
        """The first rank's text that is not empty, on every rank; empty if all are."""
        if self.world == 1:
            return text
        size = torch.tensor([len(text.encode())])
        sizes = [torch.zeros_like(size) for _ in range(self.world)]
        dist.all_gather(sizes, size)
        speaker = next((rank for rank, length in enumerate(sizes) if int(length)), None)
        if speaker is None:
            return ""
        letters = torch.zeros(int(sizes[speaker]), dtype=torch.uint8)
        if self.rank == speaker:
            letters = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        dist.broadcast(letters, speaker)
        return bytes(letters.tolist()).decode()

    @contextmanager
    def together(self, failure: type[NapError] = ModelError) -> Iterator[None]:
        """A part that every rank enters: if it fails on one, every rank raises, and none waits for the others.

        The part must hold no collective. An error of ours or of the system's (a full disk) becomes `failure`, of one
        line; a rank keeps its own error as it is.
        """
        problem: Exception | None = None
        try:
            yield
        except (NapError, OSError) as error:
            problem = error
        text = self.complaint("" if problem is None else str(problem) or type(problem).__name__)
        if isinstance(problem, NapError):
            raise problem
        if text:
            raise failure(text) from problem


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}: a launcher sets it to a whole number")
    return int(text)
