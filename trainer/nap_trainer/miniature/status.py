"""What a run has and lacks, and how its results travel."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nap_runtime.errors import UsageError
from nap_trainer.miniature.driver import Driver, missing
from nap_trainer.miniature.schedule import chosen_tests
from nap_trainer.miniature.store import Store

PART_BYTES = 15 << 20


def lines(driver: Driver) -> Iterator[str]:
    """One line a fact."""
    study, store = driver.study, driver.store
    models, absent = study.models(), list(missing(driver))
    yield f"trained {len(models) - len(absent)} of {len(models)}" + (f"; missing {', '.join(absent)}" if absent else "")
    wanted = len(study.seeds) * len(study.per_step)
    yield f"searches ended {len(store.choices())} of {wanted}"
    for row in store.choice_rows():
        yield f"  {row['arm']} at {row['per_step']} tokens a step: {row['setting']}"
    for stage, units in (("test", chosen_tests(study, store)), ("order", study.orders())):
        done = sum(store.decode(unit).exists() or store.graded(unit).exists() for unit in units)
        yield f"{stage} decodes {done} of {len(units)}"
    seconds: Counter[str] = Counter()
    for row in store.ledger():
        seconds[row["kind"]] += row["seconds"]
    yield "seconds: " + ", ".join(f"{kind} {total:.0f}" for kind, total in seconds.items())


def pack(store: Store, out: Path, limit: int = PART_BYTES, *, models: bool = False) -> list[Path]:
    """Write the results, and models where asked for, as tar files of at most `limit` bytes; unpack all in one folder.

    Raises:
        UsageError: a single file exceeds the limit.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts: list[list[Path]] = [[]]
    room = limit
    for path in store.results(models=models):
        size = path.stat().st_size + 2048  # header and padding of a tar member
        if size > limit:
            raise UsageError(f"pack: {path} alone exceeds {limit} bytes", field="pack")
        if size > room:
            parts.append([])
            room = limit
        parts[-1].append(path)
        room -= size
    written = []
    for number, paths in enumerate(parts):
        target = out / f"part-{number}.tar"
        with tarfile.open(target, "w") as tar:
            for path in paths:
                tar.add(path, arcname=str(path.relative_to(store.root)))
        written.append(target)
    return written
