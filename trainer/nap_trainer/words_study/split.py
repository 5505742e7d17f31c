"""Which problems are kept for dev and test.

The split is decided by depth, given number, operations and operands alone, before names, sentence order, distractors
and paths are drawn: a test problem is never a reworded training problem.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import UsageError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

SHARES = 16
"""One problem in this many goes to test, another one to dev."""
_TEST, _DEV = 0, 1
_SEED = 0x6E61702D73747564


def check_split(split: str) -> None:
    """UsageError for an unknown name."""
    if split not in SPLITS:
        raise UsageError(f"split: unknown value '{split}'; use one of {', '.join(SPLITS)}", field="split")


def in_split(
    split: Split, given_n: npt.NDArray[np.int16], kind_nK: npt.NDArray[np.int16], operand_nK: npt.NDArray[np.int16]
) -> npt.NDArray[np.bool_]:
    """Tell which problems belong to a split, [n]; the same on every machine and in every run."""
    bucket_n = problem_keys(given_n, kind_nK, operand_nK) % np.uint64(SHARES)
    wanted: dict[Split, npt.NDArray[np.bool_]] = {
        "train": bucket_n > _DEV,
        "dev": bucket_n == _DEV,
        "test": bucket_n == _TEST,
    }
    return wanted[split]


def problem_keys(
    given_n: npt.NDArray[np.int16], kind_nK: npt.NDArray[np.int16], operand_nK: npt.NDArray[np.int16]
) -> npt.NDArray[np.uint64]:
    """Hash structure and numbers, [n]."""
    depth = kind_nK.shape[1]
    key_n = _mixed(given_n.astype(np.uint64) ^ np.uint64(_SEED + 1000 * depth))
    for k in range(depth):
        operation_n = kind_nK[:, k].astype(np.uint64) * np.uint64(128) + operand_nK[:, k].astype(np.uint64)
        key_n = _mixed(key_n ^ operation_n)
    return key_n


def _mixed(x_n: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64; products wrap."""
    x_n = x_n + np.uint64(0x9E3779B97F4A7C15)
    x_n = (x_n ^ (x_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_n = (x_n ^ (x_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_n ^ (x_n >> np.uint64(31))
