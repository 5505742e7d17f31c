"""Rows of NAP data: both forms, every complaint, JSONL and parquet, and the training texts made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nap_runtime.errors import DataError, UsageError
from nap_trainer.data import BadRow, NapExample, Row, long_cot_response, nap_response, read_examples, read_rows
from nap_trainer.data.questions import Question, read_questions
from nap_trainer.data.schema import MAX_CHARS, MAX_PATHS, MAX_ROW_BYTES, FieldError
from nap_trainer.data.serialize import serialize
from nap_trainer.words import generate

GOOD: dict[str, Any] = {
    "question": "What is 3 + 4?",
    "paths": ["3 + 4 = 7.", "4 + 3 = 7."],
    "summary": "The final answer is \\boxed{7}.",
    "answer": "7",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`(*lines, name=…)`: texts and bytes as they are, anything else as JSON."""

    def run(*lines: Any, name: str = "rows.jsonl") -> Path:
        parts = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
        file = tmp_path / name
        file.write_bytes(b"\n".join(parts) + b"\n")
        return file

    return run


# --- schema ---


def test_our_form_goes_around() -> None:
    values = {"id": "a", **GOOD, "wrong": [False, True], "family": "sums", "numbers": [3, 4]}
    example = NapExample.from_mapping(values)
    assert example.paths == ("3 + 4 = 7.", "4 + 3 = 7.")
    assert example.wrong == (False, True)
    assert example.extra == {"family": "sums", "numbers": [3, 4]}
    assert example.to_json() == values


def test_authors_form() -> None:
    numbered = {str(number): f"path {number}" for number in (10, *range(1, 10))}
    raw = {"question": "Q", "paths": numbered, "summary": ["First.", "It is \\boxed{ {1} }."]}
    example = NapExample.from_mapping(raw)
    assert example.paths == tuple(f"path {number}" for number in range(1, 11))
    assert example.summary == "First.\nIt is \\boxed{ {1} }."
    assert example.answer == "{1}"


def test_word_problems_are_rows() -> None:
    problem = next(generate("train", seed=1))
    example = NapExample.from_mapping(problem.to_json())
    assert example.paths == problem.paths
    assert example.wrong == problem.wrong
    assert example.answer == str(problem.answer)


def test_numbers_are_answers() -> None:
    assert NapExample.from_mapping({**GOOD, "answer": 7, "id": 12}).answer == "7"


@pytest.mark.parametrize(
    ("change", "field", "complaint"),
    [
        ({"question": None}, "question", "is missing"),
        ({"question": 3}, "question", "is a number, not a text"),
        ({"question": " \n"}, "question", "is empty"),
        ({"question": "x" * (MAX_CHARS["question"] + 1)}, "question", "at most"),
        ({"question": "\ud800"}, "question", "surrogate"),
        ({"paths": None}, "paths", "is missing"),
        ({"paths": "one"}, "paths", "is a text"),
        ({"paths": []}, "paths", "0 entries"),
        ({"paths": ["x"] * (MAX_PATHS + 1)}, "paths", "65 entries"),
        ({"paths": ["x", ""]}, "paths.2", "is empty"),
        ({"paths": ["x", None]}, "paths.2", "is missing"),
        ({"paths": ["x", {"text": "y"}]}, "paths.2", "is an object"),
        ({"paths": {"1": "x", "3": "y"}}, "paths", "must be '1' to '2'"),
        ({"paths": ["a </think 1> b"]}, "paths.1", "</think 1>"),
        ({"summary": None}, "summary", "is missing"),
        ({"summary": ["x", 4]}, "summary.2", "is a number"),
        ({"summary": "<summary>"}, "summary", "the tag"),
        ({"answer": None, "summary": "7"}, "answer", "boxed"),
        ({"answer": True}, "answer", "true or false"),
        ({"answer": ["7"]}, "answer", "is a list"),
        ({"wrong": [True]}, "wrong", "1 flags for 2 paths"),
        ({"wrong": [0, 1]}, "wrong", "true and false"),
        ({"more": b"x"}, "more", "JSON"),
    ],
)
def test_complaints_name_the_field(change: dict[str, Any], field: str, complaint: str) -> None:
    with pytest.raises(FieldError) as caught:
        NapExample.from_mapping({**GOOD, **change})
    assert caught.value.field == field
    assert complaint in caught.value.complaint


# --- files ---


