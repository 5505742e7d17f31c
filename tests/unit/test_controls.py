"""Controls: given texts, figures and rates against cases worked out by hand, and a denoiser that copies by design."""

from __future__ import annotations

import json
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor

from nap_runtime.cli.app import main
from nap_runtime.errors import DataError, UsageError
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.shares import Share
from nap_runtime.models.loading import read_card
from nap_runtime.study.controls import baselines, copying, reliance
from nap_runtime.study.controls.cases import Case, intermediate, mentions, read_cases, replaced, strange_numbers
from nap_runtime.study.controls.decoding import MASKED, Lab
from nap_runtime.study.problems import Problem


def case(
    gold: str = "40", question: str = "20 % off 50", paths: tuple[str, ...] = ("a 10 . 40 .", "b 80 . 40 .")
) -> Case:
    return Case(problem=Problem(index=0, id="0", question=question, gold=gold, kind="words"), right=paths)


# --- texts ---


def test_a_slip_changes_the_last_number_alone() -> None:
    one = case(paths=("40 - 0 = 40 .",))
    assert one.slipped(0, "37") == "40 - 0 = 37 ."
    with pytest.raises(DataError, match="path 1 does not end with its answer 40"):
        case(paths=("40 and 41 .",)).slipped(0, "37")


def test_wrong_answers_are_different_strange_and_alike() -> None:
    found = case().wrong_answers(3)
    assert len(set(found)) == 3
    assert not {"40", "20", "50", "10", "80"} & set(found)
    assert all(len(number) == 2 for number in found)
    assert found == case().wrong_answers(3)
    assert found != case().wrong_answers(3, seed=1)
    with pytest.raises(DataError, match="no whole number"):
        case(gold="1/2").wrong_answers(1)


def test_strange_numbers_may_run_out() -> None:
    with pytest.raises(DataError, match="there are no 9 numbers like 5"):
        strange_numbers("5", 9, known=(), seed="0")
    assert sorted(strange_numbers("5", 8, known=(), seed="0")) == list("12346789")


@drawn(st.lists(st.integers(0, 999).map(str), min_size=1, max_size=8), st.data())
def test_replacing_a_number_leaves_the_others(numbers: list[str], data: Any) -> None:
    old = data.draw(st.sampled_from(numbers))
    text = " + ".join(numbers)
    changed = replaced(text, old, "1000")
    assert changed.split(" + ") == ["1000" if number == old else number for number in numbers]
    assert mentions(changed, "1000")
    assert not mentions(changed, old)


def test_numbers_are_whole() -> None:
    assert not mentions("140 and 4.40 and 40.5", "40")
    assert mentions("so 40.", "40")


def test_an_intermediate_number_is_neither_asked_about_nor_the_answer() -> None:
    assert intermediate(case(), 0) == "10"
    assert intermediate(case(paths=("50 - 20 , 40 .",)), 0) is None
    assert (
        intermediate(case(paths=("a 10 , 30 , 70 , 40 .", "b 70 , 30 , 40 .")), 0) == "30"
    )  # the other path has it too


def test_word_problems_come_right() -> None:
    for one in read_cases(n=5, paths=3):
        assert [one.problem.read_path(text) for text in one.right] == [one.problem.gold] * 3


