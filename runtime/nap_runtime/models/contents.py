"""Digests of what files hold: stored results are taken up only where what they depend on is still the same.

A file's SHA-256 is kept while this process lives, as long as its path, size and time of change stay.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from nap_runtime.models.manifest import sha256_of

# What a causal LM's folder is read from: configurations, weights, and tokenizers of all kinds.
_OF_MODELS = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")


def digest_of_file(file: Path) -> str:
    """SHA-256 of a file's bytes; its name and place do not count."""
    status = file.stat()
    return _sha256(file.resolve(), status.st_size, status.st_mtime_ns)


def digest_of_model(path: Path) -> str:
    """SHA-256 of a causal model: of its one file, or of the names and bytes of those in its folder that are read."""
    if path.is_file():
        return digest_of_file(path)
    files = sorted(file for file in path.iterdir() if file.suffix in _OF_MODELS and file.is_file())
    whole = "".join(f"{file.name}\0{digest_of_file(file)}\n" for file in files)
    return hashlib.sha256(whole.encode()).hexdigest()


@lru_cache(maxsize=1024)
def _sha256(file: Path, size: int, changed: int) -> str:
    """The other two only tell one state of the file from another."""
    return sha256_of(file)
