"""`nap model tags`: a published checkpoint's vocabulary gets NAP's tags, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nap_runtime.cli import main
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.loading import load_model, read_card
from nap_trainer.adapt.tags import add_tags
from nap_trainer.adapt.tensors import data_bytes, with_rows
from nap_trainer.adapt.vocabulary import SPREAD, TAGS
from nap_trainer.batches.formats import Marks

Make = Callable[..., Path]
FAMILIES = ("llada", "dream")
TEXT = "There are 3 boxes with 12 apples each.\n\nSo 36 <|endoftext|> in all: naïve ≤ 7"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_tags_rows_change(toy_checkpoint: Make, tmp_path: Path, family: str) -> None:
    source = toy_checkpoint(family, tmp_path / "source")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    config, note = add_tags(source, tmp_path / "out")
    assert config == read_card(source).config  # spare rows sufficed
    assert note.rows == (352, 352)
    assert sorted(note.added.values()) == list(range(note.tokens, note.tokens + 16))
    old, new = tensors(source), tensors(tmp_path / "out")
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert len(changed) == 2
    taken = torch.zeros(352, dtype=torch.bool)
    taken[list(note.added.values())] = True
    for name in changed:
        assert torch.equal(old[name][~taken], new[name][~taken])
        assert (old[name][taken] != new[name][taken]).any(1).all()
    assert before == {file.name: file.read_bytes() for file in source.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_begin_near_the_mean_of_those_with_a_token(toy_checkpoint: Make, tmp_path: Path, family: str) -> None:
    source = toy_checkpoint(family, tmp_path / "source", d_model=256, head_dim=64)
    _, note = add_tags(source, tmp_path / "out")
    for name in ("embed", "head"):
        used = getattr(load_model(source).model, name).weight[: note.tokens]
        rows = getattr(load_model(tmp_path / "out").model, name).weight[list(note.added.values())]
        distance = ((rows - used.mean(0)) / used.std(0) / SPREAD).square().mean(1).sqrt()
        assert ((distance > 0.8) & (distance < 1.2)).all()  # normal noise of 256 dimensions
        assert torch.corrcoef(rows - used.mean(0)).fill_diagonal_(0).abs().max() < 0.3  # apart from each other


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_read_as_before_and_tags_as_one_id(toy_checkpoint: Make, tmp_path: Path, family: str) -> None:
    source = toy_checkpoint(family, tmp_path / "source")
    with pytest.raises(ModelError, match=r"lacks '<think 1>'; add NAP's tags with `nap model tags`"):
        Marks.of(read_card(source), 3)
    _, note = add_tags(source, tmp_path / "out")
    old, card = read_card(source).tokenizer, read_card(tmp_path / "out")
    new = card.tokenizer
    assert old is not None
    assert new is not None
    assert new.encode(TEXT) == old.encode(TEXT)
    assert new.decode(new.encode(TEXT)) == old.decode(old.encode(TEXT))
    question = TEXT.replace("<|endoftext|>", "")  # which a prompt may not hold
    assert new.encode_prompt(question) == old.encode_prompt(question)
    assert len(new.encode_prompt("Why?")) > len(new.encode("Why?"))  # the chat template is still there
    for tag in TAGS:
        assert new.encode(f"so{tag}7") == [*new.encode("so"), note.added[tag], *new.encode("7")]
    marks = Marks.of(card, 6)
    assert marks.headers[5][0] == note.added["<think 6>"]
    assert marks.chain_header[0] == note.added["<think>"]


def test_files_without_an_embedding_are_shared(toy_checkpoint: Make, tmp_path: Path) -> None:
    source = toy_checkpoint("llada", tmp_path / "source")
    add_tags(source, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    matrices = {
        index["weight_map"][name] for name in ("model.transformer.wte.weight", "model.transformer.ff_out.weight")
    }
    files = sorted(file.name for file in source.glob("*.safetensors"))
    assert len(files) > len(matrices)
    for name in files:
        assert (source / name).samefile(tmp_path / "out" / name) == (name not in matrices)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors(tmp_path / "out").values())
    assert (tmp_path / "out" / "generation_config.json").exists()


@pytest.mark.parametrize(("family", "tied"), [("llada", False), ("dream", False), ("llada", True)])
def test_a_full_vocabulary_grows(toy_checkpoint: Make, tmp_path: Path, family: str, tied: bool) -> None:
    rows = 1 + max(read_card(toy_checkpoint(family, tmp_path / "whole")).tokenizer.inner.get_vocab().values())  # type: ignore[union-attr]
    shards = 1 << 40 if tied else 100_000
    source = toy_checkpoint(family, tmp_path / "full", rows=rows, max_shard_bytes=shards, tied_head=tied)
    config, note = add_tags(source, tmp_path / "out")
    assert note.rows == (rows, 384)  # 305 or 306 tokens and 16 tags, up to a multiple of 64
    assert config.vocab_size == note.rows[1]
    old, new = load_model(source).model, load_model(tmp_path / "out").model
    for name in ("embed.weight", *(() if tied else ("head.weight",))):
        before, after = (dict(model.named_parameters())[name] for model in (old, new))
        assert torch.equal(before, after[:rows])
        assert after[rows:].abs().max() < before.abs().max()
    ids_BN = torch.randint(0, rows, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(new(ids_BN)[..., :rows], old(ids_BN), atol=1e-6)


def test_what_cannot_be_tagged_is_one_line(
    toy_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = toy_checkpoint("llada", tmp_path / "source")
    assert main(["model", "tags", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "llada, 16 tags as ids" in capsys.readouterr().out
    assert main(["model", "tags", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "already holds a model" in capsys.readouterr().err
    with pytest.raises(UsageError, match="has every tag already"):
        add_tags(tmp_path / "out", tmp_path / "again")
    shutil.copytree(source, tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*.json"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer with a tokenizer_config"):
        add_tags(tmp_path / "bare", tmp_path / "again")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"mask_token_id": 340}))
    with pytest.raises(ModelError, match="before the special id 340"):
        add_tags(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_is_written_again_with_other_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    values = {
        name: torch.randn(shape, dtype=dtype)
        for name, shape in {"a": (3,), "m": (7, 5), "n": (4, 2), "z": (2, 3)}.items()
    }
    save_file(values, tmp_path / "old", metadata={"format": "pt"})
    rows = {0: torch.full((5,), 1.5), 6: torch.full((5,), 2.5), 7: torch.full((5,), 3.5), 8: torch.full((5,), 4.5)}
    with_rows(tmp_path / "old", tmp_path / "new", {"m": (9, rows), "n": (4, {2: torch.tensor([0.5, -0.5])})})
    found = load_file(tmp_path / "new")
    expected = {**values, "m": torch.cat([values["m"], torch.zeros(2, 5, dtype=dtype)]), "n": values["n"].clone()}
    for at, row in rows.items():
        expected["m"][at] = row.to(dtype)
    expected["n"][2] = torch.tensor([0.5, -0.5])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert data_bytes(tmp_path / "new") == sum(value.nbytes for value in expected.values())
