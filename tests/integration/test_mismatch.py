"""The study's own trainings: the twin differs from nap-tiny in form alone, the mismatch's arms in one thing each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nap_runtime.api import decode
from nap_runtime.job import DecodeConfig
from nap_runtime.models.shapes import make_model_dir
from nap_trainer.settings import TrainConfig
from nap_trainer.words_study import study_tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "train"
SMALL = {
    "data.samples": 16, "data.processes": 1, "schedule.global_batch": 4, "schedule.micro_batch": 4,
    "schedule.max_steps": 1, "schedule.warmup": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def mismatch(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(EXAMPLES / "mismatch.py")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    folder.mkdir()
    size = -(-len(study_tokenizer(folder)) // 8) * 8
    shape = {"n_layers": 1, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16, "d_ff": 32}
    make_model_dir("nap-tiny", folder, seed=1, dtype=torch.float32, vocab_size=size, **shape)
    study_tokenizer(folder)
    return folder


def test_arms_differ_in_their_objective_alone(mismatch: ModuleType, tmp_path: Path) -> None:
    arms = mismatch.arm_settings(EXAMPLES / "mismatch.yaml", tmp_path, ["model.init=x"])
    assert list(arms) == ["shared-t", "per-path-t", "stale", "hub", "isolated"]
    plain = arms["shared-t"].to_mapping()
    for name, settings in arms.items():
        values = settings.to_mapping()
        own = {key for key, value in values.pop("objective").items() if value != plain["objective"][key]}
        expected = {"shared-t": set(), "per-path-t": {"patterns"}, "stale": {"staleness"}}.get(name, {"topology"})
        assert own == expected
        assert values.pop("run")["out"] == str(tmp_path / name)
        assert values == {key: value for key, value in plain.items() if key not in ("objective", "run")}


def test_a_run_goes_on_where_it_was(
    mismatch: ModuleType, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--set", f"model.init={start}", *(f"--set={key}={value}" for key, value in SMALL.items())]
    assert mismatch.main([*words, "--only", "stale"]) == 0
    assert mismatch.main([*words, "--only", "stale", "--only", "hub"]) == 0
    assert "stale: there already" in capsys.readouterr().out
    for name in ("stale", "hub"):
        defaults = json.loads((tmp_path / name / "model" / "decode.json").read_text())
        assert (defaults["paths"], defaults["path_tokens"], defaults["summary_tokens"]) == (3, 40, 8)
        decoded = decode("how many", DecodeConfig(steps=2), model=tmp_path / name / "model")
        assert decoded.record.config["sync"]["topology"] == defaults["topology"] == {"hub": "hub"}.get(name, "full")
    assert mismatch.main([*words, "--only", "none"]) == 2
    assert "only: unknown arm 'none'" in capsys.readouterr().err


def test_the_twin_differs_in_form_alone() -> None:
    nap, cot = (TrainConfig.read(EXAMPLES / f"{name}.yaml").to_mapping() for name in ("nap-tiny", "nap-tiny-cot"))
    assert {key for key in nap if nap[key] != cot[key]} == {"data", "run"}
    changed = {key for key in nap["data"] if nap["data"][key] != cot["data"][key]}
    assert changed == {"format", "paths", "path_tokens", "shuffle_paths"}
    assert cot["data"]["path_tokens"] == [3 * tokens for tokens in nap["data"]["path_tokens"]]
    assert {key for key in nap["run"] if nap["run"][key] != cot["run"][key]} == {"out"}
