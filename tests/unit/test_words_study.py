"""The study problems: an independent reader of the texts, promised statistics, two front ends that agree."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, fields, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.cli import main as nap
from nap_runtime.errors import DataError, UsageError
from nap_runtime.metrics.answers import extract_boxed, find_answer, same_answer
from nap_runtime.models.tokenizer import WordTokenizer
from nap_trainer.data.read import read_examples
from nap_trainer.words_study import (
    METHODS,
    NAMES,
    SPLITS,
    TOKENS,
    WORDS,
    StudyConfig,
    StudyProblem,
    StudyTable,
    answer_of,
    generate,
    make_table,
    method_tokens,
    result_of_path,
    study_tokenizer,
)
from nap_trainer.words_study.__main__ import main as study_main
from nap_trainer.words_study.drawing import BLOCK
from nap_trainer.words_study.stats import correlation, error_rates, guess_rates

SENTENCE = re.compile(
    r"(?P<start>\w+) starts out with (?P<given>\d\d)\."
    r"|(?P<up>\w+) beats (?P<up_of>\w+) by (?P<up_by>\d\d)\."
    r"|(?P<down>\w+) trails (?P<down_of>\w+) by (?P<down_by>\d\d)\."
    r"|(?P<times>\w+) has (?P<times_by>\d\d) times (?P<times_of>\w+)\."
)
ARRAYS = [f.name for f in fields(StudyTable) if f.name not in ("split", "seed", "start", "config")]
CONFIGS = st.builds(
    lambda depths, **knobs: StudyConfig(min_depth=min(depths), max_depth=max(depths), **knobs),
    depths=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    operand=st.integers(5, 50),
    times=st.floats(0, 1),
    distractors=st.integers(0, 3),
    slip=st.floats(0, 1),
    hard_slip=st.floats(0, 1),
    correlation=st.floats(0, 1),
)


# --- an independent reader ---


@dataclass
class Read:
    """What a question says: who starts, who is worked out from whom and how, who is asked about."""

    start: str
    given: int
    rules: dict[str, tuple[str, str, int]]
    goal: str

    def chain(self) -> list[str]:
        names = [self.goal]
        while names[-1] != self.start:
            names.append(self.rules[names[-1]][0])
        return names[::-1]

    def value(self, name: str) -> int:
        if name == self.start:
            return self.given
        other, sign, number = self.rules[name]
        return apply(sign, self.value(other), number)


def apply(sign: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def read(question: str) -> Read:
    body, _, goal = question.rpartition(" how many has ")
    rules: dict[str, tuple[str, str, int]] = {}
    start, first, at = "", -1, 0
    while at < len(body):
        found = SENTENCE.match(body, at)
        assert found, body[at:]
        at = found.end() + 1
        if found["start"]:
            assert not start
            start, first = found["start"], int(found["given"])
        for kind, sign in (("up", "+"), ("down", "-"), ("times", "*")):
            if found[kind]:
                assert found[kind] not in rules
                rules[found[kind]] = (found[f"{kind}_of"], sign, int(found[f"{kind}_by"]))
    return Read(start, first, rules, goal.removesuffix("?"))


def follow(problem: StudyProblem, method: str, path: str) -> tuple[int, int]:
    """Follow a path step by step against the question: its false steps, and the number it ends with."""
    seen = read(problem.question)
    return {"forward": follow_forward, "plan": follow_plan, "back": follow_back}[method](seen, path)


def follow_forward(seen: Read, path: str) -> tuple[int, int]:
    found = re.fullmatch(r"forward (\w+) (\d\d)((?: [-+*] \d\d \w+ \d\d)+)\.", path)
    assert found, path
    names, value, false = [found[1]], int(found[2]), 0
    assert value == seen.given
    for sign, operand, name, result in re.findall(r"([-+*]) (\d\d) (\w+) (\d\d)", found[3]):
        assert seen.rules[name] == (names[-1], sign, int(operand))
        false += apply(sign, value, int(operand)) != int(result)
        names.append(name)
        value = int(result)
    assert names == seen.chain()
    return false, value


def follow_plan(seen: Read, path: str) -> tuple[int, int]:
    found = re.fullmatch(r"plan ([a-z ]+): (\d\d)((?: (?:up|down|times) \d\d)+)\.", path)
    assert found, path
    chain = found[1].split()[::-1]
    assert chain == seen.chain()
    value, false = int(found[2]), 0
    assert value == seen.given
    for name, (move, result) in zip(chain[1:], re.findall(r"(\w+) (\d\d)", found[3]), strict=True):
        _, sign, operand = seen.rules[name]
        assert move == {"+": "up", "-": "down", "*": "times"}[sign]
        false += apply(sign, value, operand) != int(result)
        value = int(result)
    return false, value


def follow_back(seen: Read, path: str) -> tuple[int, int]:
    """Each stage says that the goal is factor · name + offset."""
    found = re.fullmatch(r"back((?: \w+ \d [-+] \d\d)+): (\d\d), (\d\d), (\d\d)\.", path)
    assert found, path
    name, factor, offset, false = seen.goal, 1, 0, 0
    for other, times, sign, size in re.findall(r"(\w+) (\d) ([-+]) (\d\d)", found[1]):
        of, kind, operand = seen.rules[name]
        wanted = offset if kind == "*" else offset + factor * apply(kind, 0, operand)
        factor *= operand if kind == "*" else 1
        assert (other, int(times)) == (of, factor)
        offset = int(sign + size)
        false += offset != wanted
        name = other
    assert name == seen.start
    assert [int(number) for number in found.groups()[1:]] == [
        seen.given,
        factor * seen.given,
        factor * seen.given + offset,
    ]
    return false, int(found[4])


def problems(split: Any = "train", count: int = 1500, config: StudyConfig | None = None) -> list[StudyProblem]:
    return list(islice(generate(split, seed=7, config=config), count))


def check(problem: StudyProblem, config: StudyConfig) -> None:
    seen = read(problem.question)
    chain = seen.chain()
    assert seen.value(seen.goal) == problem.answer
    assert len(chain) - 1 == problem.depth
    assert all(1 <= seen.value(name) <= 99 for name in seen.rules)
    assert len(seen.rules) == problem.depth + config.distractors
    signed = [seen.rules[name][1:] for name in chain[1:]]
    assert (seen.given, [f"{sign}{number:02}" for sign, number in signed]) == (problem.given, list(problem.operations))
    assert all(number in (2, 3) if sign == "*" else 1 <= number <= config.operand for sign, number in signed)
    assert extract_boxed(problem.summary) == f"{problem.answer:02}"
    assert sorted(problem.methods) == sorted(METHODS)
    for method, path, stated in zip(problem.methods, problem.paths, problem.path_answers, strict=True):
        assert follow(problem, method, path) == (int(stated != problem.answer), stated)
        assert same_answer(find_answer(path), str(stated))


# --- texts ---


@pytest.mark.parametrize("split", SPLITS)
def test_every_text_says_what_it_should(split: str) -> None:
    for problem in problems(split):
        check(problem, StudyConfig())


@settings(max_examples=15, deadline=None)
@given(config=CONFIGS, seed=st.integers(0, 2**40))
def test_every_text_says_what_it_should_whatever_the_config(config: StudyConfig, seed: int) -> None:
    for problem in islice(generate("train", seed=seed, config=config), 60):
        check(problem, config)


def test_one_problem_is_pinned() -> None:
    """The random streams are a promise: published figures name a seed."""
    problem = problems(count=1)[0]
    assert (problem.given, problem.operations, problem.methods) == (
        12,
        ("+04", "-05", "+04", "*03", "-04", "*02", "-02"),
        ("back", "plan", "forward"),
    )


def test_a_path_without_slips_is_right_and_with_one_at_every_step_is_wrong() -> None:
    none = StudyConfig(slip=0, hard_slip=0)
    assert not make_table("train", seed=0, count=500, config=none).wrong_nm.any()
    always = StudyConfig(slip=1, hard_slip=1)
    assert make_table("train", seed=0, count=500, config=always).wrong_nm.mean() > 0.99


def test_error_knobs_leave_the_questions_alone() -> None:
    one = make_table("train", seed=5, count=300)
    other = make_table("train", seed=5, count=300, config=StudyConfig(slip=0.2, hard_slip=0.4, correlation=0.1))
    assert (one.prompt_nP == other.prompt_nP).all()
    assert (one.method_nm == other.method_nm).all()
    assert (one.paths_nmL != other.paths_nmL).any()


def test_sentences_and_methods_stand_in_any_order() -> None:
    drawn = problems(count=600)
    places = {p.question.split(". ").index(next(s for s in p.question.split(". ") if "starts" in s)) for p in drawn}
    assert places >= set(range(8))
    assert len({p.methods for p in drawn}) == 6


# --- rows of NAP data ---


def test_json_is_read_as_nap_data(tmp_path: Path) -> None:
    drawn = problems(count=50)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(problem.to_json()) + "\n" for problem in drawn), "utf-8")
    for problem, example in zip(drawn, read_examples(file), strict=True):
        assert (example.question, example.paths, example.summary) == (problem.question, problem.paths, problem.summary)
        assert (example.answer, example.wrong) == (str(problem.answer), problem.wrong)
        assert example.extra["depth"] == problem.depth
        assert example.extra["methods"] == list(problem.methods)


def test_nap_data_make_words_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dev.jsonl"
    assert nap(["data", "make", "words-study", "--n", "20", "--split", "dev", "--seed", "7", "--out", str(file)]) == 0
    assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == [
        problem.to_json() for problem in problems("dev", 20)
    ]
    assert "20 problems of the dev split" in capsys.readouterr().out
    assert nap(["data", "make", "words-study", "--split", "val", "--out", str(file)]) == 2
    assert "--split: unknown value 'val'" in capsys.readouterr().err


# --- tokens ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordTokenizer:
    return study_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_vocabulary_is_small_closed_and_without_waste(tokenizer: WordTokenizer) -> None:
    assert len(TOKENS) <= 150
    assert [tokenizer.token_id(token) for token in TOKENS] == list(range(len(TOKENS)))
    assert len(NAMES) == len(set(NAMES)) == 24
    seen: set[str] = set()
    for problem in problems(count=600):
        text = " ".join((problem.question, *problem.paths, problem.summary))
        assert not tokenizer.unknown_words(text)
        seen.update(re.findall("[a-z]+", text))
    assert seen - {"boxed"} == set(WORDS)


@settings(max_examples=12, deadline=None)
@given(config=CONFIGS, seed=st.integers(0, 2**40), split=st.sampled_from(SPLITS))
def test_the_table_is_the_texts(tokenizer: WordTokenizer, config: StudyConfig, seed: int, split: Any) -> None:
    table = make_table(split, seed=seed, count=60, config=config)
    for row, problem in enumerate(islice(generate(split, seed=seed, config=config), 60)):
        compare(tokenizer, table, row, problem)


def test_the_table_is_the_texts_across_blocks(tokenizer: WordTokenizer) -> None:
    table = make_table("train", seed=1, count=40, start=BLOCK - 20)
    for row, problem in enumerate(islice(generate("train", seed=1, start=BLOCK - 20), 40)):
        compare(tokenizer, table, row, problem)


def compare(tokenizer: WordTokenizer, table: StudyTable, row: int, problem: StudyProblem) -> None:
    def padded(text: str, width: int) -> list[int]:
        ids = tokenizer.encode(text)
        return [*ids, *[-1] * (width - len(ids))]

    assert table.prompt_nP[row].tolist() == padded(problem.question, table.prompt_nP.shape[1])
    assert table.prompt_nP[row, : len(tokenizer.encode_prompt(problem.question))].min() >= 0
    for path, text in enumerate(problem.paths):
        assert table.paths_nmL[row, path].tolist() == padded(text, table.paths_nmL.shape[2])
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert table.summary_nS[row].tolist() == tokenizer.encode(problem.summary)
    assert tuple(METHODS[method] for method in table.method_nm[row]) == problem.methods
    assert tuple(table.path_answer_nm[row]) == problem.path_answers
    assert tuple(table.wrong_nm[row]) == problem.wrong
    assert (table.depth_n[row], table.answer_n[row]) == (problem.depth, problem.answer)
    assert table.wrong_majority_n[row] == problem.wrong_majority


def test_lengths_depend_on_depth_and_method_alone() -> None:
    config = StudyConfig()
    table = make_table("train", seed=3, count=20_000)
    prompts, paths = (table.prompt_nP >= 0).sum(axis=1), (table.paths_nmL >= 0).sum(axis=2)
    for depth in config.depths:
        rows = table.depth_n == depth
        assert set(prompts[rows]) == {config.prompt_tokens(depth)} == {12 + 7 * depth}
        for method, size in enumerate(method_tokens(depth)):
            assert set(paths[rows][table.method_nm[rows] == method]) == {size}
        assert paths[rows].max() == config.path_tokens(depth)
    assert (table.prompt_nP.shape[1], table.paths_nmL.shape[2], table.summary_nS.shape[1]) == (68, 53, 7)


# --- scoring ---


def test_answers_and_results_are_read_from_the_rows() -> None:
    table = make_table("test", seed=2, count=2000)
    assert (answer_of(table.summary_nS) == table.answer_n).all()
    assert (result_of_path(table.paths_nmL) == table.path_answer_nm).all()


@pytest.mark.parametrize(
    ("text", "answer", "result"),
    [
        ("the answer is \\boxed{07}", 7, 7),
        ("\\boxed{12} \\boxed{34}", 34, 34),
        ("\\boxed{12} \\boxed{3", 12, -1),
        ("\\boxed{5}", -1, -1),
        ("\\boxed{123}", -1, -1),
        ("\\boxed{ann}", -1, -1),
        ("12 + 05 bob 17 .", -1, 17),
        ("12 + 05 bob 7 .", -1, -1),
        ("\\boxed{12} </summary> \\boxed{34}", 12, 12),
        ("17 <eos> 18", -1, 17),
        ("17 </think 2> <eos> <eos>", -1, 17),
        ("<mask> <mask> <mask> <mask>", -1, -1),
        ("12", -1, 12),
        ("", -1, -1),
    ],
)
def test_numbers_in_decoded_slots(tokenizer: WordTokenizer, text: str, answer: int, result: int) -> None:
    ids = np.array([tokenizer.encode(text)], np.int64).reshape(1, -1)
    assert answer_of(ids).tolist() == [answer]
    assert result_of_path(ids).tolist() == [result]
    padded = np.pad(ids, ((0, 0), (0, 3)), constant_values=-1)[None]
    assert answer_of(padded).tolist() == [[answer]]
    assert result_of_path(padded).tolist() == [[result]]


# --- splits, determinism, files ---


def test_the_splits_share_no_chain() -> None:
    config = StudyConfig(min_depth=2, max_depth=3, operand=8)
    kept = {
        split: {(p.given, p.operations) for p in problems(split, 6000 if split == "train" else 3000, config)}
        for split in SPLITS
    }
    assert not kept["train"] & kept["test"]
    assert not kept["train"] & kept["dev"]
    assert not kept["dev"] & kept["test"]


def test_the_splits_share_no_chain_in_large_tables() -> None:
    train, dev, test = (set(make_table(split, seed=0, count=30_000).chain_n.tolist()) for split in SPLITS)
    assert not train & dev
    assert not train & test
    assert not dev & test


def test_chains_are_told_apart_by_numbers_and_not_by_words() -> None:
    config = StudyConfig(max_depth=3, operand=9)
    keys = make_table("test", seed=7, count=1500, config=config).chain_n.tolist()
    chains = [(p.given, p.operations) for p in problems("test", 1500, config)]
    assert len(set(chains)) == len(set(keys)) == len(set(zip(chains, keys, strict=True))) < 1400


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("narrow", [{"operand": 1, "times": 0.0}, {"times": 1.0}])
def test_the_narrowest_settings_leave_every_split_some(split: Any, narrow: dict[str, Any]) -> None:
    """Few chains of depth 2 exist here; drawing them must end."""
    config = StudyConfig(max_depth=2, **narrow)
    for problem in problems(split, 200, config):
        check(problem, config)


@pytest.mark.parametrize("split", SPLITS)
def test_every_depth_comes_up_equally_often(split: str) -> None:
    table = make_table(split, seed=0, count=BLOCK)  # type: ignore[arg-type]
    counts = np.bincount(table.depth_n, minlength=9)[2:]
    assert counts.min() >= counts.max() - 1


def test_rows_do_not_depend_on_the_table_they_are_in() -> None:
    whole = make_table("train", seed=4, count=2 * BLOCK + 10)
    again = make_table("train", seed=4, count=2 * BLOCK + 10)
    part = make_table("train", seed=4, count=BLOCK, start=BLOCK // 2)
    for name in ARRAYS:
        assert (getattr(whole, name) == getattr(again, name)).all()
        assert (getattr(whole, name)[BLOCK // 2 : 3 * BLOCK // 2] == getattr(part, name)).all()
    other = make_table("train", seed=5, count=100)
    assert (whole.prompt_nP[:100] != other.prompt_nP).any(axis=1).all()


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = make_table("dev", seed=9, count=70, start=3, config=StudyConfig(distractors=2, max_depth=4))
    table.save(tmp_path / "dev.npz")
    back = StudyTable.load(tmp_path / "dev.npz")
    assert (back.split, back.seed, back.start, back.config) == ("dev", 9, 3, table.config)
    for name in ARRAYS:
        assert getattr(back, name).dtype == getattr(table, name).dtype
        assert (getattr(back, name) == getattr(table, name)).all()


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        StudyTable.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no table", "utf-8")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    make_table("dev", seed=0, count=5).save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    about = json.loads(str(arrays["about"]))
    words = json.dumps(about | {"tokens": about["tokens"][::-1]})
    np.savez(tmp_path / "words.npz", **(arrays | {"about": np.array(words)}))
    np.savez(tmp_path / "short.npz", **(arrays | {"answer_n": arrays["answer_n"][:3]}))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:300])
    complaints = {
        "text": "no table",
        "other": "no table",
        "cut": "no table",
        "words": "vocabulary",
        "short": "answer_n",
    }
    for name, complaint in complaints.items():
        with pytest.raises(DataError, match=complaint):
            StudyTable.load(tmp_path / f"{name}.npz")


# --- statistics that docs/words-study.md promises ---


@pytest.fixture(scope="module")
def table() -> StudyTable:
    return make_table("train", seed=11, count=3 * BLOCK)


def test_errors_grow_with_depth(table: StudyTable) -> None:
    wrong = [table.wrong_nm[table.depth_n == depth].mean() for depth in range(2, 9)]
    assert all(one + 0.01 < other for one, other in pairwise(wrong)), wrong
    assert 0.65 < 1 - table.wrong_nm.mean() < 0.75


def test_the_majority_is_often_wrong(table: StudyTable) -> None:
    assert table.wrong_majority_n.mean() > 0.22
    same = [
        (table.wrong_nm[:, i] & (table.path_answer_nm[:, i] == table.path_answer_nm[:, j]))
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert np.any(same, axis=0).mean() > 0.20
    for split in ("dev", "test"):
        assert make_table(split, seed=0, count=5000).wrong_majority_n.mean() > 0.22


def test_errors_of_paths_go_together(table: StudyTable) -> None:
    assert correlation(table.wrong_nm) > 0.4
    for depth in range(2, 9):
        assert correlation(table.wrong_nm[table.depth_n == depth]) > 0.4


def test_the_correlation_knob_leaves_the_error_rate_alone(table: StudyTable) -> None:
    rates = {}
    for share in (0.0, 0.5, 1.0):
        other = make_table("train", seed=11, count=3 * BLOCK, config=replace(table.config, correlation=share))
        rates[share] = correlation(other.wrong_nm)
        assert abs(other.wrong_nm.mean() - table.wrong_nm.mean()) < 0.01
    # Without it paths are independent given the numbers; their common difficulty still shows.
    assert rates[0.0] < 0.1 < rates[0.5] < rates[1.0] == 1.0


def test_methods_and_places_are_equally_often_wrong(table: StudyTable) -> None:
    by_method = [table.wrong_nm[table.method_nm == method].mean() for method in range(3)]
    assert max(by_method) - min(by_method) < 0.015
    assert np.ptp(table.wrong_nm.mean(axis=0)) < 0.015


def test_look_ups_do_not_answer(table: StudyTable) -> None:
    guesses = guess_rates(table, make_table("train", seed=12, count=3 * BLOCK))(table.depth_n >= 2)
    frequent, by_given, given_number = guesses[:3]
    assert frequent < 0.05
    assert by_given < 0.10
    assert given_number < 0.05


def test_guesses_without_names_are_right_exactly_where_names_do_not_matter() -> None:
    def sums(config: StudyConfig) -> list[float]:
        drawn = make_table("train", seed=1, count=2000, config=config)
        return list(guess_rates(drawn, drawn)(drawn.depth_n >= 2))[3:]

    assert sums(StudyConfig(times=0)) == [1.0, 1.0, 1.0]
    assert max(sums(StudyConfig(times=0, distractors=1))) < 0.05


def test_rates_of_a_table_made_by_hand() -> None:
    base = make_table("train", seed=0, count=4)
    hand = replace(
        base,
        answer_n=np.full(4, 5, np.int16),
        path_answer_nm=np.array([[5, 5, 5], [5, 6, 7], [6, 6, 5], [6, 6, 6]], np.int16),
        wrong_nm=np.array([[0, 0, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1]], np.bool_),
    )
    rates = error_rates(hand)(np.ones(4, np.bool_))
    #               n  path right  first path  two right  not two  same wrong  all wrong
    assert rates[:7] == (4, 5 / 12, 2 / 4, 1 / 4, 3 / 4, 2 / 4, 1 / 4)
    assert hand.wrong_majority_n.tolist() == [False, True, True, True]


def test_tables_are_made_fast() -> None:
    """50,000 a second is the aim; a loaded machine of CI gets a fifth of that."""
    best = 0.0
    for seed in range(3):
        begin = time.perf_counter()
        make_table("train", seed=seed, count=2 * BLOCK)
        best = max(best, 2 * BLOCK / (time.perf_counter() - begin))
    assert best > 10_000


# --- refusals ---


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"depth": 3}, "depth: unknown key; known are min_depth"),
        ({"min_depth": 1}, "min_depth: 1 is not a whole number from 2 to 8"),
        ({"max_depth": True}, "max_depth: True"),
        ({"min_depth": 5, "max_depth": 4}, "min_depth: 5 exceeds max_depth 4"),
        ({"operand": 0}, "operand: 0"),
        ({"times": 1.5}, "times: 1.5 is not a number from 0 to 1"),
        ({"slip": float("nan")}, "slip: nan"),
        ({"hard_slip": "x"}, "hard_slip: 'x'"),
        ({"correlation": -0.1}, "correlation: -0.1"),
        ({"distractors": 4}, "distractors: 4"),
    ],
)
def test_bad_knobs_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)):
        StudyConfig.from_mapping(values)


def test_config_round_trip() -> None:
    config = StudyConfig(operand=9, correlation=0.5)
    assert StudyConfig.from_mapping(config.to_json()) == config


@pytest.mark.parametrize(
    ("split", "options", "complaint"),
    [
        ("validation", {}, "split: unknown value 'validation'; use one of train, dev, test"),
        ("train", {"seed": -1}, "seed: -1"),
        ("train", {"start": -1}, "start: -1"),
    ],
)
def test_bad_requests_are_refused(split: Any, options: dict[str, int], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        generate(split, **{"seed": 0, **options})
    with pytest.raises(UsageError, match=complaint):
        make_table(split, **{"seed": 0, "count": 1, **options})


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(UsageError, match="count: 0 is less than 1"):
        make_table("train", seed=0, count=0)


def test_the_command_measures_shows_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.npz"
    options = ["--n", "500", "--split", "test", "--set", "distractors=1", "--set", "max_depth=3"]
    assert study_main(["--stats", "--show", "2", "--out", str(file), *options]) == 0
    out = capsys.readouterr().out
    assert out.count("how many has") == 2
    assert re.search(r"\| 3 \| 40 \| 26 \| 2\d\d \| 0\.\d{3} \|", out)
    assert StudyTable.load(file).config == StudyConfig(distractors=1, max_depth=3)
    assert study_main(["--stats", "--set", "slips=1"]) == 2
    assert "error: slips: unknown key" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study_main(["--n", "3", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert (error.count("\n"), str(tmp_path) in error) == (1, True)
