"""Answers, similar paths, the choice of paths, the journal, and what `check` finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nap_runtime.errors import DataError, UsageError
from nap_runtime.metrics.answers import canonical, extract_boxed, find_answer, same_answer
from nap_trainer.data.check import Budgets, Check, spread, word_count
from nap_trainer.data.http import check_url, retry_after
from nap_trainer.data.journal import Journal
from nap_trainer.data.judge import Rules, judge, row_of
from nap_trainer.data.leakage import EvalSet
from nap_trainer.data.openai import Endpoint, read_key
from nap_trainer.data.prompts import PROMPT, asked, cleaned, read_prompt, summary_for
from nap_trainer.data.questions import Question
from nap_trainer.data.schema import NapExample
from nap_trainer.data.teachers import Request, Trace
from nap_trainer.data.texts import grams, jaccard, mean_pairwise, normalised, words

QUESTION = Question(text="What is 9 + 9?", gold="18")
IDENTITY = {"teacher": "fake", "temperature": 1.0}


# --- answers and texts ---


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{17} and \\boxed{ \\frac{1}{2} }.", "\\frac{1}{2}"),
        ("It is 5.\n#### 1,018 \nbye 3", "1,018"),
        ("The answer is $42. That took 3 steps.", "42"),
        ("**Final answer:** 7 apples out of 9", "7"),
        ("2 * 9 = 18", "18"),
        ("16-3=13", "13"),
        ("it falls to -3.5 degrees.", "-3.5"),
        ("costs $1,250.50.", "1,250.50"),
        ("no idea", None),
        ("", None),
    ],
)
def test_answers_are_found(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000.0"),
        ("$18", "18 dollars"),
        ("18\\%", "18%"),
        ("\\frac{1}{2}", "0.5"),
        ("x = 5", "5"),
        ("18.", "18 \\text{ apples}"),
        ("Yes", "yes"),
        ("3:30", " 3:30"),
    ],
)
def test_equal_answers(one: str, other: str) -> None:
    assert same_answer(one, other)


@pytest.mark.parametrize(("one", "other"), [("18", "81"), ("2x", "2"), ("x^2", "2"), ("1/0", "1"), (None, "1")])
def test_other_answers(one: str | None, other: str) -> None:
    assert not same_answer(one, other)


def test_odd_answers_have_a_canonical_form() -> None:
    assert canonical("9" * 5000) == "9" * 5000
    assert canonical("") == ""


def test_normal_form() -> None:
    assert normalised("Tom’s  COST:\n$1,000 + 2.5!") == "tom s cost 1000 + 2.5"
    assert words("a-b") == ["a", "-", "b"]


def test_similarity() -> None:
    one, other = (grams(text.split(), 2) for text in ("a b c", "a b d"))
    assert jaccard(one, other) == pytest.approx(1 / 3)
    assert mean_pairwise([one, other, one]) == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert mean_pairwise([one]) is None
    assert jaccard(grams(["a"], 3), grams(["a"], 3)) == 1
    assert jaccard(grams([], 3), grams(["a"], 3)) == 0


# --- prompts ---


def test_summary_is_the_papers() -> None:
    text = summary_for("17")
    assert text == (
        "By analyzing multiple reasoning processes above, I concluded that: The final answer is \\boxed{17}."
    )
    assert extract_boxed(text) == "17"


def test_prompt_files(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("{system} Solve: {question}\n")
    assert asked(read_prompt(file), "{question}?") == "{system} Solve: {question}?"
    assert asked(PROMPT, "Q").startswith("Q\n")
    file.write_text("no place")
    for wrong in (file, tmp_path / "none"):
        with pytest.raises(UsageError, match=str(wrong)):
            read_prompt(wrong)


def test_traces_are_cleaned() -> None:
    assert cleaned("<think>\na\n \n\nb</think>\n<summary>c</summary>  ") == "a\n\nb\nc"


# --- judging ---


def traces(*texts: str) -> dict[int, Trace]:
    return {number: Trace(text) for number, text in enumerate(texts)}


def test_duplicates_cuts_and_surplus_fall_away() -> None:
    given = traces(
        "Nine and nine give 18.",
        "nine AND nine give: 18",
        " <think></think>",
        "I double nine and get 18.",
        "Count up: 19",
        "Ten and eight make 18.",
    )
    given[6] = Trace("cut", cut=True)
    judged = judge(QUESTION, given, Rules(paths=3))
    assert [path.answer for path in judged.paths] == ["18", "18", "19"]
    assert judged.dropped == Counter({"duplicate": 1, "empty": 1, "not needed": 2})
    assert judge(QUESTION, {0: given[6]}, Rules(paths=1)).dropped == Counter({"cut short": 1})
    row = row_of(QUESTION, judged)
    assert row.wrong == (False, False, True)
    assert row.extra == {"path_answers": ["18", "18", "19"]}
    assert NapExample.from_mapping(row.to_json()) == row


def test_a_share_of_wrong_paths_is_kept() -> None:
    given = traces(*(f"{' '.join(chr(97 + (i * k) % 26) * 3 for k in range(1, 9))} makes {i}" for i in range(19, 59)))
    kept = [len(judge(QUESTION, given, Rules(paths=40, keep_wrong=x)).paths) for x in (0.0, 0.5, 1.0)]
    assert kept[0] == 0
    assert 8 < kept[1] < 32
    assert kept[2] == 40


@pytest.mark.parametrize(
    "wrong", [{"paths": 65}, {"min_paths": 4}, {"max_traces": 2}, {"keep_wrong": 1.5}, {"similarity": -1.0}]
)
def test_rules_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Rules(**wrong)
    assert caught.value.field == next(iter(wrong))


def test_seeds_differ() -> None:
    seeds = {Request(key, trace, "").seed(base) for key in "ab" for trace in (0, 1) for base in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)


# --- journal ---


def test_journal_survives_a_torn_write_at_any_byte(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.journal", tmp_path / "torn.journal"
    with Journal(whole, IDENTITY) as journal:
        for number, text in enumerate(("one\n", "twö \ud800", "three")):
            journal.append("a", number, Trace(text, cut=number == 1))
        journal.append("a", 0, Trace("again"))
        assert journal.traces("a")[1] == Trace("twö \ud800", cut=True)
    data = whole.read_bytes()
    ends = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 4
    for size in range(len(data) + 1):
        torn.write_bytes(data[:size])
        with Journal(torn, IDENTITY) as journal:
            lines = max(1, sum(end <= size for end in ends))
            assert journal.numbers("a") == tuple(range(lines - 1))
            journal.append("b", 0, Trace("more"))
            assert journal.traces("b") == {0: Trace("more")}
    with Journal(torn, IDENTITY) as journal:
        assert journal.traces("a")[0] == Trace("one\n")


def test_journal_refuses_what_it_is_not(tmp_path: Path) -> None:
    file = tmp_path / "a.journal"
    with Journal(file, IDENTITY), pytest.raises(UsageError, match="another run"):
        Journal(file, IDENTITY)
    with pytest.raises(UsageError, match=r"begun with temperature 1\.0, not 0\.5"):
        Journal(file, {**IDENTITY, "temperature": 0.5})
    with file.open("a") as stream:
        stream.write('{"key": "a"}\n')
    with pytest.raises(DataError, match="line 2"):
        Journal(file, IDENTITY)
    file.write_text("not one\n")
    with pytest.raises(DataError, match="line 1"):
        Journal(file, IDENTITY)


# --- endpoint ---


def test_retry_after_in_both_forms() -> None:
    assert retry_after(" 3 ") == 3
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e6  # type: ignore[operator]
    assert [retry_after(value) for value in (None, "soon", "-4")] == [None, None, None]


def test_urls() -> None:
    assert Endpoint(base_url="http://h:1/v1/", model="m").url == "http://h:1/v1/chat/completions"
    assert Endpoint(base_url="https://h/chat/completions", model="m").url == "https://h/chat/completions"
    for wrong in ("file:///etc/passwd", "h:1/v1", "http://", "http://h:x", "http://me:secret@h/v1", "http://h/?key=1"):
        with pytest.raises(UsageError) as caught:
            check_url(wrong, "base_url")
        assert "secret" not in str(caught.value)


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAP_TEST_KEY", " sk-secret\n")
    key = read_key("NAP_TEST_KEY", required=True)
    assert key == "sk-secret"
    assert "secret" not in repr(Endpoint(base_url="http://h", model="m", api_key=key))
    monkeypatch.setenv("NAP_TEST_KEY", "sk-\x01secret")
    with pytest.raises(UsageError) as caught:
        read_key("NAP_TEST_KEY", required=True)
    assert "secret" not in str(caught.value)
    assert read_key("NAP_NO_SUCH_KEY", required=False) is None


# --- check ---


def example(question: str, paths: Sequence[str], answer: str = "7", summary: str = "It is \\boxed{7}.") -> NapExample:
    return NapExample(question=question, paths=tuple(paths), summary=summary, answer=answer)


def test_check_counts_by_hand() -> None:
    check = Check(Budgets(path_tokens=8, summary_tokens=9), word_count, "words")
    check.add(1, example("What is 3 + 4?", ["3 plus 4 is 7", "3 plus 4 is 8", "it must be 7 or so I think 7"]))
    check.add(2, example("what is 3+4", ["7", "7"], answer="9"))
    check.add(4, example("Why?", ["because"]))
    report = check.report()
    assert report["rows"] == 3
    assert report["lengths"]["path"] == {"mean": pytest.approx(28 / 6), "p50": 2, "p90": 10, "p99": 10, "max": 10}
    assert report["over_budget"] == [{"row": 1, "field": "paths.3", "needed": 10, "budget": 8}]
    assert report["paths"] == {"1": 1, "2": 1, "3": 1}
    assert report["duplicates"] == {"questions": [{"row": 2, "first": 1}], "paths": [2]}
    answers = report["answers"]
    assert answers["contradictory_rows"] == [2]
    assert answers["path_right"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert answers["majority_right"] == pytest.approx(1 / 3)
    assert answers["pairs_agree"] == pytest.approx((1 / 3 + 1) / 2)
    assert answers["path_without_answer"] == pytest.approx(1 / 3)
    assert report["diversity"]["distinct_answers"] == pytest.approx((2 + 1 + 0) / 3)
    assert report["diversity"]["jaccard"] == pytest.approx(((2 / 4 + 0 + 0) / 3 + 1) / 2)
    assert (check.failed(), check.failed(strict=True)) == (False, True)
    json.dumps(report, allow_nan=False)


def test_spread_of_nothing() -> None:
    assert spread([]) is None


def test_leaks() -> None:
    long = "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi"
    evaluation = EvalSet({1: "Short one?", 2: long + " how many?", 3: long + " omicron pi rho sigma tau upsilon"})
    assert list(evaluation.leaks(1, example("Something else", ["short one?"]))) == []
    (exact,) = evaluation.leaks(2, example("SHORT  one", ["x"]))
    assert (exact.row, exact.eval_row, exact.kind) == (2, 1, "exact")
    whole = list(evaluation.leaks(3, example(long.upper() + ", how many", ["x"])))
    assert [(leak.eval_row, leak.kind) for leak in whole] == [(2, "exact"), (3, "overlap")]
    hidden = list(evaluation.leaks(4, example("Q", ["x", f"as in: {long}"])))
    assert [(leak.eval_row, leak.share) for leak in hidden] == [(2, 2 / 4), (3, 2 / 8)]
    stricter = EvalSet({3: long + " omicron pi rho sigma tau upsilon"}, share=0.25)
    assert list(stricter.leaks(4, example("Q", [long]))) == []
