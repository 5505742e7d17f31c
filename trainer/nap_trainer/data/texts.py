"""Texts compared: normal form, n-grams of words, Jaccard similarity."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import combinations

Gram = tuple[str, ...]
_WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*|[+\-*/=<>%^]")


def words(text: str) -> list[str]:
    """Lower-case words, numbers (1,000 as 1000) and signs of arithmetic; layout and other punctuation are gone."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word.replace(",", "") if word[0].isdigit() else word for word in found]


def normalised(text: str) -> str:
    """One spelling for texts that differ in case, layout or punctuation only."""
    return " ".join(words(text))


def grams(tokens: Sequence[str], n: int) -> frozenset[Gram]:
    """Every n-gram; a shorter text is one gram of its own."""
    if len(tokens) < n:
        return frozenset({tuple(tokens)})
    return frozenset(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def jaccard(one: frozenset[Gram], other: frozenset[Gram]) -> float:
    """Shared grams over all grams."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def mean_pairwise(sets: Iterable[frozenset[Gram]]) -> float | None:
    """Mean similarity of all pairs; None for fewer than two texts."""
    pairs = [jaccard(one, other) for one, other in combinations(list(sets), 2)]
    return sum(pairs) / len(pairs) if pairs else None
