"""The trainings in `examples/train` on toy shapes: read, trained, exported, decoded; and how a training ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

import nap_runtime
from nap_runtime.job import DecodeConfig, DecodeResult
from nap_trainer.adapt.tags import add_tags
from nap_trainer.settings import TrainConfig
from nap_trainer.train import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "train"
PAPER = ("llada-8b-nap", "llada-8b-long-cot", "dream-7b-nap", "dream-7b-long-cot")
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT / 'trainer'}", "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
TINY = {
    "data.path_tokens": 40, "data.summary_tokens": 40, "data.gen_length": 160, "data.max_prompt": 100,
    "schedule.global_batch": 4, "schedule.micro_batch": 2, "schedule.epochs": "null", "schedule.max_steps": 2,
    "evaluate.every": 2, "evaluate.n": 1, "evaluate.tokens_per_step": 40, "run.log_every": 1,
    "run.tensorboard": "false",
}  # fmt: skip


def trainings() -> list[Path]:
    """Files in `examples/train` that describe a training of this trainer; studies of several have other sections."""
    files = sorted(EXAMPLES.glob("*.yaml"))
    sections = {file: set(yaml.safe_load(file.read_text())) for file in files}
    return [f for f in files if {"model", "data", "schedule", "run"} <= sections[f] and "arms" not in sections[f]]


def options(changes: dict[str, Any]) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Callable[..., Path]) -> Path:
    """A folder with `llada` and `dream` (toys with tags), `train.jsonl` and `dev.jsonl`."""
    folder = tmp_path_factory.mktemp("examples")
    for family in ("llada", "dream"):
        add_tags(toy_checkpoint(family, folder / f"{family}-published"), folder / family)
    rows = [
        {"question": f"How many are {n} and 12?", "paths": [f"{n} and 12: {n + 12}.", f"12 + {n} = {n + 12}", "So."],
         "summary": f"\\boxed{{{n + 12}}}", "answer": str(n + 12)}
        for n in range(6)
    ]  # fmt: skip
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tiny(place: Path, name: str, out: Path, **more: Any) -> list[str]:
    """The command line of an example, cut down to the toys."""
    family = name.partition("-")[0] if name in PAPER else "llada"
    changes = {
        **TINY, "model.init": place / family, "data.train": place / "train.jsonl",
        "evaluate.data": place / "dev.jsonl", "run.out": out,
    } | more  # fmt: skip
    if TrainConfig.read(EXAMPLES / f"{name}.yaml").data.plain:
        changes |= {"evaluate.eos_weight": 0.5}
    return ["--config", str(EXAMPLES / f"{name}.yaml"), *options(changes)]


def cpu(out: Path, **more: Any) -> list[str]:
    """The command line of the CPU's example, smaller still."""
    overrides = "{n_layers: 2, d_model: 32, n_heads: 2, n_kv_heads: 2, head_dim: 16, d_ff: 64}"
    changes = {"model.overrides": overrides, "data.samples": 200, "schedule.global_batch": 8} | {
        "schedule.micro_batch": 2, "run.log_every": 1, "run.tensorboard": "false", "run.out": out
    } | more  # fmt: skip
    return ["--config", str(EXAMPLES / "cpu.yaml"), *options(changes)]


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


# --- what the files say ---


def test_every_example_is_a_whole_configuration() -> None:
    assert {file.stem for file in trainings()} >= {*PAPER, "two-gpus", "cpu"}
    for file in trainings():
        config = TrainConfig.read(file)
        assert TrainConfig.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize("name", [*PAPER, "two-gpus"])
def test_the_papers_hyper_parameters(name: str) -> None:
    config = TrainConfig.read(EXAMPLES / f"{name}.yaml")
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.kind, optimizer.lr, optimizer.betas, optimizer.weight_decay) == ("adamw", 2e-6, (0.9, 0.95), 0.01)
    assert (schedule.global_batch, schedule.epochs, schedule.warmup, schedule.decay) == (256, 3, 0.1, "cosine")
    assert (schedule.floor, config.zero.clip, config.zero.precision, config.zero.stage) == (0, 1.0, "bfloat16", 3)
    assert schedule.accumulation(2 if name == "two-gpus" else 8) >= 1
    objective = config.objective
    assert (objective.weighting, objective.cart_p, objective.normalisation) == ("cart", 0.1, "nap")
    assert (objective.t, objective.patterns) == ("uniform", {"uniform": 1.0})
    data = config.data
    assert (data.paths, data.padding) == ((3,), "learn")
    slots = data.gen_length if data.plain else 3 * 330 + 32
    assert data.plain or (data.path_tokens, data.summary_tokens, objective.headers) == (330, 32, "learn")
    assert data.max_prompt + slots + 4 * 4 <= 2048  # headers have two or three tokens


