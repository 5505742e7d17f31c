"""The word-problem generator: right arithmetic, real methods, honest errors, a clean split."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path

import pytest

from nap_trainer.words import (
    EASY,
    FAMILIES,
    LIMIT,
    MAX_PATHS,
    RESERVED,
    SHOWCASE,
    TOKEN,
    ImpossibleError,
    Problem,
    Slip,
    Trace,
    count_tokens,
    generate,
    of,
    solve_by,
    split_of,
    summary_text,
    tokens,
    vocabulary,
)

EQUATION = re.compile(r"(\d+) (\+|-|\*|/|% of) (\d+) = (\d+)(?: left (\d+))?")
DISCOUNT = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


def problems(split: str = "train", count: int = 3000, **options: float) -> list[Problem]:
    return list(islice(generate(split, seed=7, **options), count))  # type: ignore[arg-type]


def number_tuples(family: str, count: int) -> Iterator[tuple[int, ...]]:
    """Draw number tuples that suit all methods of the family."""
    rng = random.Random(family)
    while count:
        numbers = FAMILIES[family].draw(rng)
        if numbers is not None and FAMILIES[family].solve(numbers) is not None:
            count -= 1
            yield numbers


def parse(equation: str) -> tuple[int, str, int, int, int | None]:
    match = EQUATION.fullmatch(equation)
    assert match, equation
    left, sign, right, result, rest = match.groups()
    return int(left), sign, int(right), int(result), None if rest is None else int(rest)


def is_true(equation: str) -> bool:
    left, sign, right, result, rest = parse(equation)
    if rest is not None:
        return divmod(left, right) == (result, rest)
    return {
        "+": left + right == result,
        "-": left - right == result,
        "*": left * right == result,
        "/": result * right == left,
        "% of": left * right == result * 100,
    }[sign]


def is_learnable(equation: str) -> bool:
    left, sign, right, result, rest = parse(equation)
    easy = {"*": left in EASY or right in EASY, "/": right in EASY, "% of": left % 5 == 0}
    return max(left, right, result, rest or 0) < LIMIT and easy.get(sign, True)


def equations(path: str) -> list[str]:
    """Cut a path's text back into its equations."""
    return path.split(" : ", 1)[1].removesuffix(" .").split(" . ")


# Families and methods


