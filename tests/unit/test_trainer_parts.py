"""Configuration, logs, meters and the learning rate's course."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nap_runtime.errors import UsageError
from nap_runtime.models.shapes import shape_config
from nap_trainer import loop, meters
from nap_trainer.evaluation import decode_configs
from nap_trainer.export import decode_defaults
from nap_trainer.logs import TrainLog
from nap_trainer.loop import Trainer, rate_factor
from nap_trainer.ranks import Ranks
from nap_trainer.sameness import first_difference
from nap_trainer.settings import ScheduleSection, TrainConfig

LEAST: dict[str, Any] = {
    "model": {"shape": "llada-tiny", "tokenizer": "words"},
    "data": {"train": "words"},
    "schedule": {"max_steps": 10},
    "run": {"out": "x"},
}


def config(**sections: dict[str, Any]) -> TrainConfig:
    values = {name: {**LEAST.get(name, {}), **sections.get(name, {})} for name in {*LEAST, *sections}}
    return TrainConfig.from_mapping(values)


# --- configuration ---


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"model": {"colour": 1}}, r"^model\.colour: unknown key; known are init, overrides, seed, shape, tokenizer$"),
        ({"zero": {"stag": 1}}, r"^zero\.stag: unknown key; known are .*stage"),
        ({"schedule": {"max_steps": 0}}, r"^schedule\.max_steps: .*greater than or equal to 1"),
        ({"schedule": {"epochs": 1}}, r"^schedule: give `max_steps` or `epochs`, one of the two"),
        ({"model": {"init": "x"}}, r"^model: give `init` or `shape`, one of the two"),
        ({"data": {"format": "text"}}, r"^data: `paths` must be \[1\] for format 'text'"),
        ({"data": {"path_tokens": [9, 5]}}, r"^data: `path_tokens`: 9 is above 5"),
        ({"data": {"answer": "free", "paths": [1, 2]}}, r"^data: `paths`: texts made of several paths need one"),
        ({"data": {"answer": "free"}, "objective": {"topology": "hub"}}, r"no topology or staleness; leave them out"),
        (
            {"data": {"answer": "free"}, "objective": {"patterns": {"uniform": 0.5, "structured": 0.5}}},
            r"objective\.patterns: 'structured' is about paths and summary, which a canvas with one region has not",
        ),
        ({"data": {"paths": []}}, r"^data\.paths: "),
        ({"data": {"paths": [3, 7]}}, r"^data\.paths\.1: 7: .*less than or equal to 6"),
        ({"objective": {"aside": float("inf")}}, r"^objective\.aside: inf: .*finite"),
        ({"objective": {"patterns": {"uniform": float("inf")}}}, r"^objective\.patterns\.uniform: inf: .*finite"),
        ({"schedule": {"warmup": float("inf")}}, r"^schedule\.warmup: inf: .*finite"),
        ({"objective": {"patterns": {"uniform": 0}}}, r"^objective: `patterns`: give at least one"),
        ({"objective": {"patterns": {"often": 1}}}, r"^objective\.patterns\.often"),
        ({"objective": {"weighting": "cubic"}}, r"^objective\.weighting: 'cubic': "),
        ({"optimizer": {"lr": -1}}, r"^optimizer\.lr: -1: "),
        ({"run": {"seed": "x"}}, r"^run\.seed: 'x': "),
    ],
)
def test_what_is_wrong_is_one_line(sections: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        config(**sections)
    assert "\n" not in str(caught.value)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(UsageError, match=r"^schedule: missing"):
        TrainConfig.from_mapping({name: value for name, value in LEAST.items() if name != "schedule"})


def test_changes_reach_into_sections(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {shape: llada-tiny}\ndata: {train: words}\nschedule: {max_steps: 3}\nrun: {out: a}\n")
    read = TrainConfig.read(file, ["schedule.max_steps=7", "objective.patterns={paths: 1.0}", "data.paths=[1, 2]"])
    assert read.schedule.max_steps == 7
    assert dict(read.objective.patterns) == {"paths": 1.0}
    assert read.data.paths == (1, 2)
    assert TrainConfig.from_mapping(read.to_mapping()) == read
    for change, text in (("a", "not section.key=value"), ("run.out.x=1", "'out' is no section")):
        with pytest.raises(UsageError, match=text):
            TrainConfig.read(file, [change])


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n"])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"^config: "):
        TrainConfig.read(file)
    with pytest.raises(UsageError, match=r"No such file"):
        TrainConfig.read(tmp_path / "none.yaml")


def test_accumulation_shares_out_the_global_batch() -> None:
    schedule = ScheduleSection(global_batch=24, micro_batch=3, max_steps=1)
    assert [schedule.accumulation(world) for world in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(UsageError, match=r"24 is no multiple of micro_batch 3 × 5 ranks"):
        schedule.accumulation(5)
    assert ScheduleSection(global_batch=10, epochs=2.5).steps(100) == 25


# --- the rate ---


def test_rate_rises_then_falls() -> None:
    schedule = ScheduleSection(max_steps=100, warmup=0.1, decay="cosine", floor=0.2)
    factors = [rate_factor(step, 100, schedule) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.2 + 0.8 * 0.5)  # half-way of the cosine
    assert rate_factor(100, 100, schedule) == pytest.approx(0.2)
    linear = ScheduleSection(max_steps=10, warmup=0, decay="linear")
    assert [round(rate_factor(step, 10, linear), 3) for step in (0, 5, 9)] == [1.0, 0.5, 0.1]
    assert rate_factor(7, 10, ScheduleSection(max_steps=10, warmup=2, decay="constant")) == 1.0


# --- meters and exports ---


def test_flops_by_hand() -> None:
    """llada-tiny: per layer 4·64² + 3·64·96 weights, two layers; head 96·64; norms 5·64; 12·2·64·N for attention."""
    config_ = shape_config("llada-tiny")
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 96) + 96 * 64 + 5 * 64
    assert meters.flops_per_token(config_, 100) == 6 * weights + 12 * 2 * 64 * 100
    assert meters.mfu(config_, 100, 1e6, torch.device("cpu")) is None


def test_decode_defaults_are_the_training_canvas() -> None:
    nap = config(data={"paths": [1, 3], "path_tokens": [30, 50], "summary_tokens": 9}, evaluate={"eos_weight": 0.5})
    assert decode_defaults(nap) == {"paths": 3, "path_tokens": 50, "summary_tokens": 9, "eos_weight": 0.5,
                                    "topology": "full"}  # fmt: skip
    for topology, named in (("hub", "hub"), ("isolated", "isolated"), ("mixed", None)):
        assert decode_defaults(config(objective={"topology": topology})).get("topology") == named
    chain = config(data={"format": "long-cot", "path_tokens": 90})
    assert decode_defaults(chain)["paths"] == 1
    plain = config(data={"format": "text", "paths": [1], "answer": "free", "gen_length": 77})
    assert decode_defaults(plain) == {"gen_length": 77, "eos_weight": 1.0}


# --- logs ---


def test_a_resumed_log_forgets_what_came_after(tmp_path: Path) -> None:
    """Steps beyond the checkpoint, the end, and a line that was cut short are dropped; what was before stays."""
    options = {"total": 9, "tensorboard": False, "active": True}
    with TrainLog(tmp_path, start=0, **options) as log:
        for step in range(1, 6):
            log.write("train", step, {"loss": 1.0 / step})
        log.write("end", 5, {})
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"kind": "train", "ste')
    with TrainLog(tmp_path, start=3, **options) as log:
        log.write("train", 4, {"loss": 0.25, "mfu": None})
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[2]["loss"] == 0.333333


def test_tensorboard_files_hold_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TrainLog(tmp_path, total=2, start=0, tensorboard=True, active=True) as log:
        log.write("train", 1, {"loss": 2.0})
        log.write("eval", 2, {"pf_accuracy": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("eval/pf_accuracy")] == [(2, 0.5)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with TrainLog(tmp_path / "out", total=2, start=0, tensorboard=True, active=False) as log:
        log.write("train", 1, {"loss": 2.0})
        log.tick(1)
        log.say("x")
    assert not (tmp_path / "out").exists()


# --- what a run is compared with and decoded by ---


def test_what_leaves_rows_and_weights_alone_may_change_between_starts() -> None:
    found = config(data={"processes": 4}, zero={"stage": 1}, schedule={"micro_batch": 2}).to_mapping()
    assert first_difference(found, config()) is None
    assert first_difference(found, config(data={"seed": 1})) == "data.seed"
    assert first_difference(found, config(zero={"clip": 2})) == "zero.clip"


@pytest.mark.parametrize(
    ("trained", "decoded"), [("full", "full"), ("hub", "hub"), ("isolated", "isolated"), ("mixed", "full")]
)
def test_evaluations_decode_with_the_topology_of_the_training(trained: str, decoded: str) -> None:
    configs = decode_configs(config(objective={"topology": trained}))
    assert [(c.sync.mode, c.sync.sees) for c in configs.values()] == [("exact", decoded)] * 2


# --- figures ---


@pytest.mark.parametrize("start", [0, 100])
def test_tokens_per_second_are_of_the_steps_of_this_try(monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    """One second a step of 16 tokens, whether it goes on from a checkpoint, and however long an evaluation takes."""
    clock = {"now": 0.0}
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock["now"])

    def wait(seconds: float) -> None:
        clock["now"] += seconds

    lines: list[dict[str, Any]] = []
    trainer = Trainer.__new__(Trainer)
    trainer.settings = config(
        schedule={"max_steps": start + 20}, run={"log_every": 10}, evaluate={"every": 5}, objective={}
    )
    trainer.total, trainer.step_done, trainer.ranks = start + 20, start, Ranks(0, 1, torch.device("cpu"))
    batch = SimpleNamespace(ids_BN=torch.zeros(2, 8, dtype=torch.int32).numpy())
    trainer.loader = SimpleNamespace(steps=lambda at, until: ([batch] for _ in range(at, until)))  # type: ignore[assignment]
    trainer.prepared = SimpleNamespace(card=SimpleNamespace(config=shape_config("llada-tiny")))  # type: ignore[assignment]
    trainer.engine = SimpleNamespace(plain=nullcontext)  # type: ignore[assignment]
    monkeypatch.setattr(trainer, "_save", lambda: None)
    monkeypatch.setattr(trainer, "step", lambda *_: (wait(1.0), (torch.ones(5), 1.0))[1])
    log = SimpleNamespace(
        tick=lambda _: None, write=lambda kind, step, figures: lines.append({"kind": kind, **figures})
    )
    trainer.advance(start + 20, log, lambda _: wait(1000.0) or {})  # type: ignore[arg-type, func-returns-value]
    speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    assert speeds == [16] * (2 if start else 3)  # the first step of a run has a line of its own
    assert sum(line["kind"] == "eval" for line in lines) == 4
