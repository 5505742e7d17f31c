"""``model.sha256.json``: the files of a model folder with sizes and checksums.

A manifest names every file that loading may read, so that a copy can be checked before anything of it is used. It
protects against damage; against a forger only where its own digest is known beforehand (``URL#sha256=DIGEST``).

::

    {"version": 1, "files": {"config.json": {"size": 381, "sha256": "5c…"}, …}}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import ModelError
from nap_runtime.models.files import atomic_path

MANIFEST_NAME = "model.sha256.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 4096
MAX_FILE_BYTES = 1 << 40
CHUNK_BYTES = 8 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
# What models and tokenizers are loaded from. Nothing here is ever unpickled or run.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file: its bytes and their SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model folder's files. ``digest`` is the SHA-256 of the manifest file itself: it names the content."""

    files: Mapping[str, FileEntry]
    data: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest's bytes.

        Raises:
            ModelError: it is malformed, names a file that no model has, or names one outside the folder.
        """
        try:
            content = json.loads(data, object_pairs_hook=_without_doubles)
            files = _entries(content)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where} is no manifest ({error}): make it again with `nap model manifest`") from None
        return cls(files=files, data=data)

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Hash the files of a folder; every byte is read.

        Raises:
            ModelError: it holds no model.
        """
        found = sorted(path for path in folder.iterdir() if path.is_file() and _belongs(path.name))
        files = {path.name: FileEntry(size=path.stat().st_size, sha256=sha256_of(path)) for path in found}
        content = {"version": 1, "files": {name: asdict(entry) for name, entry in files.items()}}
        data = (json.dumps(content, indent=1) + "\n").encode()
        try:
            _entries(content)
        except ValueError as error:
            raise ModelError(f"{folder}: {error}; give a model folder") from None
        return cls(files=files, data=data)

    def write(self, folder: Path) -> Path:
        """Put it beside the files it names."""
        target = folder / MANIFEST_NAME
        with atomic_path(target) as temporary:
            temporary.write_bytes(self.data)
        return target

    def damaged(self, folder: Path) -> list[str]:
        """Names of files that are missing or differ; every byte is read."""
        return [name for name, entry in self.files.items() if not matches(folder / name, entry)]


def matches(file: Path, entry: FileEntry) -> bool:
    """Whether a file is there and has the entry's bytes."""
    return file.is_file() and file.stat().st_size == entry.size and sha256_of(file) == entry.sha256


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 in hexadecimal."""
    return _DIGEST.fullmatch(text) is not None


def _belongs(name: str) -> bool:
    return name != MANIFEST_NAME and _NAME.fullmatch(name) is not None and name.endswith(_SUFFIXES)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands in it twice")
    return dict(pairs)


def _entries(content: object) -> dict[str, FileEntry]:
    if not isinstance(content, dict) or set(content) != {"version", "files"} or content["version"] != 1:
        raise ValueError('not {"version": 1, "files": …}')
    files = content["files"]
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        raise ValueError(f"not a mapping of at most {MAX_FILES} files")
    entries = {name: _entry(name, value) for name, value in files.items()}
    if "config.json" not in entries or not any(name.endswith(".safetensors") for name in entries):
        raise ValueError("it names no config.json with safetensors")
    return entries


def _entry(name: str, value: object) -> FileEntry:
    if not _belongs(name):
        raise ValueError(f"{name!r} is no file of a model")
    if not isinstance(value, dict) or set(value) != {"size", "sha256"}:
        raise ValueError(f"{name}: not size and sha256")
    size, digest = value["size"], value["sha256"]
    if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError(f"{name}: its size is not between 0 and {MAX_FILE_BYTES}")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ValueError(f"{name}: no SHA-256")
    return FileEntry(size=size, sha256=digest)
