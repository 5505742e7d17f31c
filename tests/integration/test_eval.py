"""`nap eval` as a user meets it: sets from files, what a killed run leaves behind, one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime.models.shapes import make_model_dir
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_trainer.words import vocabulary

Nap = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights that knows the words of word problems."""
    folder = tmp_path_factory.mktemp("models") / "small"
    make_model_dir("nap-tiny", folder, seed=1, dtype=torch.float32, scale=3.0, n_layers=2, d_model=64, d_ff=96)
    build_word_tokenizer(vocabulary(), folder)
    (folder / "decode.json").write_text(json.dumps({"paths": 3, "path_tokens": 8, "summary_tokens": 6}))
    return folder


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "gsm8k.jsonl"
    rows = [
        {"question": f"A shirt costs {i} and {i}. What is the price?", "answer": f"#### {2 * i}"} for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def one_line(ran: Any, code: int, *parts: str) -> None:
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.count("\n") == 1, ran.err
    for part in parts:
        assert part in ran.err


def test_a_set_from_a_file(nap: Nap, model: Path, gsm8k: Path, tmp_path: Path) -> None:
    argv = ["eval", "gsm8k", "--data", gsm8k, "--model", model, "--batch-size", 4, "--tokens-per-step", 6]
    ran = nap(*argv, "--json", "--out", tmp_path / "rows.jsonl")
    assert (ran.code, ran.err) == (0, "")
    values = json.loads(ran.out)
    rows = lines(tmp_path / "rows.jsonl")
    assert (values["schema"], values["set"], values["n"], values["failed"]) == ("nap.eval/1", "gsm8k", 12, 0)
    assert sorted(row["index"] for row in rows) == list(range(12))
    assert values["accuracy"]["right"] == sum(row["correct"] for row in rows)
    assert {row["gold"] for row in rows} == {str(2 * i) for i in range(12)}
    assert values["config"]["steps"] == 5
    for row in rows:
        assert len(row["paths"]) == len(row["path_answers"]) == 3
        assert row["measures"]["nfe_steps"] <= 5
    assert 0 <= values["arness"] <= 1
    text = nap(*argv, "--n", 3).out
    assert "3 of gsm8k" in text
    assert "any path right" in text


def test_a_second_run_takes_up_the_first(nap: Nap, model: Path, gsm8k: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    argv = ["eval", "gsm8k", "--data", gsm8k, "--model", model, "--tokens-per-step", 6, "--out", out]
    assert nap(*argv, "--n", 5).code == 0
    first = out.read_bytes()
    ran = nap(*argv)
    assert ran.code == 0
    assert "holds 5 problems; 7 are left" in ran.err
    assert out.read_bytes().startswith(first)
    assert sorted(row["index"] for row in lines(out)) == list(range(12))
    again = nap(*argv, "--json")
    assert json.loads(again.out)["seconds"] == 0.0
    assert len(lines(out)) == 12
    one_line(nap(*argv, "--seed", 1), 2, "--out", "rows of another model, set or configuration")
    one_line(nap(*argv, "--ask", "question"), 2, "--out", "another")
    out.write_bytes(out.read_bytes() + out.read_bytes())
    one_line(nap(*argv), 1, "stands there twice")


def test_rows_of_edited_problems_are_not_taken_up(nap: Nap, model: Path, gsm8k: Path, tmp_path: Path) -> None:
    out, edited = tmp_path / "rows.jsonl", tmp_path / "edited.jsonl"
    argv = ["eval", "gsm8k", "--model", model, "--tokens-per-step", 24, "--n", 2, "--out", out, "--data"]
    assert nap(*argv, gsm8k).code == 0
    for old, new, what in (("#### 2", "#### 3", "right answer"), ("costs 1", "costs 7", "question")):
        edited.write_text(gsm8k.read_text().replace(old, new, 1))
        one_line(nap(*argv, edited), 1, f"row 1 of the output is of another {what}; give another file")
    assert nap(*argv, gsm8k).code == 0


def test_a_killed_run_loses_and_repeats_nothing(nap: Nap, model: Path, gsm8k: Path, tmp_path: Path) -> None:
    argv = [
        "eval",
        "gsm8k",
        "--data",
        gsm8k,
        "--model",
        model,
        "--sync",
        "kv",
        "--every",
        2,
        "--workers",
        3,
        "--simulate",
    ]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    assert nap(*argv, "--out", whole).code == 0
    command = [sys.executable, "-m", "nap_runtime.cli", *map(str, argv), "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < 3):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait(30)
    left = out.read_bytes().count(b"\n")
    assert left >= 3
    with out.open("ab") as stream:
        stream.write(b'{"run": "half a li')
    assert nap(*argv, "--out", out).code == 0

    def but_times(row: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in row["measures"].items() if not key.endswith("seconds")}
        return row | {"measures": kept}

    assert [but_times(row) for row in lines(out)] == [but_times(row) for row in lines(whole)]


def test_words_and_words_study(nap: Nap, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "words.jsonl"
    argv = ["eval", "words", "--model", model, "--tokens-per-step", 10, "--neighbours", 0, "--seed", 2, "--out", out]
    assert nap(*argv, "--n", 2).code == 0
    assert nap(*argv, "--n", 3).code == 0
    assert [("answer_paths_masked" in row, "family" in row) for row in lines(out)] == [(True, True)] * 3
    ran = nap("eval", "words-study", "--model", model, "--n", 4, "--tokens-per-step", 10, "--json")
    values = json.loads(ran.out)
    assert (ran.code, values["n"], values["ask"]) == (0, 4, "question")
    assert sum(share["n"] for share in values["groups"]["depth"].values()) == 4


def test_lists(nap: Nap, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.jsonl"
    ran = nap("eval", "lists", "--model", model, "--n", 5, "--tokens-per-step", 10, "--out", out)
    assert ran.code == 0, ran.err
    assert "5 of lists" in ran.out
    assert [set(row) >= {"operation", "kind", "correct", "path_answers"} for row in lines(out)] == [True] * 5


def test_layout_plain(nap: Nap, model: Path, gsm8k: Path, tmp_path: Path) -> None:
    argv = ["--layout", "plain", "--gen-length", 8, "--tokens-per-step", 4, "--out", tmp_path / "r.jsonl", "--json"]
    ran = nap("eval", "gsm8k", "--data", gsm8k, "--model", model, "--n", 2, *argv)
    values = json.loads(ran.out)
    assert (ran.code, values["config"]["steps"]) == (0, 2)
    assert "majority" not in values


def test_problems_that_do_not_fit_are_rows(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    long = {"question": "costs " * 3000, "answer": "#### 1"}
    file.write_text(json.dumps(long) + "\n" + json.dumps({"question": "What?", "answer": "#### 1"}) + "\n")
    out = tmp_path / "r.jsonl"
    argv = ["eval", "gsm8k", "--data", file, "--model", model, "--tokens-per-step", 10, "--out", out]
    ran = nap(*argv)
    assert ran.code == 0
    assert "problem 0: prompt" in ran.err
    assert "1 not decoded" in ran.out
    assert ["error" in row for row in sorted(lines(out), key=lambda row: row["index"])] == [True, False]
    assert nap(*argv, "--n", 1).code == 1  # all that was asked for failed, also when it is read again


def test_errors_are_one_line(
    nap: Nap, model: Path, gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    on = ["--model", model]
    one_line(nap("eval", "gsm9k", *on), 2, "gsm9k: unknown command; did you mean gsm8k?")
    one_line(nap("eval", "gsm8k", *on), 2, "--data", "install `datasets`")
    one_line(nap("eval", "math500", *on, "--data", gsm8k), 1, "row 1: no text 'problem'; is this a file of math500?")
    one_line(nap("eval", "gsm8k", *on, "--data", tmp_path / "no.jsonl"), 2, "--data", "no such file")
    one_line(nap("eval", "gsm8k", *on, "--data", gsm8k, "--ask", "x"), 2, "--ask", "use one of")
    one_line(nap("eval", "words-study", *on, "--data", gsm8k), 2, "--data", "unknown option")
    one_line(nap("eval", "gsm8k", *on, "--data", gsm8k, "--out", gsm8k / "x"), 2, "--out", "is a file, not a folder")
    one_line(nap("eval", "gsm8k", *on, "--data", gsm8k, "--steps", 4, "--tokens-per-step", 2), 2, "--tokens-per-step")
