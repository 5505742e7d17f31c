"""Checkpoints of a training: one folder a step, and `latest`, which names the one to go on from.

A folder ``step-XXXXXXXX`` holds DeepSpeed's files of every rank and, written last, ``checkpoint.json``: step, the
caller's own values, how the state was spread, and every file's size. Only when all of that is on disk is `latest`
renamed into place, and only then are older folders removed. So a process may die at any moment: `latest` always names
a whole checkpoint, and a folder without ``checkpoint.json`` is left over and goes with the next save or resume.

Nothing is unpickled freely: torch reads the files of a checkpoint with `weights_only`, which DeepSpeed does not ask for
by itself (`trusted.plain_loads`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.files import write_text_atomic
from nap_trainer.zero.optim import split_parameters
from nap_trainer.zero.trusted import plain_loads

if TYPE_CHECKING:
    from nap_trainer.zero.engine import ZeroEngine

LATEST, META = "latest", "checkpoint.json"
_NAME = re.compile(r"step-\d{8}(\.\d+)?")


class Meta(BaseModel):
    """What ``checkpoint.json`` says. ``trained``: shape of each parameter that trains, in the optimizer's order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    step: int
    client: dict[str, Any]
    stage: int
    world: int
    precision: str
    offloaded: bool
    optimizer: str
    trained: dict[str, tuple[int, ...]]
    files: dict[str, int]

    def spread_as(self, other: Meta) -> bool:
        """Whether DeepSpeed's files of one can be read by the other as they are."""
        if self.stage == other.stage == 0:
            return True  # every rank has everything
        names = ("stage", "world", "precision", "offloaded")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def describe(engine: ZeroEngine, *, step: int, client: dict[str, Any]) -> Meta:
    """What a checkpoint of this engine says of itself; `files` is still empty."""
    names = {param: name for name, param in engine.module.named_parameters()}
    matrices, others = split_parameters(engine.module)
    order = [*matrices, *others] if engine.optimizer.kind == "muon" else [*others, *matrices]
    return Meta(
        step=step,
        client=client,
        stage=engine.zero.stage,
        world=engine.ranks.world,
        precision="bfloat16" if engine.zero.precision == "bfloat16" else "float32",
        offloaded=engine.zero.offload_optimizer == "cpu",
        optimizer=engine.optimizer.kind,
        trained={names[param]: tuple(getattr(param, "ds_shape", param.shape)) for param in order},
        files={},
    )


def save(engine: ZeroEngine, folder: Path, *, step: int, client: dict[str, Any], keep: int) -> None:
    """Write one checkpoint and let `latest` name it; then remove all but the newest `keep`. Every rank calls it.

    `client` is the caller's own JSON (rank 0's is kept). The folder must be one that every rank sees.

    Raises:
        UsageError: `client` is no JSON.
        ModelError: rank 0 could not write.
    """
    ranks, name = engine.ranks, ""
    with ranks.together(UsageError):
        meta = _checked(describe(engine, step=step, client=client))
    with ranks.together():
        if ranks.leads:
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
            name = _free_name(folder, step)
            (folder / name).mkdir()
    name = ranks.told(name)
    with redirect_stdout(StringIO()):
        # Frozen parameters never change: whoever resumes builds them as before.
        engine.inner.save_checkpoint(str(folder), tag=name, save_latest=False, exclude_frozen_parameters=True)
    ranks.barrier()
    with ranks.together():
        if ranks.leads:
            _finish(folder, name, meta)
            _prune(folder, keep)


