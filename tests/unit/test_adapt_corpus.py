"""The adaptation corpus: cleaning by hand-made cases, token tables, and parcels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_trainer.adapt.corpus import Pair, read_corpus, read_gsm8k, worked, write_corpus
from nap_trainer.adapt.parcel import pack, unpack
from nap_trainer.adapt.table import AdaptData, Sizes, pick_by_length, tokenise
from nap_trainer.data.schema import FieldError

ROWS = [
    ("How many are 48 and 24?", "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"),
    ("How much?", "It costs $<<0.5*2=1>>1 and 1,000 more  \n#### 1,001"),
    ("How old is he?", "He is 7.\n#### -7"),
]
WORDS = sorted({"how", "many", "are", "and", "she", "sold", "clips", "in", "all", "much", "it", "costs", "more", "old"})
WORDS += ["is", "he", "the", "final", "answer"]


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ROWS))
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer: one token a word, digit or sign."""
    folder = tmp_path / "model"
    folder.mkdir()
    build_word_tokenizer(WORDS, folder)
    return folder


# --- cleaning ---


@pytest.mark.parametrize(
    ("answer", "response", "gold"),
    [
        (
            ROWS[0][1],
            "She sold 48/2 = 24 clips.\nIn all 48+24 = 72.\nThe final answer is \\boxed{72}.",
            "72",
        ),
        (ROWS[1][1], "It costs $1 and 1,000 more\nThe final answer is \\boxed{1001}.", "1001"),
        (ROWS[2][1], "He is 7.\nThe final answer is \\boxed{-7}.", "-7"),
        ("a <<1=1>>1 < 2 << 3\n#### 5", "a 1 < 2 << 3\nThe final answer is \\boxed{5}.", "5"),
    ],
)
def test_solutions_are_cleaned(answer: str, response: str, gold: str) -> None:
    pair = Pair.from_gsm8k({"question": " Q? ", "answer": answer})
    assert (pair.prompt, pair.response, pair.gold) == ("Q?", response, gold)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"question": "Q?", "answer": "no mark"}, "answer"),
        ({"question": "Q?"}, "answer"),
        ({"answer": "#### 1"}, "question"),
    ],
)
def test_unusable_rows_name_their_field(row: dict[str, str], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        Pair.from_gsm8k(row)
    assert caught.value.field == field


@given(st.lists(st.text("ab12=+ ", min_size=1), min_size=1))
def test_no_annotation_survives(parts: list[str]) -> None:
    text = worked("".join(f"{part}<<{part}>>" for part in parts), "3")
    assert "<<" not in text
    assert text.splitlines()[-1] == "The final answer is \\boxed{3}."


def test_the_files_name_and_count(gsm8k: Path, model: Path, tmp_path: Path) -> None:
    count = write_corpus(gsm8k, tmp_path / "corpus.jsonl", model)
    rows = read_corpus(tmp_path / "corpus.jsonl")
    assert [row.prompt for row in rows] == [question for question, _ in ROWS]
    beside = json.loads((tmp_path / "corpus.json").read_text())
    assert beside["rows"] == count.rows == 3
    # How many are 4 8 and 2 4 ? | how much ? | how old is he ?
    assert beside["prompt_tokens"] == 9 + 3 + 5
    assert beside["tokens"] == count.prompt_tokens + count.response_tokens
    assert beside["source"] == "gsm8k.jsonl"


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"question": "Q?", "answer": "#### 1"}) + "\n{oops\n")
    with pytest.raises(DataError, match=r"bad\.jsonl: line 2"):
        list(read_gsm8k(file))


# --- tables ---


@pytest.fixture
def tokenised(gsm8k: Path, model: Path, tmp_path: Path) -> Callable[..., AdaptData]:
    """`(**sizes)` → the data of the three rows, as corpus and as test."""
    write_corpus(gsm8k, tmp_path / "corpus.jsonl", model)

    def make(**sizes: int) -> AdaptData:
        return tokenise(model, tmp_path / "corpus.jsonl", gsm8k, Sizes(**sizes))

    return make