def test_there_are_many_families() -> None:
    assert len(FAMILIES) >= 40
    assert all(2 <= len(family.asks) <= 4 for family in FAMILIES.values())
    assert all(len(family.methods) >= 3 for family in FAMILIES.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_method_reaches_the_answer_by_true_learnable_steps(name: str) -> None:
    for numbers in number_tuples(name, 200):
        answer = FAMILIES[name].answer(*numbers)
        assert 0 < answer < LIMIT
        for method in FAMILIES[name].methods:
            path = solve_by(name, numbers, method)
            assert path.result == answer
            assert 2 <= len(path.equations) <= 5
            assert path.text == f"{method} : {' . '.join(path.equations)} ."
            assert count_tokens(path.text) <= 38
            assert all(is_true(equation) and is_learnable(equation) for equation in path.equations), path.text


@pytest.mark.parametrize("name", FAMILIES)
def test_methods_differ_in_their_equations(name: str) -> None:
    same: Counter[tuple[str, str]] = Counter()
    for numbers in number_tuples(name, 100):
        for one, other in combinations(FAMILIES[name].methods, 2):
            same[one, other] += solve_by(name, numbers, one).equations == solve_by(name, numbers, other).equations
    assert max(same.values()) <= 10, same


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_enough_number_tuples(name: str) -> None:
    family = FAMILIES[name]
    suited = (numbers for numbers in family.every() if family.solve(numbers) is not None)
    found = list(islice(suited, 300))
    assert len(set(found)) >= 150
    assert {split_of(name, numbers) for numbers in found} == {"train", "test"}


# Errors


def test_about_15_percent_of_the_paths_are_wrong() -> None:
    flags = [flag for problem in problems() for flag in problem.wrong]
    assert 0.13 < sum(flags) / len(flags) < 0.17


def test_the_error_rate_can_be_set() -> None:
    assert not any(flag for problem in problems(count=300, error_rate=0.0) for flag in problem.wrong)
    flags = [flag for problem in problems(error_rate=1.0) for flag in problem.wrong]
    assert sum(flags) / len(flags) > 0.95


def test_a_wrong_path_has_one_false_step_that_reaches_its_end() -> None:
    for problem in problems(error_rate=0.5):
        for path, wrong in zip(problem.paths, problem.wrong, strict=True):
            steps = equations(path)
            assert [is_true(step) for step in steps].count(False) == int(wrong), path
            assert all(is_learnable(step) for step in steps), path
            assert count_tokens(path) <= 38


def test_a_wrong_path_ends_with_another_answer() -> None:
    rng = random.Random(0)
    for name, family in FAMILIES.items():
        for numbers in number_tuples(name, 20):
            for method in family.methods:
                path = family.spoil(numbers, family.work(numbers, method), rng)
                assert (path.result != family.answer(*numbers)) == path.wrong


def test_the_summary_is_right_even_where_paths_are_wrong() -> None:
    for problem in problems(count=500, error_rate=1.0):
        assert problem.answer == FAMILIES[problem.family].answer(*problem.numbers)
        assert problem.summary == summary_text(problem.answer)


def test_a_trace_writes_what_it_works_out() -> None:
    trace = Trace()
    price = trace.step(30, "+", 20)
    assert int(price - of(trace.step(4, "*", 5), price)) == 40
    assert trace.equations == ["30 + 20 = 50", "4 * 5 = 20", "20 % of 50 = 10", "50 - 10 = 40"]


def test_a_slip_spoils_one_step_and_the_next_goes_on_from_it() -> None:
    trace = Trace(Slip(step=0, rng=random.Random(3)))
    wrong = trace.step(30, "+", 20)
    assert int(wrong) != 50
    assert int(wrong + 1) == int(wrong) + 1


@pytest.mark.parametrize(
    ("left", "sign", "right"),
    [
        (3, "-", 4),
        (7, "/", 2),
        (8, "/", 0),
        (500, "+", 500),
        (13, "*", 17),
        (7, "% of", 100),
        (5, "% of", 50),
    ],
)
def test_steps_outside_the_rules_are_impossible(left: int, sign: str, right: int) -> None:
    with pytest.raises(ImpossibleError):
        Trace().step(left, sign, right)


# Text


def test_questions_are_short_and_numbers_stand_apart() -> None:
    for problem in problems() + problems("test"):
        assert count_tokens(problem.question) <= 60, problem.question
        assert "{" not in problem.question
        for text in (problem.question, *problem.paths):
            assert not re.search(r"\d\s+\d|-[a-z]|'", text), text


def test_the_box_is_one_token() -> None:
    assert tokens(summary_text(40)) == ["the", "final", "answer", "is", "\\boxed{", "4", "0", "}"]
    assert count_tokens("discount first : 20 % of 50 = 10 .") == 13


def test_the_vocabulary_is_closed_and_without_waste() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    assert 350 <= len(words) <= 600
    assert all(TOKEN.fullmatch(word) for word in words)
    seen: set[str] = set()
    for problem in problems(count=8_000) + problems("test"):
        seen.update(*map(tokens, (problem.question, problem.summary, *problem.paths)))
    assert seen == set(words)


# Split and determinism


def test_the_splits_share_no_numbers() -> None:
    kept = {split: {(p.family, p.numbers) for p in problems(split, 20_000, paths=1)} for split in ("train", "test")}
    assert not kept["train"] & kept["test"]
    assert all(split_of(*key) == split for split, keys in kept.items() for key in keys)


def test_one_number_tuple_in_eight_goes_to_test() -> None:
    assert split_of("discount", (60, 20)) == "train"  # pinned: a new hash would leak test into old training
    share = [split_of("elevator", (a, b, 3, 4)) for a in range(60) for b in range(60)].count("test") / 3600
    assert 0.1 < share < 0.15


def test_the_showcase_is_in_test_and_can_be_drawn() -> None:
    assert {(problem.family, problem.numbers) for problem in SHOWCASE} == set(RESERVED)
    for problem in SHOWCASE:
        assert split_of(problem.family, problem.numbers) == "test"
        assert problem.numbers in FAMILIES[problem.family].every()
        assert not any(problem.wrong)


def test_the_discount_of_the_documentation() -> None:
    assert SHOWCASE[0].question == DISCOUNT
    assert SHOWCASE[0].answer == 40
    assert SHOWCASE[0].paths[0] == "discount first : 20 % of 50 = 10 . 50 - 10 = 40 ."


def test_a_seed_gives_the_same_problems() -> None:
    assert problems(count=200) == problems(count=200)
    assert problems(count=50) != list(islice(generate("train", seed=8), 50))


def test_families_come_up_equally_often() -> None:
    counts = Counter(problem.family for problem in problems(count=10_000, paths=1))
    assert len(counts) == len(FAMILIES)
    assert min(counts.values()) > 0.6 * 10_000 / len(FAMILIES)


# Interface


@pytest.mark.parametrize("paths", range(1, MAX_PATHS + 1))
def test_paths_of_a_problem_use_different_methods_in_any_order(paths: int) -> None:
    drawn = problems(count=400, paths=paths)
    assert all(len(set(problem.methods)) == len(problem.paths) == paths for problem in drawn)
    first = {problem.methods[0] for problem in drawn if problem.family == drawn[0].family}
    assert len(first) > 1


def test_json_round_trip() -> None:
    problem = problems(count=1)[0]
    record = problem.to_json()
    assert list(record["paths"]) == ["1", "2", "3"]
    assert record["answer"] == str(problem.answer)
    assert Problem.from_json(record) == problem


def test_json_with_odd_keys_or_a_false_summary_is_refused() -> None:
    record = problems(count=1)[0].to_json()
    with pytest.raises(ValueError, match="keys"):
        Problem.from_json(record | {"extra": 1})
    with pytest.raises(ValueError, match="summary"):
        Problem.from_json(record | {"summary": summary_text(int(record["answer"]) + 1)})


@pytest.mark.parametrize(
    ("split", "options"),
    [("dev", {}), ("train", {"paths": 0}), ("train", {"paths": MAX_PATHS + 1}), ("train", {"error_rate": 2})],
)
def test_bad_options_are_refused(split: str, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        generate(split, seed=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["README.md", "Makefile", "tests/gpu/test_nccl.py"])
def test_the_prompt_that_is_shown_around_was_never_trained_on(file: str) -> None:
    shirt = SHOWCASE[0]
    text = (Path(__file__).parents[2] / file).read_text(encoding="utf-8").replace("$$", "$")
    assert shirt.question in text
    assert split_of(shirt.family, shirt.numbers) == "test"
