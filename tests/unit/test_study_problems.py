"""Problem sets, rows that survive a kill, and the sums over rows."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.errors import DataError, UsageError
from nap_runtime.metrics.shares import PathAgreement, Share, vote
from nap_runtime.study.evaluation import summarise
from nap_runtime.study.problems import Problem, file_rows, read_problems
from nap_runtime.study.rows import RowFile, digest_of
from nap_trainer.lists import OPERATIONS

GSM = [
    {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
    {"question": "A thousand and one?", "answer": "#### 1,001"},
]
MATH = [{"problem": "Half of one?", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2, "unique_id": "a/1"}]
GPQA = [
    {"Question": f"Which {i}?", "Correct Answer": "right", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
     "Incorrect Answer 3": "w3"}
    for i in range(24)
]  # fmt: skip


def jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# --- sets ---


def test_gsm8k(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "g.jsonl", GSM)
    one, two = read_problems("gsm8k", data=file)
    assert (one.gold, two.gold, two.index) == ("4", "1,001", 1)
    assert one.question.startswith("Two and two?\n\n")
    assert "\\boxed{}" in one.question
    assert read_problems("gsm8k", data=file, n=1, ask="question") == [
        Problem(index=0, id="0", question="Two and two?", gold="4")
    ]
    assert two.is_right("1001.0")
    assert one.read("no box, but #### 4", None) == ("4", "mark")


def test_math500(tmp_path: Path) -> None:
    (problem,) = read_problems("math500", data=jsonl(tmp_path / "m.jsonl", MATH))
    assert (problem.id, problem.groups) == ("a/1", {"subject": "Algebra", "level": "2"})
    assert problem.is_right("0.5")


def test_parquet(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(GSM), tmp_path / "g.parquet")
    assert [p.gold for p in read_problems("gsm8k", data=tmp_path / "g.parquet")] == ["4", "1,001"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_problems("gsm8k", data=tmp_path / "bad.parquet")


@pytest.mark.parametrize("field", ["data", "file"])
def test_parquet_without_pyarrow_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    (tmp_path / "g.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=rf"^{field}: .*is parquet: pip install pyarrow") as caught:
        list(file_rows(tmp_path / "g.parquet", field=field))
    assert caught.value.field == field


def test_gpqa_places_the_right_choice_by_seed(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", GPQA)
    problems = read_problems("gpqa", data=file, seed=3)
    for problem in problems:
        assert f"\n({problem.gold}) right" in problem.question
    assert {problem.gold for problem in problems} == set("ABCD")
    assert [p.gold for p in read_problems("gpqa", data=file, seed=3)] == [p.gold for p in problems]
    assert [p.gold for p in read_problems("gpqa", data=file, seed=4)] != [p.gold for p in problems]
    assert problems[0].read("so \\boxed{C}", "C") == ("C", "choice")
    assert problems[0].read("so \\boxed{42}", "42") == (None, None)


def test_generated_sets() -> None:
    words = read_problems("words", n=3, seed=1)
    study = read_problems("words-study", n=3, seed=1)
    assert [len(words), len(study)] == [3, 3]
    assert set(study[0].groups) == {"depth"}
    assert study[0].read("the answer is 5", None) == (None, None)  # only a box counts
    assert study[0].read_path("12 + 05 bob 17") == "17"
    assert read_problems("words", n=2, seed=1) == words[:2]


def test_lists_know_every_right_answer() -> None:
    problems = read_problems("lists", n=60, seed=1)
    assert {p.groups["operation"] for p in problems} == set(OPERATIONS)
    assert all(p.is_right(p.gold) and not p.is_right(None) for p in problems)
    shuffle = next(p for p in problems if p.groups["operation"] == "shuffle")
    given = shuffle.question.split()[1:]
    turned = " ".join([*given[1:], given[0]])
    assert shuffle.is_right(turned)
    assert not shuffle.is_right(" ".join(given))
    assert not shuffle.is_right("".join(turned.split()))  # words, not letters
    assert shuffle.read_path("from the back : 3 ash 1 oak : oak elm  ash .") == "oak elm ash"
    assert shuffle.read_path(" . ") is None
    assert shuffle.read("…", "oak elm") == ("oak elm", "boxed")
    choices = read_problems("lists", n=8, options={"operations": ["shuffle", "sort"]})
    assert {p.groups["operation"] for p in choices} == {"shuffle", "sort"}


def test_options_of_generated_sets() -> None:
    deep = read_problems("words-study", n=6, options={"min_depth": 4, "max_depth": 5})
    assert {p.groups["depth"] for p in deep} <= {"4", "5"}
    for name, options, text in [
        ("words", {"a": 1}, "set 'words' takes none"),
        ("gsm8k", {"a": 1}, "set 'gsm8k' takes none"),
        ("words-study", {"depth": 1}, "depth: unknown key"),
        ("lists", {"a": 1}, "a: unknown key; known are operations"),
        ("lists", {"operations": ["sorted"]}, "unknown operation 'sorted'"),
    ]:
        with pytest.raises(UsageError, match=text):
            read_problems(name, n=1, options=options, data=Path(__file__) if name == "gsm8k" else None)


@pytest.mark.parametrize("name", ["words", "words-study", "lists", "gsm8k"])
@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"n": 0}, "n: 0 is not an integer of at least 1"),
        ({"n": -4}, "n: -4 is not"),
        ({"n": "6"}, "n: '6' is not"),
        ({"n": float("nan")}, "n: nan is not"),
        ({"seed": "x"}, "seed: 'x' is not an integer"),
    ],
)
def test_numbers_of_problems_are_checked(name: str, values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        read_problems(name, **values)


def test_more_than_fit_are_not_begun() -> None:
    with pytest.raises(UsageError, match="n: 100001 is more than the 100,000 that are generated at once"):
        read_problems("words", n=100_001)


def test_lists_are_summed_up_word_by_word() -> None:
    """Two orders of the same letters are one product to algebra, and two lists here."""

    def problem(index: int, gold: str, accepts: Any) -> Problem:
        return Problem(index=index, id=str(index), question="", gold=gold, kind="list", accepts=accepts)

    problems = [
        problem(0, "ab ba", lambda text: text.split() == ["ab", "ba"]),
        problem(1, "x y", lambda text: "z" not in text),
    ]
    said = [["ba ab", "ab  ba", "ba ab"], ["y x", "x y", "z"]]
    rows = {
        p.index: {"correct": False, "answer": None, "path_answers": paths}
        for p, paths in zip(problems, said, strict=True)
    }
    found = summarise(problems, rows)
    assert [path["right"] for path in found["paths"]] == [1, 2, 0]
    assert found["majority"]["right"] == 1  # of the first the vote is "ba ab", wrong; of the second "y x", right
    assert found["any_path"]["right"] == 2
    agreement = found["agreement"]
    assert agreement["agree"] == 1 / 6
    assert (agreement["both_wrong"], agreement["same_wrong"]) == (1, 1.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gsm8k", "{", "line 1: not JSON"),
        ("gsm8k", "[1]\n", "line 1: not a JSON object"),
        ("gsm8k", '\n{"question": "a"}\n', "row 1: no text 'answer'"),
        ("gsm8k", '{"question": "a", "answer": "nothing"}\n', "row 1: its answer states no number"),
        ("math500", '{"question": "a", "answer": "1"}\n', "row 1: no text 'problem'; is this a file of math500"),
        ("gpqa", '{"Question": "a", "Correct Answer": "b"}\n', "no text 'Incorrect Answer 1'"),
    ],
)
def test_bad_files_name_the_row(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_problems(name, data=file)


def test_wrong_choices_of_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown set 'gsm9k'"):
        read_problems("gsm9k")
    with pytest.raises(UsageError, match=r"data: .*none.jsonl: no such file"):
        read_problems("gsm8k", data=tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="is generated"):
        read_problems("words", data=tmp_path)
    with pytest.raises(UsageError, match="ask: unknown value"):
        read_problems("gsm8k", data=tmp_path, ask="nicely")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="install `datasets`"):
        read_problems("gsm8k")


def test_the_hub_is_asked_where_datasets_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((path, config, split))
        if path.startswith("Idavidrein"):
            raise RuntimeError("gated\nlong story")
        return GSM

    stub = types.ModuleType("datasets")
    stub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stub)
    assert [p.gold for p in read_problems("gsm8k", n=1)] == ["4"]
    assert asked == [("openai/gsm8k", "main", "test")]
    with pytest.raises(DataError, match=r"Idavidrein/gpqa: the hub does not give it \(gated\)"):
        read_problems("gpqa")


# --- rows ---


def test_rows_are_read_again_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with RowFile(file, key="index", run="a") as rows:
        rows.add({"index": 0, "text": "é"})
        rows.add({"index": 1, "text": "\u2028"})
    whole = file.read_bytes()
    with file.open("ab") as stream:
        stream.write(b'{"run": "a", "index": 2, "te')
    with RowFile(file, key="index", run="a") as rows:
        assert {key: row["text"] for key, row in rows.rows.items()} == {0: "é", 1: "\u2028"}
        assert file.read_bytes() == whole
        rows.add({"index": 2, "text": ""})
    assert [json.loads(line)["index"] for line in file.read_bytes().splitlines()] == [0, 1, 2]


@given(cut=st.integers(0, 400))
def test_a_file_cut_anywhere_keeps_its_whole_rows(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    file = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    lines = [json.dumps({"run": "a", "index": i, "text": "x" * i}).encode() + b"\n" for i in range(8)]
    file.write_bytes(b"".join(lines)[:cut])
    whole = sum(sum(map(len, lines[: i + 1])) <= cut for i in range(8))
    with RowFile(file, key="index", run="a") as rows:
        assert sorted(rows.rows) == list(range(whole))
        for index in range(whole, 8):
            rows.add({"index": index, "text": "x" * index})
    assert file.read_bytes() == b"".join(lines)


def test_rows_of_another_run_twice_or_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with RowFile(file, key="index", run="a") as rows:
        rows.add({"index": 0})
    with pytest.raises(UsageError, match="rows of another model"), RowFile(file, key="index", run="b"):
        pass
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(DataError, match="line 2: the row 0 stands there twice"), RowFile(file, key="index", run="a"):
        pass
    file.write_bytes(b"nothing\n")
    with pytest.raises(DataError, match="line 1: not a row"), RowFile(file, key="index", run="a"):
        pass
    with pytest.raises(UsageError, match="is a file, not a folder"), RowFile(file / "r.jsonl", key="index"):
        pass
    with RowFile(tmp_path / "new" / "one" / "r.jsonl", key="index") as rows:
        rows.add({"index": 0})
    assert (tmp_path / "new" / "one" / "r.jsonl").exists()


def _hold(file: str, holds: Any, done: Any) -> None:
    with RowFile(Path(file), key="index"):
        holds.set()
        done.wait(30)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holds, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "r.jsonl"), holds, done))
    other.start()
    try:
        assert holds.wait(30)
        with pytest.raises(UsageError, match="being written"), RowFile(tmp_path / "r.jsonl", key="index"):
            pass
    finally:
        done.set()
        other.join(30)
    with RowFile(tmp_path / "r.jsonl", key="index"):
        pass


def test_digests_tell_values_apart() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})


# --- sums ---


def test_wilson_by_hand() -> None:
    low, high = Share(8, 10).interval
    z = 1.959963984540054
    middle = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z * (0.8 * 0.2 / 10 + z * z / 400) ** 0.5 / (1 + z * z / 10)
    assert (low, high) == pytest.approx((middle - half, middle + half))
    assert Share(0, 5).interval[0] == 0.0
    assert Share(5, 5).interval[1] == 1.0
    assert Share(0, 0).interval == (0.0, 1.0)


def test_votes_count_equal_answers_as_one() -> None:
    assert vote(["1/2", "3", "0.5"]) == "1/2"
    assert vote(["3", "4"]) == "3"
    assert vote([None, None]) is None
    assert Share.equal(["1,000", None, "2"], ["1000", "1", "3"]) == Share(1, 3)


def test_agreement_by_hand() -> None:
    answers = [["1", "1", "2"], ["5", "5", "5.0"], ["7", "8", None]]
    agreement = PathAgreement.of(answers, ["1", "6", "9"])
    assert agreement.agree == pytest.approx((1 + 3 + 0) / 7)
    assert agreement.both_wrong == 4  # three pairs of the second problem, one of the third
    assert agreement.same_wrong == pytest.approx(3 / 4)
    # wrong flags by place: (0, 1, 1), (0, 1, 1), (1, 1, 1): the third never varies, so one pair counts
    assert agreement.wrong_correlation == pytest.approx(1.0)
    assert PathAgreement.of([], []) == PathAgreement(agree=None, both_wrong=0, same_wrong=None, wrong_correlation=None)


def test_independent_errors_do_not_correlate() -> None:
    answers = [["1", "1"], ["1", "0"], ["0", "1"], ["0", "0"]]
    assert PathAgreement.of(answers, ["1"] * 4).wrong_correlation == pytest.approx(0.0)
    answers = [["1", "0"], ["0", "1"]]
    assert PathAgreement.of(answers, ["1"] * 2).wrong_correlation == pytest.approx(-1.0)


def test_sums_by_hand() -> None:
    problems = [
        Problem(index=i, id=str(i), question="q", gold=gold, groups={"depth": depth})
        for i, (gold, depth) in enumerate([("1", "2"), ("2", "2"), ("3", "5")])
    ]
    rows: dict[int, dict[str, Any]] = {
        0: {"answer": "1", "correct": True, "path_answers": ["1", "0"], "measures": {"arness": 0.5, "nfe_steps": 4}},
        1: {"answer": None, "correct": False, "path_answers": ["3", "2"], "measures": {"arness": None, "nfe_steps": 2}},
        2: {"error": "it does not fit"},
    }
    values = summarise(problems, rows)
    assert (values["n"], values["failed"], values["no_answer"]) == (3, 1, 1)
    assert (values["accuracy"]["right"], values["accuracy"]["n"]) == (1, 3)
    assert [path["right"] for path in values["paths"]] == [1, 1]
    assert (values["any_path"]["right"], values["majority"]["right"]) == (2, 1)
    assert (values["arness"], values["nfe_steps"]) == (0.5, 3.0)
    assert {key: share["right"] for key, share in values["groups"]["depth"].items()} == {"2": 1, "5": 0}


# --- the real files ---


@pytest.mark.parametrize(("name", "size", "first"), [("gsm8k", 1319, "18"), ("math500", 500, None)])
def test_published_files(name: str, size: int, first: str | None) -> None:
    folder = Path(os.environ.get("NAP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    file = folder / name / "test.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file.name} of {name}; set NAP_DATA")
    problems = read_problems(name, data=file)
    assert len(problems) == size
    assert first is None or problems[0].gold == first
    assert all(problem.is_right(problem.gold) for problem in problems)
