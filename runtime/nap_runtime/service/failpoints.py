"""Named places at which a process can be told to die, for tests of what survives.

`NAP_FAILPOINTS=submit.after_journal=kill,report.before_journal=kill@3` kills the process, as `kill -9` does, the first
time it comes by the one place and the third time it comes by the other. Off, a place costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal

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

_armed: dict[str, int] | None = None


def reach(name: str) -> None:
    """Come by a place."""
    global _armed
    if _armed is None:
        _armed = parse(os.environ.get(VARIABLE, ""))
    if name not in _armed:
        return
    _armed[name] -= 1
    if _armed[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def parse(text: str) -> dict[str, int]:
    """Place → visits until it kills.

    Raises:
        UsageError: a place is unknown, or the text is malformed.
    """
    armed: dict[str, int] = {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        name, _, action = part.partition("=")
        verb, _, count = action.partition("@")
        if name not in POINTS or verb != "kill" or not (count or "1").isdigit():
            raise UsageError(f"{VARIABLE}: '{part}' is not PLACE=kill[@N]; places are {', '.join(POINTS)}")
        armed[name] = int(count or 1)
    return armed
