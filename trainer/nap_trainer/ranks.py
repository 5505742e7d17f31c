"""The processes of one training: the only place here that talks to other ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's rank and device among `world` processes that torchrun started (or alone)."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def of_environment(cls) -> Self:
        """Read torchrun's variables; without them this process is alone. Starts nothing."""
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), device)

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def connect(self) -> None:
        """Join the process group; nothing for one process."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend)

    def disconnect(self) -> None:
        """Leave the process group."""
        if self.world > 1:
            dist.destroy_process_group()

    def average(self, values: Tensor) -> None:
        """Replace a tensor by its mean over the ranks."""
        if self.world > 1:
            dist.all_reduce(values)
            values.div_(self.world)

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