@pytest.mark.parametrize("family", ["llada-8b", "dream-7b"])
def test_the_twin_differs_in_the_canvas_only(family: str) -> None:
    nap, twin = (TrainConfig.read(EXAMPLES / f"{family}-{kind}.yaml").to_mapping() for kind in ("nap", "long-cot"))
    same = [key for key in nap if key not in ("data", "objective", "run")]
    assert [nap[key] for key in same] == [twin[key] for key in same]
    assert {key for key in nap["data"] if nap["data"][key] != twin["data"][key]} == {"format", "answer"}
    assert {key for key in nap["run"] if nap["run"][key] != twin["run"][key]} == {"out"}
    assert {key for key in nap["objective"] if nap["objective"][key] != twin["objective"][key]} == {"headers"}


# --- one process ---


ADAPTERS = {"zero.offload_optimizer": "none", "lora.rank": 4, "optimizer.lr": 1e-4}  # as two-gpus.yaml suggests


@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in (*PAPER, "two-gpus")), ("two-gpus", ADAPTERS)])
def test_an_example_trains_and_its_model_decodes(place: Path, tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    assert main(tiny(place, name, tmp_path / "out", **more)) == 0
    steps, evals = lines(tmp_path / "out", "train"), lines(tmp_path / "out", "eval")
    assert [line["step"] for line in steps] == [1, 2]
    assert steps[0]["loss"] > 0
    assert evals[0]["ao_undecoded"] == 0
    plain = name.endswith("long-cot")
    assert ("pf_accuracy" in evals[0]) is not plain
    config = DecodeConfig(layout="plain", steps=8) if plain else DecodeConfig(steps=8)
    result = nap_runtime.decode("How many are 2 and 12?", config, model=str(tmp_path / "out" / "model"))
    assert isinstance(result, DecodeResult)
    # The export's own decode defaults are the canvas that was trained.
    assert result.record.layout.budgets == ((160,) if plain else (40, 40, 40))


def test_the_cpu_example_learns(tmp_path: Path) -> None:
    assert main(cpu(tmp_path / "out", **{"schedule.max_steps": 30, "evaluate.every": 0})) == 0
    losses = [line["loss"] for line in lines(tmp_path / "out", "train")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_bundled_models_training_starts(tmp_path: Path) -> None:
    changes = {
        "data.samples": 60, "data.processes": 1, "schedule.global_batch": 2, "schedule.micro_batch": 2,
        "schedule.max_steps": 2, "run.out": tmp_path / "out",
    }  # fmt: skip
    assert main(["--config", str(EXAMPLES / "nap-tiny.yaml"), *options(changes)]) == 0
    result = nap_runtime.decode("How many?", DecodeConfig(steps=8), model=str(tmp_path / "out" / "model"))
    assert isinstance(result, DecodeResult)


# --- two processes ---


def test_two_ranks_of_the_launcher_train_as_one(place: Path, tmp_path: Path) -> None:
    """A paper's training, stage 3 in bfloat16: the same losses as in one process, and the export decodes."""
    words = tiny(place, "llada-8b-nap", tmp_path / "two")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port())]
    ran = subprocess.run(
        [*launcher, "--module", "nap_trainer.train", *words], env=ENVIRONMENT, capture_output=True, text=True,
        cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "(2 ranks × 1 micro-steps × 2)" in ran.stderr
    assert main(tiny(place, "llada-8b-nap", tmp_path / "one")) == 0
    for one, two in zip(lines(tmp_path / "one", "train"), lines(tmp_path / "two", "train"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-2)
    assert lines(tmp_path / "two", "eval")[0]["pf_undecoded"] == 0
    result = nap_runtime.decode("How many?", DecodeConfig(steps=8), model=str(tmp_path / "two" / "model"))
    assert isinstance(result, DecodeResult)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.mark.timeout(240)
def test_a_ray_job_ends_with_a_lost_rank_and_goes_on(tmp_path: Path) -> None:
    """Two ranks on a cluster: one is killed, the job says so; run again it ends where an undisturbed run ends."""
    changes = {
        "schedule.max_steps": 80, "schedule.global_batch": 32, "run.checkpoint_every": 4, "evaluate.every": 0
    }  # fmt: skip
    environment = {**ENVIRONMENT, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
    environment.pop("RAY_ADDRESS", None)
    script = [sys.executable, str(EXAMPLES / "ray_job.py"), "--ranks", "2", "--device", "cpu", "--interface", "lo"]
    command = [*script, *cpu(tmp_path / "out", **changes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as job:  # type: ignore[call-overload]
        printed = read_until(job.stdout, "step 5 ")
        os.kill(other_rank(printed), signal.SIGKILL)
        rest = job.stdout.read()
        assert job.wait(60) == 1
    # Whoever notices first says so: rank 0 when its connection breaks, or the job.
    assert re.search(r"another process of this training is gone|ray_job\.py: rank 1 was lost", rest)
    assert (tmp_path / "out" / "checkpoints" / "latest").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert re.search(r"\(rank 0 pid=\d+\).* goes on from step \d+", again.stderr + again.stdout)
    assert main(cpu(tmp_path / "one", **changes)) == 0
    for one, two in zip(lines(tmp_path / "one", "train"), lines(tmp_path / "out", "train"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def read_until(stream: Any, text: str) -> str:
    """What a process prints up to a text; fails where it ends before."""
    printed = ""
    while text not in printed:
        line = stream.readline()
        assert line, printed
        printed += line
    return printed


def other_rank(printed: str) -> int:
    """The process of rank 1, which prints nothing, from rank 0's that Ray names in its log."""
    first = int(re.search(r"\(rank 0 pid=(\d+)\)", printed)[1])  # type: ignore[index]
    raylet = parent(first)  # other jobs on this machine have raylets of their own
    titles = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # a process that has ended meanwhile
            titles[int(file.parent.name)] = file.read_text()
    ranks = {process for process, title in titles.items() if "Rank.train" in title and parent(process) == raylet}
    (other,) = ranks - {first}
    return other


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


# --- how a training ends ---


def test_an_interrupted_training_leaves_its_checkpoint(tmp_path: Path) -> None:
    changes = {"schedule.max_steps": 150, "run.checkpoint_every": 2, "evaluate.every": 0}
    words = cpu(tmp_path / "out", **changes)
    # A shell that runs the tests in the background ignores interrupts, and its children would too.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "nap_trainer.train", *words]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        read_until(running.stderr, "step 3 ")
        running.send_signal(signal.SIGINT)
        said = [line for line in running.stderr.read().splitlines() if not line.startswith("kind train")]
        assert running.wait(30) == 130
    assert said == [
        "nap_trainer.train: interrupted; the same command goes on from the last checkpoint, if there is one"
    ]
    assert main(words) == 0
    assert main(cpu(tmp_path / "whole", **changes)) == 0
    resumed, whole = ([line["loss"] for line in lines(tmp_path / name, "train")] for name in ("out", "whole"))
    assert resumed == whole  # bit for bit: it went on as if nothing had been


def test_a_second_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"schedule.max_steps": 2, "evaluate.every": 0}
    assert main(cpu(tmp_path, **changes)) == 0
    before = (tmp_path / "train.jsonl").read_text().splitlines()
    capsys.readouterr()
    assert main(cpu(tmp_path, **changes, **{"run.log_every": 5, "zero.stage": 0, "schedule.micro_batch": 4})) == 0
    assert "nothing is left to train after step 2" in capsys.readouterr().err
    after = (tmp_path / "train.jsonl").read_text().splitlines()
    assert after[:-1] == before[:-1]
    assert json.loads(after[-1])["loss"] == json.loads(before[-1])["loss"]
    for key, value in {"optimizer.lr": 1e-3, "data.samples": 201, "run.seed": 7, "objective.t": "uniform"}.items():
        assert main(cpu(tmp_path, **changes, **{key: value})) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"holds another training: {key} was" in line
        assert "use another folder" in line


GOOD = {"question": "a b", "paths": ["c d", "e"], "summary": "\\boxed{1}", "answer": "1"}


@pytest.mark.parametrize(
    ("rows", "more", "text"),
    [
        (None, {}, r"data\.train: .*rows\.jsonl: no such file, nor one of words, words-study"),
        ([], {}, r"rows\.jsonl: it has no rows"),
        ([GOOD, {**GOOD, "paths": ["x", ""]}], {}, r"rows\.jsonl: line 2: paths\.2: is empty"),
        ([GOOD], {"schedule.global_batch": 3}, r"schedule\.global_batch: 3 is no multiple of micro_batch 2"),
        ([GOOD], {"data.paths": "[3]"}, r"data: no row fits \(1 by paths\)"),
        ([GOOD], {"data.pathtokens": 3}, r"data\.pathtokens: unknown key; known are .*path_tokens"),
        ([GOOD], {"objective.weighting": "carts"}, r"objective\.weighting: 'carts': .*'cart'"),
        ([GOOD], {"model.init": "null"}, r"model: give `init` or `shape`"),
        ([GOOD], {"model.init": "LLADA-published"}, r"lacks '<think 1>'; add NAP's tags with `nap model tags`"),
    ],
)
def test_what_is_wrong_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, more: dict[str, Any], text: str
) -> None:
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {key: place / "llada-published" if value == "LLADA-published" else value for key, value in more.items()}
    changes = {"data.train": tmp_path / "rows.jsonl", "data.paths": "[2]", **given}
    assert main(tiny(place, "llada-8b-nap", tmp_path / "out", **changes)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^nap_trainer.train: .*{text}", line)


def test_a_path_over_budget_is_counted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [GOOD, {**GOOD, "paths": ["c", "word " * 60]}, {**GOOD, "summary": "so " * 90 + "\\boxed{1}"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data.train": tmp_path / "rows.jsonl", "data.paths": "[2]", "evaluate.every": 0}
    assert main(tiny(place, "dream-7b-nap", tmp_path / "out", **changes)) == 0
    said = capsys.readouterr().err.splitlines()
    assert "data: 1 rows left out: they do not fit data.path_tokens" in said
    assert "data: 1 rows left out: they do not fit data.summary_tokens" in said
