r"""The adaptation corpus: GSM8K's worked solutions as rows of `prompt` and `response`.

From GSM8K's `answer` the calculator annotations (`<<48/2=24>>`) are removed and the last line, `#### 72`, becomes
`The final answer is \boxed{72}.`, the form in which answers are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import DataError, ModelError
from nap_runtime.models.files import write_text_atomic
from nap_runtime.models.tokenizer import Tokenizer, load_tokenizer
from nap_trainer.batches.sources import TextRow
from nap_trainer.data.questions import Question
from nap_trainer.data.read import built_rows, place
from nap_trainer.data.schema import BadRow, FieldError, text_of

_MARK = "####"
_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A row of the corpus. `gold` is the answer by itself, and is no part of the file."""

    prompt: str
    response: str
    gold: str

    @classmethod
    def from_gsm8k(cls, values: Mapping[str, Any]) -> Pair:
        """A GSM8K row, cleaned; FieldError where `question` or `answer` is unusable."""
        answer = text_of("answer", values.get("answer"))
        solution, mark, _ = answer.rpartition(_MARK)
        if not mark:
            raise FieldError("answer", f"has no last line '{_MARK} …'")
        question = Question.from_mapping(values)
        return cls(prompt=question.text, response=worked(solution, question.gold), gold=question.gold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How large a corpus is, in one tokenizer's tokens; stands beside it as `.json`.

    Attributes:
        source: name and SHA-256 of the file it was made from.
        rows: pairs. prompt_tokens: with the chat template; response_tokens: without end of text or padding.
        tokenizer: SHA-256 of the tokenizer's file.
    """

    source: str
    sha256: str
    rows: int
    prompt_tokens: int
    response_tokens: int
    tokenizer: str

    @property
    def tokens(self) -> int:
        """Prompts and responses."""
        return self.prompt_tokens + self.response_tokens


def worked(solution: str, gold: str) -> str:
    """A solution without calculator annotations, its answer boxed in a last line."""
    lines = (line.rstrip() for line in _CALCULATOR.sub("", solution).strip().splitlines())
    return "\n".join((*lines, f"The final answer is \\boxed{{{gold}}}."))


def read_gsm8k(file: Path) -> Iterator[tuple[int, Pair]]:
    """Every row's number and pair.

    Raises:
        UsageError: the file cannot be opened.
        DataError: a row is malformed, or there is none.
    """
    for number, row in built_rows(file, Pair.from_gsm8k):
        if isinstance(row, BadRow):
            raise DataError(f"{file}: {place(file)} {number}: {row.text}")
        yield number, row


def read_corpus(file: Path) -> list[TextRow]:
    """The pairs of a corpus file; errors as for `read_gsm8k`."""
    rows = []
    for number, row in built_rows(file, TextRow.from_mapping):
        if isinstance(row, BadRow):
            raise DataError(f"{file}: {place(file)} {number}: {row.text}")
        rows.append(row)
    return rows


def write_corpus(gsm8k: Path, out: Path, model: Path) -> Count:
    """Write the corpus of a GSM8K file, and its count beside it; `model` is a folder with the tokenizer."""
    tokenizer = tokenizer_of(model)
    pairs = [pair for _, pair in read_gsm8k(gsm8k)]
    count = Count(
        source=gsm8k.name,
        sha256=file_hash(gsm8k),
        rows=len(pairs),
        prompt_tokens=sum(len(tokenizer.encode_prompt(pair.prompt)) for pair in pairs),
        response_tokens=sum(len(tokenizer.encode(pair.response)) for pair in pairs),
        tokenizer=tokenizer_hash(model),
    )
    write_text_atomic(out, "".join(_line(pair) for pair in pairs))
    write_text_atomic(out.with_suffix(".json"), json.dumps({**asdict(count), "tokens": count.tokens}, indent=2) + "\n")
    return count


def tokenizer_of(model: Path) -> Tokenizer:
    """The tokenizer of a model folder; ModelError if it has none."""
    tokenizer = load_tokenizer(model)
    if tokenizer is None:
        raise ModelError(f"{model} has no tokenizer: give a folder that `nap model convert` made")
    return tokenizer


def tokenizer_hash(model: Path) -> str:
    """SHA-256 of `tokenizer.json`."""
    return file_hash(model / "tokenizer.json")


def file_hash(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _line(pair: Pair) -> str:
    return json.dumps({"prompt": pair.prompt, "response": pair.response}, ensure_ascii=False) + "\n"
