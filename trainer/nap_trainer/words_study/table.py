"""Many problems as arrays of token ids: what a training run reads.

Shapes: n problems, P tokens of the longest prompt, m = 3 paths of at most L tokens, S tokens of a summary. Rows are
padded by −1; tags and end tags of the canvas are not part of a row.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import DataError, NapError, UsageError
from nap_runtime.models.files import atomic_path
from nap_trainer.words_study.config import N_PATHS, SUMMARY_TOKENS, StudyConfig
from nap_trainer.words_study.drawing import BLOCK, Group, draw_block
from nap_trainer.words_study.render import PAD, path_ids, prompt_ids, summary_ids
from nap_trainer.words_study.split import Split, check_split, problem_keys
from nap_trainer.words_study.vocabulary import TOKENS

_ARRAYS = (
    "prompt_nP",
    "paths_nmL",
    "summary_nS",
    "depth_n",
    "answer_n",
    "path_answer_nm",
    "wrong_nm",
    "method_nm",
    "chain_n",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """Problems of one split.

    Args:
        prompt_nP, paths_nmL, summary_nS: token ids (int16) by `study_tokenizer`, right-padded by −1.
        depth_n: operations. answer_n: the right answer. path_answer_nm: each path's own result (all int16).
        wrong_nm: whether that result is another one (bool).
        method_nm: index into METHODS (int16).
        chain_n: a hash (uint64) of structure and numbers, by which the splits are apart. Shallow problems come up more
            than once, with other names: such rows share it.
        split, seed, start, config: what they were made from; row 0 is problem `start` of that stream.
    """

    prompt_nP: npt.NDArray[np.int16]
    paths_nmL: npt.NDArray[np.int16]
    summary_nS: npt.NDArray[np.int16]
    depth_n: npt.NDArray[np.int16]
    answer_n: npt.NDArray[np.int16]
    path_answer_nm: npt.NDArray[np.int16]
    wrong_nm: npt.NDArray[np.bool_]
    method_nm: npt.NDArray[np.int16]
    chain_n: npt.NDArray[np.uint64]
    split: Split
    seed: int
    start: int
    config: StudyConfig

    def __len__(self) -> int:
        return len(self.depth_n)

    @property
    def wrong_majority_n(self) -> npt.NDArray[np.bool_]:
        """Whether fewer than two of the three paths state the right answer, [n]."""
        wrong_n: npt.NDArray[np.bool_] = self.wrong_nm.sum(axis=1) >= 2
        return wrong_n

    def save(self, file: Path) -> None:
        """Write `.npz`; a reader sees the old file or the whole new one."""
        about = {
            "tokens": TOKENS, "split": self.split, "seed": self.seed, "start": self.start,
            "config": self.config.to_json(),
        }  # fmt: skip
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, file: Path) -> StudyTable:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file.
            DataError: the file is no table, is damaged, or its ids are of another vocabulary.
        """
        if not file.is_file():
            raise UsageError(f"{file}: No such file")
        try:
            with np.load(file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                arrays = {name: stored[name] for name in _ARRAYS}
            return _checked(file, about, arrays)
        except NapError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{file}: is no table of study problems ({str(error).splitlines()[0][:200]})") from None


def make_table(split: Split, *, seed: int, count: int, config: StudyConfig | None = None, start: int = 0) -> StudyTable:
    """Make problems `start` … `start + count − 1` of a split and seed, the same ones in every table.

    Raises:
        UsageError: an unknown split, a negative seed or start, a count below 1.
    """
    check_split(split)
    for name, value, least in (("count", count, 1), ("start", start, 0)):
        if value < least:
            raise UsageError(f"{name}: {value} is less than {least}", field=name)
    config = config or StudyConfig()
    first, last = start // BLOCK, (start + count - 1) // BLOCK
    arrays = _empty(config, (last - first + 1) * BLOCK)
    for block in range(first, last + 1):
        for group in draw_block(split, seed, block, config):
            _write(arrays, group, group.rows_n + (block - first) * BLOCK)
    kept = slice(start - first * BLOCK, start - first * BLOCK + count)
    return StudyTable(
        **{name: array[kept] for name, array in arrays.items()}, split=split, seed=seed, start=start, config=config
    )


def _empty(config: StudyConfig, n: int) -> dict[str, Any]:
    prompt, path = config.prompt_tokens(config.max_depth), config.path_tokens(config.max_depth)
    return {
        "prompt_nP": np.full((n, prompt), PAD, np.int16),
        "paths_nmL": np.full((n, N_PATHS, path), PAD, np.int16),
        "summary_nS": np.empty((n, SUMMARY_TOKENS), np.int16),
        "depth_n": np.empty(n, np.int16),
        "answer_n": np.empty(n, np.int16),
        "path_answer_nm": np.empty((n, N_PATHS), np.int16),
        "wrong_nm": np.empty((n, N_PATHS), np.bool_),
        "method_nm": np.empty((n, N_PATHS), np.int16),
        "chain_n": np.empty(n, np.uint64),
    }


def _write(arrays: dict[str, Any], group: Group, rows: npt.NDArray[np.intp]) -> None:
    prompt, paths, answer_n = prompt_ids(group), path_ids(group), group.numbers.answer_n
    stated_nm = np.take_along_axis(group.slips.value_nmV[..., -1], group.method_nm.astype(np.intp), axis=1)
    arrays["prompt_nP"][rows, : prompt.shape[1]] = prompt
    arrays["paths_nmL"][rows, :, : paths.shape[2]] = paths
    arrays["summary_nS"][rows] = summary_ids(group)
    arrays["depth_n"][rows] = group.numbers.depth
    arrays["answer_n"][rows] = answer_n
    arrays["path_answer_nm"][rows] = stated_nm
    arrays["wrong_nm"][rows] = stated_nm != answer_n[:, None]
    arrays["method_nm"][rows] = group.method_nm
    arrays["chain_n"][rows] = problem_keys(group.numbers.given_n, group.numbers.kind_nK, group.numbers.operand_nK)


def _checked(file: Path, about: dict[str, Any], arrays: dict[str, Any]) -> StudyTable:
    if tuple(about["tokens"]) != TOKENS:
        raise DataError(f"{file}: its ids are of another vocabulary; make the table again")
    config = StudyConfig.from_mapping(about["config"])
    n = len(arrays["depth_n"])
    for name, model in _empty(config, 0).items():
        if arrays[name].shape != (n, *model.shape[1:]) or arrays[name].dtype != model.dtype:
            raise DataError(f"{file}: {name}: has another shape or type than its config gives; make the table again")
    check_split(about["split"])
    return StudyTable(**arrays, split=about["split"], seed=int(about["seed"]), start=int(about["start"]), config=config)
