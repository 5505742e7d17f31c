r"""What a row of NAP data is.

Required are ``question``, ``paths``, ``summary``; ``answer`` may be left out where the summary has a ``\boxed{…}``.
Optional are ``id`` and ``wrong`` (one flag a path). The authors' form is read too: paths keyed "1", "2", …, a
summary that is a list of texts (joined by line breaks). Every other key is kept in ``extra`` and written back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from nap_runtime.metrics.answers import extract_boxed

MAX_PATHS = 64
MAX_CHARS = {"question": 100_000, "paths": 200_000, "summary": 100_000, "answer": 10_000, "id": 1000}
MAX_ROW_BYTES = 16 * 2**20
TAG = re.compile(r"</?(?:think(?: \d+)?|summary)>")
_KEYS = ("id", "question", "paths", "summary", "answer", "wrong")


class FieldError(ValueError):
    """What is wrong with which field; whoever reads the file adds the place."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(f"{field}: {complaint}" if field else complaint)
        self.field, self.complaint = field, complaint


@dataclass(frozen=True, slots=True, kw_only=True)
class NapExample:
    """A question, several reasoning paths, the summary that closes them, and the answer.

    Args:
        question, paths, summary, answer: texts; no path or summary holds a tag of the canvas.
        id: the row's own name.
        wrong: which paths reach another answer, where that is known.
        extra: keys that are not NAP's, as they were read.
    """

    question: str
    paths: tuple[str, ...]
    summary: str
    answer: str
    id: str | None = None
    wrong: tuple[bool, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Check and build one row.

        Raises:
            FieldError: a field is missing, of the wrong kind, empty or too long.
        """
        question = text_of("question", values.get("question"))
        paths = _paths(values.get("paths"))
        summary = _summary(values.get("summary"))
        return cls(
            question=question,
            paths=paths,
            summary=summary,
            answer=_answer(values.get("answer"), summary),
            id=None if values.get("id") is None else name_of("id", values["id"]),
            wrong=_flags(values.get("wrong"), len(paths)),
            extra=_extra(values),
        )

    def to_json(self) -> dict[str, Any]:
        """The row in our own form: paths as a list."""
        named = {} if self.id is None else {"id": self.id}
        flags = {} if self.wrong is None else {"wrong": list(self.wrong)}
        texts = {"question": self.question, "paths": list(self.paths), "summary": self.summary, "answer": self.answer}
        return {**named, **texts, **flags, **self.extra}


@dataclass(frozen=True, slots=True)
class Row:
    """A good row and its number in the file, from 1."""

    number: int
    example: NapExample


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is none; `field` is empty where the whole row is unreadable."""

    number: int
    field: str
    complaint: str

    @property
    def text(self) -> str:
        """`paths.2: is empty`."""
        return f"{self.field}: {self.complaint}" if self.field else self.complaint


def text_of(name: str, value: Any) -> str:
    """A text that is not blank, of bounded size, and can be written as UTF-8; FieldError otherwise."""
    if value is None:
        raise FieldError(name, "is missing")
    if not isinstance(value, str):
        raise FieldError(name, f"is {_kind(value)}, not a text")
    if not value.strip():
        raise FieldError(name, "is empty")
    limit = MAX_CHARS[name.split(".")[0]]
    if len(value) > limit:
        raise FieldError(name, f"has {len(value)} characters; at most {limit} are allowed")
    if not _encodable(value):
        raise FieldError(name, "holds half of a surrogate pair, which is no Unicode text")
    return value


def name_of(name: str, value: Any) -> str:
    """A text, or a number as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return text_of(name, value).strip()


def _paths(value: Any) -> tuple[str, ...]:
    if value is None:
        raise FieldError("paths", "is missing")
    if isinstance(value, Mapping):
        value = _numbered(value)
    if not isinstance(value, list | tuple):
        raise FieldError("paths", f"is {_kind(value)}, not a list of texts or an object keyed '1', '2', …")
    if not 1 <= len(value) <= MAX_PATHS:
        raise FieldError("paths", f"has {len(value)} entries; 1 to {MAX_PATHS} are allowed")
    return tuple(_untagged(f"paths.{number}", path) for number, path in enumerate(value, start=1))


def _numbered(value: Mapping[Any, Any]) -> list[Any]:
    wanted = [str(number) for number in range(1, len(value) + 1)]
    if set(map(str, value)) != set(wanted):
        found = ", ".join(sorted(map(str, value))[:8])
        raise FieldError("paths", f"has the keys {found}; they must be '1' to '{len(value)}'")
    by_key = {str(key): path for key, path in value.items()}
    return [by_key[key] for key in wanted]


def _summary(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = "\n".join(text_of(f"summary.{number}", part) for number, part in enumerate(value, start=1))
    return _untagged("summary", value)


def _untagged(name: str, value: Any) -> str:
    """A text without the tags that mark the parts of a canvas: inside a part they would end it early."""
    text = text_of(name, value)
    found = TAG.search(text)
    if found:
        raise FieldError(name, f"holds the tag {found[0]}, which marks the parts of a canvas; remove it")
    return text


def _answer(value: Any, summary: str) -> str:
    if value is not None:
        return name_of("answer", value)
    boxed = extract_boxed(summary)
    if boxed is None:
        raise FieldError("answer", "is missing, and the summary has no \\boxed{…} to read it from")
    return name_of("answer", boxed)


def _flags(value: Any, paths: int) -> tuple[bool, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(flag, bool) for flag in value):
        raise FieldError("wrong", "is not a list of true and false")
    if len(value) != paths:
        raise FieldError("wrong", f"has {len(value)} flags for {paths} paths")
    return tuple(value)


def _extra(values: Mapping[str, Any]) -> dict[str, Any]:
    extra = {key: value for key, value in values.items() if key not in _KEYS}
    for key, value in extra.items():
        try:
            json.dumps({key: value}, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise FieldError(str(key)[:80], "holds something that JSON cannot") from None
    return extra


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "an object", list: "a list", int: "a number", float: "a number", str: "a text"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