def test_bad_lines_are_numbered(write: Write) -> None:
    long = b'{"question": "' + b"x" * MAX_ROW_BYTES + b'"}'
    file = write(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "", "{", long, "[1]", b'{"a": "\xff"}', '{"x": NaN}', GOOD
    )
    rows = list(read_rows(file))
    assert [row.number for row in rows] == [1, 3, 4, 5, 6, 7, 8]
    assert [row.text if isinstance(row, BadRow) else "good" for row in rows] == [
        "good",
        "not JSON",
        f"is longer than {MAX_ROW_BYTES} bytes",
        "not a JSON object",
        "not UTF-8",
        "not JSON",
        "good",
    ]


def test_first_bad_row_stops_a_strict_reader(write: Write) -> None:
    file = write(GOOD, {**GOOD, "paths": ["x", ""]})
    with pytest.raises(DataError, match=r"rows\.jsonl: line 2: paths\.2: is empty$"):
        list(read_examples(file))


def test_files_that_are_none(tmp_path: Path, write: Write) -> None:
    for file in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UsageError, match=str(file)):
            list(read_rows(file))
    with pytest.raises(DataError, match="no rows"):
        list(read_rows(write("", "  ")))


def test_parquet(tmp_path: Path, write: Write) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "rows.parquet"
    numbered = {**GOOD, "paths": {"1": "a", "2": "b", "3": "c"}, "id": None}
    shorter = {**GOOD, "paths": {"1": "a"}, "id": "short"}
    empty = {**GOOD, "paths": {"1": "a", "2": " "}}
    pq.write_table(pa.Table.from_pylist([numbered, shorter, empty]), file)
    first, second, third = read_rows(file)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.number, first.example.paths) == (1, ("a", "b", "c"))
    assert (second.example.paths, second.example.id) == (("a",), "short")
    assert third == BadRow(3, "paths.2", "is empty")
    lists = tmp_path / "lists.parquet"
    mapped = pa.array([[("1", "x"), ("2", "y")]], type=pa.map_(pa.string(), pa.string()))
    texts = {key: [GOOD[key]] for key in ("question", "summary", "answer")}
    pq.write_table(pa.table({**texts, "paths": mapped}), lists)
    assert [example.paths for example in read_examples(lists)] == [("x", "y")]
    with pytest.raises(DataError, match=r"none\.parquet: cannot be read as parquet"):
        list(read_rows(write("PAR1 and no more", name="none.parquet")))


def test_questions(write: Write) -> None:
    gsm = {"question": "How many?", "answer": "2 * 9 = <<2*9=18>>18\n#### 1,018"}
    questions, repeated = read_questions(write(gsm, gsm, {**GOOD, "id": 3, "gold": "8"}))
    assert repeated == 1
    assert [(q.text, q.gold, q.id) for q in questions] == [("How many?", "1018", None), ("What is 3 + 4?", "8", "3")]
    assert questions[0].key == Question(text="How many?", gold="1018").key != questions[1].key
    assert len(read_questions(write(gsm, GOOD), limit=1)[0]) == 1
    for bad, text in (({"question": "Q"}, "answer: is missing"), ({**gsm, "answer": "so ####"}, "answer: has nothing")):
        with pytest.raises(DataError, match=f"line 2: {text}"):
            read_questions(write(gsm, bad))


# --- training texts ---


def test_responses() -> None:
    example = NapExample.from_mapping({**GOOD, "paths": ["one\n", "two"]})
    summary = "<summary>\nThe final answer is \\boxed{7}.\n</summary>"
    assert nap_response(example) == f"<think 1>\none\n</think 1>\n\n<think 2>\ntwo\n</think 2>\n\n{summary}"
    assert long_cot_response(example) == f"<think>\none\n\ntwo\n</think>\n\n{summary}"


def test_serialize_writes_all_or_nothing(tmp_path: Path, write: Write) -> None:
    out = tmp_path / "out.jsonl"
    assert serialize(write({**GOOD, "id": "a"}, GOOD), out, "nap") == 2
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == {"id": "a", **second}
    assert second.keys() == {"prompt", "response"}
    before = out.read_text()
    seven = {**GOOD, "paths": ["x"] * 7}
    with pytest.raises(DataError, match="line 2: paths: has 7 entries"):
        serialize(write(GOOD, seven), out, "nap")
    with pytest.raises(DataError, match="line 2: question: is missing"):
        serialize(write(GOOD, {}), out, "nap")
    assert out.read_text() == before
    assert serialize(write(GOOD, seven), out, "long-cot") == 2
