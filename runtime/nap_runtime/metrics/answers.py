r"""Read the answer out of a summary: the last `\boxed{…}`."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\boxed\s*\{")


def extract_boxed(text: str) -> str | None:
    r"""What the last closed `\boxed{…}` holds, braces matched, outer whitespace removed; None without one.

    `\{` and `\}` are text, not braces. A box that is never closed (a summary cut short) or holds nothing
    counts as none, and the one before it is read instead.
    """
    for box in reversed(list(_BOX.finditer(text))):
        if held := _until_closed(text, box.end()):
            return held
    return None


def _until_closed(text: str, start: int) -> str | None:
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at].strip()
        at += 1
    return None