def resume(engine: ZeroEngine, folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Load the checkpoint that `latest` names; its step and client, or None where there is none. Every rank calls it.

    At the same stage, number of ranks and precision the state is the saved one, bit for bit. Otherwise it goes through
    DeepSpeed's universal format. Rates and other settings of the optimizer are this engine's, not the saved ones.

    Raises:
        ModelError: the checkpoint is damaged or cannot be converted.
        UsageError: it is of another optimizer or of other parameters.
    """
    ranks, text = engine.ranks, ""
    with ranks.together():
        if ranks.leads:
            remove_unfinished(folder)
            name = latest(folder)
            text = name and json.dumps([name, read_meta(folder / name).model_dump(mode="json")])
    text = ranks.told(text)
    if not text:
        return None
    name, values = json.loads(text)
    meta = Meta.model_validate(values)
    here = describe(engine, step=meta.step, client={})
    _check_same_training(folder / name, meta, here)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in engine.groups]
    if meta.spread_as(here):
        with plain_loads(folder / name, "loaded"), redirect_stdout(StringIO()):
            engine.inner.load_checkpoint(str(folder), tag=name, load_module_strict=False)
    else:
        from nap_trainer.zero import universal

        universal.load(engine, folder / name, meta, here)
    for group, kept in zip(engine.groups, settings, strict=True):
        group.update(kept)
    if hasattr(engine.inner.optimizer, "clip_grad"):
        engine.inner.optimizer.clip_grad = engine.zero.clip
    return meta.step, meta.client


def latest(folder: Path) -> str:
    """The name of the checkpoint to go on from; empty if there is none.

    Where `latest` is missing (the first save died just before it), the newest whole folder is taken.
    """
    file = folder / LATEST
    if file.is_file():
        name = file.read_text(encoding="utf-8").strip()
        if not _NAME.fullmatch(name):
            raise ModelError(f"{file} does not name a checkpoint: write the name of a step folder into it")
        return name
    return max(_finished(folder), default="", key=_order)


def read_meta(path: Path) -> Meta:
    """What a checkpoint folder says of itself, after checking that its files are whole; ModelError if not."""
    try:
        meta = Meta.model_validate_json((path / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "its format is another" if isinstance(error, ValidationError) else "unreadable"
        raise ModelError(f"{path / META}: {reason}: name another checkpoint in {path.parent / LATEST}") from None
    for name, size in meta.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise ModelError(f"{file} is missing or cut off: name another checkpoint in {path.parent / LATEST}")
    return meta


def remove_unfinished(folder: Path) -> None:
    """Delete step folders without ``checkpoint.json``: of saves or removals that died."""
    for path in _folders(folder):
        if not (path / META).exists():
            shutil.rmtree(path)


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def _finished(folder: Path) -> list[str]:
    return [path.name for path in _folders(folder) if (path / META).exists()]


def _order(name: str) -> tuple[int, int]:
    step, _, copy = name.removeprefix("step-").partition(".")
    return int(step), int(copy or 0)


def _free_name(folder: Path, step: int) -> str:
    """`step-XXXXXXXX`, or with `.1`, `.2` … where a whole checkpoint of that step must stay until this one is."""
    name, copy = f"step-{step:08d}", 0
    while (folder / name).exists():
        copy += 1
        name = f"step-{step:08d}.{copy}"
    return name


def _checked(meta: Meta) -> Meta:
    try:
        text = json.dumps(meta.client, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"client: a checkpoint holds plain JSON only ({error})", field="client") from None
    if json.loads(text) != meta.client:
        raise UsageError("client: JSON would change it; use text keys, lists and plain values", field="client")
    return meta


def _finish(folder: Path, name: str, meta: Meta) -> None:
    path = folder / name
    files = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    for file in files:
        _sync(path / file)
    whole = meta.model_copy(update={"files": files})
    write_text_atomic(path / META, whole.model_dump_json(indent=1) + "\n")
    _sync(path / META)
    _sync(path)
    write_text_atomic(folder / LATEST, name + "\n")
    _sync(folder / LATEST)
    _sync(folder)


def _prune(folder: Path, keep: int) -> None:
    current = latest(folder)
    others = sorted((name for name in _finished(folder) if name != current), key=_order, reverse=True)
    for name in others[max(keep, 1) - 1 :]:
        (folder / name / META).unlink()  # from here on it counts as unfinished
        shutil.rmtree(folder / name)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_same_training(path: Path, meta: Meta, here: Meta) -> None:
    if meta.optimizer != here.optimizer:
        text = f"{path} was trained with {meta.optimizer}, not {here.optimizer}: change it back, or start anew"
        raise UsageError(text, field="optimizer.kind")
    if meta.trained != here.trained:
        differing = [
            name for name in {**meta.trained, **here.trained} if meta.trained.get(name) != here.trained.get(name)
        ]
        what = differing[0] if differing else "their order"
        raise UsageError(f"{path} holds other parameters than this model ({what}): use its model and lora settings")
