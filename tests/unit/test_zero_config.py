"""ZeRO's and LoRA's configuration, the ranks of an environment, optimizers, checkpoint folders; without an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models import make_model
from nap_trainer.lora import TARGETS, LoraConfig, apply_lora, merged, plain
from nap_trainer.ranks import Ranks
from nap_trainer.zero import checkpoints
from nap_trainer.zero.checkpoints import Meta, latest, read_meta, remove_unfinished
from nap_trainer.zero.config import OptimizerConfig, ZeroConfig, deepspeed_config
from nap_trainer.zero.optim import make_optimizer, parameter_states, split_parameters

CPU = torch.device("cpu")
IDS = torch.arange(20).unsqueeze(0)


def config(optimizer: str = "adamw", **zero: Any) -> dict[str, Any]:
    return deepspeed_config(ZeroConfig(**zero), OptimizerConfig(kind=optimizer), micro_batch=2, accumulation=3, world=4)  # type: ignore[arg-type]


# --- configuration ---


def test_reading_the_configuration_imports_neither_torch_nor_deepspeed_nor_peft() -> None:
    code = (
        "import sys, nap_trainer.zero.config, nap_trainer.lora; print({'torch','deepspeed','peft'} & set(sys.modules))"
    )
    roots = os.pathsep.join(str(Path(__file__).parents[2] / name) for name in ("runtime", "trainer"))
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": roots}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"stage": 4}, "stage"),
        ({"offload_optimizer": "cpu"}, "needs stage 1, 2 or 3"),
        ({"offload_params": "cpu", "stage": 2}, "needs stage 3"),
        ({"precision": "bfloat16"}, "needs stage 1, 2 or 3"),
        ({"precision": "autocast", "reduce_dtype": "bfloat16"}, "needs `precision` bfloat16"),
        ({"clip": -1}, "clip"),
        ({"clip": float("nan")}, "clip"),
        ({"stag": 1}, "Extra inputs"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        ZeroConfig(**values)


@pytest.mark.parametrize("values", [{"lr": 0}, {"betas": (0.9, 1.0)}, {"kind": "sgd"}, {"momentum": 0.9}, {"eps": -1}])
def test_an_optimizer_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OptimizerConfig(**values)


def test_muon_runs_at_stage_0_only() -> None:
    assert config("muon")["zero_optimization"]["stage"] == 0
    for stage in (1, 2, 3):
        with pytest.raises(UsageError, match="use stage 0, or kind adamw") as caught:
            config("muon", stage=stage)
        assert caught.value.field == "optimizer.kind"
        assert "\n" not in str(caught.value)


def test_batches_multiply() -> None:
    assert config()["train_batch_size"] == 24


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_is_deepspeeds_only_where_it_tells_the_norm(stage: int) -> None:
    assert config(stage=stage, clip=0.7)["gradient_clipping"] == (0.7 if stage else 0.0)
    assert config(stage=stage, clip=0)["gradient_clipping"] == 0.0


def test_gradients_add_up_in_float32_unless_asked() -> None:
    for zero in ({"stage": 2}, {"stage": 2, "precision": "bfloat16"}, {"stage": 0, "precision": "autocast"}):
        assert config(**zero)["communication_data_type"] == "fp32"
        assert config(**zero)["data_types"]["grad_accum_dtype"] == "fp32"
    half = config(stage=2, precision="bfloat16", reduce_dtype="bfloat16")
    assert half["communication_data_type"] == "bf16"
    assert half["data_types"]["grad_accum_dtype"] == "fp32"


def test_offloading_reaches_deepspeed() -> None:
    section = config(stage=3, offload_params="cpu", offload_optimizer="cpu")["zero_optimization"]
    assert section["offload_param"]["device"] == section["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in config(stage=3)["zero_optimization"]


SPREADS = [
    {"stage": stage, "precision": precision, **extra}
    for stage in (0, 1, 2, 3)
    for precision in ("float32", "autocast", "bfloat16")
    for extra in ({}, {"offload_optimizer": "cpu"}, {"offload_params": "cpu"})
    if (stage or (precision != "bfloat16" and not extra)) and (stage == 3 or "offload_params" not in extra)
]


def test_deepspeed_knows_every_key_and_takes_it_as_it_is() -> None:
    """In a process of its own: importing deepspeed changes torch."""
    if find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    code = """
