"""A gloo group with a peer that says nothing (frozen, or its link cut): the others get out of it at once, and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from nap_runtime.distributed.torch_group import open_store

pytestmark = pytest.mark.timeout(120)
TIMEOUT = 15.0  # the collectives' own, which nobody waits for
MEMBER = """
import os, sys, threading, time
from datetime import timedelta
import torch
from nap_runtime.distributed.torch_group import GroupAddress, TorchCommunicator, join_store
from nap_runtime.errors import WorkerLostError

rank, first, second = map(int, sys.argv[1:4])
timeout = timedelta(seconds=float(sys.argv[4]))

def group(port, world):
    store = join_store(GroupAddress(host="127.0.0.1", port=port), timeout)
    return TorchCommunicator(store, rank=rank, world=world, device=torch.device("cpu"), timeout=timeout)

def gather(comm):
    out = torch.empty(comm.world, 1000)
    comm.all_gather(out, torch.full((1000,), float(rank)))
    return out[:, 0].tolist()

comm = group(first, 3)
assert gather(comm) == [0.0, 1.0, 2.0]
print("joined", flush=True)
sys.stdin.readline()
caught = []

def loop():
    flags = comm.start_flags((1, 2))
    for wait in (lambda: gather(comm), flags.wait):
        try:
            wait()
        except WorkerLostError as error:
            caught.append(str(error))

stuck = threading.Thread(target=loop, daemon=True)
stuck.start()
time.sleep(0.5)
assert stuck.is_alive()
began = time.monotonic()
comm.abort()
stuck.join(10)
print("free after", time.monotonic() - began, len(caught), flush=True)
comm.close()
comm = group(second, 2)
while time.monotonic() < began + timeout.total_seconds() + 3:  # the old group's threads give up meanwhile
    assert gather(comm) == [0.0, 1.0]
    assert comm.start_flags((rank,)).wait() == [(0,), (1,)]
    time.sleep(0.2)
print("done", flush=True)
os._exit(0)
"""


def test_survivors_leave_a_silent_peer_and_form_a_new_group() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    stores = [open_store("127.0.0.1", timedelta(seconds=TIMEOUT)) for _ in range(2)]
    ports = [str(address.port) for _, address in stores]
    line = [sys.executable, "-W", "ignore", "-c", MEMBER]
    members = [
        subprocess.Popen(
            [*line, str(rank), *ports, str(TIMEOUT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path("/"),
        )
        for rank in range(3)
    ]
    try:
        for member in members:
            assert member.stdout is not None
            assert member.stdout.readline() == "joined\n"
        members[2].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        for member in members[:2]:
            assert member.stdin is not None
            member.stdin.write("go\n")
            member.stdin.flush()
        for member in members[:2]:
            assert member.stdout is not None
            *_, seconds, caught = member.stdout.readline().split()
            print(f"\nout of the collective after {float(seconds):.2f} s")
            assert float(seconds) < 3
            assert caught == "2"
        assert time.monotonic() - began < TIMEOUT
        for member in members[:2]:
            assert member.stdout is not None
            assert member.stdout.readline() == "done\n"
    finally:
        for member in members:
            member.kill()
            member.communicate()
