"""What a run has and lacks, and how its results travel."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nap_runtime.errors import UsageError
from nap_trainer.miniature.driver import Driver, missing
from nap_trainer.miniature.schedule import chosen_tests
from nap_trainer.miniature.study import Model

Kept = Literal["needed", "all", "none"]
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


def undecoded(driver: Driver) -> Iterator[Model]:
    """Models that are trained, and whose weights a search, a test or an order setting still wants."""
    study, store, choices = driver.study, driver.store, driver.store.choices()
    units = [*chosen_tests(study, store), *study.orders()]
    wanting = {unit.model for unit in units if not (store.decode(unit).exists() or store.graded(unit).exists())}
    for model in study.models():
        searched = all((model.arm, per_step) in choices for per_step in study.per_step)
        if store.trained(model) and (model in wanting or not searched):
            yield model


def pack(driver: Driver, out: Path, limit: int = PART_BYTES, *, models: Kept = "needed") -> list[Path]:
    """Write the results as tar files of at most `limit` bytes; unpack all in one folder.

    `models`: weights go along of those that are still to be decoded (`needed`), of `all`, or of `none`.

    Raises:
        UsageError: a single file exceeds the limit.
    """
    store = driver.store
    trained = [model for model in driver.study.models() if store.trained(model)]
    weights = {"needed": list(undecoded(driver)), "all": trained, "none": []}[models]
    out.mkdir(parents=True, exist_ok=True)
    parts: list[list[Path]] = [[]]
    room = limit
    for path in store.results(weights):
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
