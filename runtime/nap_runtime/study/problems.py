"""Problem sets: GSM8K, MATH-500 and GPQA from local files or the hub, procedural sets from their generators.

A file is JSONL or parquet with the columns that the set has where it is published:

    gsm8k     question, answer (the solution; the answer stands after ####)
    math500   problem, answer; subject, level and unique_id where they are there
    gpqa      Question, Correct Answer, Incorrect Answer 1 … 3; Record ID where it is there
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from nap_runtime.errors import DataError, UsageError
from nap_runtime.metrics.answers import canonical, find_answer, find_choice, read_answer, same_answer
from nap_runtime.metrics.shares import last_number
from nap_runtime.values import at_least, number

Kind = Literal["answer", "choice", "words", "list"]
FROM_FILES = ("gsm8k", "math500", "gpqa")
GENERATED = ("words", "words-study", "lists")
SETS = (*FROM_FILES, *GENERATED)
ASKS = ("boxed", "question")
MOST = 100_000  # problems of a generated set: they are all made before the first is decoded
HUB = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "gpqa": ("Idavidrein/gpqa", "gpqa_diamond", "train"),
}
_BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
_CHOICE = "\n\nPlease reason step by step, and put the letter of the right choice within \\boxed{}."
_LETTERS = "ABCD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem as it is given to a model.

    Attributes:
        index: its place in the set, from 0; id: its own name.
        question: the whole prompt.
        gold: the right answer.
        kind: how answers are read: `answer` (any form), `choice` (a letter), `words` (the boxed one alone), `list` (the
            same; a path's is what follows its last colon).
        groups: what the accuracy is also broken down by, such as subject or depth.
        accepts: whether a text is a right answer, where more than one is (None: those that equal `gold`).
    """

    index: int
    id: str
    question: str
    gold: str
    kind: Kind = "answer"
    groups: Mapping[str, str] = field(default_factory=dict)
    accepts: Callable[[str], bool] | None = field(default=None, compare=False)

    def read(self, text: str, boxed: str | None) -> tuple[str | None, str | None]:
        """The answer of a summary, and where it was found; `boxed` is its boxed one."""
        if self.kind in ("words", "list"):
            return boxed, None if boxed is None else "boxed"
        if self.kind == "choice":
            choice = find_choice(text)
            return choice, None if choice is None else "choice"
        found = read_answer(text)
        return (None, None) if found is None else (found.text, found.source)

    def read_path(self, text: str) -> str | None:
        """What a path by itself says."""
        if self.kind == "words":
            return last_number(text)
        if self.kind == "list":
            return last_list(text)
        return find_choice(text) if self.kind == "choice" else find_answer(text)

    def is_right(self, answer: str | None) -> bool:
        """Whether an answer is a right one."""
        if self.accepts is not None:
            return answer is not None and self.accepts(answer)
        return same_answer(answer, self.gold)

    def form(self, answer: str | None) -> str | None:
        """What equal answers have in common: lists are compared word by word, all else as `canonical` does."""
        if answer is None:
            return None
        return " ".join(answer.split()) if self.kind == "list" else canonical(answer)


def last_list(text: str) -> str | None:
    """The words after the last colon of a path, its full stop left out; None where there are none."""
    return " ".join(text.rpartition(":")[2].replace(".", " ").split()) or None


