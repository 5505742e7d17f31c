"""The one exception tree.

::

    NapError
    ├── UsageError          a value the caller chose is wrong; `field` names it (exit code 2)
    │   └── NotBuiltError   the value is in the contract but this release does not do it yet
    ├── ModelError          weights, config or tokenizer cannot be used
    ├── RecordError         a trace is malformed, or contradicts itself
    ├── DataError           a file of training data is malformed; file, row and field are named
    ├── TeacherError        a teacher gave no usable text
    └── DecodeError         a decode could not be finished
        ├── WorkerError     a worker died or left its process group
        └── CancelledError  the caller asked for it
"""

from __future__ import annotations


class NapError(Exception):
    """Root of every error this package raises on purpose."""


class UsageError(NapError, ValueError):
    """A value the caller chose is wrong. `field` is the configuration key it belongs to."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotBuiltError(UsageError):
    """The value belongs to the contract, but this release does not do it yet."""


class ModelError(NapError):
    """Weights, config or tokenizer cannot be used. The message names the file and the mend."""


class RecordError(NapError, ValueError):
    """A trace is malformed or contradicts itself."""


class DataError(NapError, ValueError):
    """A file of training data is malformed. The message names file, row and field."""


class TeacherError(NapError):
    """A teacher gave no usable text for one request; `fatal` where no other request can do better."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class DecodeError(NapError):
    """A decode could not be finished."""


class WorkerError(DecodeError):
    """A worker died, froze, or left its process group."""


class CancelledError(DecodeError):
    """The caller cancelled the decode."""