def test_rows_that_exceed_a_size_are_dropped_and_counted(tokenised: Callable[..., AdaptData]) -> None:
    data = tokenised(gen_length=16, max_prompt=5, questions=3)
    # The first prompt has 9 tokens; the second response has more than 15.
    assert data.facts["train"]["dropped"] == {"max_prompt": 1, "gen_length": 1}
    assert len(data.train) == data.facts["train"]["rows"] == 1
    assert data.gold == ("1001", "-7", "72")  # by length of the prompt: 3, 5, 9 tokens, each once
    assert data.rows == (2, 3, 1)


def test_a_response_needs_room_for_one_end_of_text(tokenised: Callable[..., AdaptData]) -> None:
    length = int(tokenised(gen_length=200, max_prompt=200).train.path_lengths_nm.max())
    assert len(tokenised(gen_length=length + 1, max_prompt=200).train) == 3
    assert len(tokenised(gen_length=length, max_prompt=200).train) == 2


def test_nothing_that_fits_is_an_error(tokenised: Callable[..., AdaptData]) -> None:
    with pytest.raises(UsageError, match="gen-length"):
        tokenised(gen_length=2, max_prompt=200)


def test_data_survives_its_file(tokenised: Callable[..., AdaptData], tmp_path: Path) -> None:
    data = tokenised(gen_length=64, max_prompt=64, questions=2, held=2)
    data.save(tmp_path / "data.npz")
    again = AdaptData.load(tmp_path / "data.npz")
    assert np.array_equal(again.train.prompt_nP, data.train.prompt_nP)
    assert np.array_equal(again.train.paths_nmL, data.train.paths_nmL)
    assert np.array_equal(again.held.paths_nmL, data.held.paths_nmL)
    assert (again.prompts, again.rows, again.gold, again.facts) == (data.prompts, data.rows, data.gold, data.facts)
    with np.load(tmp_path / "data.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert file["train_text"].dtype == np.uint16


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        AdaptData.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="not adaptation data"):
        AdaptData.load(tmp_path / "other.npz")


def test_questions_are_picked_by_length_alone() -> None:
    lengths = [7, 5, 7, 6, 5, 7, 6, 9]
    assert pick_by_length(lengths, 3) == [0, 2, 5]  # all of length 7
    assert pick_by_length(lengths, 4) == [0, 2, 5, 1]  # then 5: as frequent as 6, and shorter
    assert pick_by_length(lengths, 99) == [0, 2, 5, 1, 4, 3, 6, 7]


# --- parcels ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    (made / "one.bin").write_bytes(bytes(range(256)) * 4)
    (made / "two.txt").write_text("short")
    (made / "none.txt").write_text("")
    return made


def test_parcels_come_out_as_they_went_in(folder: Path, tmp_path: Path) -> None:
    files = pack([folder], tmp_path / "parcel", part_bytes=300)
    assert [file.stat().st_size for file in files[:-1]] == [300, 300, 300, 124, 5]
    made = unpack(tmp_path / "parcel", tmp_path / "out")
    assert {file.name: file.read_bytes() for file in made} == {f.name: f.read_bytes() for f in folder.iterdir()}


def test_damaged_and_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    pack([folder], tmp_path / "parcel", part_bytes=300)
    (tmp_path / "parcel" / "part-001").write_bytes(b"x" * 300)
    (tmp_path / "parcel" / "part-003").unlink()
    with pytest.raises(DataError, match=r"one\.bin: missing or damaged: part-001, part-003"):
        unpack(tmp_path / "parcel", tmp_path / "out")
    assert not (tmp_path / "out" / "one.bin").exists()


def test_a_parcel_writes_nowhere_else(folder: Path, tmp_path: Path) -> None:
    pack([folder], tmp_path / "parcel")
    index = tmp_path / "parcel" / "parcel.json"
    index.write_text(index.read_text().replace("one.bin", "../one.bin"))
    with pytest.raises(DataError, match="no plain file name"):
        unpack(tmp_path / "parcel", tmp_path / "out")
