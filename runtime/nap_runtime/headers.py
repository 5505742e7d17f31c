"""Headers of a caller's own: a JSON file, or the JSON itself, read without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import UsageError

STYLES = ("nap", "text")
_KEYS = ("paths", "summary", "path_ends", "summary_end")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHeaders:
    """Texts of the blocks.

    Attributes:
        name: the file that they come from, for messages.
        paths, summary: headers; `path_ends`, `summary_end` the tags that close a block, None where there are none.
    """

    name: str
    paths: tuple[str, ...]
    summary: str
    path_ends: tuple[str, ...] | None = None
    summary_end: str | None = None

    def to_json(self) -> str:
        """The JSON that `read_headers` takes in place of a file's name."""
        values: dict[str, Any] = {"paths": list(self.paths), "summary": self.summary}
        if self.path_ends is not None:
            values["path_ends"] = list(self.path_ends)
        if self.summary_end is not None:
            values["summary_end"] = self.summary_end
        return json.dumps(values)

    def wrong(self, problem: str) -> UsageError:
        """The error that says what is wrong with them."""
        return _wrong(self.name, problem)


def is_json(headers: str) -> bool:
    """Whether it is the JSON itself and not a file's name."""
    return headers.lstrip().startswith("{")


def read_headers(headers: str) -> OwnHeaders:
    """`{"paths": [header, …], "summary": header, "path_ends": [tag, …], "summary_end": tag}`; ends are optional.

    Args:
        headers: the file's name, or the JSON itself.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    name = "the JSON" if is_json(headers) else headers
    values = _object(name, headers if is_json(headers) else _text_of(headers))
    return OwnHeaders(
        name=name,
        paths=_strings(name, values, "paths"),
        summary=_string(name, values, "summary"),
        path_ends=_strings(name, values, "path_ends") if "path_ends" in values else None,
        summary_end=_string(name, values, "summary_end") if "summary_end" in values else None,
    )


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        if isinstance(error, UnicodeDecodeError):
            raise _wrong(file, f"not JSON ({error})") from error
        text = f"headers: use 'nap', 'text' or a JSON file; {file} cannot be read"
        raise UsageError(text, field="headers") from error


def _object(name: str, text: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(name, f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise _wrong(name, 'not {"paths": [...], "summary": "..."}')
    for key in values:
        if key not in _KEYS:
            raise _wrong(name, f"unknown key {key!a}; known are {', '.join(_KEYS)}")
    for key in ("paths", "summary"):
        if key not in values:
            raise _wrong(name, f"no '{key}'")
    return values


def _strings(name: str, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    texts = values[key]
    if not isinstance(texts, list) or not all(_is_text(text) for text in texts):
        raise _wrong(name, f"'{key}' is not a list of texts")
    return tuple(texts)


def _string(name: str, values: Mapping[str, Any], key: str) -> str:
    if not _is_text(values[key]):
        raise _wrong(name, f"'{key}' is not a text")
    return str(values[key])


def _is_text(value: object) -> bool:
    """Whether it is a string without lone surrogates, which no tokenizer takes."""
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _wrong(name: str, problem: str) -> UsageError:
    return UsageError(f"headers: {name}: {problem}", field="headers")
