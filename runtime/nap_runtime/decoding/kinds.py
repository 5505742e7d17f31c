"""What a delta does to a slot. Without torch, for those who only read traces."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """How a position got its token."""

    OPEN = 0
    COMMIT = 1
    FILL = 2
    REMASK = 3  # it lost its token again (`p2`)
    PROVISIONAL = 4  # no change: what a summary slot would get now (summary `live`)
