"""Rows as training texts: `prompt` and `response`, as NAP's think-blocks or as one long chain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from nap_runtime.errors import DataError
from nap_runtime.job import MAX_PATHS
from nap_runtime.models.files import atomic_path
from nap_trainer.data.read import good, place, read_rows
from nap_trainer.data.schema import NapExample


def nap_response(example: NapExample) -> str:
    """`<think i>` blocks and the summary, joined by blank lines."""
    blocks = [_block(f"think {number}", path) for number, path in enumerate(example.paths, start=1)]
    return "\n\n".join([*blocks, _block("summary", example.summary)])


def long_cot_response(example: NapExample) -> str:
    """The same trajectories as one chain in one `<think>` block, then the summary."""
    chain = "\n\n".join(path.strip() for path in example.paths)
    return "\n\n".join([_block("think", chain), _block("summary", example.summary)])


FORMATS: Mapping[str, Callable[[NapExample], str]] = {"nap": nap_response, "long-cot": long_cot_response}


def serialize(file: Path, out: Path, form: str) -> int:
    """Write every row's `prompt` and `response`; returns how many.

    Raises:
        UsageError: the file cannot be opened.
        DataError: a row is malformed, or has more paths than there are tags; nothing is written then.
    """
    rows = 0
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for item in read_rows(file):
            row = good(file, item)
            example = row.example
            if form == "nap" and len(example.paths) > MAX_PATHS:
                found = f"has {len(example.paths)} entries; the tags go up to <think {MAX_PATHS}>"
                raise DataError(f"{file}: {place(file)} {row.number}: paths: {found}")
            texts = {"prompt": example.question, "response": FORMATS[form](example)}
            named = {} if example.id is None else {"id": example.id}
            stream.write(json.dumps({**named, **texts}, ensure_ascii=False) + "\n")
            rows += 1
    return rows


def _block(tag: str, text: str) -> str:
    return f"<{tag}>\n{text.strip()}\n</{tag}>"
