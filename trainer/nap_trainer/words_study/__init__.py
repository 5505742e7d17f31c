"""`words-study`: procedural problems that are hard enough, and wrong often enough, to compare decoders on.

Read in this order: ``config``, ``numbers`` (chains), ``slips`` (errors of paths), ``drawing`` (the core of both
front ends), ``problem`` (as text), ``render`` and ``table`` (as token ids).
"""

from nap_trainer.words_study.config import N_PATHS, SUMMARY_TOKENS, StudyConfig, method_tokens
from nap_trainer.words_study.problem import StudyProblem, generate
from nap_trainer.words_study.scoring import answer_of, result_of_path
from nap_trainer.words_study.split import SPLITS, Split
from nap_trainer.words_study.table import StudyTable, make_table
from nap_trainer.words_study.vocabulary import METHODS, NAMES, TOKENS, WORDS, study_tokenizer

__all__ = [
    "METHODS",
    "NAMES",
    "N_PATHS",
    "SPLITS",
    "SUMMARY_TOKENS",
    "TOKENS",
    "WORDS",
    "Split",
    "StudyConfig",
    "StudyProblem",
    "StudyTable",
    "answer_of",
    "generate",
    "make_table",
    "method_tokens",
    "result_of_path",
    "study_tokenizer",
]
