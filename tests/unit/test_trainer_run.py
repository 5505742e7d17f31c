"""A short real run: the loss falls, the export loads, the clock brings the rate to zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nap_runtime.errors import UsageError
from nap_runtime.models import load_model
from nap_trainer import train_tiny
from nap_trainer.optim import FlatGradients, Pace, rate_factor
from nap_trainer.ranks import Ranks
from nap_trainer.settings import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
n_layers: 2
d_model: 64
n_heads: 2
d_ff: 96
samples: 400
eval_samples: 16
eval_batch: 16
eval_tokens_per_step: 30
batch_size: 16
max_steps: 30
warmup_steps: 3
log_every: 29
compile: false
bf16: false
processes: 1
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.yaml").write_text(SMALL)
    assert train_tiny.main(["--config", str(folder / "small.yaml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_loss_falls(out: Path) -> None:
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 1
    assert {"answers_decoded", "digits_paths_clean", "digits_paths_hidden"} <= lines[-2].keys()


def test_export_loads(out: Path) -> None:
    loaded = load_model(out / "nap-tiny")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.token_id("<summary>") is not None
    defaults = json.loads((out / "nap-tiny" / "decode.json").read_text())
    assert defaults == {"path_tokens": 40, "summary_tokens": 12, "eos_weight": 0.0, "paths": 3}
    logits = loaded.model(torch.tensor([loaded.tokenizer.encode("how many")]))
    assert logits.isfinite().all()


def test_state_is_exact_and_goes_on(out: Path, tmp_path: Path) -> None:
    state, exported = load_model(out / "state"), load_model(out / "nap-tiny")
    for name, param in state.model.named_parameters():
        torch.testing.assert_close(param.bfloat16().float(), exported.model.get_parameter(name))
    config = tmp_path / "small.yaml"
    config.write_text(SMALL)
    arguments = ["--config", str(config), "--out", str(tmp_path / "on"), "--init", str(out / "state")]
    assert train_tiny.main([*arguments, "--set", "max_steps=2", "--set", "ema=0.9"]) == 0
    first = json.loads((tmp_path / "on" / "train.jsonl").read_text().splitlines()[0])
    assert first["loss"] < 5.5


def test_unknown_key_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("max_steps: 1\nlearning_rate: 3\n")
    assert train_tiny.main(["--config", str(tmp_path / "bad.yaml"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: learning_rate: unknown key; known are ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["max_steps=x"], "max_steps: 'x' is not of type int"),
        (["optimizer=sgd", "max_steps=1"], "optimizer: unknown value 'sgd'"),
        ([], "max_seconds: give it or max_steps"),
        (["nonsense"], "is not KEY=VALUE"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, changes: list[str], message: str) -> None:
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(UsageError, match=message):
        TrainConfig.read(tmp_path / "empty.yaml", changes)


def test_example_is_valid() -> None:
    config = TrainConfig.read(ROOT / "examples" / "train" / "nap-tiny.yaml")
    assert sum(config.patterns.values()) == pytest.approx(1)


def test_the_clock_brings_the_rate_to_zero() -> None:
    config = TrainConfig(max_seconds=100, pace_every=1, warmup_steps=2)
    now = iter([40.0, 70.0, 100.0])  # the first step ends at 40
    pace = Pace(config, Ranks(0, 1, torch.device("cpu")), started=0.0, clock=lambda: next(now))
    progress = [pace.progress(step) for step in range(4)]
    assert progress == pytest.approx([0, 0, 0.5, 1])
    assert [rate_factor(s, p, config) for s, p in enumerate(progress)] == pytest.approx([0.5, 1, 0.5, 0])


def test_gradients_are_views_of_one_buffer() -> None:
    layer = torch.nn.Linear(3, 2)
    gradients = FlatGradients(list(layer.parameters()))
    layer(torch.ones(1, 3)).sum().backward()
    assert gradients.flat.tolist() == [1] * 8
    assert gradients.clip(1.0).item() == pytest.approx(8**0.5)
    assert gradients.flat.norm().item() == pytest.approx(1, abs=1e-4)
