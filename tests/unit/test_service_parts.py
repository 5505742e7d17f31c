"""The service's pure parts: the fair queue, canvas deltas, tokens and scopes, settings, failpoints."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.decoding.record import CanvasDelta
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import BusyError, RecordError, UsageError
from nap_runtime.service import access, failpoints
from nap_runtime.service.access import Caller, Tokens
from nap_runtime.service.deltas import apply_deltas, pack_deltas, unpack_deltas
from nap_runtime.service.fair import FairQueue, Waiting
from nap_runtime.service.settings import GroupSettings, Limits, ServerSettings

# -- the queue --------------------------------------------------------------------------------------------------------


def job(row: int, *, owner: str = "a", **more: Any) -> Waiting:
    values = {"id": str(row), "row": row, "owner": owner, "priority": 0, "cost": 10, "shape": "s", **more}
    return Waiting(**values)


def order(queue: FairQueue, now: float = 0.0, limit: int = 1) -> list[str]:
    found: list[str] = []
    while batch := queue.take(now, limit):
        found += [taken.id for taken in batch]
    return found


def test_priority_then_submission() -> None:
    queue = FairQueue()
    for row, priority in enumerate((0, 5, 0, -5, 5)):
        queue.add(job(row, priority=priority))
    assert order(queue) == ["1", "4", "0", "2", "3"]


def test_owners_share_whatever_they_queue() -> None:
    """Ada queued a hundred jobs first; of the first twenty that run, ten are Bob's."""
    queue = FairQueue()
    for row in range(100):
        queue.add(job(row, owner="ada"))
    for row in range(100, 110):
        queue.add(job(row, owner="bob"))
    first = [int(name) for name in order(queue)[:20]]
    assert sum(row >= 100 for row in first) == 10


def test_cost_counts_not_jobs() -> None:
    queue = FairQueue()
    for row in range(12):
        queue.add(job(row, owner="big", cost=30))
        queue.add(job(100 + row, owner="small", cost=10))
    first = [int(name) for name in order(queue)[:12]]
    assert sum(row < 100 for row in first) == 3


def test_idle_owners_save_up_nothing() -> None:
    queue = FairQueue()
    for row in range(50):
        queue.add(job(row, owner="old"))
    for _ in range(40):
        queue.take(0.0, 1)
    for row in range(100, 110):
        queue.add(job(row, owner="late"))
    first = [int(name) for name in order(queue)[:6]]
    assert sum(row >= 100 for row in first) == 3


def test_waiting_raises_the_rank() -> None:
    queue = FairQueue(ageing=10.0)
    queue.add(job(0, priority=-3, since=0.0))
    queue.add(job(1, priority=0, since=31.0))
    assert queue.take(31.0, 1)[0].id == "0"


def test_batches_have_one_shape_and_the_suspect_is_alone() -> None:
    queue = FairQueue()
    shapes = "xyxxy"
    for row, shape in enumerate(shapes):
        queue.add(job(row, shape=shape, alone=row == 2))
    assert [[taken.id for taken in queue.take(0.0, 8)] for _ in range(3)] == [["0", "3"], ["1", "4"], ["2"]]
    assert queue.take(0.0, 8) == []


def test_retries_wait() -> None:
    queue = FairQueue()
    queue.add(job(0, not_before=5.0))
    assert (queue.take(4.0, 1), queue.next_wake(4.0)) == ([], 5.0)
    assert queue.take(5.0, 1)[0].id == "0"
    assert queue.next_wake(5.0) is None


def test_a_long_queue_is_quick() -> None:
    queue = FairQueue()
    for row in range(10_000):
        queue.add(job(row, owner=str(row % 7), shape=row % 2))
    began = time.perf_counter()
    for _ in range(10):
        assert len(queue.take(0.0, 32)) == 32
    assert time.perf_counter() - began < 2.0


def test_full_queues_refuse() -> None:
    queue = FairQueue(capacity=3, per_owner=2)
    queue.add(job(0))
    queue.check_room("a")
    with pytest.raises(BusyError, match="1 jobs of this token"):
        queue.check_room("a", quota=1)
    queue.add(job(1))
    with pytest.raises(BusyError, match="2 jobs of this token"):
        queue.check_room("a")
    queue.check_room("b")
    with pytest.raises(BusyError, match="queue is full"):
        queue.check_room("b", coming=1)
    queue.remove("0")
    queue.check_room("a")


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.integers(1, 50), st.sampled_from("xy"), st.booleans()),
        max_size=40,
    ),
    st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_job_leaves_once(jobs: list[tuple[str, int, int, str, bool]], limit: int) -> None:
    queue = FairQueue()
    for row, (owner, priority, cost, shape, alone) in enumerate(jobs):
        queue.add(job(row, owner=owner, priority=priority, cost=cost, shape=shape, alone=alone))
    seen: list[str] = []
    while batch := queue.take(0.0, limit):
        assert len(batch) <= limit
        assert len({taken.shape for taken in batch}) == 1
        assert len(batch) == 1 or not any(taken.alone for taken in batch)
        seen += [taken.id for taken in batch]
    assert sorted(seen, key=int) == [str(row) for row in range(len(jobs))]
    assert len(queue) == 0


