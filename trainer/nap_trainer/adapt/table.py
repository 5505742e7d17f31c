"""Corpus and test questions as token ids in one compact file, so that a training machine needs no tokenizer.

Shapes: n rows, Q test questions, P longest prompt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.files import atomic_path
from nap_runtime.models.tokenizer import Tokenizer
from nap_trainer.adapt.corpus import file_hash, read_corpus, read_gsm8k, tokenizer_hash, tokenizer_of
from nap_trainer.batches.segments import SegmentTable, lengths, padded

VERSION = 1
_ARRAYS = ("train_prompt", "train_text", "held_prompt", "held_text", "test_prompt", "test_row", "test_gold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What fits, and how much is held out.

    Args:
        gen_length: slots of the region; a response and one end of text must fit.
        max_prompt: longer prompts are dropped from training.
        questions: test questions that are decoded.
        held: test rows that the loss is measured on.
    """

    gen_length: int = 128
    max_prompt: int = 128
    questions: int = 96
    held: int = 256

    def __post_init__(self) -> None:
        for name in ("gen_length", "max_prompt", "questions", "held"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} is less than 1", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptData:
    """Everything that a run reads.

    Attributes:
        train, held: rows to train on, and test rows for the loss; each row's one path is its response.
        prompts: ids of the test questions that are decoded, in batches of one length.
        rows, gold: their lines in the test file, and right answers.
        facts: where it came from, what was dropped, how many tokens; JSON-ready.
    """

    train: SegmentTable
    held: SegmentTable
    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    gold: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def gen_length(self) -> int:
        """Slots of the region."""
        return int(self.facts["gen_length"])

    @property
    def max_prompt(self) -> int:
        """Longest prompt of a training row."""
        return int(self.facts["max_prompt"])

    def save(self, path: Path) -> None:
        """Write a compressed npz, whole or not at all; it holds no pickled object."""
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(
                stream,
                train_prompt=_compact(self.train.prompt_nP),
                train_text=_compact(self.train.paths_nmL[:, 0]),
                held_prompt=_compact(self.held.prompt_nP),
                held_text=_compact(self.held.paths_nmL[:, 0]),
                test_prompt=_compact(padded(self.prompts)),
                test_row=np.array(self.rows, dtype=np.int32),
                test_gold=np.array(self.gold),
                facts=np.array(json.dumps({"version": VERSION, **self.facts})),
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file.
            DataError: it is another kind of file, or of another version.
        """
        if not path.is_file():
            raise UsageError(
                f"data: {path} does not exist: make it with `python -m nap_trainer.adapt data`", field="data"
            )
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                facts = dict(json.loads(str(file["facts"])))
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: not adaptation data ({error})") from error
        if facts.pop("version", None) != VERSION:
            raise DataError(f"{path}: another version than {VERSION}; make it again")
        prompts = _signed(arrays["test_prompt"])
        return cls(
            train=_rows(arrays["train_prompt"], arrays["train_text"]),
            held=_rows(arrays["held_prompt"], arrays["held_text"]),
            prompts=tuple(tuple(row[:n].tolist()) for row, n in zip(prompts, lengths(prompts), strict=True)),
            rows=tuple(arrays["test_row"].tolist()),
            gold=tuple(arrays["test_gold"].tolist()),
            facts=facts,
        )


def tokenise(model: Path, corpus: Path, test: Path, sizes: Sizes) -> AdaptData:
    """Tokenise a corpus and a held-out GSM8K file with a model's tokenizer.

    Raises:
        UsageError, DataError: a file is missing or malformed, or nothing fits.
        ModelError: the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    texts = [(row.prompt, row.response) for row in read_corpus(corpus)]
    numbered = list(read_gsm8k(test))
    train, dropped = _fitting(tokenizer, texts, sizes)
    held, _ = _fitting(tokenizer, [(pair.prompt, pair.response) for _, pair in numbered], sizes)
    prompts = [tuple(tokenizer.encode_prompt(pair.prompt)) for _, pair in numbered]
    picked = pick_by_length([len(prompt) for prompt in prompts], sizes.questions)
    facts = {
        "gen_length": sizes.gen_length,
        "max_prompt": sizes.max_prompt,
        "tokenizer": tokenizer_hash(model),
        "corpus": {"file": corpus.name, "sha256": file_hash(corpus), "rows": len(texts)},
        "test": {"file": test.name, "sha256": file_hash(test), "rows": len(numbered)},
        "train": {"rows": len(train), "dropped": dropped, **_count(train)},
        "held": {"rows": min(sizes.held, len(held))},
        "questions": {"count": len(picked), "by_length": dict(Counter(str(len(prompts[i])) for i in picked))},
    }
    return AdaptData(
        train=train,
        held=held.take(np.arange(min(sizes.held, len(held)))),
        prompts=tuple(prompts[i] for i in picked),
        rows=tuple(numbered[i][0] for i in picked),
        gold=tuple(numbered[i][1].gold for i in picked),
        facts=facts,
    )


def pick_by_length(sizes: Sequence[int], count: int) -> list[int]:
    """Which of the questions to decode: all of the most frequent prompt length, then of the next, until `count`.

    Canvases of one batch have one layout, so few lengths make few batches; the choice looks at nothing but lengths.
    Among equal frequencies the shorter length comes first, and within a length the order is the file's.
    """
    frequency = Counter(sizes)
    ranked = sorted(frequency, key=lambda size: (-frequency[size], size))
    chosen = [i for size in ranked for i, length in enumerate(sizes) if length == size]
    return chosen[:count]


def _fitting(
    tokenizer: Tokenizer, texts: Iterable[tuple[str, str]], sizes: Sizes
) -> tuple[SegmentTable, dict[str, int]]:
    """Rows that fit, and how many did not, by the size that they exceed."""
    dropped = {"max_prompt": 0, "gen_length": 0}
    rows: list[tuple[list[int], list[list[int]], list[int]]] = []
    for question, response in texts:
        prompt, text = tokenizer.encode_prompt(question), tokenizer.encode(response)
        if len(prompt) > sizes.max_prompt:
            dropped["max_prompt"] += 1
        elif len(text) + 1 > sizes.gen_length:
            dropped["gen_length"] += 1
        else:
            rows.append((prompt, [text], []))
    if not rows:
        raise UsageError("gen-length: no row fits; raise it, or max-prompt", field="gen_length")
    return SegmentTable.of_lists(rows), dropped


def _count(table: SegmentTable) -> dict[str, int]:
    return {
        "prompt_tokens": int(table.prompt_lengths_n.sum()),
        "response_tokens": int(table.path_lengths_nm.sum()),
    }


def _compact(ids: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Ids plus one, so that padding is 0, in the narrowest unsigned type."""
    shifted = ids.astype(np.int64) + 1
    return shifted.astype(np.uint16 if int(shifted.max(initial=0)) <= np.iinfo(np.uint16).max else np.uint32)


def _signed(stored: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Inverse of `_compact`."""
    return (stored.astype(np.int64) - 1).astype(np.int32)


def _rows(prompt: npt.NDArray[Any], text: npt.NDArray[Any]) -> SegmentTable:
    empty = np.zeros((len(prompt), 0), dtype=np.int32)
    return SegmentTable(prompt_nP=_signed(prompt), paths_nmL=_signed(text)[:, None], summary_nS=empty)
