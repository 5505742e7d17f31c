"""Whether checkpoints in a folder belong to the training that is about to go on from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nap_runtime.errors import UsageError
from nap_trainer.ranks import Ranks
from nap_trainer.settings import TrainConfig
from nap_trainer.zero import checkpoints

# What may change between two starts of one training: what is left where, and how the same arithmetic is spread.
FREE = ("run", "evaluate", "zero", "data.processes", "schedule.micro_batch")
# Of these, what the weights depend on all the same.
BOUND = ("run.seed", "zero.clip")


def check_same_training(settings: TrainConfig, folder: Path, ranks: Ranks) -> None:
    """Compare a configuration with that of the checkpoint in `folder` that would be resumed. Every rank calls it.

    Raises:
        UsageError: they differ in something that the training depends on; the first such key is named.
        ModelError: the checkpoint is damaged.
    """
    with ranks.together(UsageError):
        name = checkpoints.latest(folder) if ranks.leads else ""
        if not name:
            return
        found = checkpoints.read_meta(folder / name).client.get("config")
        key = None if found is None else first_difference(found, settings)
        if key is not None:
            was, now = dict(_flat(found)).get(key), dict(_flat(settings.to_mapping())).get(key)
            text = f"{folder.parent} holds another training: {key} was {was!r}, now it is {now!r}"
            raise UsageError(f"run.out: {text}; use another folder, or change it back", field="run.out")


def first_difference(found: Mapping[str, Any], settings: TrainConfig) -> str | None:
    """The first key (`section.key`) that binds and differs; None if there is none.

    A key that the other configuration lacks, because it is of an older version, counts as its default.
    """
    with suppress(UsageError):  # one of a newer version is compared as it is
        found = TrainConfig.from_mapping(found).to_mapping()
    was, now = dict(_flat(found)), dict(_flat(settings.to_mapping()))
    return next((key for key in {**now, **was} if _binds(key) and was.get(key) != now.get(key)), None)


def _binds(key: str) -> bool:
    return key in BOUND or not any(key == free or key.startswith(f"{free}.") for free in FREE)


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`section.key`, value) of everything that is no mapping."""
    if not isinstance(values, Mapping) or not values:
        yield prefix, values
        return
    for key, value in values.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
