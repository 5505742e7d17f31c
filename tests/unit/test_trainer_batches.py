"""Training canvases are the decoder's own; batches are a function of seed and step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.errors import DataError, ModelError, UsageError
from nap_runtime.job import DecodeConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.prompting import build_layout
from nap_trainer.batches.collate import HostBatch, collate
from nap_trainer.batches.formats import Marks, formed
from nap_trainer.batches.loader import Loader
from nap_trainer.batches.segments import PAD, SegmentTable, joined, padded
from nap_trainer.batches.sources import held_out, training_table
from nap_trainer.prepare import model_card, prepare
from nap_trainer.settings import DataSection, ModelSection, TrainConfig

ROWS = [
    {"question": "how many apples ?", "paths": ["1 + 2 = 3 .", "2 + 1 = 3 .", "3 ."], "summary": "3", "answer": "3"},
    {"question": "how many ?", "paths": ["4 .", "2 * 2 = 4 .", "8 / 2 = 4 ."], "summary": "the 4", "answer": "4"},
    {"question": "apples ?", "paths": ["5 .", "5 + 0 = 5 ."], "summary": "5", "answer": "5"},
]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return model_card(ModelSection(shape="nap-tiny", tokenizer="words"), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def data(file: Path | str, **keys: Any) -> DataSection:
    return DataSection.model_validate({"train": str(file), "path_tokens": 12, "summary_tokens": 6, **keys})


def table(card: ModelCard, section: DataSection) -> SegmentTable:
    assert card.tokenizer is not None
    return training_table(section, card.tokenizer)


def loader(card: ModelCard, section: DataSection, **sizes: int) -> Loader:
    marks = Marks.of(card, max(section.paths))
    sizes = {"global_batch": 4, "micro_batch": 4, **sizes}
    return Loader(formed(table(card, section), section, marks), section, marks, **sizes)


# --- segments ---

segment = st.lists(st.integers(0, 99), max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(segment, segment), min_size=1, max_size=6), st.lists(st.integers(0, 99), max_size=3))
def test_joined_is_concatenation(rows: list[tuple[list[int], list[int]]], between: list[int]) -> None:
    first, second = padded([row[0] for row in rows]), padded([row[1] for row in rows])
    out = joined([first, tuple(between), second], len(rows))
    for row, (a, b) in zip(out, rows, strict=True):
        assert row[row != PAD].tolist() == [*a, *between, *b]


# --- canvases ---


@pytest.mark.parametrize("paths", [1, 2, 3])
@pytest.mark.parametrize("budgets", [(12, 6), (20, 9)])
def test_canvas_is_the_decoders(card: ModelCard, file: Path, paths: int, budgets: tuple[int, int]) -> None:
    """With its slots masked, a training canvas is what decoding starts from; regions are the layout's own."""
    rows = table(card, data(file))
    marks = Marks.of(card, paths)
    which = np.tile(np.arange(paths), (2, 1))
    batch = collate(
        rows, np.array([0, 1]), which, budgets=[budgets[0]] * paths, summary_budget=budgets[1], marks=marks,
        index_B=np.arange(2),
    )  # fmt: skip
    config = DecodeConfig(paths=paths, path_tokens=budgets[0], summary_tokens=budgets[1], headers="nap")
    for row in range(2):
        prompt = rows.prompt_nP[row][rows.prompt_nP[row] != PAD]
        layout = build_layout(card, config, len(prompt))
        slots = batch.block_BN[row, : layout.size] > 0
        started = np.where(slots, layout.mask_id, batch.ids_BN[row, : layout.size])
        np.testing.assert_array_equal(started, layout.initial_ids(prompt.tolist()))
        np.testing.assert_array_equal(batch.owner_BN[row, : layout.size], layout._owner())
        assert (batch.owner_BN[row, layout.size :] == -2).all()
        assert not batch.text_BN[row, layout.size :].any()


def slot_ids(batch: HostBatch, row: int, block: int) -> list[int]:
    return batch.ids_BN[row][batch.block_BN[row] == block].tolist()


def test_block_is_text_end_tag_and_padding(card: ModelCard, file: Path) -> None:
    tokenizer = card.tokenizer
    assert tokenizer is not None
    rows = table(card, data(file))
    batch = collate(
        rows, np.array([0]), np.array([[1, 0]]), budgets=[12, 12], summary_budget=6, marks=Marks.of(card, 2),
        index_B=np.arange(1),
    )  # fmt: skip
    eos = card.config.eos_id
    for block, text, end in (
        (1, "2 + 1 = 3 .", "</think 1>"),
        (2, "1 + 2 = 3 .", "</think 2>"),
        (3, "3", "</summary>"),
    ):
        wanted = [*tokenizer.encode(text), tokenizer.token_id(end)]
        budget = 6 if block == 3 else 12
        assert slot_ids(batch, 0, block) == [*wanted, *[eos] * (budget - len(wanted))]
        assert int(batch.text_BN[0][batch.block_BN[0] == block].sum()) == len(wanted)


