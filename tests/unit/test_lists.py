"""List operations: hand-worked answers, what counts as right, splits without overlap, rows that are NAP data."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.cli.app import main
from nap_runtime.errors import UsageError
from nap_runtime.metrics.answers import extract_boxed
from nap_trainer.data.schema import NapExample
from nap_trainer.lists import METHODS, OPERATIONS, ListProblem, generate, split_of
from nap_trainer.lists.generate import path_text

ITEMS = ("oak", "elm", "ash", "fig")


@pytest.mark.parametrize(
    ("operation", "arguments", "question", "answer"),
    [
        ("copy", (), "copy oak elm ash fig", "oak elm ash fig"),
        ("reverse", (), "reverse oak elm ash fig", "fig ash elm oak"),
        ("rotate", ("1",), "move the first 1 of oak elm ash fig to the end", "elm ash fig oak"),
        ("swap", ("1", "3"), "swap places 1 and 3 of oak elm ash fig", "ash elm oak fig"),
        ("replace", ("2", "tea"), "put tea in place 2 of oak elm ash fig", "oak tea ash fig"),
        ("insert", ("2", "tea"), "insert tea before place 2 of oak elm ash fig", "oak tea elm ash fig"),
        ("remove", ("ash",), "remove ash from oak elm ash fig", "oak elm fig"),
        ("sort", (), "sort oak elm ash fig", "ash elm fig oak"),
    ],
)
def test_by_hand(operation: str, arguments: tuple[str, ...], question: str, answer: str) -> None:
    right = tuple(answer.split())
    problem = ListProblem(
        operation=operation, arguments=arguments, items=ITEMS, answer=right, paths=(), methods=(), wrong=()
    )
    assert problem.question == question
    assert problem.accepts(answer)
    assert not problem.accepts(" ".join((*right[:-1], "zip")))
    assert not problem.accepts(" ".join(right[:-1]))
    assert not problem.accepts(None)


@pytest.mark.parametrize(
    ("operation", "arguments", "right", "wrong"),
    [
        ("shuffle", (), ["elm oak ash fig", "fig ash elm oak"], ["oak elm ash fig", "oak elm ash", "elm elm ash fig"]),
        (
            "replace-any",
            ("tea",),
            ["tea elm ash fig", "oak elm ash tea"],
            ["oak elm ash fig", "tea tea ash fig", "tea elm ash"],
        ),
    ],
)
def test_a_choice_has_several_right_answers(
    operation: str, arguments: tuple[str, ...], right: list[str], wrong: list[str]
) -> None:
    judge = OPERATIONS[operation]
    assert all(judge.accepts(ITEMS, arguments, tuple(answer.split())) for answer in right)
    assert not any(judge.accepts(ITEMS, arguments, tuple(answer.split())) for answer in wrong)


def test_paths_by_hand() -> None:
    assert path_text(METHODS[0], ("oak", "elm")) == "from the front : 1 oak 2 elm : oak elm ."
    assert path_text(METHODS[1], ("oak", "elm")) == "from the back : 2 elm 1 oak : oak elm ."
    assert path_text(METHODS[2], ("oak", "elm")) == "as it is : oak elm ."


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(OPERATIONS)), st.sampled_from(["train", "test"]))
def test_problems_hold_together(seed: int, operation: str, split: str) -> None:
    for problem in islice(generate(split, seed=seed, operations=[operation], error_rate=0.5), 3):  # type: ignore[arg-type]
        assert split_of(problem.operation, problem.arguments, problem.items) == split
        assert problem.accepts(extract_boxed(problem.summary))
        stated = [path.split(" : ")[-1].removesuffix(" .") for path in problem.paths]
        assert [not problem.accepts(list_) for list_ in stated] == list(problem.wrong)
        assert sorted(problem.methods) == sorted(METHODS)


def test_errors_come_as_often_as_asked_for() -> None:
    wrong = [flag for problem in islice(generate("train", seed=1, error_rate=1.0), 200) for flag in problem.wrong]
    assert all(wrong)
    assert not any(flag for p in islice(generate("train", seed=1, error_rate=0.0), 200) for flag in p.wrong)


def test_splits_and_operations_are_even_and_apart() -> None:
    train, test = (list(islice(generate(split, seed=3), 2000)) for split in ("train", "test"))  # type: ignore[arg-type]
    assert not {(p.operation, p.arguments, p.items) for p in train} & {
        (p.operation, p.arguments, p.items) for p in test
    }
    counts = Counter(problem.operation for problem in train)
    assert set(counts) == set(OPERATIONS)
    assert min(counts.values()) > 140
    again = list(islice(generate("train", seed=3), 20))
    assert again == train[:20]


def test_the_command_writes_nap_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lists.jsonl"
    args = ["data", "make", "lists", "--n", "40", "--split", "test", "--operations", "sort,shuffle", "--out", str(out)]
    assert main(args) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 40
    assert {row["operation"] for row in rows} == {"sort", "shuffle"}
    assert all(NapExample.from_mapping(row).answer == row["answer"] for row in rows)
    for wrong, said in (("--operations=sort,nap", "unknown operation 'nap'"), ("--split=dev", "unknown value 'dev'")):
        assert main([*args, wrong]) == 2
        assert said in capsys.readouterr().err


def test_what_cannot_be_generated() -> None:
    with pytest.raises(UsageError, match="error_rate"):
        generate("train", seed=0, error_rate=2)
    with pytest.raises(UsageError, match="operations"):
        generate("train", seed=0, operations=[])
