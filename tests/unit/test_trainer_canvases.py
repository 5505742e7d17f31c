"""Training canvases are the decoder's canvases, filled in; the table holds what was built."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from nap_runtime.errors import UsageError
from nap_runtime.models.tokenizer import UNK, WordTokenizer, build_word_tokenizer
from nap_trainer.canvases import CanvasFormat, TrainingCanvas
from nap_trainer.dataset import DeviceData, generate_table, word_ids
from nap_trainer.words import Problem, generate, tokens, vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordTokenizer:
    return build_word_tokenizer(vocabulary(), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def form(tokenizer: WordTokenizer) -> CanvasFormat:
    return CanvasFormat.of(tokenizer)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return list(islice(generate("train", seed=3), 50))


def test_training_and_decoding_agree_on_every_position(
    tokenizer: WordTokenizer, form: CanvasFormat, problems: list[Problem]
) -> None:
    for problem in problems:
        canvas = TrainingCanvas.of(problem, tokenizer, form)
        prompt = tokenizer.encode_prompt(problem.question)
        layout = form.layout(len(prompt))
        assert canvas.layout == layout
        emptied = canvas.ids.copy()
        emptied[list(layout.slots)] = form.mask_id
        np.testing.assert_array_equal(emptied, layout.initial_ids(prompt))


def test_the_runtimes_own_layout_is_the_same(tokenizer: WordTokenizer, form: CanvasFormat) -> None:
    headers = [tokenizer.encode(f"<think {j}>") for j in (1, 2, 3)]
    layout = form.layout(7)
    assert [list(h) for h in layout.headers] == headers
    assert list(layout.summary_header) == tokenizer.encode("<summary>")
    assert layout.blocks[0].rows.start == 7
    assert layout.size == 7 + 3 * 41 + 13


def test_slots_hold_text_end_tag_and_end_of_text(
    tokenizer: WordTokenizer, form: CanvasFormat, problems: list[Problem]
) -> None:
    canvas = TrainingCanvas.of(problems[0], tokenizer, form)
    for index, block in enumerate(canvas.layout.paths):
        text = tokenizer.encode(problems[0].paths[index])
        slots = canvas.ids[block.slots.start : block.slots.stop].tolist()
        assert slots[: len(text) + 1] == [*text, block.end_ids[0]]
        assert set(slots[len(text) + 1 :]) <= {form.eos_id}


def test_a_path_over_its_budget_is_named(tokenizer: WordTokenizer, problems: list[Problem]) -> None:
    tight = CanvasFormat.of(tokenizer, path_tokens=5)
    with pytest.raises(UsageError, match="path_tokens: a text of"):
        TrainingCanvas.of(problems[0], tokenizer, tight)


def test_fast_ids_equal_the_tokenizers(tokenizer: WordTokenizer, problems: list[Problem]) -> None:
    ids = word_ids(tokenizer)
    for problem in problems:
        for text in (problem.question, *problem.paths, problem.summary):
            assert [ids[t] for t in tokens(text)] == tokenizer.encode(text)


def test_over_budget_problems_are_dropped_and_counted(tokenizer: WordTokenizer) -> None:
    tight = CanvasFormat.of(tokenizer, path_tokens=34)
    table = generate_table(tokenizer, tight, split="train", seed=0, count=20, error_rate=0.15)
    assert len(table.ids_nN) == 20
    assert table.dropped > 0


def test_table_rows_are_the_canvases(tokenizer: WordTokenizer, form: CanvasFormat) -> None:
    table = generate_table(tokenizer, form, split="train", seed=0, count=8, error_rate=0.15, processes=1)
    data = DeviceData(table, form, tokenizer, torch.device("cpu"))
    batch = data.rows(torch.arange(8))
    for row, problem in enumerate(islice(generate("train", seed=0), 8)):
        canvas = TrainingCanvas.of(problem, tokenizer, form)
        size = canvas.layout.size
        np.testing.assert_array_equal(batch.ids_BN[row, :size].numpy(), canvas.ids)
        assert batch.real_BN[row].tolist() == [i < size for i in range(table.width)]
        slots = batch.region_BN[row].nonzero().flatten().tolist()
        assert tuple(slots) == canvas.layout.slots
        assert batch.region_BN[row, list(canvas.layout.paths[1].slots)].unique().tolist() == [2]


def test_processes_have_seeds_of_their_own(tokenizer: WordTokenizer, form: CanvasFormat) -> None:
    table = generate_table(tokenizer, form, split="train", seed=0, count=9, error_rate=0.15, processes=2)
    assert len({row.tobytes() for row in table.ids_nN}) == 9
    assert table.width % 8 == 0


def test_unknown_words_replace_prompt_words_only(tokenizer: WordTokenizer, form: CanvasFormat) -> None:
    table = generate_table(tokenizer, form, split="train", seed=0, count=8, error_rate=0.15)
    data = DeviceData(table, form, tokenizer, torch.device("cpu"))
    drawn = data.draw(64, torch.Generator().manual_seed(0), unknown=1.0)
    clean = data.draw(64, torch.Generator().manual_seed(0))
    changed = drawn.ids_BN != clean.ids_BN
    assert changed.any()
    assert set(drawn.ids_BN[changed].tolist()) == {tokenizer.token_id(UNK)}
    kept = {tokenizer.token_id(sign) for sign in "0123456789$%?."}
    assert not kept & set(clean.ids_BN[changed].tolist())
    assert not (changed & (clean.region_BN > 0)).any()


def test_tokenizer_file_is_small(tmp_path: Path) -> None:
    build_word_tokenizer(vocabulary(), tmp_path)
    assert (tmp_path / "tokenizer.json").stat().st_size < 40_000