@pytest.mark.parametrize(
    ("form", "paths", "wanted"),
    [
        ("nap", 2, "<think 1> 1 + 2 = 3 . </think 1> <think 2> 2 + 1 = 3 . </think 2> <summary> 3 </summary>"),
        ("long-cot", 3, "<think 1> 1 + 2 = 3 . 2 + 1 = 3 . 3 . </think 1> <summary> 3 </summary>"),
        ("single", 1, "<think 1> 1 + 2 = 3 . </think 1> <summary> 3 </summary>"),
    ],
)
def test_free_region_is_the_text(card: ModelCard, file: Path, form: str, paths: int, wanted: str) -> None:
    section = data(file, format=form, answer="free", paths=[paths], gen_length=40)
    assert card.tokenizer is not None
    first = formed(table(card, section), section, Marks.of(card, paths)).paths_nmL[0, 0]
    assert first[first != PAD].tolist() == card.tokenizer.encode(wanted)


def test_chain_behind_a_clamped_header(card: ModelCard, file: Path) -> None:
    section = data(file, format="long-cot", paths=[3], path_tokens=24)
    assert card.tokenizer is not None
    [batch] = loader(card, section, global_batch=3, micro_batch=3).step(0)
    assert batch.blocks == 2
    chain = card.tokenizer.encode("1 + 2 = 3 . 2 + 1 = 3 . 3 .")
    assert any(slot_ids(batch, row, 1)[: len(chain)] == chain for row in range(3))


@pytest.mark.parametrize(("form", "answer"), [("long-cot", "clamped"), ("long-cot", "free"), ("nap", "free")])
def test_a_text_of_several_paths_needs_all_of_them(card: ModelCard, file: Path, form: str, answer: str) -> None:
    """The third row has two paths: its twin with three blocks leaves it out, and so does the chain."""
    section = data(file, format=form, answer=answer, paths=[3], path_tokens=24, gen_length=40)
    made = loader(card, section)
    assert (made.dropped, len(made.table)) == ({"paths": 1}, 2)
    with pytest.raises(UsageError, match=r"data: no row fits \(3 by paths\)"):
        loader(card, data(file, format=form, answer=answer, paths=[4], path_tokens=24, gen_length=40))


# --- order ---


@pytest.mark.parametrize(("ranks", "micro"), [(1, 8), (2, 4), (4, 2), (1, 2)])
def test_global_batch_does_not_depend_on_its_shares(card: ModelCard, ranks: int, micro: int) -> None:
    section = data("words", samples=40, path_tokens=[38, 48], summary_tokens=12, paths=[2, 3], processes=1)
    whole = loader(card, section, global_batch=8, micro_batch=8)
    parts = [loader(card, section, global_batch=8, micro_batch=micro, rank=r, world=ranks) for r in range(ranks)]
    for step in (0, 3, 11):
        [all_at_once] = whole.step(step)
        shares = sorted((batch for part in parts for batch in part.step(step)), key=lambda batch: int(batch.index_B[0]))
        assert [int(i) for batch in shares for i in batch.index_B] == list(range(8))
        for batch in shares:
            n = batch.ids_BN.shape[1]
            np.testing.assert_array_equal(batch.ids_BN, all_at_once.ids_BN[batch.index_B, :n])
            np.testing.assert_array_equal(batch.block_BN, all_at_once.block_BN[batch.index_B, :n])


