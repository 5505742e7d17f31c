"""What a run costs, as each worker counts it while it decodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMeters:
    """One worker's counts over one batch. All times in seconds, all sizes in bytes.

    Attributes:
        forwards: times it ran the network (NFE of this worker).
        rows_computed: rows that went through the network, summed over forwards, for one canvas.
        rows_recomputed: those of them that only a sync or refresh asked for (not the worker's own rows).
        syncs: exchanges it took part in (per-layer exchanges of one step count as one sync).
        payload_bytes: content it had to tell: tokens (commits and fills) at 8 bytes, K/V rows, candidates, partial
            attention.
        wire_bytes: what it sent in fact: padded buffers, to each of the W − 1 peers (a ring all-gather sends as much).
        blocked_seconds: packing, waiting for and unpacking exchanged data, with nothing computed meanwhile.
        overlapped_seconds: exchange that ran beside compute.
        compute_seconds: network, head and selection.
        recompute_seconds: the share of `compute_seconds` that went to recomputed rows (by rows).
        first_commit_seconds: from the start of the batch to the end of the first step that committed (None: none did).
    """

    forwards: int = 0
    rows_computed: int = 0
    rows_recomputed: int = 0
    syncs: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    blocked_seconds: float = 0.0
    overlapped_seconds: float = 0.0
    compute_seconds: float = 0.0
    recompute_seconds: float = 0.0
    first_commit_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMeters:
    """A whole run: its workers' meters, ordered by rank, and what the executor timed.

    Attributes:
        seconds: from the first step to the last report, model loaded and workers up.
        seconds_first_commit: from the first step to the first commit on any worker.
        batch: canvases decoded together; the times and bytes are the batch's.
    """

    workers: tuple[WorkerMeters, ...]
    seconds: float
    seconds_first_commit: float
    batch: int = 1
