"""What a model was trained to see, as its `decode.json` says, is the default; an option wins; a clash is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nap_runtime.api import decode
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.prompting import DecodeDefaults, resolve
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_runtime.study.cost.ask import choose_sync
from nap_runtime.study.run import plan
from nap_runtime.study.spec import Study
from nap_trainer.words import vocabulary

Nap = Callable[..., Any]
QUESTION = "a shirt costs $50. what is the final price?"
CANVAS = {"paths": 3, "path_tokens": 6, "summary_tokens": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model, once for each topology that its `decode.json` may name, and once for none."""
    first = tmp_path_factory.mktemp("models") / "none"
    make_model_dir("nap-tiny", first, seed=1, dtype=torch.float32, scale=3.0, n_layers=2, d_model=64, d_ff=96)
    build_word_tokenizer(vocabulary(), first)
    (first / "decode.json").write_text(json.dumps(CANVAS))
    folders = {"none": first}
    for topology in ("full", "hub", "isolated"):
        folders[topology] = Path(shutil.copytree(first, first.parent / topology))
        (folders[topology] / "decode.json").write_text(json.dumps({**CANVAS, "topology": topology}))
    return folders


@pytest.mark.parametrize(
    ("trained", "sync", "sees"),
    [
        (None, SyncPolicy(), "full"),
        (None, SyncPolicy("shared"), "hub"),
        ("full", SyncPolicy(), "full"),
        ("hub", SyncPolicy(), "hub"),
        ("hub", SyncPolicy("tokens", every=4), "hub"),
        ("hub", SyncPolicy("shared"), "hub"),
        ("isolated", SyncPolicy("none"), "isolated"),
        ("isolated", SyncPolicy("none", topology="full"), "full"),
        ("hub", SyncPolicy("kv", topology="full"), "full"),
        ("full", SyncPolicy("kv"), "full"),
        ("isolated", SyncPolicy("shared", topology="hub"), "hub"),
    ],
)
def test_what_a_decode_sees(trained: Any, sync: SyncPolicy, sees: str) -> None:
    defaults = DecodeDefaults(topology=trained)
    config = resolve(DecodeConfig(sync=sync), defaults)
    assert config.sync.topology == sees
    assert resolve(config, defaults) == config
    assert resolve(config, DecodeDefaults(topology="isolated")) == config  # a record repeats itself


@pytest.mark.parametrize(
    ("trained", "mode", "needs"), [("hub", "kv", "full"), ("isolated", "shared", "hub"), ("full", "shared", "hub")]
)
def test_a_sync_that_needs_another_topology_is_refused(trained: Any, mode: Any, needs: str) -> None:
    text = f"^topology: sync '{mode}' needs '{needs}', and the model was trained with '{trained}'; choose another sync"
    with pytest.raises(UsageError, match=text) as caught:
        resolve(DecodeConfig(sync=SyncPolicy(mode)), DecodeDefaults(topology=trained))
    assert caught.value.field == "topology"


def test_a_plain_canvas_has_none() -> None:
    config = resolve(DecodeConfig(layout="plain"), DecodeDefaults(topology="isolated"))
    assert config.sync.topology == "full"


def test_a_wrong_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "decode.json").write_text(json.dumps({"topology": "mixed"}))
    with pytest.raises(ModelError, match=r"decode\.json: topology: unknown value 'mixed'") as caught:
        DecodeDefaults.of(tmp_path)
    assert "\n" not in str(caught.value)


def test_decodes_differ_as_topologies_do(models: dict[str, Path]) -> None:
    """The ids of the default are those of the option, and not those of another topology."""
    found = {
        (name, asked): decode(QUESTION, DecodeConfig(sync=SyncPolicy(topology=asked)), model=models[name])  # type: ignore[arg-type]
        for name in ("none", "isolated", "hub")
        for asked in (None, "full", "isolated", "hub")
    }
    ids = {key: result.record.final_ids.tolist() for key, result in found.items()}
    assert ids["isolated", None] == ids["none", "isolated"] != ids["none", None] == ids["isolated", "full"]
    assert ids["hub", None] == ids["none", "hub"] == ids["isolated", "hub"]


def test_the_command_line(nap: Nap, models: dict[str, Path]) -> None:
    def topology(name: str, *words: str) -> str:
        ran = nap("decode", "--model", models[name], *words, "--print-config", QUESTION)
        assert ran.code == 0, ran.err
        return str(yaml.safe_load(ran.out)["sync"]["topology"])

    assert topology("isolated") == "isolated"
    assert topology("isolated", "--topology", "full") == "full"
    assert topology("none") == "full"
    ran = nap("decode", "--model", models["hub"], "--workers", 3, "--simulate", "--sync", "kv", "--every", 4, QUESTION)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "--topology: sync 'kv' needs 'full', and the model was trained with 'hub'" in ran.err
    ran = nap("decode", "--model", models["hub"], "--json", QUESTION)
    assert json.loads(ran.out)["config"]["sync"]["topology"] == "hub"


@pytest.mark.parametrize(("name", "mode"), [("isolated", "none"), ("hub", "exact"), ("full", "exact")])
def test_a_chosen_sync_goes_with_it(nap: Nap, models: dict[str, Path], name: str, mode: str) -> None:
    words = ["--workers", 3, "--simulate", "--sync", "auto", "--link", "nvlink", "--overhead", "0.9", "--print-config"]
    ran = nap("decode", "--model", models[name], *words, QUESTION)
    assert ran.code == 0, ran.err
    sync = yaml.safe_load(ran.out)["sync"]
    assert (sync["mode"], sync["topology"]) == (mode, name)
    choice = choose_sync(workers=3, model=models[name], link="nvlink", overhead=0.9)
    assert choice.policy.mode == mode
    assert resolve(DecodeConfig(sync=choice.policy), DecodeDefaults.of(models[name])).sync.topology == name


def test_what_a_given_sync_needs_does_not_count_where_one_is_chosen(models: dict[str, Path]) -> None:
    config = DecodeConfig(sync=SyncPolicy("kv", every=2))
    assert choose_sync(config, workers=3, model=models["isolated"], link="wan").policy.mode == "none"
    assert choose_sync(config, workers=1, model=models["hub"]).policy == SyncPolicy(topology="hub")


def test_studies_take_it_too(models: dict[str, Path]) -> None:
    cases = [{}, {"sync.topology": "full"}]
    values = {
        "problems": {"set": "words", "n": 1},
        "base": {"model": str(models["hub"]), "steps": 4},
        "sweeps": [{"name": "a", "cases": cases}],
    }
    assert [run.config.sync.topology for run in plan(Study.from_mapping(values))] == ["hub", "full"]
    values["base"] = {**values["base"], "sync.mode": "kv"}  # type: ignore[dict-item]
    with pytest.raises(UsageError, match=r"^sweep a: topology: sync 'kv' needs 'full'"):
        plan(Study.from_mapping(values))
