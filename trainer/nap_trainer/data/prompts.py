r"""The wordings of curation: what a teacher is asked, how a trace is cleaned, how the summary is put.

A prompt template is a text with ``{question}`` in it; no other braces are special.
"""

from __future__ import annotations

import re
from pathlib import Path

from nap_runtime.errors import UsageError
from nap_trainer.data.schema import TAG

PLACE = "{question}"
PROMPT = f"{PLACE}\n\nSolve this step by step. Put the final answer into \\boxed{{}}."
_SUMMARY = "By analyzing multiple reasoning processes above, I concluded that: The final answer is \\boxed{%s}."
_GAP = re.compile(r"\n\s*\n")


def read_prompt(file: Path) -> str:
    """A template from a file; UsageError where it cannot be read or has no place for the question."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"prompt: {file}: {reason}", field="prompt_file") from None
    if PLACE not in text:
        raise UsageError(f"prompt: {file} has no {PLACE}", field="prompt_file")
    return text


def asked(template: str, question: str) -> str:
    """The prompt of one question."""
    return template.replace(PLACE, question)


def summary_for(answer: str) -> str:
    """The closing text, from the right answer."""
    return _SUMMARY % answer


def cleaned(trace: str) -> str:
    """A trace as a path: without tags of thinking or summaries, without outer space or more than one blank line."""
    return _GAP.sub("\n\n", TAG.sub("", trace)).strip()
