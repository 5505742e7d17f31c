"""What curation needs of a teacher, whatever stands behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One independent trace that is wanted: of which question, which of its traces, and the whole prompt."""

    key: str
    trace: int
    prompt: str

    def seed(self, base: int) -> int:
        """A seed of its own, so that a trace does not depend on which others are made in the same run."""
        digest = hashlib.sha256(f"{base}:{self.key}:{self.trace}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True, slots=True)
class Trace:
    """What a teacher wrote; `cut` where it ran out of tokens."""

    text: str
    cut: bool = False


class Teacher(Protocol):
    """Something that writes traces. `sample` may be called from `concurrency` threads at once."""

    concurrency: int
    batch_size: int

    @property
    def identity(self) -> Mapping[str, Any]:
        """What a trace depends on; a curation is continued only by the same."""
        ...

    def sample(self, requests: Sequence[Request]) -> list[Trace]:
        """One trace for each request, `batch_size` at most.

        Raises:
            TeacherError: these cannot be had.
        """
        ...

    def stop(self) -> None:
        """Wait for nothing any more: whatever is waited for may fail at once."""
        ...