def test_an_epoch_shows_every_row_once(card: ModelCard) -> None:
    section = data("words", samples=24, path_tokens=48, summary_tokens=12, processes=1)
    made = loader(card, section, global_batch=8, micro_batch=8)
    n = len(made.table)
    rows = [made._rows(step, 3) for step in range(-(-2 * n // 8))]
    flat = np.concatenate(rows)
    assert sorted(flat[:n]) == list(range(n))
    assert sorted(flat[n : 2 * n]) == list(range(n))
    assert flat[:n].tolist() != flat[n : 2 * n].tolist()


def test_steps_begin_anywhere(card: ModelCard) -> None:
    section = data("words", samples=24, path_tokens=48, summary_tokens=12, processes=1, shuffle_paths=True)
    made = loader(card, section)
    there = [batch for step, batch in enumerate(made.steps(0, 6)) if step >= 4]
    for (one,), (other,) in zip(there, made.steps(4, 6), strict=True):
        np.testing.assert_array_equal(one.ids_BN, other.ids_BN)


def test_budgets_vary_and_always_hold_the_texts(card: ModelCard) -> None:
    section = data("words", samples=200, path_tokens=[30, 60], summary_tokens=[10, 20], processes=1, paths=[1, 2, 3])
    made = loader(card, section)
    seen = set()
    for step in range(30):
        [batch] = made.step(step)
        seen.add((batch.blocks, int((batch.block_BN[0] == 1).sum())))
    assert {blocks for blocks, _ in seen} == {2, 3, 4}
    assert len({budget for _, budget in seen}) > 10


def test_rows_with_fewer_paths_give_way(card: ModelCard, file: Path) -> None:
    made = loader(card, data(file, paths=[2, 3]))
    for step in range(20):
        [batch] = made.step(step)
        if batch.blocks == 4:
            third = np.where(batch.block_BN == 3, batch.ids_BN, card.config.eos_id)
            assert (third != card.config.eos_id).sum(1).min() > 1  # more than the end tag


def test_what_does_not_fit_is_counted(card: ModelCard, file: Path) -> None:
    made = loader(card, data(file, paths=[2], path_tokens=7, summary_tokens=2), global_batch=1, micro_batch=1)
    assert made.dropped == {"summary_tokens": 1}  # `the 4` and its end tag; six signs and an end tag fit seven slots
    assert len(made.table) == 2


def test_nothing_fits(card: ModelCard, file: Path) -> None:
    with pytest.raises(UsageError, match=r"data: no row fits .*path_tokens.*raise the budgets"):
        loader(card, data(file, path_tokens=2))
    with pytest.raises(UsageError, match=r"data.paths: 5 where no row has more than 3"):
        loader(card, data(file, paths=[2, 5]))


# --- sources ---


def test_text_rows(card: ModelCard, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "how many ?", "response": "3 apples"}\n{"prompt": "how many ?", "response": ""}\n')
    section = data(file, format="text", answer="free", paths=[1], gen_length=8)
    with pytest.raises(DataError, match=r"pairs.jsonl: line 2: response: is empty"):
        table(card, section)
    file.write_text('{"prompt": "how many ?", "response": "3 apples"}\n')
    marks = Marks.of_text(card)
    made = Loader(formed(table(card, section), section, marks), section, marks, global_batch=1, micro_batch=1)
    [batch] = made.step(0)
    assert card.tokenizer is not None
    words = card.tokenizer.encode("3 apples")
    assert slot_ids(batch, 0, 1) == [*words, *[card.config.eos_id] * (8 - len(words))]
    assert not batch.summary


def test_malformed_row_is_named(card: ModelCard, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]) + '\n{"question": "q", "paths": ["a", ""], "summary": "3", "answer": "3"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl: line 2: paths.2: is empty"):
        table(card, data(file))


def test_procedural_rows_do_not_depend_on_processes(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nap_trainer.batches.procedural._PART", 10)
    one, two = (table(card, data("words", samples=25, processes=n)) for n in (1, 2))
    np.testing.assert_array_equal(one.paths_nmL, two.paths_nmL)
    assert len(one) == 25


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("words", {"error_rate": 2}, r"^data\.options\.error_rate: 2 is not a number from 0 to 1$"),
        ("words", {"error_rate": "often"}, r"^data\.options\.error_rate: 'often' is not a number"),
        ("words-study", {"min_depth": 99}, r"^data\.options\.min_depth: 99 is not a whole number"),
        ("words-study", {"depth": 1}, r"^data\.options\.depth: unknown key; known are "),
    ],
)
def test_an_option_of_a_set_is_named(card: ModelCard, name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        table(card, data(name, samples=5, options=options))
    if name == "words-study":
        with pytest.raises(UsageError, match=text):
            held_out(data(name, options=options), None, 3)


def test_held_out(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"question": "q", "answer": "so #### 18"}\n')
    assert held_out(data("x.jsonl"), str(file), 5) == [("q", "18")]
    assert len(held_out(data("words"), None, 3)) == 3
    with pytest.raises(UsageError, match=r"evaluate.data: name a file"):
        held_out(data("x.jsonl"), None, 3)


def test_tags_must_be_in_the_vocabulary(tmp_path: Path) -> None:
    inner = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(inner))
    card = model_card(ModelSection(shape="nap-tiny", tokenizer=str(tmp_path)), tmp_path / "out")
    with pytest.raises(ModelError, match=r"lacks '<think 1>'; add NAP's tags"):
        Marks.of(card, 1)


def test_prepare_knows_words(tmp_path: Path) -> None:
    values = {
        "model": {"shape": "nap-tiny", "tokenizer": "words"},
        "data": {"train": "words", "samples": 5, "unknown": 0.1, "processes": 1},
        "schedule": {"max_steps": 1},
        "run": {"out": str(tmp_path)},
    }
    prepared = prepare(TrainConfig.from_mapping(values), torch.device("cpu"))
    assert prepared.words_V is not None
    tokenizer = prepared.card.tokenizer
    assert tokenizer is not None
    for word, is_word in (("apples", True), ("7", False), ("+", False), ("<think 1>", False)):
        assert bool(prepared.words_V[tokenizer.token_id(word)]) is is_word
    assert prepared.card.config.vocab_size % 8 == 0
