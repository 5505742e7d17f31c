"""Procedural English word problems with several worked paths each.

Read in this order: ``trace`` (arithmetic that writes itself down), ``family`` (what a family is), any file of
``families``, ``split``, ``generate``.
"""

from nap_trainer.words.families import FAMILIES
from nap_trainer.words.family import Family, Path
from nap_trainer.words.generate import MAX_PATHS, SHOWCASE, generate, solve_by
from nap_trainer.words.problem import Problem
from nap_trainer.words.split import RESERVED, Split, split_of
from nap_trainer.words.text import TOKEN, count_tokens, summary_text, tokens
from nap_trainer.words.trace import EASY, LIMIT, ImpossibleError, Num, Slip, Trace, of
from nap_trainer.words.vocabulary import vocabulary

__all__ = [
    "EASY",
    "FAMILIES",
    "LIMIT",
    "MAX_PATHS",
    "RESERVED",
    "SHOWCASE",
    "TOKEN",
    "Family",
    "ImpossibleError",
    "Num",
    "Path",
    "Problem",
    "Slip",
    "Split",
    "Trace",
    "count_tokens",
    "generate",
    "of",
    "solve_by",
    "split_of",
    "summary_text",
    "tokens",
    "vocabulary",
]
