"""The exchanges, each with static buffers and one flat collective.

`KVExchange` (`kv`), `LayerKeys` (`exact`), `Partials` (`shared`), `TokenExchange` (`tokens`, `gather`) and
`CandidateExchange` (scope `canvas`, summaries that several workers score). Uneven shares are padded to the largest.

Shapes: W workers, B batch, G key heads, H query heads, R rows of one worker (padded), N canvas, E head_dim, L layers,
S slots of one worker (padded).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nap_runtime.decoding.state import CanvasState
from nap_runtime.distributed.wire import Beside, Wire
from nap_runtime.models.attention import attend_part, merge_partials, partial_attention
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.transformer import KVStore

TOKEN_BYTES = 8  # u32 id, u16 position, f16 confidence


def _indices(rows: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    return [torch.tensor(list(r), dtype=torch.int64, device=device) for r in rows]


class _RowShares:
    """Who computes which rows, as index tensors; `widest` is what buffers are padded to."""

    def __init__(self, wire: Wire, rows_by_worker: Sequence[Sequence[int]], device: torch.device) -> None:
        self.wire, self.rank = wire, wire.comm.rank
        self.rows = _indices(rows_by_worker, device)
        self.widest = max(len(r) for r in rows_by_worker)

    @property
    def mine(self) -> Tensor:
        """This worker's rows."""
        return self.rows[self.rank]

    def payload_of(self, buffer: Tensor) -> int:
        """Bytes of a padded buffer that hold this worker's rows."""
        return buffer.nbytes * len(self.mine) // self.widest

    def peers(self) -> list[tuple[int, Tensor]]:
        """Every other worker with its rows."""
        return [(rank, rows) for rank, rows in enumerate(self.rows) if rank != self.rank]


class KVExchange:
    """Own rows' K/V of all layers, as of their last computation, in one flat buffer [2, L, B, G, R, E]."""

    def __init__(self, wire: Wire, rows_by_worker: Sequence[Sequence[int]], store: KVStore) -> None:
        k = store.k_LBGNE
        self._shares = _RowShares(wire, rows_by_worker, k.device)
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


class LayerKeys:
    """`exact`: inside a step, at every layer, K/V of the rows each worker computed. An `Attend`.

    Args:
        mask_RN: what this worker's rows see (None: everything).
    """

    def __init__(
        self, wire: Wire, rows_by_worker: Sequence[Sequence[int]], store: KVStore, mask_RN: Tensor | None
    ) -> None:
        k = store.k_LBGNE
        self._shares = _RowShares(wire, rows_by_worker, k.device)
        self._store, self._mask_RN = store, mask_RN
        shape = (2, *k.shape[1:3], self._shares.widest, k.shape[-1])
        self._send = k.new_zeros(shape)
        self._recv = k.new_zeros((wire.comm.world, *shape))
        self._payload = self._shares.payload_of(self._send)

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Exchange this layer's keys and values, then attend over the whole canvas."""
        with self._shares.wire.exchanging():
            self._pack(k_BGRE, v_BGRE)
            self._shares.wire.all_gather(self._recv, self._send, payload_bytes=self._payload)
            for (k_peer, v_peer), rows in zip(self._recv, self._shares.rows, strict=True):
                self._store.put(layer, rows, k_peer[..., : len(rows), :], v_peer[..., : len(rows), :])
        return grouped_sdpa(q_BHRE, *self._store.read(layer, q_BHRE.dtype), self._mask_RN)

    def _pack(self, k_BGRE: Tensor, v_BGRE: Tensor) -> None:
        rows = k_BGRE.shape[2]
        self._send[0, ..., :rows, :] = self._store.pack(k_BGRE)
        self._send[1, ..., :rows, :] = self._store.pack(v_BGRE)


