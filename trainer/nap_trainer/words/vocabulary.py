"""The closed vocabulary: every token that a question, a path or a summary can contain."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nap_trainer.words.families import FAMILIES
from nap_trainer.words.pools import POOLS
from nap_trainer.words.text import summary_text, tokens

_PATH_SIGNS = "0123456789 + - * / = % of left : ."


def vocabulary() -> list[str]:
    """List every token, sorted."""
    return sorted({token for text in _texts() for token in tokens(text)})


def _texts() -> Iterator[str]:
    yield _PATH_SIGNS
    yield summary_text(0)
    for words in POOLS.values():
        yield " ".join(words)
    for family in FAMILIES.values():
        yield " ".join(family.methods)
        for wording in family.asks:
            yield re.sub(r"\{\w+\}", " ", wording)