import json, sys
from deepspeed.runtime.config import DeepSpeedConfig
for given in json.load(sys.stdin):
    read = DeepSpeedConfig(given)
    section = given["zero_optimization"]
    aliases = {field.alias: name for name, field in type(read.zero_config).model_fields.items() if field.alias}
    for key, value in section.items():
        found = getattr(read.zero_config, aliases.get(key, key))
        assert isinstance(value, dict) or found == value, (key, found, value)
    assert read.gradient_clipping == given["gradient_clipping"]
    assert read.bfloat16_config.enabled == given["bf16"]["enabled"]
    assert read.grad_accum_dtype == "fp32"
    assert str(read.communication_data_type) == "torch.float32"
    assert read.zero_force_ds_cpu_optimizer is False and read.zero_allow_untested_optimizer is True
    assert read.gradient_allreduce_op == "mean" and read.managed_gradient_accumulation is True
    assert read.train_batch_size == 24 and read.gradient_accumulation_steps == 3
"""
    alone = {"micro_batch": 8, "accumulation": 3, "world": 1}
    given_text = json.dumps([deepspeed_config(ZeroConfig(**zero), OptimizerConfig(), **alone) for zero in SPREADS])
    env = os.environ | {"DS_ACCELERATOR": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], input=given_text, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


# --- ranks ---


def ranks_of(monkeypatch: pytest.MonkeyPatch, **values: str) -> Ranks:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return Ranks.of_environment()


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = ranks_of(monkeypatch)
    assert (ranks.rank, ranks.world, ranks.leads) == (0, 1, True)
    assert ranks.told("text") == ranks.complaint("text") == "text"
    assert ranks.agreed(2.5) == 2.5


PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_a_launchers_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = ranks_of(monkeypatch, RANK="3", WORLD_SIZE="4", LOCAL_RANK="0", **PLACE)
    assert (ranks.rank, ranks.world, ranks.leads) == (3, 4, False)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2", **PLACE}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
    ],
)
def test_a_broken_environment_is_one_line(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ranks_of(monkeypatch, **values)


def test_together_turns_errors_of_the_system_into_one_of_ours() -> None:
    alone = Ranks(0, 1, CPU)
    with pytest.raises(ModelError, match="No space left"), alone.together():
        raise OSError("No space left on device")
    with pytest.raises(UsageError, match="mine"), alone.together():
        raise UsageError("mine")


# --- the optimizer ---


def test_only_the_layers_matrices_decay() -> None:
    _, model = make_model("dream-tiny", seed=1)
    names = {param: name for name, param in model.named_parameters()}
    matrices, others = split_parameters(model)
    assert {names[p] for p in matrices} == {
        f"layers.{layer}.{matrix}.weight"
        for layer in range(2)
        for matrix in ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
    }
    assert len(matrices) + len(others) == len(names)
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3), device=CPU)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(len(others), 0.0), (8, 0.3)]


def test_a_module_around_the_model_has_the_same_groups() -> None:
    _, model = make_model("llada-tiny", seed=1)
    wrapped = torch.nn.ModuleDict({"model": model})
    assert [len(part) for part in split_parameters(wrapped)] == [len(part) for part in split_parameters(model)]


def steps(optimizer: torch.optim.Optimizer, model: torch.nn.Module, count: int) -> None:
    for _ in range(count):
        model(IDS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_muon_and_adamw_as_one_do_what_they_do_apart() -> None:
    models = [make_model("llada-tiny", seed=1, scale=3.0)[1] for _ in range(2)]
    config = OptimizerConfig(kind="muon", lr=1e-2)
    joined = make_optimizer(models[0], config, device=CPU)
    matrices, others = split_parameters(models[1])
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.02, momentum=0.95)
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    steps(joined, models[0], 1)
    models[1](IDS).square().mean().backward()
    muon.step()
    adamw.step()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-7), name  # a step is 1e-3 to 2e-2


def test_a_joined_optimizer_goes_on_from_its_state_and_still_hears_its_rates() -> None:
    first, second = (make_model("llada-tiny", seed=1, scale=3.0)[1] for _ in range(2))
    one = make_optimizer(first, OptimizerConfig(kind="muon", lr=1e-2), device=CPU)
    steps(one, first, 2)
    two = make_optimizer(second, OptimizerConfig(kind="muon", lr=1e-2), device=CPU)
    second.load_state_dict(first.state_dict())
    two.load_state_dict(deepcopy(one.state_dict()))
    assert len(parameter_states(two)) == len(list(second.parameters()))
    for optimizer, model in ((one, first), (two, second)):
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        steps(optimizer, model, 2)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    for group in two.param_groups:
        group["lr"] = 0.0
    kept = [p.clone() for p in second.parameters()]
    steps(two, second, 1)
    assert all(torch.equal(a, b) for a, b in zip(kept, second.parameters(), strict=True))


# --- adapters ---


def test_fresh_adapters_change_nothing_and_train_alone() -> None:
    _, model = make_model("dream-tiny", seed=1, scale=10.0)
    before = model(IDS)
    apply_lora(model, LoraConfig(rank=2, targets=("out",)))
    assert torch.equal(model(IDS), before)
    training = [name for name, param in model.named_parameters() if param.requires_grad]
    assert training == [f"layers.{i}.attn.out.lora_{m}.default.weight" for i in range(2) for m in "AB"]


def test_merging_gives_the_adapters_logits_under_the_models_own_names() -> None:
    config, model = make_model("llada-tiny", seed=1, scale=10.0)
    names = [name for name, _ in model.named_parameters()]
    before = model(IDS)
    apply_lora(model, LoraConfig(rank=4, alpha=6.0))
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    seen = plain(model)
    assert seen.norm.weight.data_ptr() == model.norm.weight.data_ptr()  # shared
    assert torch.allclose(seen(IDS), model(IDS), rtol=1e-4, atol=1e-4)
    assert not any(param.requires_grad for param in seen.parameters())
    whole = merged(model)
    assert whole.norm.weight.data_ptr() != model.norm.weight.data_ptr()
    assert [name for name, _ in whole.named_parameters()] == names
    assert whole.config == config
    assert torch.allclose(whole(IDS), model(IDS), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, model(IDS), rtol=1e-1, atol=1e-1)


def test_adapters_start_alike_for_one_seed() -> None:
    models = [apply_lora(make_model("llada-tiny", seed=1)[1], LoraConfig(seed=seed)) for seed in (7, 7, 8)]
    a, b, c = (model.layers[0].attn.qkv.lora_A["default"].weight for model in models)  # type: ignore[union-attr,index]
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("targets", [("q_proj",), ("head",), ("embed",), (), ("qkv", "qkv")])
def test_a_target_that_is_no_matrix_of_a_layer_is_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"qkv, out, gate_up, down"):
        LoraConfig(targets=targets)
    assert set(LoraConfig().targets) == set(TARGETS)


# --- checkpoint folders ---


def finished(folder: Path, name: str, step: int, **changes: Any) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "state.pt").write_bytes(b"12345")
    values = {
        "step": step,
        "client": {},
        "stage": 1,
        "world": 2,
        "precision": "float32",
        "offloaded": False,
        "optimizer": "adamw",
        "trained": {"w": (2, 3)},
        "files": {"state.pt": 5},
    }
    (path / "checkpoint.json").write_text(Meta(**(values | changes)).model_dump_json())
    return path


def test_latest_names_the_checkpoint_and_the_newest_whole_one_stands_in(tmp_path: Path) -> None:
    assert latest(tmp_path) == ""
    finished(tmp_path, "step-00000009", 9)
    finished(tmp_path, "step-00000010", 10)
    (tmp_path / "step-00000011").mkdir()
    assert latest(tmp_path) == "step-00000010"
    (tmp_path / "latest").write_text("step-00000009\n")
    assert latest(tmp_path) == "step-00000009"
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(ModelError, match="does not name a checkpoint"):
        latest(tmp_path)


def test_only_unfinished_step_folders_are_removed(tmp_path: Path) -> None:
    finished(tmp_path, "step-00000009", 9)
    for name in ("step-00000010", "step-00000010.1", "steps", "tensorboard"):
        (tmp_path / name).mkdir()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009", "steps", "tensorboard"]


@pytest.mark.parametrize("damage", ["missing", "short", "no json", "other json", "gone"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: str) -> None:
    path = finished(tmp_path, "step-00000001", 1)
    assert read_meta(path).step == 1
    if damage == "missing":
        (path / "state.pt").unlink()
    elif damage == "short":
        (path / "state.pt").write_bytes(b"1234")
    elif damage == "gone":
        path = tmp_path / "step-00000002"
    else:
        (path / "checkpoint.json").write_text("{" if damage == "no json" else "{}")
    with pytest.raises(ModelError, match="name another checkpoint in") as caught:
        read_meta(path)
    assert "\n" not in str(caught.value)


def test_pruning_keeps_the_latest_whatever_its_step(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        finished(tmp_path, f"step-{step:08d}", step)
    (tmp_path / "latest").write_text("step-00000002\n")  # a user went back
    checkpoints._prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000004"]
    checkpoints._prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002"]


def test_a_step_that_is_saved_again_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    assert checkpoints._free_name(tmp_path, 7) == "step-00000007"
    finished(tmp_path, "step-00000007", 7)
    assert checkpoints._free_name(tmp_path, 7) == "step-00000007.1"
    finished(tmp_path, "step-00000007.1", 7)
    assert latest(tmp_path) == "step-00000007.1"


@given(st.lists(st.tuples(st.integers(0, 99999999), st.integers(0, 12)), min_size=1, unique=True))
def test_folders_are_ordered_by_step_then_copy(keys: list[tuple[int, int]]) -> None:
    names = [f"step-{step:08d}" + (f".{copy}" if copy else "") for step, copy in keys]
    assert sorted(names, key=checkpoints._order) == [names[keys.index(key)] for key in sorted(keys)]


@pytest.mark.parametrize("client", [{"x": float("nan")}, {"x": {1, 2}}, {1: "x"}, {"x": (1, 2)}, {"x": torch.zeros(1)}])
def test_a_checkpoint_takes_plain_json_only(tmp_path: Path, client: dict[Any, Any]) -> None:
    meta = read_meta(finished(tmp_path, "step-00000001", 1))
    with pytest.raises(UsageError, match="client: "):
        checkpoints._checked(meta.model_copy(update={"client": client}))
    good = meta.model_copy(update={"client": {"rows": [1, 2.5, None, "x"], "deep": {"a": True}}})
    assert checkpoints._checked(good) is good


def test_what_may_be_read_as_it_is() -> None:
    values = {"step": 1, "client": {}, "optimizer": "adamw", "trained": {}, "files": {}}
    one = Meta(stage=1, world=2, precision="float32", offloaded=False, **values)  # type: ignore[arg-type]
    assert one.spread_as(one)
    for change in ({"world": 1}, {"stage": 2}, {"precision": "bfloat16"}, {"offloaded": True}):
        assert not one.spread_as(one.model_copy(update=change))
    zero = one.model_copy(update={"stage": 0})
    assert zero.spread_as(zero.model_copy(update={"world": 5}))
