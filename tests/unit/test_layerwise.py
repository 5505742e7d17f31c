"""`exact` reads keys and values where they arrive: the same attention as over a canvas in order, and no copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nap_runtime.distributed.comm import ThreadCommunicator, ThreadGroup
from nap_runtime.distributed.layerwise import LayerKeys, LayerKeysBeside, LayerRows, LayerRowsBeside, layer_keys
from nap_runtime.distributed.wire import Clock, Wire
from nap_runtime.models.quantised import PackedStore
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.transformer import Attend, KVStore

CPU = torch.device("cpu")
HEADS, KV_HEADS, WIDTH = 4, 2, 4


def on_all(workers: int, work: Callable[[ThreadCommunicator], Tensor]) -> list[Tensor]:
    """What each worker of a simulated group gives."""
    group = ThreadGroup(workers)

    def guarded(comm: ThreadCommunicator) -> Tensor:
        try:
            return work(comm)
        except BaseException:
            group.abort()
            raise

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(guarded, group.members()))


def store_of(batch: int, positions: int, kind: type[KVStore] = KVStore) -> KVStore:
    held = torch.uint8 if kind is PackedStore else torch.float64
    return kind(*(torch.full((2, batch, KV_HEADS, positions, WIDTH), 7, dtype=held) for _ in range(2)))


@given(
    workers=st.integers(1, 4),
    widest=st.integers(1, 5),
    last=st.integers(1, 5),
    batch=st.integers(1, 2),
    overlap=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_attention_over_the_canvas(
    workers: int, widest: int, last: int, batch: int, overlap: bool, masked: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    shares = [widest] * (workers - 1) + [min(widest, last)]
    n = sum(shares)
    order = torch.randperm(n, generator=draw).split(shares)
    rows = [sorted(share.tolist()) for share in order]
    q, k, v = (
        torch.randn((batch, h, n, WIDTH), generator=draw, dtype=torch.float64) for h in (HEADS, KV_HEADS, KV_HEADS)
    )
    mask = (torch.rand((n, n), generator=draw) < 0.5) | torch.eye(n, dtype=torch.bool) if masked else None
    want = grouped_sdpa(q, k, v, mask)
    store = store_of(batch, n)

    def work(comm: ThreadCommunicator) -> Tensor:
        mine = rows[comm.rank]
        seen = None if mask is None else mask[mine]
        wire = Wire(comm, Clock(CPU))
        attend = layer_keys(wire, rows, store, seen, overlap=overlap, kept=False)
        assert type(attend) is (LayerRowsBeside if overlap else LayerRows)
        attend(0, q[:, :, mine], -k[:, :, mine], -v[:, :, mine])  # another layer before, in the same buffers
        got = attend(1, q[:, :, mine], k[:, :, mine], v[:, :, mine])
        assert wire.payload_bytes == (0 if workers == 1 else 2 * 2 * batch * KV_HEADS * len(mine) * WIDTH * 8)
        return got

    got = torch.empty_like(q)
    for mine, part in zip(rows, on_all(workers, work), strict=True):
        got[:, :, mine] = part
    torch.testing.assert_close(got, want)
    assert bool((store.k_LBGNE == 7).all()), "the store is left as it is"


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("rows", "kept", "kind", "direct"),
    [
        ([[0, 1], [2, 3]], False, KVStore, True),
        ([[0, 1], [2]], False, KVStore, True),
        ([[0], [1, 2]], False, KVStore, False),  # one row of padding would stand between the two
        ([[0, 1], [2, 3]], True, KVStore, False),
        ([[0, 1], [2, 3]], False, PackedStore, False),
    ],
)
def test_where_the_store_has_to_be_read_it_is(
    rows: Sequence[Sequence[int]], kept: bool, kind: type[KVStore], direct: bool, overlap: bool
) -> None:
    comm = ThreadGroup(2).members()[0]
    store = store_of(1, sum(map(len, rows)), kind)
    attend: Attend = layer_keys(Wire(comm, Clock(CPU)), rows, store, None, overlap=overlap, kept=kept)
    kinds = (LayerRows, LayerRowsBeside) if direct else (LayerKeys, LayerKeysBeside)
    assert type(attend) is kinds[overlap]
