"""The words that fill a question's slots."""

from __future__ import annotations

import random
from collections.abc import Iterable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = _words("""
    Adam Alice Anna Ben Carla Daniel David Emma Eva Frank Grace Henry Hugo Iris Ivan Jack Kate Lena Leo Lucy
    Marco Maya Mia Nina Noah Olga Omar Oscar Paul Rosa Ruth Sam Sara Tina Tom Umar Vera Victor Yara Zoe
""")

POOLS: dict[str, tuple[str, ...]] = {
    "name": _PEOPLE,
    "other": _PEOPLE,
    "item": _words("""
        bag ball bike book camera chair clock coat desk dress game hat jacket lamp mirror phone
        radio shirt table watch
    """),
    "things": _words("""
        apples balloons beads books candles cards cookies cups eggs flowers marbles nuts oranges pencils
        pens plates shells stamps stickers toys
    """),
}
"""Slot name to the words that may fill it. ``other`` is a second person, never the same as ``name``."""


def fill(slots: Iterable[str], rng: random.Random) -> dict[str, str]:
    """Draw a word for each slot, all of them different."""
    words: dict[str, str] = {}
    for slot in slots:
        word = rng.choice(POOLS[slot])
        while word in words.values():
            word = rng.choice(POOLS[slot])
        words[slot] = word
    return words
