"""One generated word problem and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nap_trainer.words.text import summary_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question, several independent paths to its answer, and which of those paths carry an error."""

    family: str
    numbers: tuple[int, ...]
    question: str
    paths: tuple[str, ...]
    methods: tuple[str, ...]
    wrong: tuple[bool, ...]
    answer: int

    @property
    def summary(self) -> str:
        """The closing text; it has the right answer even where every path is wrong."""
        return summary_text(self.answer)

    def to_json(self) -> dict[str, Any]:
        """Write the problem as JSON-ready values; paths are keyed "1", "2", ..."""
        return {
            "question": self.question,
            "paths": {str(number): path for number, path in enumerate(self.paths, start=1)},
            "summary": self.summary,
            "answer": str(self.answer),
            "family": self.family,
            "numbers": list(self.numbers),
            "methods": list(self.methods),
            "wrong": list(self.wrong),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote; ``ValueError`` for missing, unknown or contradictory keys."""
        if record.keys() != _KEYS:
            raise ValueError(f"a problem record needs the keys {sorted(_KEYS)}, not {sorted(record)}")
        paths = record["paths"]
        problem = cls(
            family=record["family"],
            numbers=tuple(record["numbers"]),
            question=record["question"],
            paths=tuple(paths[str(number)] for number in range(1, len(paths) + 1)),
            methods=tuple(record["methods"]),
            wrong=tuple(record["wrong"]),
            answer=int(record["answer"]),
        )
        if problem.summary != record["summary"]:
            raise ValueError(f"the summary {record['summary']!r} does not give the answer {problem.answer}")
        return problem


_KEYS = {"question", "paths", "summary", "answer", "family", "numbers", "methods", "wrong"}
