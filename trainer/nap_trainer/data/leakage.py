"""Whether rows for training hold questions of an evaluation set: equal in normal form, or by shared 13-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nap_runtime.errors import DataError
from nap_trainer.data.read import built_rows, place
from nap_trainer.data.schema import BadRow, NapExample, text_of
from nap_trainer.data.texts import Gram, normalised, words

GRAM = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A training row that holds a question of the evaluation set; `share` of the question's 13-grams are in the row."""

    row: int
    eval_row: int
    kind: Literal["exact", "overlap"]
    share: float
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "row": self.row,
            "eval_row": self.eval_row,
            "kind": self.kind,
            "share": self.share,
            "text": self.text,
        }


class EvalSet:
    """The questions of an evaluation set, indexed by normal form and by 13-grams of words."""

    def __init__(self, questions: Mapping[int, str], *, share: float = 0.0) -> None:
        """Index questions by row number. An overlap counts above this share of a question's 13-grams."""
        self._share = share
        self._exact: dict[str, int] = {}
        self._rows_of: dict[Gram, set[int]] = {}
        self._sizes: dict[int, int] = {}
        for row, question in questions.items():
            split = words(question)
            self._exact.setdefault(" ".join(split), row)
            own = set(_grams(split))
            self._sizes[row] = len(own)
            for gram in own:
                self._rows_of.setdefault(gram, set()).add(row)

    @classmethod
    def read(cls, file: Path, *, share: float = 0.0) -> EvalSet:
        """Index the `question` of every row of a file.

        Raises:
            UsageError: it cannot be opened.
            DataError: a row holds no question.
        """
        questions = {}
        for number, item in built_rows(file, lambda values: text_of("question", values.get("question"))):
            if isinstance(item, BadRow):
                raise DataError(f"{file}: {place(file)} {number}: {item.text}")
            questions[number] = item
        return cls(questions, share=share)

    def leaks(self, row: int, example: NapExample) -> Iterator[Leak]:
        """The leaks of one training row: its question, paths and summary are all looked at."""
        exact = self._exact.get(normalised(example.question))
        if exact is not None:
            yield Leak(row=row, eval_row=exact, kind="exact", share=1.0, text=_short(words(example.question)))
        shared: Counter[int] = Counter()
        sample: dict[int, Gram] = {}
        texts = (example.question, *example.paths, example.summary)
        for gram in {gram for text in texts for gram in _grams(words(text))}:
            for found in self._rows_of.get(gram, ()):
                shared[found] += 1
                sample[found] = min(gram, sample.get(found, gram))
        for found, count in sorted(shared.items()):
            share = count / self._sizes[found]
            if found != exact and share > self._share:
                yield Leak(row=row, eval_row=found, kind="overlap", share=share, text=_short(sample[found]))


def _grams(split: list[str]) -> Iterator[Gram]:
    """Whole 13-grams only: a shorter text has none."""
    return (tuple(split[at : at + GRAM]) for at in range(len(split) - GRAM + 1))


def _short(split: list[str] | Gram) -> str:
    return " ".join(split[:GRAM])