# -- deltas -----------------------------------------------------------------------------------------------------------


def delta(positions: list[int], ids: list[int], step: int = 3, kind: Kind = Kind.COMMIT) -> CanvasDelta:
    return CanvasDelta(
        step=step,
        worker=1,
        kind=kind,
        positions=np.array(positions, dtype=np.int64),
        ids=np.array(ids, dtype=np.int64),
        log_confidence=np.log(np.linspace(0.25, 1.0, len(ids))),
    )


def test_a_token_takes_eight_bytes_in_the_stated_order() -> None:
    data = pack_deltas([delta([7], [2**32 - 1])], size=9)
    version, size, entries = msgpack.unpackb(data)
    assert (version, size, entries[0][:3]) == (1, 9, [3, 1, 1])
    assert entries[0][3] == b"\xff\xff\xff\xff" + b"\x07\x00" + np.float16(0.25).tobytes()


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2**32 - 1)), max_size=30))
@settings(max_examples=50, deadline=None)
def test_deltas_come_back(tokens: list[tuple[int, int]]) -> None:
    given_delta = delta([p for p, _ in tokens], [i for _, i in tokens])
    (back,) = unpack_deltas(pack_deltas([given_delta], size=100))
    assert back.positions.tolist() == given_delta.positions.tolist()
    assert back.ids.tolist() == given_delta.ids.tolist()
    np.testing.assert_allclose(np.exp(back.log_confidence), np.exp(given_delta.log_confidence), rtol=1e-3)


