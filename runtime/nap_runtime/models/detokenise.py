"""Text from word tokens: digits join, punctuation attaches as in English and simple LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

BOXED = "\\boxed{"

_CLOSING = frozenset(",.;:!?%)]}")  # no space before
_OPENING = frozenset("$([{#@\\") | {BOXED}  # no space after
_JOINING = frozenset("_^/'`~|")  # no space on either side
_OPERATORS = frozenset("=+-*<>")  # a minus after one of these is a sign
_THOUSANDS = 3


def join_words(tokens: Sequence[str]) -> str:
    """Join tokens (words, single digits, single signs) into a line of text.

    The tokens do not keep the spaces of their source, so the rules choose the usual spelling:
    "$50", "20%", "1,250", "twenty-five", "5 - 3 = 2", "x = -2", "\\boxed{40}".
    """
    pieces: list[str] = []
    open_quote = False
    for index, token in enumerate(tokens):
        glued = index == 0 or _glued(tokens, index, open_quote)
        pieces.append(token if glued else " " + token)
        open_quote ^= token == '"'
    return "".join(pieces)


def _glued(tokens: Sequence[str], index: int, open_quote: bool) -> bool:
    """Whether no space stands before tokens[index]."""
    left, right = tokens[index - 1], tokens[index]
    if left in _OPENING or right in _CLOSING or left in _JOINING or right in _JOINING:
        return True
    if right == '"' or left == '"':
        return open_quote
    if right.isdigit():
        return _digit_glued(tokens, index)
    return _hyphen_glued(tokens, index)


def _digit_glued(tokens: Sequence[str], index: int) -> bool:
    """A digit joins a digit, a thousands comma, a sign; a point ends a sentence, as these texts hold integers only."""
    left = tokens[index - 1]
    if left.isdigit():
        return True
    after_digit = index >= 2 and tokens[index - 2].isdigit()
    if left == "," and after_digit:
        return _digits_from(tokens, index) == _THOUSANDS
    return left == "-" and _is_sign(tokens, index - 1)


def _digits_from(tokens: Sequence[str], index: int) -> int:
    end = index
    while end < len(tokens) and tokens[end].isdigit():
        end += 1
    return end - index


def _is_sign(tokens: Sequence[str], index: int) -> bool:
    """Whether the minus at ``index`` begins a number instead of subtracting."""
    return index == 0 or tokens[index - 1] in _OPERATORS or tokens[index - 1] in _OPENING


def _hyphen_glued(tokens: Sequence[str], index: int) -> bool:
    """A hyphen between two words joins them."""
    hyphen = index if tokens[index] == "-" else index - 1
    if tokens[hyphen] != "-" or not 0 < hyphen < len(tokens) - 1:
        return False
    return tokens[hyphen - 1].isalpha() and tokens[hyphen + 1].isalpha()
