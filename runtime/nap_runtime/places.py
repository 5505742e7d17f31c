"""Where a command writes a file: one rule for every `--out`, `--trace` and the like."""

from __future__ import annotations

import os
from pathlib import Path

from nap_runtime.errors import UsageError


def prepare(file: Path, option: str, source: Path | None = None) -> None:
    """Make the folders that lead to a file, and find out before the work, not after it, that it has no place.

    Args:
        option: whose value it is, as errors name it: `out`, `trace` …
        source: what the command reads, which it must not replace.

    Raises:
        UsageError: the file is a folder or `source`, or its folder cannot be made or written to.
    """
    try:
        if file.is_dir():
            raise UsageError(f"{option}: {file} is a folder; give a file", field=option)
        if source is not None and file.exists() and source.exists() and file.samefile(source):
            raise UsageError(f"{option}: {file} is the file that is read; give another", field=option)
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{option}: {file.parent} is a file, not a folder; give another", field=option) from error
    except OSError as error:
        raise UsageError(f"{option}: {file}: {error.strerror}", field=option) from error
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: {file.parent} cannot be written to", field=option)
