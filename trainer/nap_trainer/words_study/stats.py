"""What the problems of a split are like, measured: errors, their correlation, and how far guesses get.

Shapes: n problems, m = 3 paths, W sentences of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from nap_trainer.words_study.config import QUESTION_TOKENS, SENTENCE_TOKENS, StudyConfig
from nap_trainer.words_study.split import Split
from nap_trainer.words_study.table import StudyTable, make_table
from nap_trainer.words_study.vocabulary import DIGIT_0, IDS, METHODS

_ERRORS = (
    "problems", "path right", "path 1", "agree right", "wrong majority", "same wrong", "all wrong", "correlation",
)  # fmt: skip
_GUESSES = ("frequent", "by given", "given", "sum", "scaled sum", "sentence order")
_Array = npt.NDArray[Any]


def report(split: Split, *, seed: int, count: int, config: StudyConfig) -> str:
    """Two tables, as text: errors of paths by depth, and guesses by depth. Guesses are fitted on as many train rows."""
    table = make_table(split, seed=seed, count=count, config=config)
    other = make_table("train", seed=seed + 1, count=count, config=config)
    depths = list(config.depths)
    masks = {**{str(depth): table.depth_n == depth for depth in depths}, "all": np.ones(len(table), np.bool_)}
    sizes = {str(depth): [config.prompt_tokens(depth), config.path_tokens(depth)] for depth in depths}
    sizes["all"] = [max(sizes[str(depth)][k] for depth in depths) for k in (0, 1)]
    errors = error_rates(table)
    guesses = guess_rates(table, other)
    return "\n\n".join(
        (
            f"{split}, seed {seed}, {count} problems, {config}",
            _text(("depth", "prompt", "path", *_ERRORS), masks, lambda name, mask: [*sizes[name], *errors(mask)]),
            _text(("depth", *_GUESSES), masks, lambda name, mask: guesses(mask)),
            _by_method(table),
            _multiplications(table, depths),
        )
    )


def error_rates(table: StudyTable) -> Callable[[_Array], Sequence[float]]:
    """Figures of the rows of a mask, in the order of the report's first table."""
    right_nm = ~table.wrong_nm
    same_nm = np.stack([_same_wrong(table, i, j) for i, j in combinations(range(right_nm.shape[1]), 2)], axis=1)

    def rates(mask: _Array) -> Sequence[float]:
        rights = right_nm[mask].sum(axis=1)
        return (
            int(mask.sum()),
            float(right_nm[mask].mean()),
            float(right_nm[mask][:, 0].mean()),
            float((rights >= 2).mean()),
            float((rights < 2).mean()),
            float(same_nm[mask].any(axis=1).mean()),
            float((rights == 0).mean()),
            correlation(table.wrong_nm[mask]),
        )

    return rates


def correlation(wrong_nm: _Array) -> float:
    """Mean correlation of two paths' errors; 0 where there are none."""
    if not 0 < wrong_nm.mean() < 1:
        return 0.0
    pairs = [np.corrcoef(wrong_nm[:, i], wrong_nm[:, j])[0, 1] for i, j in combinations(range(wrong_nm.shape[1]), 2)]
    return float(np.mean(pairs))


def guess_rates(table: StudyTable, other: StudyTable) -> Callable[[_Array], Sequence[float]]:
    """How often each guess is the answer, for the rows of a mask, in the order of the report's second table.

    Args:
        table: the problems. other: problems of train that the frequencies are taken from.
    """
    given_n, name_free = _name_free(table)
    other_given_n, _ = _name_free(other)
    by_depth = _frequent(other.depth_n, other.answer_n)
    by_given = _frequent(other.depth_n * 100 + other_given_n, other.answer_n)
    guesses = [by_depth[table.depth_n], by_given[table.depth_n * 100 + given_n], given_n, *name_free]
    hits = [guess == table.answer_n for guess in guesses]
    return lambda mask: [float(hit[mask].mean()) for hit in hits]


def _same_wrong(table: StudyTable, i: int, j: int) -> _Array:
    stated_nm = table.path_answer_nm
    same_n: _Array = table.wrong_nm[:, i] & (stated_nm[:, i] == stated_nm[:, j])
    return same_n


def _frequent(key_n: _Array, answer_n: _Array) -> _Array:
    """The most frequent answer for each key."""
    counts = np.zeros((1000, 100), np.int64)
    np.add.at(counts, (key_n.astype(np.intp), answer_n), 1)
    best: _Array = counts.argmax(axis=1)
    return best


def _name_free(table: StudyTable) -> tuple[_Array, list[_Array]]:
    """The given number, and what comes out when all sentences are followed without their names.

    sum: all additions and subtractions, then the multiplications. scaled sum: the multiplications first.
    sentence order: the given number, then the operations as they stand in the text.
    """
    given_n = np.zeros(len(table), np.int64)
    plus_n, product_n = np.zeros_like(given_n), np.ones_like(given_n)
    operations: list[tuple[_Array, _Array]] = []
    for sentence_nt in _sentences(table.prompt_nP):
        verb_n = sentence_nt[:, 1]
        times_n = verb_n == IDS["has"]
        digits_n2 = np.where(times_n[:, None], sentence_nt[:, 2:4], sentence_nt[:, 4:6]) - DIGIT_0
        number_n = digits_n2[:, 0] * 10 + digits_n2[:, 1]
        given_n += np.where(verb_n == IDS["starts"], number_n, 0)
        step_n = np.where(verb_n == IDS["beats"], number_n, np.where(verb_n == IDS["trails"], -number_n, 0))
        factor_n = np.where(times_n, number_n, 1)
        plus_n, product_n = plus_n + step_n, product_n * factor_n
        operations.append((step_n, factor_n))
    follow_n = given_n.copy()
    for step_n, factor_n in operations:
        follow_n = (follow_n + step_n) * factor_n
    return given_n, [(given_n + plus_n) * product_n, given_n * product_n + plus_n, follow_n]


def _sentences(prompt_nP: _Array) -> list[_Array]:
    """Sentences in the order of the text; a padded row's missing ones hold −1, its question another verb."""
    count = (prompt_nP.shape[1] - QUESTION_TOKENS) // SENTENCE_TOKENS
    cut = prompt_nP[:, : count * SENTENCE_TOKENS].astype(np.int64)
    return [cut[:, k * SENTENCE_TOKENS : (k + 1) * SENTENCE_TOKENS] for k in range(count)]


def _by_method(table: StudyTable) -> str:
    shares = [table.wrong_nm[table.method_nm == method].mean() for method in range(len(METHODS))]
    return "wrong by method: " + ", ".join(f"{name} {share:.3f}" for name, share in zip(METHODS, shares, strict=True))


def _multiplications(table: StudyTable, depths: Sequence[int]) -> str:
    """Multiplications a problem, distractors included."""
    times_n = np.sum([sentence_nt[:, 1] == IDS["has"] for sentence_nt in _sentences(table.prompt_nP)], axis=0)
    counts = [f"{depth}: {times_n[table.depth_n == depth].mean():.2f}" for depth in depths]
    return "multiplications a problem by depth: " + ", ".join(counts)


def _text(head: Sequence[str], masks: dict[str, _Array], row: Callable[[str, _Array], Sequence[float]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---:|' * len(head)}"]
    for name, mask in masks.items():
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row(name, mask)]
        lines.append(f"| {' | '.join((name, *cells))} |")
    return "\n".join(lines)