def read_problems(
    name: str,
    *,
    data: Path | None = None,
    n: int | None = None,
    seed: int = 0,
    ask: str = "boxed",
    options: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """The first `n` problems of a set (None: all, of a generated set 500).

    Args:
        name: one of `SETS`.
        data: the file of a set from files (None: the hub, through `datasets`); generated sets take none.
        seed: of the generators, and of the order of GPQA's choices.
        ask: `boxed` asks for a boxed answer, `question` gives the bare question. Generated sets have bare ones.
        options: of the generator: the knobs of `words-study`, `operations` of `lists`.

    Raises:
        UsageError: a value is wrong or unused, or there is no such file.
        DataError: the file is malformed; the row is named.
    """
    if name not in SETS:
        raise UsageError(f"problems: unknown set '{name}'; use one of {', '.join(SETS)}", field="problems")
    if ask not in ASKS:
        raise UsageError(f"ask: unknown value '{ask}'; use one of {', '.join(ASKS)}", field="ask")
    if n is not None:
        check_count(n, generated=name in GENERATED)
    number("seed", seed, int)
    if name in GENERATED:
        if data is not None:
            raise UsageError(f"data: set '{name}' is generated; leave it out", field="data")
        return list(_generated(name, n or 500, seed, dict(options or {})))
    if options:
        raise UsageError(f"options: set '{name}' takes none; leave it out", field="options")
    rows = file_rows(data) if data is not None else hub_rows(*HUB[name])
    where = str(data) if data is not None else HUB[name][0]
    return [_problem(name, where, at, row, seed, ask) for at, row in enumerate(islice(rows, n))]


def check_count(n: int, *, generated: bool) -> None:
    """UsageError unless so many problems can be asked for."""
    at_least("n", n, 1)
    if generated and n > MOST:
        raise UsageError(f"n: {n} is more than the {MOST:,} that are generated at once", field="n")


# -- generated -------------------------------------------------------------------------------------


def _generated(name: str, n: int, seed: int, options: dict[str, Any]) -> Iterator[Problem]:
    yield from islice({"words": _plain_words, "words-study": _study, "lists": _lists}[name](seed, options), n)


def _plain_words(seed: int, options: dict[str, Any]) -> Iterator[Problem]:
    from nap_trainer.words import generate

    if options:
        raise UsageError("options: set 'words' takes none; leave it out", field="options")
    for at, problem in enumerate(generate("test", seed=seed)):
        yield _words(at, problem.question, problem.answer, {"family": problem.family})


def _study(seed: int, options: dict[str, Any]) -> Iterator[Problem]:
    from nap_trainer.words_study import StudyConfig, generate

    config = StudyConfig.from_mapping(options)
    for at, item in enumerate(generate("test", seed=seed, config=config)):
        yield _words(at, item.question, item.answer, {"depth": str(item.depth)})


def _lists(seed: int, options: dict[str, Any]) -> Iterator[Problem]:
    from nap_trainer.lists import OPERATIONS, generate

    operations = options.pop("operations", None)
    if options:
        raise UsageError(f"options: {min(options)}: unknown key; known are operations", field="options")
    for at, item in enumerate(generate("test", seed=seed, operations=operations)):
        groups = {"kind": OPERATIONS[item.operation].kind, "operation": item.operation}
        yield Problem(
            index=at, id=str(at), question=item.question, gold=" ".join(item.answer), kind="list", groups=groups,
            accepts=item.accepts,
        )  # fmt: skip


def _words(index: int, question: str, answer: int, groups: Mapping[str, str]) -> Problem:
    return Problem(index=index, id=str(index), question=question, gold=str(answer), kind="words", groups=groups)


# -- files -----------------------------------------------------------------------------------------


def file_rows(file: Path, *, field: str = "data") -> Iterator[Mapping[str, Any]]:
    """The objects of a JSONL or parquet file. `field` is what the caller calls it.

    Raises:
        UsageError: there is no such file.
        DataError: a row is malformed.
    """
    if not file.is_file():
        reason = "it is a folder; give the file" if file.is_dir() else "no such file"
        raise UsageError(f"{field}: {file}: {reason}", field=field)
    yield from _parquet_rows(file, field) if file.suffix == ".parquet" else _json_rows(file)


def _json_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(f"{file}: line {number}: not JSON; give JSONL or parquet") from None
            if not isinstance(values, dict):
                raise DataError(f"{file}: line {number}: not a JSON object")
            yield values


def _parquet_rows(file: Path, field: str) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UsageError(f"{field}: {file} is parquet: pip install pyarrow, or give JSONL", field=field) from None
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except Exception as error:  # pyarrow raises several kinds for a damaged file
        raise DataError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0][:200]})") from None


def hub_rows(
    path: str, config: str | None, split: str, *, field: str = "data", streaming: bool = False
) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set on the hub, through `datasets`.

    Raises:
        UsageError: `datasets` is not installed.
        DataError: the hub does not give it.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        text = f"{field}: give the file (JSONL or parquet), or install `datasets` to load {path} from the hub"
        raise UsageError(text, field=field) from None
    try:
        more = {"streaming": True} if streaming else {}
        rows: Iterable[Mapping[str, Any]] = load_dataset(path, config, split=split, **more)
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: the hub does not give it ({reason[:200]}); give the file instead") from error
    return rows


def _problem(name: str, where: str, at: int, row: Mapping[str, Any], seed: int, ask: str) -> Problem:
    def text(key: str) -> str:
        value = row.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: row {at + 1}: no text '{key}'; is this a file of {name}?")
        return value

    if name == "gpqa":
        return _choices(at, row, text, seed, ask)
    key = "question" if name == "gsm8k" else "problem"
    question, answer = text(key), text("answer")
    gold = find_answer(answer) if name == "gsm8k" else answer
    if gold is None:
        raise DataError(f"{where}: row {at + 1}: its answer states no number")
    groups = {group: str(row[group]) for group in ("subject", "level") if name == "math500" and group in row}
    asked = question + (_BOXED if ask == "boxed" else "")
    return Problem(index=at, id=str(row.get("unique_id", at)), question=asked, gold=gold, groups=groups)


def _choices(at: int, row: Mapping[str, Any], text: Any, seed: int, ask: str) -> Problem:
    """Four choices in an order that seed and question decide."""
    question = text("Question")
    choices = [text("Correct Answer"), *(text(f"Incorrect Answer {number}") for number in (1, 2, 3))]
    order = sorted(range(4), key=lambda i: hashlib.sha256(f"{seed}\0{question}\0{i}".encode()).digest())
    lines = "".join(f"\n({letter}) {choices[i].strip()}" for letter, i in zip(_LETTERS, order, strict=True))
    asked = f"{question.strip()}\n{lines}" + (_CHOICE if ask == "boxed" else "")
    name = str(row.get("Record ID", at))
    return Problem(index=at, id=name, question=asked, gold=_LETTERS[order.index(0)], kind="choice")
