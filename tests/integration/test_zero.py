"""The ZeRO engine in real processes: gradients against DDP, loss curves across deaths, stages and numbers of ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
if find_spec("deepspeed") is None:  # not imported here: that changes torch for all other tests
    pytest.skip("needs deepspeed", allow_module_level=True)


def environment(**more: str) -> dict[str, str]:
    """What the processes see: the CPU, one thread, and a heap that gives freed memory back (its peak is asserted)."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    fixed = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return kept | fixed | {"MALLOC_MMAP_THRESHOLD_": "131072"} | more


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launched(script: str, out: Path, *checks: str, ranks: int = 2) -> tuple[int, str]:
    """Run a worker through the deepspeed launcher; its exit code and output."""
    options = ["--num_gpus", str(ranks), "--master_port", str(free_port())]
    command = [str(Path(sys.executable).parent / "deepspeed"), *options, str(HERE / script), str(out), *checks]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def spread(script: str, out: Path, *checks: str, ranks: int = 1) -> list[tuple[int, str]]:
    """Run a worker from plain variables, as Ray or torchrun would; alone, with none. Exit code and output by rank."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, str(HERE / script), str(out), *checks]
    started = [
        subprocess.Popen(
            command,
            env=environment(**({} if ranks == 1 else {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate()[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.timeout(900)  # a minute and a half of work on two free cores
def test_training_dies_and_goes_on_in_every_spread(tmp_path: Path) -> None:
    """Two ranks train every spread, save and are killed; one rank goes on from that; two go on from both."""
    code, said = launched("zero_worker.py", tmp_path, "parity", "fall", "nonfinite", "muon", "curves")
    assert code != 0, "curves ends by a kill"
    for check in ("parity", "fall", "nonfinite", "muon"):
        assert said.count(f"passed {check} on rank") == 2, said
    assert len(list(tmp_path.glob("*.json"))) == 12, said

    ((code, said),) = spread("zero_worker.py", tmp_path, "parity", "fewer", "solo")
    assert code == 0, said
    for before, after in [("1", "1"), ("3", "0"), ("0", "3")]:
        line = f"from stage {before} on 2 ranks, float32 to stage {after} on 1 rank, float32"
        assert line in said

    checks = (
        "resume",
        "more",
        "refused",
        "hostile",
        "build",
        "export",
        "looked_at",
        "blocked",
        "wrapped",
        "lora",
        "missing",
    )
    for code, said in spread("zero_models.py", tmp_path, *checks, ranks=2):
        assert said.count("passed ") == len(checks) - 1, said
        # The last check's shard is cut off: one line, exit code 1, on every rank.
        assert code == 1
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "model-00002-of-" in line
        assert "truncated or corrupt" in line
        assert "Traceback" not in said

    assert [code for code, _ in spread("zero_worker.py", tmp_path, "parity", ranks=4)] == [0] * 4
    one, two, four = (torch.load(tmp_path / f"grads-dream-tiny-{world}.pt", weights_only=True) for world in (1, 2, 4))
    for name, grad in one.items():
        for other in (two, four):
            assert (other[name] - grad).norm() / grad.norm() < 1e-5, name


def killed_often(folder: Path, kills: int, seed: int) -> None:
    command = [sys.executable, str(HERE / "zero_killed.py"), str(folder), str(kills), str(seed)]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_training_killed_while_saving_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    killed_often(tmp_path, kills=5, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_training_killed_a_hundred_times_is_the_undisturbed_one(tmp_path: Path) -> None:
    killed_often(tmp_path, kills=100, seed=1)
