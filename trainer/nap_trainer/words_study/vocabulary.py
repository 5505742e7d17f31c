"""The closed vocabulary of the study problems and its token ids."""

from __future__ import annotations

from pathlib import Path

from nap_runtime.models.detokenise import BOXED
from nap_runtime.models.tokenizer import BASE_WORDS, EOS, SPECIAL_TOKENS, WordTokenizer, build_word_tokenizer

_PEOPLE = "ann bob cleo dan eve finn gus hana ian joy kim leo mia ned ola pam quinn rosa sam tess uma vic wes zoe"
NAMES: tuple[str, ...] = tuple(_PEOPLE.split())
METHODS = ("forward", "plan", "back")
"""A path's method is its first word; ``method_nm`` holds indices into this."""

_SENTENCES = "starts out with beats trails by has times how many"
_REST = "up down the answer is"
WORDS: tuple[str, ...] = (*METHODS, *_SENTENCES.split(), *_REST.split(), *NAMES)
TOKENS: tuple[str, ...] = tuple(dict.fromkeys((*SPECIAL_TOKENS, *BASE_WORDS, *WORDS)))
"""Every token; a token's place is its id."""
IDS: dict[str, int] = {token: i for i, token in enumerate(TOKENS)}

DIGIT_0 = IDS["0"]
BOX = IDS[BOXED]
BRACE = IDS["}"]
END_IDS: tuple[int, ...] = tuple(IDS[token] for token in SPECIAL_TOKENS if token == EOS or token.startswith("</"))
"""What closes a path or a summary: end tags and end-of-text."""


def study_tokenizer(folder: str | Path) -> WordTokenizer:
    """Write ``tokenizer.json`` into a folder and return the tokenizer; its ids are those of every StudyTable."""
    return build_word_tokenizer(WORDS, folder)
