"""How often torch has begun to compile in this process: whoever times steps leaves those out."""

from __future__ import annotations


class Compilations:
    """A counter that torch calls; it is of this process, because what compiles stops every thread of it.

    Attributes:
        begun: compilations so far, those of one frame inside another counted once.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._watching = False

    def watch(self) -> None:
        """Begin to count; again is the same."""
        if self._watching:
            return
        self._watching = True
        from torch._dynamo import callback

        callback.on_compile_start(self._begin)

    def _begin(self, *_: object) -> None:
        self.begun += 1


COMPILATIONS = Compilations()