def test_a_file_gives_rows_with_enough_right_paths(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "paths": ["so 4 .", "so 5 .", "so 4 ."], "summary": "\\boxed{4}"},
        {"question": "r", "paths": ["so 7 .", "so 5 .", "so 6 ."], "summary": "\\boxed{7}"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (only,) = read_cases(n=9, paths=2, data=file)
    assert (only.problem.question, only.right) == ("q", ("so 4 .", "so 4 ."))
    with pytest.raises(DataError, match="no row has 3 paths"):
        read_cases(n=9, paths=3, data=file)
    file.write_text('{"question": "q"}\n')
    with pytest.raises(DataError, match="row 1: paths"):
        read_cases(n=9, paths=2, data=file)


# --- reliance ---


THREE = [case(gold=str(40 + i), question=f"q {i}", paths=tuple(f"{p} so {40 + i} ." for p in "abc")) for i in range(3)]


def last_numbers(given: Any) -> list[list[str]]:
    return [[text.split()[-2] for text in one.values()] for one in given]


def test_what_each_condition_gives() -> None:
    assert reliance.given_paths("decoded", THREE) is None
    assert last_numbers(reliance.given_paths("right", THREE)) == [["40"] * 3, ["41"] * 3, ["42"] * 3]
    assert reliance.given_paths("masked", THREE) == [dict.fromkeys(range(3), MASKED)] * 3
    assert last_numbers(reliance.given_paths("swapped", THREE)) == [["41"] * 3, ["42"] * 3, ["40"] * 3]
    for at, said in enumerate(last_numbers(reliance.given_paths("all wrong", THREE))):
        assert len(set(said)) == 3
        assert str(40 + at) not in said
    for at, said in enumerate(last_numbers(reliance.given_paths("one wrong answer", THREE))):
        assert len(set(said)) == 1
        assert str(40 + at) not in said
    majority = last_numbers(reliance.given_paths("majority wrong", THREE))
    assert [said.index(str(40 + at)) for at, said in enumerate(majority)] == [2, 0, 1]
    assert all(said.count(str(40 + at)) == 1 and len(set(said)) == 2 for at, said in enumerate(majority))
    with pytest.raises(DataError, match="the same answer"):
        reliance.given_paths("swapped", [THREE[0], THREE[0]])


def test_figures_by_hand() -> None:
    said = [
        reliance.Answers(summary="40", paths=("40", "40", "9")),  # all right but a path; follows a right vote
        reliance.Answers(summary="9", paths=("9", "9", "41")),  # follows a wrong vote, though a path is right
        reliance.Answers(summary="42", paths=("7", "7", None)),  # right against a wrong vote
    ]
    found = reliance.figures(THREE, said)
    counts = {name: (values["right"], values["n"]) for name, values in found.items() if name != "agreement"}
    assert counts == {
        "summary": (2, 3),
        "path": (3, 9),
        "vote": (1, 3),
        "any_path": (2, 3),
        "follows_vote": (2, 3),
        "follows_wrong": (1, 2),
    }
    assert found["agreement"]["agree"] == pytest.approx(3 / 7)


def test_no_path_says_anything() -> None:
    found = reliance.figures(THREE[:1], [reliance.Answers(summary="40", paths=(None, None, None))])
    assert (found["follows_vote"]["n"], found["vote"]["right"], found["summary"]["right"]) == (0, 0, 1)


# --- copying ---


def test_planted_numbers_stand_in_path_1_alone() -> None:
    (one,) = copying.plant([case(), case(paths=("40 .", "40 ."))])
    assert one.text == f"a {one.number} . 40 ."
    assert one.number not in ("10", "80", "40", "20", "50")
    with pytest.raises(DataError, match="works out a number"):
        copying.plant([case(paths=("40 .", "40 ."))])
    with pytest.raises(DataError, match="two paths"):
        copying.plant([case(paths=("a 10 . 40 .",))])


def test_rates_by_hand() -> None:
    one = copying.Planted(case=case(), text="", number="13")
    assert copying.share_of_others(one, SimpleNamespace(paths=("13", "x 13 .", "130"))) == 0.5  # type: ignore[arg-type]
    rates = copying.Copied.of([1.0, 0.5, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5])
    assert (rates.n, rates.planted, rates.base, rates.difference) == (4, 0.5, 0.25, 0.25)
    assert rates.interval[0] <= 0.25 <= rates.interval[1]


class Copier:
    """A denoiser whose paths after the first write what stands at their place in the first, as far as they see it."""

    def __init__(self, config: Any, prompt: int, block: int, word: int) -> None:
        self.config, self._prompt, self._block, self._word = config, prompt, block, word

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Any) -> Tensor:
        """The id each row wants, a word where it sees a mask; the network's rows must be the whole canvas."""
        path = (rows_R - self._prompt) // self._block
        first_R = torch.where((path > 0) & (rows_R >= self._prompt), rows_R - path * self._block, rows_R)
        seen_BR = ids_BR[:, first_R]
        return torch.where(seen_BR == self.config.mask_id, self._word, seen_BR).double().unsqueeze(-1)

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        """One-hot."""
        return 20.0 * torch.nn.functional.one_hot(hidden_BRD[..., 0].long(), self.config.vocab_size).double()


@pytest.fixture
def copier() -> Lab:
    """A laboratory of the copier on one worker: every path sees the others at every step."""
    card = read_card("nap-tiny")
    assert card.tokenizer is not None
    (word,) = card.tokenizer.encode("total")
    denoiser = Copier(card.config, len(card.tokenizer.encode_prompt(case().problem.question)), block=41, word=word)
    coordinator = Coordinator(card, InlineExecutor(denoiser, dtype=torch.float64))  # type: ignore[arg-type]
    config = coordinator.resolve(DecodeConfig(paths=2, path_tokens=40, summary_tokens=4, steps=42))
    return Lab(coordinator=coordinator, config=config)