GOOD = pack_deltas([delta([1, 2], [5, 6]), delta([3], [7], kind=Kind.FILL)], size=10)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not msgpack"),
        (GOOD[:-1], "not msgpack"),
        (GOOD + b"\x00", "not msgpack"),
        (msgpack.packb([2, 10, []]), "version 2"),
        (msgpack.packb([1, 0, []]), "canvas of 0"),
        (msgpack.packb([1, 70_000, []]), "canvas of 70000"),
        (msgpack.packb([1, True, []]), "canvas of True"),
        (msgpack.packb([1, 10, [[0, 0, 1]]]), "entry"),
        (msgpack.packb([1, 10, [[-1, 0, 1, b""]]]), "-1"),
        (msgpack.packb([1, 10, [[0, 0, 99, b""]]]), "99"),
        (msgpack.packb([1, 10, [[0, 0, 1, b"1234567"]]]), "7 bytes"),
        (pack_deltas([delta([10], [5])], size=10), "position 10"),
        (msgpack.packb({"a": 1}), "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),  # an array of 2^32 − 1
        (b"\xc6\xff\xff\xff\xff", "not msgpack"),  # bytes of 4 GiB
        (msgpack.packb([1, 10, [[0, 0, 1, b"x" * (8 * 65_537)]]]), "not msgpack"),
    ],
)
def test_malformed_deltas_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        unpack_deltas(data)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_bytes_are_deltas_or_a_record_error(data: bytes) -> None:
    try:
        unpack_deltas(data)
    except RecordError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_deltas_apply_in_order() -> None:
    ids = np.full(10, -7, dtype=np.int64)
    apply_deltas(ids, unpack_deltas(GOOD))
    assert ids.tolist() == [-7, 5, 6, 7, -7, -7, -7, -7, -7, -7]
    with pytest.raises(RecordError, match="position 3"):
        apply_deltas(ids[:3], unpack_deltas(GOOD))


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_known_by_their_hash_alone(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = access.new_token(file, "ada", ["submit"], queued=5)
    access.new_token(file, "root", ["admin"])
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    tokens = Tokens.read(file)
    assert tokens.caller(token) == Caller(name="ada", scopes=frozenset({"submit"}), queued=5)
    assert tokens.caller(token + "x") is None
    assert tokens.caller("") is None
    with pytest.raises(UsageError, match="taken"):
        access.new_token(file, "ada", ["read"])


def test_scopes() -> None:
    reader, submitter, admin = (Caller(name=n, scopes=frozenset({s})) for n, s in
                                (("r", "read"), ("s", "submit"), ("a", "admin")))  # fmt: skip
    assert [c.may("submit") for c in (reader, submitter, admin)] == [False, True, True]
    assert [c.sees("s") for c in (reader, submitter, admin)] == [True, True, True]
    assert [c.sees("x") for c in (reader, submitter, admin)] == [True, False, True]
    assert [c.cancels("s") for c in (reader, submitter, admin)] == [False, True, True]
    assert [c.cancels("x") for c in (reader, submitter, admin)] == [False, False, True]


@pytest.mark.parametrize(
    "line",
    [
        "not json secret",
        "[]",
        '{"name": "a", "scopes": ["root"], "sha256": "secret"}',
        '{"name": "a", "scopes": ["read"], "sha256": "secret"}',
        '{"name": "a b", "scopes": ["read"], "sha256": "secret"}',
        '{"name": "a", "scopes": ["read"]}',
        '{"name": "a", "scopes": ["read"], "sha256": "' + "0" * 64 + '", "queued": 0}',
        '{"name": "a", "scopes": ["read"], "sha256": "' + "0" * 64 + '", "more": 0}',
    ],
)
def test_wrong_lines_are_named_not_shown(tmp_path: Path, line: str) -> None:
    file = tmp_path / "tokens"
    file.write_text("\n" + line + "\n")
    with pytest.raises(UsageError, match=r"tokens:2") as caught:
        Tokens.read(file)
    assert "secret" not in str(caught.value)


def test_a_tokens_file_without_tokens_lets_nobody_in(tmp_path: Path) -> None:
    for file in (tmp_path / "none", tmp_path / "empty"):
        if file.name == "empty":
            file.write_text("\n")
        with pytest.raises(UsageError):
            Tokens.read(file)
    line = json.dumps({"name": "a", "scopes": ["read"], "sha256": "0" * 64})
    file.write_text(f"{line}\n{line}\n")
    with pytest.raises(UsageError, match="twice"):
        Tokens.read(file)


def test_bearer_values() -> None:
    assert [access.bearer(v) for v in (None, "", "Bearer", "Basic x", "Bearer  t ", "bearer t")] == [
        *(None, None, None, None),
        *("t", "t"),
    ]


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.168.1.2:1", "[::]:1", "example.org:1"])
def test_plaintext_for_other_machines_is_refused(address: str, tmp_path: Path) -> None:
    for name in ("listen", "http"):
        with pytest.raises(UsageError, match="tls-cert") as caught:
            ServerSettings(**{name: address})  # type: ignore[arg-type]
        assert caught.value.field == name
    with pytest.raises(UsageError, match="tls-cert"):
        ServerSettings(listen=address, tokens=tmp_path)
    with pytest.raises(UsageError, match="tls-cert"):
        ServerSettings(listen=address, tls_cert=tmp_path, tls_key=tmp_path)
    ServerSettings(listen=address, tls_cert=tmp_path, tls_key=tmp_path, tokens=tmp_path)
    with pytest.raises(UsageError, match="no token"):
        ServerSettings(metrics=address)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"listen": "localhost"}, "listen"),
        ({"listen": "localhost:99999"}, "listen"),
        ({"listen": "::1:5"}, "listen"),
        ({"groups": 0}, "groups"),
        ({"groups": 2, "group": GroupSettings(workers=2, device="cuda")}, "groups"),
        ({"tls_cert": Path("x")}, "tls_cert"),
        ({"client_ca": Path("x")}, "client_ca"),
        ({"drain_seconds": float("nan")}, "drain_seconds"),
    ],
)
def test_wrong_settings_name_their_field(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        ServerSettings(**wrong)
    assert caught.value.field == field


def test_group_settings() -> None:
    placed = ({"placement": "pack"}, {"workers": 2, "placement": "tight"})  # one worker; an unknown value
    for wrong in ({"simulate": True}, {"spares": 1}, {"address": "h:1"}, {"liveness": 0.1}, {"device": "tpu"}, *placed):
        with pytest.raises(UsageError):
            GroupSettings(**wrong)  # type: ignore[arg-type]
    assert GroupSettings(workers=3, spares=1).on_ray
    assert GroupSettings(weights="fp8", device="cuda", dtype="bfloat16").storage.marks == "+weights-fp8"
    for wrong, message in (
        ({"weights": "fp8", "device": "cuda"}, "weights: 'fp8' on a GPU gives bfloat16"),
        ({"kv": "fp4"}, "kv: unknown value 'fp4'"),
    ):
        with pytest.raises(UsageError, match=message):
            GroupSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="u16"):
        Limits(canvas=70_000)


def test_failpoints_are_checked() -> None:
    armed = failpoints.parse("submit.after_journal=kill@3, report.before_journal=kill,group.before_run=memory~bad")
    assert [(name, point.action, point.visits, point.text) for name, point in armed.items()] == [
        ("submit.after_journal", "kill", 3, ""),
        ("report.before_journal", "kill", 1, ""),
        ("group.before_run", "memory", 1, "bad"),
    ]
    for wrong in ("nowhere=kill", "submit.after_journal=sleep", "submit.after_journal=kill@x", "finish=kill"):
        with pytest.raises(UsageError):
            failpoints.parse(wrong)
