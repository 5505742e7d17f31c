"""The exchanges inside a step, at every layer: `exact` (`layer_keys`) and `shared` (`Partials`), each an `Attend`.

Each has static buffers and one flat collective a layer. Uneven shares are padded to the largest.

Shapes: W workers, B batch, G key heads, H query heads, R rows of one worker (padded), M keys, N canvas, E head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nap_runtime.distributed.shares import RowShares, indices
from nap_runtime.distributed.wire import Wire
from nap_runtime.models.attention import PlacedAttention, attend_part, merge_partials, partial_attention
from nap_runtime.models.quantised import PackedStore
from nap_runtime.models.sdpa import Sdpa, grouped_sdpa
from nap_runtime.models.transformer import Attend, KVStore


def layer_keys(
    wire: Wire,
    rows_by_worker: Sequence[Sequence[int]],
    store: KVStore,
    mask_RN: Tensor | None,
    *,
    overlap: bool,
    kept: bool,
    ordered: Sdpa | None = None,
) -> Attend:
    """`exact`: inside a step, at every layer, K/V of the rows each worker computed.

    Args:
        rows_by_worker: the whole canvas, each row once.
        mask_RN: what this worker's rows see (None: everything).
        overlap: attention to the own keys runs while the others travel.
        kept: somebody reads the store later.
        ordered: attends in place of `grouped_sdpa`, to keys in the order of the canvas; not with overlap.
    """
    shares = RowShares(wire, rows_by_worker, store.k_LBGNE.device)
    if ordered is not None:
        assert not overlap, "parts of the keys have another order"
        return LayerKeys(shares, store, mask_RN, ordered)
    if shares.without_gaps and not kept and not isinstance(store, PackedStore):
        return (LayerRowsBeside if overlap else LayerRows)(shares, store, mask_RN)
    return (LayerKeysBeside if overlap else LayerKeys)(shares, store, mask_RN)


class LayerRows(PlacedAttention):
    """`exact`, inside a step, at every layer: attention reads K/V of all rows where they arrive. An `Attend`.

    Buffers are [M, 2, B, G, E], row after row: what the workers send, one after another, is one run of keys with one
    stride. Nothing is copied before the exchange and nothing after it, and the store is left as it is.

    Args:
        shares: without gaps.
        mask_RN: what this worker's rows see (None: everything).
    """

    def __init__(self, shares: RowShares, store: KVStore, mask_RN: Tensor | None) -> None:
        assert shares.without_gaps, "attention would read the padding between two workers' rows"
        k, self._shares = store.k_LBGNE, shares
        self._mask_RM = None if mask_RN is None else mask_RN.index_select(-1, torch.cat(shares.rows))
        self._columns_R = torch.arange(len(shares.mine), device=k.device)
        self._keys = sum(map(len, shares.rows))
        shape = (2, *k.shape[1:3], k.shape[-1])
        self._send = k.new_zeros((shares.widest, *shape))
        self._recv = k.new_zeros((len(shares.rows), shares.widest, *shape))
        self._all = self._recv.flatten(0, 1)[: self._keys]
        self._payload = shares.payload_of(self._send)

    def place(self, layer: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `PlacedAttention`: what is sent."""
        return self._columns_R, _keys_and_values(self._send)

    def placed(self, layer: int, q_BHRE: Tensor) -> Tensor:
        """See `PlacedAttention`: exchange this layer's keys and values, then attend to all of them."""
        with self._shares.wire.exchanging():
            self._shares.wire.all_gather(self._recv, self._send, payload_bytes=self._payload)
        return grouped_sdpa(q_BHRE, *_keys_and_values(self._all), self._mask_RM)


class LayerRowsBeside(LayerRows):
    """The same with overlap: while a layer's keys and values travel, the rows attend to those computed here.

    Attention over the peers' keys, those before the own ones and those behind, follows, and the parts are merged by
    their log-sum-exp: the same sums in another order. An `Attend`.
    """

    def placed(self, layer: int, q_BHRE: Tensor) -> Tensor:
        """Send, attend to the own rows' keys, wait, attend to the peers', merge."""
        shares, wire = self._shares, self._shares.wire
        begin = shares.rank * shares.widest
        end = begin + len(shares.mine)
        with wire.exchanging():
            gather = wire.start_all_gather(self._recv, self._send, payload_bytes=self._payload)
        parts = [self._attend(q_BHRE, self._send[: end - begin], begin)]
        with wire.exchanging():
            wire.arrive(gather)
        for start, stop in ((0, begin), (end, self._keys)):
            if start < stop:
                parts.append(self._attend(q_BHRE, self._all[start:stop], start))
        return merge_partials(torch.stack([o for o, _ in parts]), torch.stack([lse for _, lse in parts]))

    def _attend(self, q_BHRE: Tensor, rows_M2BGE: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Attend to a run of rows, of which `start` is the first one's column in the mask."""
        mask_RM = None if self._mask_RM is None else self._mask_RM[..., start : start + len(rows_M2BGE)]
        return attend_part(q_BHRE, *_keys_and_values(rows_M2BGE), mask_RM)


def _keys_and_values(rows_M2BGE: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a buffer as attention reads them: keys and values, [B, G, M, E] each, views."""
    k_BGME, v_BGME = rows_M2BGE.permute(1, 2, 3, 0, 4)
    return k_BGME, v_BGME


class LayerKeys:
    """The same where keys and values have to stand in the store, which attention reads then. An `Attend`.

    Args:
        mask_RN: what this worker's rows see (None: everything).
        sdpa: attends.
    """

    def __init__(self, shares: RowShares, store: KVStore, mask_RN: Tensor | None, sdpa: Sdpa = grouped_sdpa) -> None:
        k, self._shares = store.k_LBGNE, shares
        self._store, self._mask_RN, self._sdpa = store, mask_RN, sdpa
        shape = (2, *k.shape[1:3], shares.widest, k.shape[-1])
        self._send = k.new_zeros(shape)
        self._recv = k.new_zeros((len(shares.rows), *shape))
        self._payload = self._shares.payload_of(self._send)

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Exchange this layer's keys and values, then attend over the whole canvas."""
        with self._shares.wire.exchanging():
            self._pack(k_BGRE, v_BGRE)
            self._shares.wire.all_gather(self._recv, self._send, payload_bytes=self._payload)
            for (k_peer, v_peer), rows in zip(self._recv, self._shares.rows, strict=True):
                self._store.put(layer, rows, k_peer[..., : len(rows), :], v_peer[..., : len(rows), :])
        return self._sdpa(q_BHRE, *self._store.read(layer, q_BHRE.dtype), self._mask_RN)

    def _pack(self, k_BGRE: Tensor, v_BGRE: Tensor) -> None:
        rows = k_BGRE.shape[2]
        self._send[0, ..., :rows, :] = self._store.pack(k_BGRE)
        self._send[1, ..., :rows, :] = self._store.pack(v_BGRE)


class LayerKeysBeside(LayerKeys):
    """`exact` with overlap: while a layer's keys and values travel, the rows attend to those computed here.

    Attention over the peers' keys follows, and the parts are merged by their log-sum-exp: the same sums in another
    order. An `Attend`.
    """

    def __init__(self, shares: RowShares, store: KVStore, mask_RN: Tensor | None) -> None:
        super().__init__(shares, store, mask_RN)
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
        self._rows_R, self._keys_M, self._own_R, self._shared_R = indices(
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
