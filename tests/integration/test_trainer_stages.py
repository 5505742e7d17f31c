"""The trainer under the deepspeed launcher, two processes, every ZeRO stage: learns, dies, goes on, decodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import nap_runtime
from nap_runtime.job import DecodeConfig

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT / 'trainer'}", "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
CHANGES = {
    "model.overrides": "{n_layers: 2, d_model: 32, n_heads: 2, n_kv_heads: 2, head_dim: 16, d_ff: 64}",
    "data.samples": 200, "schedule.global_batch": 8, "schedule.micro_batch": 2, "schedule.max_steps": 12,
    "schedule.warmup": 1, "optimizer.lr": 0.02, "evaluate.every": 0, "run.log_every": 1, "run.tensorboard": "false",
    "run.checkpoint_every": 2,
}  # fmt: skip


def command(out: Path, stage: int, **more: Any) -> list[str]:
    """Two ranks of the CPU's example, cut down."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(port)]
    changes = {**CHANGES, "zero.stage": stage, "run.out": out, **more}
    options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    config = str(ROOT / "examples" / "train" / "cpu.yaml")
    return [*launcher, "--module", "nap_trainer.train", "--config", config, *options]


def trained(out: Path, stage: int, **more: Any) -> list[dict[str, Any]]:
    """Run to the end; the lines of its steps."""
    ran = subprocess.run(
        command(out, stage, **more),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=out.parent,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return steps(out)


def steps(out: Path) -> list[dict[str, Any]]:
    file = out / "train.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line["kind"] == "train"]


def killed(out: Path, stage: int, *, after: int, **more: Any) -> None:
    """Start it, and kill every process of it at once when a step has been logged."""
    with subprocess.Popen(
        command(out, stage, **more), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd=out.parent,
    ) as running:  # fmt: skip
        ends = time.monotonic() + 150
        while (len(steps(out)) < after) and running.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        ranks = children(running.pid)
        for process in [running.pid, *ranks]:
            os.kill(process, signal.SIGKILL)
        running.wait(30)
    assert after <= len(steps(out))
    assert not (out / "model").exists()  # it had not ended


def children(process: int) -> list[int]:
    """A process's descendants: the launcher puts ranks into sessions of their own."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found, new = [], [process]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_learns_and_its_model_decodes(tmp_path: Path, stage: int) -> None:
    losses = [line["loss"] for line in trained(tmp_path / "out", stage)]
    assert len(losses) == CHANGES["schedule.max_steps"]
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])
    result = nap_runtime.decode("How many apples?", DecodeConfig(steps=8), model=str(tmp_path / "out" / "model"))
    assert len(result.paths) == 3


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [2, *(pytest.param(stage, marks=pytest.mark.soak) for stage in (0, 1, 3))])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, stage: int) -> None:
    """kill -9 of launcher and ranks: the same command ends with the loss curve of an undisturbed run, bit for bit."""
    longer = {"schedule.max_steps": 60}
    killed(tmp_path / "killed", stage, after=5, **longer)
    resumed, whole = (trained(tmp_path / name, stage, **longer) for name in ("killed", "whole"))
    for key in ("step", "loss", "grad_norm"):
        assert [line[key] for line in resumed] == [line[key] for line in whole]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.timeout(600)
def test_a_resumed_run_draws_the_dropout_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Two steps back: the same adapters' noise, and so the same losses and weights, as the first time."""
    out = tmp_path / "out"
    changes = {"lora.rank": 4, "lora.dropout": 0.5, "schedule.max_steps": 6}
    whole = trained(out, 0, **changes)
    weights = (out / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "checkpoints" / "step-00000006")
    (out / "checkpoints" / "latest").write_text("step-00000004\n")
    again = trained(out, 0, **changes)
    for key in ("step", "loss", "grad_norm"):
        assert [line[key] for line in again] == [line[key] for line in whole]
    assert (out / "model" / "model.safetensors").read_bytes() == weights
