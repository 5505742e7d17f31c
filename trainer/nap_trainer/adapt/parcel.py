"""Large files in parts of a bounded size, for a machine that takes only so much at a time.

A parcel is a folder of `part-000 …` and `parcel.json`: which bytes of which file are in which part, and every hash.
Parts may arrive one by one; `unpack` says which are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.files import atomic_path, write_text_atomic

INDEX = "parcel.json"
PART_BYTES = 45_000_000


def pack(paths: Sequence[Path], out: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """Cut files, or the files of folders, into parts; returns the parts and the index.

    Raises:
        UsageError: a path does not exist, two files have one name, or `out` holds a parcel.
    """
    if part_bytes < 1:
        raise UsageError(f"part-bytes: {part_bytes} is less than 1", field="part_bytes")
    if (out / INDEX).exists():
        raise UsageError(f"out: {out} already holds a parcel; choose another folder", field="out")
    files = _listed(paths)
    parts: list[Path] = []
    index = []
    for name, file in files.items():
        pieces = []
        with file.open("rb") as stream:
            while block := stream.read(part_bytes):
                part = out / f"part-{len(parts):03d}"
                with atomic_path(part) as temporary:
                    temporary.write_bytes(block)
                pieces.append({"part": part.name, "bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()})
                parts.append(part)
        index.append({"file": name, "bytes": file.stat().st_size, "pieces": pieces})
    write_text_atomic(out / INDEX, json.dumps({"files": index}, indent=1) + "\n")
    return [*parts, out / INDEX]


def unpack(parcel: Path, out: Path) -> list[Path]:
    """Put the files of a parcel together again; those that are there with the right size are left alone.

    Raises:
        UsageError: there is no parcel.
        DataError: parts are missing or damaged; they are named.
    """
    made = []
    for entry in _index(parcel):
        target = out / _safe(str(entry["file"]), parcel)
        if not target.exists() or target.stat().st_size != entry["bytes"]:
            _check(parcel, entry)
            with atomic_path(target) as temporary, temporary.open("wb") as stream:
                for piece in entry["pieces"]:
                    stream.write((parcel / _safe(str(piece["part"]), parcel)).read_bytes())
        made.append(target)
    return made


def _listed(paths: Sequence[Path]) -> dict[str, Path]:
    """Name in the parcel to file: a folder's files by their own names."""
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"pack: {path} does not exist", field="paths")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.name in found:
                raise UsageError(f"pack: two files are named {file.name}", field="paths")
            if file.is_file():
                found[file.name] = file
    return found


def _index(parcel: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads((parcel / INDEX).read_text(encoding="utf-8"))["files"])
    except OSError:
        raise UsageError(f"parcel: {parcel / INDEX} does not exist", field="parcel") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{parcel / INDEX}: no index of a parcel ({error})") from None


def _check(parcel: Path, entry: dict[str, Any]) -> None:
    wrong = [piece["part"] for piece in entry["pieces"] if not _intact(parcel / str(piece["part"]), piece)]
    if wrong:
        raise DataError(f"{parcel}: {entry['file']}: missing or damaged: {', '.join(wrong)}")


def _intact(part: Path, piece: dict[str, Any]) -> bool:
    return part.is_file() and hashlib.sha256(part.read_bytes()).hexdigest() == piece["sha256"]


def _safe(name: str, parcel: Path) -> str:
    if Path(name).name != name:
        raise DataError(f"{parcel}: {name!r} is no plain file name")
    return name
