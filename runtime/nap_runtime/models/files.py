"""Atomic files: written beside their target under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path in the target's folder; renamed to the target on success, else removed.

    An OSError of making or renaming it names the target, not the temporary path, which no user has asked for.
    """
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with naming(target):
            temporary.chmod(0o644)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Raise an OSError as one of `target`, whatever path it was met at."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def write_text_atomic(target: Path, text: str) -> None:
    """Write UTF-8 text so that readers see the old file or the whole new one."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
