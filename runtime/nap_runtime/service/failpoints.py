"""Named places at which a process can be told to die, for tests of what survives.

`NAP_FAILPOINTS=submit.after_journal=kill,report.before_journal=kill@3` kills the process, as `kill -9` does, the first
time it comes by the one place and the third time it comes by the other. `group.before_run=kill~poison` does so every
time, but only for a batch with a question that holds `poison`; `memory` in place of `kill` raises MemoryError there.
Off, a place costs one dictionary look-up.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass

from nap_runtime.errors import UsageError

VARIABLE = "NAP_FAILPOINTS"
POINTS = (
    "submit.before_journal",
    "submit.after_journal",
    "submit.after_acknowledgement",
    "begin.after_journal",
    "report.before_journal",
    "report.after_journal",
    "finish.before_journal",
    "finish.after_journal",
    "group.before_run",
    "group.before_report",
    "group.before_result",
)


@dataclass(slots=True)
class _Armed:
    action: str
    visits: int = 1
    text: str = ""


_armed: dict[str, _Armed] | None = None


def reach(name: str, *texts: str) -> None:
    """Come by a place, with texts that it may be armed for."""
    global _armed
    if _armed is None:
        _armed = parse(os.environ.get(VARIABLE, ""))
    armed = _armed.get(name)
    if armed is None:
        return
    if armed.text:
        due = any(armed.text in text for text in texts)
    else:
        armed.visits -= 1
        due = armed.visits == 0
    if due and armed.action == "memory":
        raise MemoryError(f"failpoint {name}: no memory is left")
    if due:
        os.kill(os.getpid(), signal.SIGKILL)


def parse(text: str) -> dict[str, _Armed]:
    """What is armed where.

    Raises:
        UsageError: a place is unknown, or the text is malformed.
    """
    armed: dict[str, _Armed] = {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        match = re.fullmatch(r"([a-z_.]+)=(kill|memory)(?:@([1-9][0-9]*)|~([a-z]+))?", part)
        if match is None or match[1] not in POINTS:
            raise UsageError(f"{VARIABLE}: '{part}' is not PLACE=kill[@N|~TEXT]; places are {', '.join(POINTS)}")
        armed[match[1]] = _Armed(match[2], int(match[3] or 1), match[4] or "")
    return armed
