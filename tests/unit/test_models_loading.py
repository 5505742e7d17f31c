"""Model folders: round trips, and one clear line for everything that can be wrong with one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nap_runtime.models
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models import describe, load_model, make_model, make_model_dir, save_model
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.tokenizer import build_word_tokenizer

FAMILIES = ["nap-tiny", "llada-tiny", "dream-tiny"]
SMALL = {"n_layers": 2, "vocab_size": 128}
SHARD = 60_000  # bytes: several shards even for toys


def small(shape: str, **overrides: Any) -> Any:
    return make_model(shape, seed=1, **(SMALL | overrides))


@pytest.fixture
def llada(tmp_path: Path) -> Path:
    make_model_dir("llada-tiny", tmp_path / "m", seed=1, dtype=torch.float32, max_shard_bytes=SHARD)
    return tmp_path / "m"


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(kept))


def refused(path: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("shape", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [SHARD, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_then_load_gives_the_same_model(tmp_path: Path, shape: str, shard_bytes: int, dtype: torch.dtype) -> None:
    config, model = small(shape, dtype=dtype)
    save_model(model, config, tmp_path / "m", max_shard_bytes=shard_bytes)
    loaded = load_model(tmp_path / "m", dtype=dtype)
    assert loaded.config == config
    assert loaded.card.name == "m"
    for (name, saved), again in zip(model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(saved, again), name
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes == SHARD)
    assert [file.name for file in tmp_path.iterdir()] == ["m"]  # no temporary left


@pytest.mark.parametrize("shape", FAMILIES)
def test_a_streamed_folder_equals_the_model_in_memory(tmp_path: Path, shape: str) -> None:
    make_model_dir(shape, tmp_path / "m", seed=1, dtype=torch.float32, max_shard_bytes=SHARD, **SMALL)
    config, model = small(shape)
    loaded = load_model(tmp_path / "m")
    assert loaded.config == config
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(loaded.model(ids), model(ids))


@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_a_tied_head_is_not_stored_and_its_copy_is_ignored(tmp_path: Path, shape: str) -> None:
    config, model = small(shape, tied_head=True)
    save_model(model, config, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    head = "lm_head.weight" if config.family == "dream" else "model.transformer.ff_out.weight"
    assert head not in tensors
    save_file(tensors | {head: torch.zeros(128, 64)}, file)
    assert torch.equal(load_model(tmp_path / "m").model.embed.weight, model.embed.weight)


def test_names_on_disk_are_the_familys_own(tmp_path: Path) -> None:
    for shape, name in [
        ("llada-tiny", "model.transformer.blocks.1.up_proj.weight"),
        ("dream-tiny", "model.layers.1.self_attn.k_proj.bias"),
        ("nap-tiny", "layers.1.attn.qkv.weight"),
    ]:
        config, model = small(shape)
        save_model(model, config, tmp_path / shape)
        assert name in load_file(tmp_path / shape / "model.safetensors")
    assert set(load_file(tmp_path / "nap-tiny" / "model.safetensors")) == set(model.state_dict())


def test_loading_converts_the_dtype_and_freezes_unless_trainable(llada: Path) -> None:
    loaded = load_model(llada, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert all(weight.requires_grad for weight in load_model(llada, trainable=True).model.parameters())


def test_saving_over_a_folder_keeps_its_tokenizer_and_drops_old_shards(llada: Path) -> None:
    build_word_tokenizer(["apple"], llada)
    config, model = make_model("llada-tiny", seed=2)
    save_model(model, config, llada)
    assert sorted(file.name for file in llada.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert load_model(llada).tokenizer is not None


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = small("llada-tiny")
    monkeypatch.setattr(ModelConfig, "to_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(model, config, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_follows_the_weights_not_the_folder(tmp_path: Path, llada: Path) -> None:
    before = load_model(llada).card.fingerprint
    llada.rename(tmp_path / "moved")
    assert load_model(tmp_path / "moved").card.fingerprint == before
    make_model_dir("llada-tiny", tmp_path / "n", seed=2, dtype=torch.float32, max_shard_bytes=SHARD)
    assert load_model(tmp_path / "n").card.fingerprint != before


def test_describe_is_json_of_the_folder(llada: Path) -> None:
    facts = json.loads(json.dumps(describe(llada)))
    assert facts["family"] == "llada"
    assert facts["dtype"] == "float32"
    assert facts["kv_bytes_per_token"] == 2 * 2 * 4 * 16 * 4
    assert facts["params"] == load_model(llada).config.n_params
    assert len(facts["files"]) > 2
    assert facts["special_ids"]["mask"] == 95


def test_making_over_a_model_or_of_an_unknown_shape_is_a_usage_error(llada: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already holds a model"):
        make_model_dir("llada-tiny", llada, seed=1)
    with pytest.raises(UsageError, match="llada-8b"):
        make_model_dir("llada-9b", tmp_path / "x", seed=1)
    with pytest.raises(UsageError, match="n_layer'"):
        make_model("llada-tiny", seed=1, n_layer=3)


def test_a_missing_folder_names_what_to_give(tmp_path: Path) -> None:
    assert "nap-tiny" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "config.json does not exist" in refused(tmp_path / "empty")


def test_a_missing_bundled_model_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nap_runtime.models.loading.BUNDLED", {"nap-tiny": tmp_path / "gone"})
    assert "reinstall" in refused("nap-tiny")


def shard(path: Path, number: int = 2) -> Path:
    return sorted(path.glob("model-*.safetensors"))[number]


def truncate(path: Path) -> str:
    file = shard(path)
    file.write_bytes(file.read_bytes()[:-100])
    return f"{file.name} is truncated or corrupt"


def truncate_header(path: Path) -> str:
    shard(path).write_bytes(b"\x10")
    return f"{shard(path).name} is truncated or corrupt"


def scramble(path: Path) -> str:
    shard(path).write_bytes(b"<html>404</html>" * 10)
    return f"{shard(path).name} is truncated or corrupt"


def remove_shard(path: Path) -> str:
    shard(path).unlink()
    return r"does not exist \(1 of 7 shards missing\)"


def remove_weights(path: Path) -> str:
    for file in path.glob("model*"):
        file.unlink()
    return "holds neither model.safetensors nor"


def spoil_index(path: Path) -> str:
    (path / "model.safetensors.index.json").write_text("{}")
    return "is no shard index"


def escape_folder(path: Path) -> str:
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    return "outside the model folder"


def drop_tensor(path: Path) -> str:
    tensors = load_file(shard(path))
    dropped = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, shard(path))
    return rf"'{re.escape(dropped)}' is missing \(1 of"


def add_tensor(path: Path) -> str:
    save_file(load_file(shard(path)) | {"adapter.weight": torch.zeros(3)}, shard(path))
    return "'adapter.weight' is not part of this model"


def reshape_tensor(path: Path) -> str:
    tensors = load_file(shard(path))
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name][1:].clone()}, shard(path))
    return rf"'{re.escape(name)}' has shape \[63.*\[64.* expected"


def quantise_tensor(path: Path) -> str:
    tensors = load_file(shard(path))
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name].to(torch.int8)}, shard(path))
    return "I8: only float weights"


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        truncate_header,
        scramble,
        remove_shard,
        remove_weights,
        spoil_index,
        escape_folder,
        drop_tensor,
        add_tensor,
        reshape_tensor,
        quantise_tensor,
    ],
)
def test_damaged_weights_are_named(llada: Path, damage: Callable[[Path], str]) -> None:
    expected = damage(llada)
    assert re.search(expected, refused(llada)), refused(llada)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "'model_type' is 'llama': accepted are 'llada', 'Dream' or 'nap'"),
        ({"model_type": ...}, "'model_type' is None"),
        ({"d_model": ...}, "'d_model' is missing"),
        ({"d_model": "64"}, "'d_model' must be int, not '64'"),
        ({"n_layers": True}, "'n_layers' must be int, not True"),
        ({"n_heads": 5}, "'n_heads' .* must divide"),
        ({"mask_token_id": ...}, "'mask_token_id' is missing"),
        ({"alibi": True}, "'alibi' is True, which is not supported"),
        ({"include_bias": True}, "'include_bias' is True"),
        ({"nap_end_ids": [1, "x"]}, "list of integers"),
        ({"embedding_size": 128}, r"has shape \[96, 64\], \[128, 64\] expected"),
    ],
)
def test_damaged_configs_name_the_field(llada: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(llada, **changes)
    assert re.search(words, refused(llada)), refused(llada)


def test_a_config_that_is_no_json_object_is_refused(llada: Path) -> None:
    for text in ("{", "[]", "\x00"):
        (llada / "config.json").write_text(text)
        assert "config.json" in refused(llada)


def test_our_own_format_knows_its_keys(tmp_path: Path) -> None:
    config, model = small("nap-tiny")
    save_model(model, config, tmp_path)
    edit_config(tmp_path, n_layer=3)
    assert "'n_layer' is unknown in the nap format" in refused(tmp_path)
    edit_config(tmp_path, n_layer=..., rope_theta=...)
    assert "'rope_theta' is missing" in refused(tmp_path)


def test_published_configs_read_to_the_published_shapes(tmp_path: Path) -> None:
    """The checkpoints' own files lack bos, eot and im_end: these come with the known vocabularies."""
    from nap_runtime.models.shapes import shape_config

    for shape, drop in [("llada-8b", ["bos_token_id"]), ("dream-7b", ["head_dim", "attention_bias"])]:
        config = shape_config(shape)
        config.to_json(tmp_path)
        assert ModelConfig.from_dir(tmp_path) == config
        edit_config(tmp_path, nap_end_ids=..., **dict.fromkeys(drop, ...))
        assert ModelConfig.from_dir(tmp_path) == config


def test_dream_config_as_transformers_5_writes_it(tmp_path: Path) -> None:
    config = small("dream-tiny")[0]
    config.to_json(tmp_path)
    edit_config(tmp_path, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert ModelConfig.from_dir(tmp_path) == config


def test_every_exported_name_resolves() -> None:
    for name in nap_runtime.models.__all__:
        assert getattr(nap_runtime.models, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        nap_runtime.models.no_such  # noqa: B018
