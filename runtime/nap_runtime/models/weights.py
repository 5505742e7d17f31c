"""Safetensors on disk: one file, or shards listed by ``model.safetensors.index.json``.

Every failure is a ModelError of one line that names the file, the tensor and the mend.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nap_runtime.errors import ModelError
from nap_runtime.models.files import naming
from nap_runtime.models.parts import Part

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 4 * 1024**3

_FLOAT_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_SAMPLES, _SAMPLE_BYTES = 16, 16 * 1024


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """A safetensors file opened lazily on the CPU (memory-mapped); ModelError if it is not whole."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist: copy the missing shard into the model folder") from None
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} is truncated or corrupt ({reason}): copy or download it again") from None


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder, in a fixed order; ModelError if any is missing."""
    if (path / INDEX_NAME).is_file():
        names = sorted(set(_weight_map(path / INDEX_NAME).values()))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            count = f"{len(missing)} of {len(names)} shards"
            raise ModelError(f"{path / missing[0]} does not exist ({count} missing): copy it from the checkpoint")
        return [path / name for name in names]
    if (path / SINGLE_NAME).is_file():
        return [path / SINGLE_NAME]
    raise ModelError(f"{path} holds neither {SINGLE_NAME} nor {INDEX_NAME}: give a folder with safetensors weights")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard name; shards must lie in the index's own folder."""
    try:
        mapping = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(name) for tensor, name in mapping.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{index} is no shard index (weight_map: tensor to file): copy it again") from None
    outside = [name for name in names.values() if Path(name).name != name]
    if outside:
        raise ModelError(f"{index} names {outside[0]!r}, which is outside the model folder")
    return names


def locate_tensors(path: Path) -> dict[str, Path]:
    """Where each tensor of the folder lies, read from the files' own headers."""
    places: dict[str, Path] = {}
    for file in weight_files(path):
        with open_weights(file) as opened:
            places |= dict.fromkeys(opened.keys(), file)
    return places


def check_tensors(path: Path, parts: Sequence[Part], may_ignore: Callable[[str], bool]) -> dict[Path, list[Part]]:
    """The parts of each file, after checking that exactly the expected tensors are there."""
    places = locate_tensors(path)
    expected = {part.name for part in parts}
    missing = [part.name for part in parts if part.name not in places]
    if missing:
        total = f"{len(missing)} of {len(parts)} tensors missing"
        raise ModelError(f"{path}: tensor {missing[0]!r} is missing ({total}): config.json and weights do not match")
    extra = sorted(name for name in places if name not in expected and not may_ignore(name))
    if extra:
        where = places[extra[0]].name
        raise ModelError(f"{path / where}: tensor {extra[0]!r} is not part of this model: check config.json")
    by_file: dict[Path, list[Part]] = {}
    for part in parts:
        by_file.setdefault(places[part.name], []).append(part)
    return by_file


def read_part(opened: Any, file: Path, part: Part) -> Tensor:
    """One tensor as it is on disk; ModelError if its shape or dtype does not fit."""
    header = opened.get_slice(part.name)
    shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if shape != part.shape:
        expected = f"{list(part.shape)} expected from config.json"
        raise ModelError(f"{file}: tensor {part.name!r} has shape {list(shape)}, {expected}: fix one of the two")
    if dtype not in _FLOAT_DTYPES:
        raise ModelError(f"{file}: tensor {part.name!r} is {dtype}: only float weights load, use an unquantised model")
    return opened.get_tensor(part.name)  # type: ignore[no-any-return]


def stored_dtypes(path: Path) -> list[str]:
    """The names of the dtypes that the folder's tensors have, sorted."""
    found: set[str] = set()
    for file in weight_files(path):
        with open_weights(file) as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return sorted(_FLOAT_DTYPES.get(name, name) for name in found)


def plan_shards(parts: Sequence[Part], itemsize: int, max_shard_bytes: int) -> list[list[Part]]:
    """Consecutive parts grouped so that no shard exceeds the limit (unless one tensor alone does)."""
    shards: list[list[Part]] = [[]]
    used = 0
    for part in parts:
        size = part.numel * itemsize
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(part)
        used += size
    return shards


def write_weights(
    path: Path,
    parts: Sequence[Part],
    provide: Callable[[Part], Tensor],
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the parts into an existing folder, one shard in memory at a time.

    ``provide`` returns a part's tensor (any device); it is converted to ``dtype``. One shard makes
    ``model.safetensors``, several make numbered files and an index.
    """
    shards = plan_shards(parts, dtype.itemsize, max_shard_bytes)
    total = len(shards)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_NAME if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
        tensors = {part.name: provide(part).detach().to("cpu", dtype).contiguous() for part in shard}
        save_file(tensors, str(path / name), metadata={"format": "pt"})
        (path / name).chmod(0o644)
        weight_map |= {part.name: name for part in shard}
    if total > 1:
        size = sum(part.numel for part in parts) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (path / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target that takes its place on success and vanishes on failure.

    A target that does not exist appears in one rename. In one that does, files are renamed in one by
    one, config.json last, and weights of an earlier save that are no longer listed are removed.
    """
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    with staging as name:
        staged = Path(name) / "staged"
        staged.mkdir()
        yield staged
        if target.exists():
            _move_into(staged, target)
        else:
            staged.rename(target)


def _move_into(staged: Path, target: Path) -> None:
    fresh = {file.name for file in staged.iterdir()}
    old = [*target.glob("model*.safetensors"), target / INDEX_NAME]
    for file in sorted(staged.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(target / file.name)
    for file in old:
        if file.name not in fresh:
            file.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """sha256 over config.json and the weight files' names, sizes and evenly spaced samples.

    Cheap (at most 256 KiB is read per file) and independent of where the folder lies. It tells
    checkpoints apart; it is no proof against a forger.
    """
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in weight_files(path):
        size = file.stat().st_size
        digest.update(f"\0{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(sample * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
