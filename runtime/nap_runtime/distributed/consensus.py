"""Summary `consensus`: every worker scores the summary from its own view, and log-probabilities are averaged.

Only the `top` best ids of each slot travel. An id that a worker did not name counts log((1 − Σ top) / (V − top)) there,
an even share of what its named ids leave. Shapes: W workers, B canvases, S slots, T named ids, C = W·T, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nap_runtime.decoding.confidence import LOWEST
from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.distributed.wire import Wire


@dataclass(frozen=True, slots=True)
class Opinions:
    """What every worker thinks of the summary: `ids` and `log_p` [W, B, S, T]; `rest` [W, B, S] of any other id."""

    ids: Tensor
    log_p: Tensor
    rest: Tensor

    def of(self, asked_BSC: Tensor) -> Tensor:
        """Mean over workers of the log-probabilities of some ids. Shape [B, S, C]."""
        total = torch.zeros(asked_BSC.shape, dtype=self.log_p.dtype, device=asked_BSC.device)
        for ids, log_p, rest in zip(self.ids, self.log_p, self.rest, strict=True):
            named_BSCT = asked_BSC.unsqueeze(-1) == ids.unsqueeze(-2)
            own_BSC = torch.where(named_BSCT, log_p.unsqueeze(-2), -torch.inf).amax(-1)
            total += torch.where(named_BSCT.any(-1), own_BSC, rest.unsqueeze(-1))
        return (total / len(self.ids)).clamp_min(LOWEST)


class ConsensusExchange:
    """Tells every worker the others' opinions: one buffer [B, S, 2T + 1] of float64, in which ids are exact.

    Args:
        top: T, at most the vocabulary.
    """

    def __init__(self, wire: Wire, *, batch: int, slots: int, top: int, device: torch.device) -> None:
        self._wire, self._top = wire, top
        self._send = torch.zeros((batch, slots, 2 * top + 1), dtype=torch.float64, device=device)
        self._recv = torch.zeros((wire.comm.world, *self._send.shape), dtype=torch.float64, device=device)

    def run(self, logits_BSV: Tensor) -> Opinions:
        """This worker's scores in, everybody's opinions out."""
        top = self._top
        log_p_BSV = logits_BSV.double().log_softmax(-1)
        best = log_p_BSV.topk(top, dim=-1)
        others_BS = log_p_BSV.scatter(-1, best.indices, -torch.inf).logsumexp(-1)
        count = max(log_p_BSV.shape[-1] - top, 1)
        with self._wire.exchanging():
            self._send[..., :top], self._send[..., top:-1] = best.indices.double(), best.values
            self._send[..., -1] = others_BS - math.log(count)
            self._wire.all_gather(self._recv, self._send, payload_bytes=self._send.nbytes)
            got = self._recv.clone()
        return Opinions(got[..., :top].long(), got[..., top:-1], got[..., -1])


def consensus(
    opinions: Opinions, *, temperature: float, seed: int, positions: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """The ids with the best mean log-probability (with Gumbel noise where temperature > 0), and those means. [B, S].

    `positions` of the slots: [S] or [B, S]. Of equal ones the lowest id. All workers come to the same, because all read
    the same opinions in the same order.
    """
    named_BSC = opinions.ids.permute(1, 2, 0, 3).flatten(2)
    mean_BSC = opinions.of(named_BSC)
    drawn_BSC = mean_BSC
    if temperature:
        at = positions.unsqueeze(-1)
        u_BSC = uniform(seed, ids=named_BSC, positions=at, step=step, purpose=Purpose.TOKEN)
        drawn_BSC = mean_BSC - temperature * torch.log(-torch.log(u_BSC))
    best_BSC = drawn_BSC == drawn_BSC.amax(-1, keepdim=True)
    ids_BS = torch.where(best_BSC, named_BSC, torch.iinfo(torch.int64).max).amin(-1)
    chosen_BSC = named_BSC == ids_BS.unsqueeze(-1)
    return ids_BS, torch.where(chosen_BSC, mean_BSC, -torch.inf).amax(-1)
