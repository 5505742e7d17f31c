"""Path reliance: what the summary says when its paths are masked, another problem's, or wrong.

Every condition but `decoded` gives the paths, so that only the summary is decoded: differences are the paths' doing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nap_runtime.errors import DataError
from nap_runtime.job import DecodeResult
from nap_runtime.metrics.shares import PathAgreement, Share, vote
from nap_runtime.study.controls.cases import Case
from nap_runtime.study.controls.decoding import MASKED, Given, Lab

CONDITIONS: Mapping[str, str] = {
    "decoded": "the model's own paths",
    "right": "every path right",
    "masked": "every path masked",
    "swapped": "right paths of another problem with another answer",
    "all wrong": "every path slips, each to an answer of its own",
    "one wrong answer": "every path slips, all to one answer",
    "majority wrong": "more than half slip to one answer, the others are right",
}


def given_paths(condition: str, cases: Sequence[Case], *, seed: int = 0) -> list[Given] | None:
    """What the paths of each case are given; None where they are decoded.

    Raises:
        DataError: no other case has another answer, or a path cannot be made wrong.
    """
    if condition == "decoded":
        return None
    make = _MAKERS[condition]
    return [make(cases, at, seed) for at in range(len(cases))]


def _right(cases: Sequence[Case], at: int, seed: int) -> Given:
    return dict(enumerate(cases[at].right))


def _masked(cases: Sequence[Case], at: int, seed: int) -> Given:
    return dict.fromkeys(range(len(cases[at].right)), MASKED)


def _swapped(cases: Sequence[Case], at: int, seed: int) -> Given:
    own = cases[at].problem
    for other in (*cases[at + 1 :], *cases[:at]):
        if not own.is_right(other.problem.gold):
            return dict(enumerate(other.right))
    raise DataError("swapped: every problem has the same answer; use more problems")


def _all_wrong(cases: Sequence[Case], at: int, seed: int) -> Given:
    case = cases[at]
    answers = case.wrong_answers(len(case.right), seed=seed)
    return {path: case.slipped(path, answer) for path, answer in enumerate(answers)}


def _one_wrong_answer(cases: Sequence[Case], at: int, seed: int) -> Given:
    case = cases[at]
    (answer,) = case.wrong_answers(1, seed=seed)
    return {path: case.slipped(path, answer) for path in range(len(case.right))}


def _majority_wrong(cases: Sequence[Case], at: int, seed: int) -> Given:
    """The right paths move from place to place with the case, so that no place is always right."""
    case, paths = cases[at], len(cases[at].right)
    slip = {(at + offset) % paths for offset in range(paths // 2 + 1)}
    wrong = _one_wrong_answer(cases, at, seed)
    return {path: wrong[path] if path in slip else case.right[path] for path in range(paths)}


_MAKERS: Mapping[str, Callable[[Sequence[Case], int, int], Given]] = {
    "right": _right,
    "masked": _masked,
    "swapped": _swapped,
    "all wrong": _all_wrong,
    "one wrong answer": _one_wrong_answer,
    "majority wrong": _majority_wrong,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one canvas says: its summary's answer, and each path's."""

    summary: str | None
    paths: tuple[str | None, ...]

    @classmethod
    def of(cls, case: Case, result: DecodeResult) -> Answers:
        """Read them as the problem's set does."""
        summary, _ = case.problem.read(result.summary, result.answer)
        return cls(summary=summary, paths=tuple(case.problem.read_path(text) for text in result.paths))


def figures(cases: Sequence[Case], answers: Sequence[Answers]) -> dict[str, Any]:
    """Path, vote, any-path-right and summary accuracy side by side, and whom the summary follows.

    `follows_vote`: of canvases whose paths state anything, the share whose summary says what the vote says.
    `follows_wrong`: of canvases whose vote is wrong, the share whose summary says the same.
    """
    golds = [case.problem.gold for case in cases]
    votes = [vote(one.paths) for one in answers]
    spoken = [a for a in zip(cases, answers, votes, strict=True) if a[2] is not None]
    wrong = [(case, one, said) for case, one, said in spoken if not case.problem.is_right(said)]
    any_right = [any(c.problem.is_right(p) for p in a.paths) for c, a in zip(cases, answers, strict=True)]
    said_by_paths = [(path, gold) for one, gold in zip(answers, golds, strict=True) for path in one.paths]
    return {
        "summary": Share.equal([one.summary for one in answers], golds).to_json(),
        "path": Share.equal([path for path, _ in said_by_paths], [gold for _, gold in said_by_paths]).to_json(),
        "vote": Share.equal(votes, golds).to_json(),
        "any_path": Share(sum(any_right), len(cases)).to_json(),
        "follows_vote": _follows(spoken).to_json(),
        "follows_wrong": _follows(wrong).to_json(),
        "agreement": asdict(PathAgreement.of([one.paths for one in answers], golds)),
    }


def _follows(said: Sequence[tuple[Case, Answers, str | None]]) -> Share:
    return Share.equal([one.summary for _, one, _ in said], [str(answer) for _, _, answer in said])


def reliance(
    lab: Lab, cases: Sequence[Case], *, conditions: Sequence[str] = tuple(CONDITIONS), seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Figures of every condition, in order.

    Raises:
        DataError, UsageError: see `given_paths` and `Lab.decode`.
    """
    return {name: _measured(lab, cases, name, seed) for name in conditions}


def _measured(lab: Lab, cases: Sequence[Case], condition: str, seed: int) -> dict[str, Any]:
    results = lab.decode(cases, given_paths(condition, cases, seed=seed))
    return figures(cases, [Answers.of(case, result) for case, result in zip(cases, results, strict=True)])
