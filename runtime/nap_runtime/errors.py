"""The one exception tree.

::

    NapError
    ├── UsageError          a value the caller chose is wrong; `field` names it (exit code 2)
    │   └── NotBuiltError   the value is in the contract but this release does not do it yet
    ├── ModelError          weights, config or tokenizer cannot be used
    ├── RecordError         a trace is malformed, or contradicts itself
    ├── DataError           a file of training data is malformed; file, row and field are named
    ├── TeacherError        a teacher gave no usable text
    ├── DecodeError         a decode could not be finished
    │   ├── WorkerError     a worker failed
    │   │   └── WorkerLostError   a worker's process died, froze or was cut off
    │   │       └── NoRoomError   no host is left for it
    │   └── CancelledError  the caller asked for it
    ├── JournalError        the service's job journal cannot be read or written
    └── ServiceError        a call to the service did not succeed
        ├── UnavailableError      nobody answers, or the server is going away
        ├── AccessError           no valid token, or one without the scope
        ├── NoSuchJobError        the job is unknown, or no longer kept
        ├── BusyError             a queue or quota is full; `retry_after` says when to try again
        ├── KeyConflictError      the idempotency key belongs to another job
        └── JobFailedError        the job ended without a result
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
    """A worker failed, or left its process group. `__cause__` is what it raised, where it ran in this process."""


class CancelledError(DecodeError):
    """The caller cancelled the decode."""


class WorkerLostError(WorkerError):
    """A worker's process died, froze or was cut off from its group: the others can go on without it."""


class NoRoomError(WorkerLostError):
    """A lost worker cannot be replaced until the cluster has another host."""


class JournalError(NapError):
    """The job journal cannot be read or written. The message names the file and the mend."""


class ServiceError(NapError):
    """A call to the service did not succeed."""


class UnavailableError(ServiceError):
    """Nobody answers at the address, or the server is going away."""


class AccessError(ServiceError):
    """The call carries no valid token, or one without the scope that it needs."""


class NoSuchJobError(ServiceError):
    """The job is unknown to the server, no longer kept, or another token's."""


class BusyError(ServiceError):
    """The queue, or the quota of the token, is full. `retry_after` is the server's hint in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KeyConflictError(ServiceError):
    """The idempotency key was used for a job with another content."""


class JobFailedError(ServiceError):
    """A job ended without a result. `state` is how (failed, cancelled, expired), `code` the service's reason."""

    def __init__(self, message: str, *, job_id: str, state: str, code: str) -> None:
        super().__init__(message)
        self.job_id, self.state, self.code = job_id, state, code