class LayerKeysBeside(LayerKeys):
    """`exact` with overlap: while a layer's keys and values travel, the rows attend to those computed here.

    Attention over the peers' keys follows, and the parts are merged by their log-sum-exp: the same sums in another
    order. An `Attend`.
    """

    def __init__(
        self, wire: Wire, rows_by_worker: Sequence[Sequence[int]], store: KVStore, mask_RN: Tensor | None
    ) -> None:
        super().__init__(wire, rows_by_worker, store, mask_RN)
        self._masks = [None if mask_RN is None else mask_RN.index_select(-1, rows) for rows in self._shares.rows]

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Send, attend to the own rows' keys, wait, attend to the peers', merge."""
        shares, wire = self._shares, self._shares.wire
        with wire.exchanging():
            self._pack(k_BGRE, v_BGRE)
            gather = wire.start_all_gather(self._recv, self._send, payload_bytes=self._payload)
        parts = [self._attend(layer, q_BHRE, shares.rank, shares.mine, self._send)]
        with wire.exchanging():
            wire.arrive(gather)
        parts += [self._attend(layer, q_BHRE, rank, rows, self._recv[rank]) for rank, rows in shares.peers()]
        return merge_partials(torch.stack([o for o, _ in parts]), torch.stack([lse for _, lse in parts]))

    def _attend(self, layer: int, q_BHRE: Tensor, rank: int, rows_M: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Put one worker's keys and values into the store, and attend to them."""
        k_BGMX, v_BGMX = (half[..., : len(rows_M), :] for half in held)
        self._store.put(layer, rows_M, k_BGMX, v_BGMX)
        keys, values = (self._store.unpack(x, q_BHRE.dtype) for x in (k_BGMX, v_BGMX))
        return attend_part(q_BHRE, keys, values, self._masks[rank])


class Partials:
    """`shared` (hub): own rows attend locally; the shared rows' attention is merged from every worker's part.

    A worker's part covers the keys of its own paths; worker 0's also the shared keys, so that each key counts once.
    Path keys and values never travel. An `Attend`.

    Args:
        rows: rows of this step, ascending; `own` and `shared` split them.
        own_keys: rows of this worker's paths, whether computed in this step or not.
        shared_keys: all shared rows.
        mask_RN: what the own rows of this step see.
        real: of given keys [M] those that are no padding (None: all), as `partial_attention` takes a mask.
    """

    def __init__(
        self,
        wire: Wire,
        store: KVStore,
        *,
        rows: Sequence[int],
        own: Sequence[int],
        own_keys: Sequence[int],
        shared_keys: Sequence[int],
        mask_RN: Tensor | None,
        real: Callable[[Tensor], Tensor | None] = lambda _: None,
    ) -> None:
        mine = set(own)
        counted = [*own_keys, *(shared_keys if wire.comm.rank == 0 else ())]
        own_at = [index for index, row in enumerate(rows) if row in mine]
        shared_at = [index for index, row in enumerate(rows) if row not in mine]
        self._wire, self._store, self._mask_RN = wire, store, mask_RN
        self._rows_R, self._keys_M, self._own_R, self._shared_R = _indices(
            [rows, counted, own_at, shared_at], store.k_LBGNE.device
        )
        self._real = real(self._keys_M)

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Store, attend locally for own rows, merge partial attention for shared rows."""
        self._store.write(layer, self._rows_R, k_BGRE, v_BGRE)
        keys, values = self._store.read(layer, q_BHRE.dtype)
        out_BHRE = torch.empty_like(q_BHRE)
        if len(self._own_R):
            own = grouped_sdpa(q_BHRE.index_select(2, self._own_R), keys, values, self._mask_RN)
            out_BHRE.index_copy_(2, self._own_R, own)
        q_shared = q_BHRE.index_select(2, self._shared_R)
        counted = keys.index_select(2, self._keys_M), values.index_select(2, self._keys_M)
        o, lse = partial_attention(q_shared, *counted, self._real)
        return out_BHRE.index_copy_(2, self._shared_R, self._merge(o, lse))

    def _merge(self, o_BHRE: Tensor, lse_BHR: Tensor) -> Tensor:
        """One collective: output and log-sum-exp side by side, in the precision of the log-sum-exp."""
        with self._wire.exchanging():
            mine = torch.cat((o_BHRE.to(lse_BHR.dtype), lse_BHR.unsqueeze(-1)), dim=-1)
            everyone = mine.new_empty((self._wire.comm.world, *mine.shape))
            self._wire.all_gather(everyone, mine, payload_bytes=mine.nbytes)
        return merge_partials(everyone[..., :-1], everyone[..., -1]).to(o_BHRE.dtype)


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
        self._shares = _RowShares(wire, slots_by_worker, state.ids.device)
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
        self._shares = _RowShares(wire, [[place[s] for s in mine] for mine in slots_by_worker], device)
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
