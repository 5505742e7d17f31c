"""Several runs of a study at once: the same rows, deaths, and records in small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_runtime.errors import RecordError, UsageError
from nap_runtime.executor.base import worker_failure
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_runtime.study import jobs
from nap_runtime.study.pack import read_packed
from nap_runtime.study.run import plan
from nap_runtime.study.spec import read_study
from nap_trainer.words import vocabulary

STUDY = """
study: small
title: Small
set: {{n: 3}}
problems: {{set: words, n: "${{n}}", seed: 2}}
base: {{model: {model}, workers: 3, simulate: true, batch_size: 2, bucket: 64, tokens_per_step: 6}}
sweeps:
  - name: every
    metrics: [accuracy, arness]
    grid: {{sync.mode: [kv, tokens], sync.every: [1, 3]}}
  - name: one
    metrics: [accuracy, seconds]
    cases: [{{workers: 1, simulate: null}}]
"""
TIMES = ("seconds", "started", "wall", "tokens_per_second", "threads", "times_from")

Nap = Callable[..., Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    model = folder / "model"
    make_model_dir("nap-tiny", model, seed=1, dtype=torch.float32, scale=3.0, n_layers=1, d_model=64, d_ff=96)
    build_word_tokenizer(vocabulary(), model)
    (model / "decode.json").write_text(json.dumps({"paths": 3, "path_tokens": 8, "summary_tokens": 6}))
    (folder / "s.yaml").write_text(STUDY.format(model=model))
    return folder / "s.yaml"


@pytest.fixture(scope="module")
def many(file: Path) -> Path:
    """The study, made by two processes."""
    out = file.parent / "many"
    assert start(file, out).wait(120) == 0
    return out


def start(file: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "nap_runtime.cli", "study", "run", str(file), "--out", str(out), "--no-report"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*words, "--jobs", "2", *more], env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, (out / "runs.jsonl").read_text().splitlines())
    return {row["run_id"]: {k: v for k, v in row.items() if not any(t in k for t in TIMES)} for row in rows}


def children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
            yield int(stat.parent.name)


def wait_for(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.02)
    return pytest.fail(f"no {what} within 60 s")


def test_the_rows_of_one_process(nap: Nap, file: Path, many: Path, tmp_path: Path) -> None:
    assert nap("study", "run", file, "--out", tmp_path / "one", "--no-report").code == 0
    assert rows_of(many) == rows_of(tmp_path / "one")
    assert {row["n"] for row in rows_of(many).values()} == {3}
    raw = [json.loads(line) for line in (many / "runs.jsonl").read_text().splitlines()]
    assert {row["times_from"] for row in raw if row["workers"] == 1} == {"measured, 2 runs at once"}


def test_a_killed_process_is_one_line_and_nothing_is_lost(file: Path, many: Path, tmp_path: Path) -> None:
    running = start(file, tmp_path / "out", "--set", "n=40")
    pool = wait_for(lambda: len(found := list(children(running.pid))) == 2 and found, "pool")
    os.kill(pool[0], signal.SIGKILL)
    _, error = running.communicate(timeout=150)
    assert running.returncode == 1
    assert "a process of the study was killed; run it again, with fewer --jobs" in error
    assert "Traceback" not in error
    again = start(file, tmp_path / "out")
    assert again.wait(120) == 0
    assert rows_of(tmp_path / "out") == rows_of(many)


def test_processes_end_with_their_parent(file: Path, tmp_path: Path) -> None:
    running = start(file, tmp_path / "out", "--set", "n=200")
    pool = wait_for(lambda: len(found := list(children(running.pid))) == 2 and found, "pool")
    running.kill()
    running.communicate(timeout=30)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pool), "end of the pool")


def test_an_interrupt_ends_all_and_is_taken_up(file: Path, many: Path, tmp_path: Path) -> None:
    running = start(file, tmp_path / "out", "--set", "n=200")
    pool = wait_for(lambda: list(children(running.pid)), "pool")
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130, error
    assert "Traceback" not in error
    assert not any(Path(f"/proc/{pid}").exists() for pid in pool)


_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")


@pytest.mark.parametrize("error", [_FULL, worker_failure(0, _FULL)], ids=["loading", "decoding"])
def test_no_memory_is_one_run_that_failed(monkeypatch: pytest.MonkeyPatch, file: Path, error: Exception) -> None:
    """Another process of the study may have the memory: the run is tried again the next time, the others go on."""
    run = plan(read_study(file))[0]

    class Full:
        closed = False

        def of(self, run: Any) -> Any:
            raise error

        def close(self) -> None:
            self.closed = True

    full = Full()
    for name, value in {"runs": {run.id: run}, "workers": full}.items():
        monkeypatch.setattr(jobs._Here, name, value, raising=False)
    assert jobs._one(run.id) == (None, "out of GPU memory: lower --jobs or batch_size", False)
    assert full.closed


def test_real_workers_are_not_timed_beside_each_other(nap: Nap, file: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_text(file.read_text().replace("simulate: true, ", ""))
    ran = nap("study", "run", real, "--out", tmp_path / "out", "--jobs", 2)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "jobs: runs on real workers are made one at a time" in ran.err


def test_records_in_small(nap: Nap, many: Path, tmp_path: Path) -> None:
    assert nap("study", "pack", many, "--out", tmp_path / "small").code == 0
    packed = read_packed(tmp_path / "small")
    assert [row["run_id"] for row in packed.of("every")] == packed.study["sweeps"][0]["runs"]
    for row in packed.rows:
        kept = [json.loads(line) for line in (many / "problems" / f"{row['run_id']}.jsonl").read_text().splitlines()]
        arrays = packed.problems[row["run_id"]]
        assert arrays["correct"].tolist() == [int(one["correct"]) for one in kept]
        assert arrays["paths"].shape == (3, row["paths"])
        scores = [one["measures"]["arness"] for one in kept]
        assert np.allclose(arrays["arness"], [np.nan if s is None else s for s in scores], equal_nan=True)
        assert np.nanmean(arrays["corrected"]) == pytest.approx(row["arness_corrected"], abs=1e-6)
        assert arrays["correct"].mean() == pytest.approx(row["accuracy"])
    with pytest.raises(UsageError, match="no sweep 'none'"):
        packed.of("none")
    (tmp_path / "small" / "problems.npz").write_bytes(b"PK no")
    with pytest.raises(RecordError, match="no packed study"):
        read_packed(tmp_path / "small")
