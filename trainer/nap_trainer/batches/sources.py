"""Where rows come from: files of NAP rows, files of prompts and responses, the procedural sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.tokenizer import Tokenizer
from nap_trainer.batches.procedural import SETS, make_set, study_options
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.data.questions import read_questions
from nap_trainer.data.read import built_rows, place, read_examples
from nap_trainer.data.schema import BadRow, text_of
from nap_trainer.settings import DataSection


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow:
    """A prompt and the response that is learnt."""

    prompt: str
    response: str

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read a row; other keys are left alone. FieldError where a text is missing or unusable."""
        prompt = text_of("question", values.get("prompt"))
        return cls(prompt=prompt, response=text_of("summary", values.get("response")))


def training_table(data: DataSection, tokenizer: Tokenizer) -> SegmentTable:
    """Every row of `data.train`, tokenised.

    Raises:
        UsageError: the file cannot be opened, or an option is wrong.
        DataError: a row is malformed; file, row and field are named.
    """
    if data.train in SETS:
        return make_set(data, tokenizer, split="train", count=data.samples)
    file = Path(data.train)
    if not file.exists():
        raise UsageError(f"data.train: {file}: no such file, nor one of {', '.join(SETS)}", field="data.train")
    return SegmentTable.of_lists(_text_rows(file, tokenizer) if data.format == "text" else _nap_rows(file, tokenizer))


def _nap_rows(file: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[list[int]], list[int]]]:
    for example in read_examples(file):
        paths = [tokenizer.encode(path.strip()) for path in example.paths]
        yield tokenizer.encode_prompt(example.question), paths, tokenizer.encode(example.summary.strip())


def _text_rows(file: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[list[int]], list[int]]]:
    for number, row in built_rows(file, TextRow.from_mapping):
        if isinstance(row, BadRow):
            field = {"question": "prompt", "summary": "response"}.get(row.field, row.field)
            raise DataError(f"{file}: {place(file)} {number}: {field}: {row.complaint}")
        yield tokenizer.encode_prompt(row.prompt), [tokenizer.encode(row.response)], []


def held_out(data: DataSection, file: str | None, n: int) -> list[tuple[str, str]]:
    """Up to `n` (question, right answer) to decode during training.

    Raises:
        UsageError: there is no file, and the training data is no procedural set.
    """
    if file is not None:
        questions, _ = read_questions(Path(file), n)
        return [(question.text, question.gold) for question in questions]
    if data.train not in SETS:
        raise UsageError("evaluate.data: name a file with questions and answers", field="evaluate.data")
    return list(islice(_problems(data), n))


def _problems(data: DataSection) -> Iterable[tuple[str, str]]:
    if data.train == "words":
        from nap_trainer.words import generate

        return ((p.question, str(p.answer)) for p in generate("test", seed=data.seed))
    from nap_trainer.words_study import generate as study

    config = study_options(data.options)
    return ((p.question, str(p.answer)) for p in study("dev", seed=data.seed, config=config))
