"""The project's own problem sets as tables: made by several processes, the same rows for the same seed and count."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nap_runtime.errors import UsageError
from nap_runtime.models.tokenizer import Tokenizer, build_word_tokenizer
from nap_trainer.batches.segments import PAD, Ids, SegmentTable
from nap_trainer.settings import DataSection
from nap_trainer.words import MAX_PATHS, generate, tokens, vocabulary

if TYPE_CHECKING:
    from nap_trainer.words_study import StudyConfig

Split = Literal["train", "dev", "test"]
SETS = ("words", "words-study")
_PART = 20_000  # rows that one task makes; fixed, so that a table does not depend on the number of processes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    seed: int
    split: Split
    count: int
    error_rate: float
    ids: dict[str, int]


def set_tokenizer(name: str, folder: Path) -> Tokenizer:
    """Write the tokenizer of a set into a folder and return it."""
    if name == "words":
        return build_word_tokenizer(vocabulary(), folder)
    from nap_trainer.words_study import study_tokenizer

    return study_tokenizer(folder)


def make_set(data: DataSection, tokenizer: Tokenizer, *, split: Split, count: int) -> SegmentTable:
    """`count` rows of a split of `data.train`, which is a set's name.

    Raises:
        UsageError: an option is unknown or wrong.
    """
    if data.train == "words-study":
        return _study(data, tokenizer, split, count)
    unknown = set(data.options) - {"error_rate"}
    if unknown:
        raise UsageError(f"data.options.{min(unknown)}: unknown key; known are error_rate", field="data.options")
    ids = {word: token for word in vocabulary() if (token := tokenizer.token_id(word)) is not None}
    rate = _rate(data.options.get("error_rate", 0.15))
    parts = [min(_PART, count - at) for at in range(0, count, _PART)]
    requests = [
        _Request(seed=data.seed * 100_003 + i, split=split, count=part, error_rate=rate, ids=ids)
        for i, part in enumerate(parts)
    ]
    return stacked(_mapped(_words, requests, data.processes))


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        text = f"data.options.error_rate: {value!r} is not a number from 0 to 1"
        raise UsageError(text, field="data.options")
    return float(value)


def _mapped(
    work: Callable[[_Request], SegmentTable], requests: Sequence[_Request], processes: int
) -> list[SegmentTable]:
    processes = min(processes or os.cpu_count() or 1, len(requests))
    if processes <= 1:
        return [work(request) for request in requests]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:  # spawned: safe beside CUDA and threads
        return pool.map(work, requests, chunksize=1)


def _words(request: _Request) -> SegmentTable:
    split: Literal["train", "test"] = "train" if request.split == "train" else "test"
    problems = generate(split, seed=request.seed, paths=MAX_PATHS, error_rate=request.error_rate)
    ids = request.ids

    def encode(text: str) -> list[int]:
        return [ids[token] for token in tokens(text)]

    return SegmentTable.of_lists(
        (encode(problem.question), [encode(path) for path in problem.paths], encode(problem.summary))
        for problem in islice(problems, request.count)
    )


def study_options(options: Mapping[str, Any]) -> StudyConfig:
    """`data.options` of `words-study`; UsageError that names the key where one is unknown or wrong."""
    from nap_trainer.words_study import StudyConfig

    try:
        return StudyConfig.from_mapping(options)
    except UsageError as error:
        raise UsageError(f"data.options.{error}", field="data.options") from None


def _study(data: DataSection, tokenizer: Tokenizer, split: Split, count: int) -> SegmentTable:
    from nap_trainer.words_study import make_table, study_tokenizer

    config = study_options(data.options)
    table = make_table(split, seed=data.seed, count=count, config=config)
    with tempfile.TemporaryDirectory() as folder:
        own = study_tokenizer(Path(folder))
    if any(own.token_id(word) != tokenizer.token_id(word) for word in ("<mask>", "</summary>", "0", "9")):
        raise UsageError("model.tokenizer: 'words-study' needs its own tokenizer", field="model.tokenizer")
    return SegmentTable(
        prompt_nP=table.prompt_nP.astype(np.int32),
        paths_nmL=table.paths_nmL.astype(np.int32),
        summary_nS=table.summary_nS.astype(np.int32),
    )


def stacked(tables: Sequence[SegmentTable]) -> SegmentTable:
    """Tables one after another."""
    if len(tables) == 1:
        return tables[0]
    return SegmentTable(
        prompt_nP=_stack([table.prompt_nP for table in tables]),
        paths_nmL=_stack([table.paths_nmL for table in tables]),
        summary_nS=_stack([table.summary_nS for table in tables]),
    )


def _stack(arrays: Sequence[Ids]) -> Ids:
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    out: Ids = np.full((sum(map(len, arrays)), *shape), PAD, dtype=np.int32)
    at = 0
    for array in arrays:
        out[(slice(at, at + len(array)), *(slice(0, size) for size in array.shape[1:]))] = array
        at += len(array)
    return out
