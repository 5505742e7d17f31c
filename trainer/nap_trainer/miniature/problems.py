"""Problems as arrays, and what a problem set must offer.

Shapes: n problems, m traces, P, L, S tokens of prompt, trace and summary. Rows are padded with −1 on the right.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import DataError
from nap_runtime.models.files import atomic_path
from nap_runtime.models.tokenizer import Tokenizer

Array = npt.NDArray[Any]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
NO_ANSWER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """A table of problems.

    Attributes:
        prompt_nP, paths_nmL, summary_nS: token ids, −1 behind each text; no tags, no end of text.
        depth_n: dependent operations of each problem.
        answer_n, path_answer_nm: the right answer, and what each trace ends with.
        wrong_nm: whether a trace holds an error.
    """

    prompt_nP: Array
    paths_nmL: Array
    summary_nS: Array
    depth_n: Array
    answer_n: Array
    path_answer_nm: Array
    wrong_nm: Array

    def __post_init__(self) -> None:
        for field in fields(self):
            if len(getattr(self, field.name)) != len(self.answer_n):
                raise DataError(f"problems: {field.name} has {len(getattr(self, field.name))} rows, answer_n another")

    def __len__(self) -> int:
        return len(self.answer_n)

    @classmethod
    def of(cls, table: Any) -> Self:
        """Take the arrays of any object that has them as attributes; DataError if one is missing."""
        try:
            return cls(**{field.name: np.asarray(getattr(table, field.name)) for field in fields(cls)})
        except AttributeError as error:
            raise DataError(f"problems: {error}") from error

    def take(self, index: Array | slice) -> Self:
        """Some of the problems, in the order of `index`."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def save(self, path: Path, *, compress: bool = True) -> None:
        """Write an npz, whole or not at all."""
        write = np.savez_compressed if compress else np.savez
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            write(stream, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; DataError if the file is another."""
        try:
            with np.load(path) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: not a table of problems ({error})") from error


class Source(Protocol):
    """A problem set."""

    def tokenizer(self, folder: Path) -> Tokenizer:
        """The set's tokenizer; its files are written to `folder`, or are there already."""
        ...

    def problems(self, split: Split, count: int, seed: int, processes: int) -> Problems:
        """`count` problems of a split, the same ones for the same arguments (`processes` may not matter)."""
        ...

    def answer_of(self, ids_nS: Array) -> Array:
        """The answer that each row's text states last, read up to its first end id; `NO_ANSWER` where none. int [n]."""
        ...

    def path_answer_of(self, ids_nS: Array) -> Array:
        """The value that each row's trace ends with, likewise."""
        ...
