"""Questions with their right answers: rows in the form of GSM8K ("… #### 18"), or any `question` and `answer`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import DataError
from nap_trainer.data.read import built_rows, place
from nap_trainer.data.schema import BadRow, FieldError, name_of, text_of

_MARK = "####"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LONGEST = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a teacher is asked, and what is right."""

    text: str
    gold: str
    id: str | None = None

    @property
    def key(self) -> str:
        """The same for the same question and answer, wherever they stand."""
        return hashlib.sha256(f"{self.text}\0{self.gold}".encode()).hexdigest()[:24]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Question:
        """Read a row; other keys are left alone.

        Raises:
            FieldError: the question or its answer is missing or unusable.
        """
        text = text_of("question", values.get("question")).strip()
        key = "gold" if values.get("gold") is not None else "answer"
        given = name_of("answer", values.get(key))
        gold = _THOUSANDS.sub("", given.rpartition(_MARK)[2]).strip() if _MARK in given else given
        if not gold:
            raise FieldError(key, f"has nothing after {_MARK}")
        if len(gold) > _LONGEST:
            raise FieldError(key, f"has {len(gold)} characters and no '{_MARK} …' at its end; give the answer alone")
        name = None if values.get("id") is None else name_of("id", values["id"])
        return cls(text=text, gold=gold, id=name)


def read_questions(file: Path, limit: int | None = None) -> tuple[list[Question], int]:
    """The questions of a file, each once (`limit` at most), and how many were left out as repeated.

    Raises:
        UsageError: it cannot be opened.
        DataError: a row holds no question, or the file has no rows.
    """
    found: dict[str, Question] = {}
    repeated = 0
    for number, row in built_rows(file, Question.from_mapping):
        if isinstance(row, BadRow):
            raise DataError(f"{file}: {place(file)} {number}: {row.text}")
        repeated += row.key in found
        found.setdefault(row.key, row)
        if limit is not None and len(found) >= limit:
            break
    return list(found.values()), repeated
