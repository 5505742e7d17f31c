"""The exchanges between steps, each with static buffers and one flat collective; `layerwise` has those inside a step.

`KVExchange` (`kv`), `TokenExchange` (`tokens`, `gather`) and `CandidateExchange` (scope `canvas`, summaries that
several workers score). Uneven shares are padded to the largest.

Shapes: W workers, B batch, G key heads, R rows of one worker (padded), E head_dim, L layers, S slots of one worker
(padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nap_runtime.decoding.state import CanvasState
from nap_runtime.distributed.shares import RowShares
from nap_runtime.distributed.wire import Beside, Wire
from nap_runtime.models.transformer import KVStore

TOKEN_BYTES = 8  # u32 id, u16 position, f16 confidence


class KVExchange:
    """Own rows' K/V of all layers, as of their last computation, in one flat buffer [2, L, B, G, R, E]."""

    def __init__(self, wire: Wire, rows_by_worker: Sequence[Sequence[int]], store: KVStore) -> None:
        k = store.k_LBGNE
        self._shares = RowShares(wire, rows_by_worker, k.device)
        self._store = store
        shape = (2, *k.shape[:3], self._shares.widest, k.shape[-1])
        self._send = k.new_zeros(shape)
        self._recv = k.new_zeros((wire.comm.world, *shape))
        self._payload = self._shares.payload_of(self._send)

    def run(self) -> None:
        """Exchange, and put the peers' keys and values into the store."""
        with self._shares.wire.exchanging():
            self._pack()
            self._shares.wire.all_gather(self._recv, self._send, payload_bytes=self._payload)
            self._unpack()

    def begin(self) -> Beside:
        """Send the own rows' keys and values as they are now, beside what is computed next."""
        with self._shares.wire.exchanging():
            self._pack()
            return self._shares.wire.start_all_gather(self._recv, self._send, payload_bytes=self._payload)

    def arrive(self, gather: Beside) -> None:
        """Wait for what `begin` began, and put the peers' keys and values into the store."""
        with self._shares.wire.exchanging():
            self._shares.wire.arrive(gather)
            self._unpack()

    def _pack(self) -> None:
        mine = self._shares.mine
        for half, source in zip(self._send, (self._store.k_LBGNE, self._store.v_LBGNE), strict=True):
            half[..., : len(mine), :] = source.index_select(3, mine)

    def _unpack(self) -> None:
        for rank, rows in self._shares.peers():
            for half, target in zip(self._recv[rank], (self._store.k_LBGNE, self._store.v_LBGNE), strict=True):
                target.index_copy_(3, rows, half[..., : len(rows), :])


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker has told its peers of its tokens, counted on the device.

    Attributes:
        tokens: how many, int64 [].
        before_B: of each canvas the step before which all has been told, int64 [B].
    """

    tokens: Tensor
    before_B: Tensor

    @classmethod
    def nothing(cls, batch: int, device: torch.device) -> Told:
        """Before the first exchange of a batch."""
        zeros = torch.zeros(batch + 1, dtype=torch.int64, device=device)
        return cls(zeros[0], zeros[1:])

    def restart(self) -> None:
        """Count from the beginning of another batch."""
        self.tokens.zero_()
        self.before_B.zero_()

    def first(self, lanes: int) -> Told:
        """The same counters, for an exchange of the first so many canvases."""
        return Told(self.tokens, self.before_B[:lanes])


class TokenExchange:
    """Committed ids and confidences of every worker's slots, as a dense buffer [2, B, S] of 32-bit words.

    A dense buffer has one shape however many tokens were committed; the payload counts only what is new, in `told`.
    """

    def __init__(
        self,
        wire: Wire,
        slots_by_worker: Sequence[Sequence[int]],
        state: CanvasState,
        mask_id: int,
        told: Told,
    ) -> None:
        self._shares = RowShares(wire, slots_by_worker, state.ids.device)
        self._state, self._mask_id, self._told = state, mask_id, told
        shape = (2, state.ids.shape[0], self._shares.widest)
        self._send = state.ids.new_full(shape, -1, dtype=torch.int32)
        self._recv = state.ids.new_full((wire.comm.world, *shape), -1, dtype=torch.int32)

    def run(self, step: int) -> None:
        """Exchange what was decided before `step`, and adopt the peers' tokens."""
        with self._shares.wire.exchanging():
            self._pack(step)
            self._shares.wire.all_gather(self._recv, self._send, payload_bytes=0)
            self._unpack()

    def begin(self, step: int) -> Beside:
        """Send what was decided before `step`, beside what is computed next."""
        with self._shares.wire.exchanging():
            self._pack(step)
            return self._shares.wire.start_all_gather(self._recv, self._send, payload_bytes=0)

    def arrive(self, gather: Beside) -> None:
        """Wait for what `begin` began, and adopt the peers' tokens."""
        with self._shares.wire.exchanging():
            self._shares.wire.arrive(gather)
            self._unpack()

    def _pack(self, step: int) -> None:
        mine = self._shares.mine
        self._send[0, :, : len(mine)] = self._state.committed_ids(mine)
        self._send[1, :, : len(mine)] = self._state.score[:, mine].float().view(torch.int32)
        told = self._told
        told.tokens.add_((self._state.step[:, mine] >= told.before_B.unsqueeze(-1)).sum())
        told.before_B.fill_(step)

    def _unpack(self) -> None:
        for rank, slots in self._shares.peers():
            self._state.adopt(slots, self._recv[rank, 0, :, : len(slots)].long(), self._mask_id)


class CandidateExchange:
    """Every worker's candidates, so that all pick the same ones: K values each (id, score, for some rules more).

    Args:
        values: K.
        slots_by_worker: a partition of `slots`: whose candidate counts for which slot.
        slots: the region that is picked from, in canvas order.
    """

    def __init__(
        self,
        wire: Wire,
        slots_by_worker: Sequence[Sequence[int]],
        slots: Sequence[int],
        *,
        values: int,
        batch: int,
        device: torch.device,
    ) -> None:
        place = {slot: index for index, slot in enumerate(slots)}
        self._shares = RowShares(wire, [[place[s] for s in mine] for mine in slots_by_worker], device)
        self._n = len(slots)
        shape = (values, batch, self._shares.widest)
        self._send = torch.zeros(shape, dtype=torch.float64, device=device)
        self._recv = torch.zeros((wire.comm.world, *shape), dtype=torch.float64, device=device)

    def run(self, mine_KBS: Tensor) -> Tensor:
        """Values of this worker's slots in, those of the whole region out, float64 [K, B, S]: ids are exact in it."""
        with self._shares.wire.exchanging():
            mine = mine_KBS.shape[-1]
            self._send[..., :mine] = mine_KBS
            self._shares.wire.all_gather(self._recv, self._send, payload_bytes=mine_KBS.numel() * 8)
            all_KBS = self._send.new_empty((*self._send.shape[:2], self._n))
            for rank, places in enumerate(self._shares.rows):
                all_KBS.index_copy_(2, places, self._recv[rank, ..., : len(places)])
        return all_KBS