def test_a_copier_is_found_out(copier: Lab) -> None:
    found = copying.copying(copier, [case()], {"exact": SyncPolicy("exact")})["exact"]
    assert (found["planted"], found["base"], found["difference"]) == (1.0, 0.0, 1.0)


def test_given_paths_come_back_as_text(copier: Lab) -> None:
    (result,) = copier.decode([case()], [{0: "total 7 .", 1: MASKED}])
    assert result.paths[0] == "total 7."
    layout = result.record.layout
    assert (result.record.final_ids[list(layout.paths[1].slots)] == layout.mask_id).all()


def test_a_text_that_does_not_fit(copier: Lab) -> None:
    with pytest.raises(UsageError, match="needs 61 slots, path 1 has 40"):
        copier.decode([case()], [{0: "7 " * 60}])


def test_results_come_in_the_order_of_the_cases(copier: Lab) -> None:
    longer = case(question="20 % off 50 and more")
    results = copier.decode([case(), longer, case()], [{0: text} for text in ("7 .", "8 .", "9 .")])
    assert [result.paths[0] for result in results] == ["7.", "8.", "9."]
    assert [result.job.question for result in results] == ["20 % off 50", "20 % off 50 and more", "20 % off 50"]


# --- baselines ---


def test_arms_spend_the_same_slots() -> None:
    config = DecodeConfig(paths=3, path_tokens=(10, 11, 12), summary_tokens=9, steps=21, temperature=0.5, seed=4)
    assert baselines.path_budget(config) == 33
    one = baselines.independent(config, 2)
    assert (one.paths, one.path_tokens, one.steps, one.seed) == (1, 11, 7, 6)
    long = baselines.long_path(config)
    assert (long.paths, long.path_tokens, long.steps, long.seed) == (1, 33, 21, 4)
    whole = baselines.whole_canvas(config, 1)
    assert (whole.paths, whole.path_tokens, whole.steps, whole.seed) == (3, (10, 11, 12), 7, 5)


def test_sureness_is_the_mean_over_commits() -> None:
    deltas = [SimpleNamespace(log_confidence=np.log([0.5, 0.25])), SimpleNamespace(log_confidence=np.log([0.125]))]
    record = SimpleNamespace(commits=deltas)
    assert baselines.sureness(SimpleNamespace(record=record)) == pytest.approx(2 * log(0.5))  # type: ignore[arg-type]


def test_votes_by_hand() -> None:
    def said(answer: str | None) -> Any:
        return SimpleNamespace(answer=answer, summary="")

    draws = [
        [said("40"), said("1"), said("2")],
        [said("40"), said("41"), said("3")],
        [said(None), said("41"), said("42")],
    ]
    share = baselines.voted(THREE, draws)
    assert (share.right, share.n) == (2, 3)  # the last: three answers, the earliest counts


def test_independent_decodes_need_noise(copier: Lab) -> None:
    with pytest.raises(UsageError, match="temperature"):
        baselines.baselines(copier, copier, [case()])


def test_arms_run(copier: Lab) -> None:
    noisy = copier.with_config(copier.config.with_values(temperature=0.1))
    found = baselines.baselines(noisy, noisy, [case()])
    assert list(found) == list(baselines.ARMS)
    canvas = len(copier.decode([case()])[0].record.final_ids)
    assert found["together"]["runs"] == found["together"]["rows"] / canvas
    assert found["vote"]["rows"] == found["any"]["rows"] == 2 * found["single"]["rows"]


# --- the command ---


def test_probes_run_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "reliance", "--n", "2", "--batch-size", "2", "--tokens-per-step", "33", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["reliance"]) == list(reliance.CONDITIONS)
    assert report["reliance"]["majority wrong"]["path"] == Share(2, 6).to_json()
    some = ["--n", "1", "--tokens-per-step", "33", "--workers", "3", "--simulate", "--sync", "tokens", "--ks", "2"]
    assert main(["probe", "copying", *some]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["exact", "tokens, K = 2", "none"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["copying"], "--workers: on one worker"),
        (["copying", "--workers", "3", "--simulate"], "--sync: 'exact' has no K"),
        (["copying", "--ks", "0"], "holds a number below 1"),
        (["baselines"], "--temperature: independent decodes need noise"),
        (["reliance", "--paths", "4"], "word problems have 3 paths"),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *args, "--n", "1"]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
