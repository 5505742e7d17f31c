"""How text is cut into tokens, and the fixed wording of a summary."""

from __future__ import annotations

import re

BOX = "\\boxed{"
TOKEN = re.compile(r"\\boxed\{|\d|[a-z]+|[^\sa-z\d]")


def tokens(text: str) -> list[str]:
    """Cut text into lower-case words, single digits, single signs and the one-token box opener."""
    return TOKEN.findall(text.lower())


def count_tokens(text: str) -> int:
    """Count the tokens that ``tokens`` would return."""
    return len(tokens(text))


def summary_text(answer: int) -> str:
    """Word the summary that closes every problem."""
    return f"the final answer is {BOX}{answer}}}"
