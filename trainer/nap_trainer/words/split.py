"""Which number tuples are kept for the test split.

The split is decided by family and numbers alone, before names, items and wording are drawn: a test problem is
never a reworded training problem.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

Split = Literal["train", "test"]

TEST_SHARE = 8
"""One number tuple in this many goes to test."""

RESERVED: dict[tuple[str, tuple[int, ...]], dict[str, str]] = {
    ("discount", (50, 20)): {"item": "shirt"},
    ("tip", (4, 80, 20)): {},
    ("overtime", (8, 9, 2)): {"name": "Mia"},
    ("two_trains", (2, 3, 6, 45)): {},
    ("recipe", (4, 12, 20)): {},
    ("buses", (20, 55, 4)): {},
    ("sharing", (5, 7, 4)): {"name": "Omar", "things": "apples"},
    ("legs", (20, 56)): {},
    ("fence", (5, 40, 6)): {},
}
"""Problems shown in documentation, always in test: (family, numbers) to the words of their first wording."""


def split_of(family: str, numbers: tuple[int, ...]) -> Split:
    """Tell the split of a problem; the same on every machine and in every run."""
    if (family, numbers) in RESERVED:
        return "test"
    digest = blake2b(f"{family}:{numbers}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) % TEST_SHARE == 0 else "train"
