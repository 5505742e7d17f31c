"""`--sync auto` and placement on hosts: their link is measured, and workers stand where the sync wants them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest
from hosts import Cluster, missing
from stand import BIN, ENVIRONMENT, Stand

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
    pytest.mark.timeout(900),
    pytest.mark.soak,
]
SMALL = "--paths 3 --path-tokens 12 --steps 12 --json"


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Three hosts of one CPU each, as Ray is told."""
    with Cluster(3, path=[BIN], env=ENVIRONMENT) as cluster:
        yield Stand(cluster, quick=False)


def decode(stand: Stand, options: str) -> CompletedProcess[str]:
    command = f"nap decode --address {stand.address} --workers 3 {SMALL} {options}"
    return stand.head.run(command, timeout=300, check=False)


def said(done: CompletedProcess[str], start: str) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(start)]
    return line


def test_a_slow_link_between_hosts_is_measured(stand: Stand) -> None:
    for host in stand.cluster:
        host.shape("40mbit")
    done = decode(stand, "--sync auto")
    for host in stand.cluster:
        host.shape(None)
    assert done.returncode == 0, done.stderr
    line = said(done, "nap: sync auto: ")
    found = re.search(r"3 workers on 3 hosts, measured [0-9.]+ ms and (\d+) MB/s", line)
    assert found is not None, line
    assert 2 <= int(found[1]) <= 6  # 5 MB/s
    assert json.loads(done.stdout)["config"]["sync"]["mode"] != "exact"


def test_exact_stands_apart_where_it_must_and_says_so(stand: Stand) -> None:
    done = decode(stand, "--sync exact")
    assert done.returncode == 0, done.stderr
    assert "no host has room for 3 workers; sync 'exact' sends keys and values between 3 hosts" in done.stderr
    assert len({place["host"] for place in json.loads(done.stdout)["workers"]}) == 3


def test_a_strict_pack_that_cannot_be_is_refused(stand: Stand) -> None:
    done = decode(stand, "--sync exact --placement strict-pack")
    assert done.returncode == 2
    assert "--placement: no host has room for 3 workers of 1 CPU each; the largest has 1" in done.stderr
