"""`nap model tags`: NAP's tags for a LLaDA or Dream checkpoint, in rows of the vocabulary that no token uses yet.

Both publish more embedding rows than tokens (LLaDA-8B 126464 rows, Dream-7B 152064), so that nothing else changes and
files without an embedding are hard links. Shapes: V rows of a matrix, D width of the model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard, read_card
from nap_runtime.models.parts import Part, checkpoint_parts, ignorable
from nap_runtime.models.tokenizer import TOKENIZER_FILES, PretrainedTokenizer
from nap_runtime.models.weights import INDEX_NAME, check_tensors, open_weights, staged_folder, weight_files
from nap_trainer.adapt.convert import save_tokenizer
from nap_trainer.adapt.tensors import data_bytes, row_statistics, with_rows
from nap_trainer.adapt.vocabulary import SPREAD, TAGS, fresh_row, padded_size

NOTE = "tags.json"
_COPIED = (".json", ".py", ".md")
_MATRICES = ("embed.weight", "head.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagging:
    """What was added; `tags.json` in the folder says the same.

    Attributes:
        source: the folder that was read.
        added: ids of the new tags.
        tokens: of the vocabulary before.
        rows: of the embedding, before and after; equal where there were enough.
        spread: see `nap_trainer.adapt.vocabulary.extended`; mean and deviation are those of rows with a token.
    """

    source: str
    added: Mapping[str, int]
    tokens: int
    rows: tuple[int, int]
    spread: float = SPREAD


def add_tags(source: Path, out: Path) -> tuple[ModelConfig, Tagging]:
    """Write a copy of a model folder whose vocabulary has NAP's tags, each with a row of its own.

    The matrices are streamed with the tags' rows changed; other weights are hard links, or copies on another
    file system. The source is not changed.

    Raises:
        UsageError: `out` holds a model, or the source has every tag.
        ModelError: the source is no model, or has no tokenizer that can be extended.
    """
    if (out / "config.json").exists():
        raise UsageError(f"out: {out} already holds a model; choose another folder", field="out")
    card = read_card(source)
    if not isinstance(card.tokenizer, PretrainedTokenizer):
        raise ModelError(f"{card.path}: it has no tokenizer with a tokenizer_config.json: add the checkpoint's own")
    inner, config = card.tokenizer.inner, card.config
    tokens = 1 + max(inner.get_vocab().values())
    added = _extend(card, inner, tokens)
    enough = max(added.values()) < config.vocab_size
    rows = config.vocab_size if enough else padded_size(config.vocab_size, list(added.values()))
    note = Tagging(source=card.path.resolve().name, added=added, tokens=tokens, rows=(config.vocab_size, rows))
    with staged_folder(out) as staged:
        _weights(card, staged, note)
        _others(card.path, staged)
        save_tokenizer(inner, staged)
        _config(card.path, staged, rows)
        (staged / NOTE).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
    return ModelConfig.from_dir(out), note


def _extend(card: ModelCard, inner: Any, tokens: int) -> dict[str, int]:
    """Add the tags to a tokenizer; their ids."""
    had, config = inner.get_vocab(), card.config
    new = [tag for tag in TAGS if tag not in had]
    if not new:
        raise UsageError(f"source: {card.path} has every tag already: train with it as it is", field="source")
    special = max(config.mask_id, config.eos_id, config.pad_id, *config.end_ids)
    if special >= tokens:
        text = f"its tokenizer ends at id {tokens - 1}, before the special id {special} of config.json"
        raise ModelError(f"{card.path}: {text}: the tags would take that row; use the checkpoint's own tokenizer")
    inner.add_tokens(new, special_tokens=True)
    now = inner.get_vocab()
    return {tag: int(now[tag]) for tag in new}


def _weights(card: ModelCard, staged: Path, note: Tagging) -> None:
    by_file = check_tensors(card.path, checkpoint_parts(card.config), ignorable(card.config))
    for file in weight_files(card.path):
        matrices = [part for part in by_file.get(file, []) if part.param in _MATRICES]
        if matrices:
            with_rows(
                file, staged / file.name, {part.name: (note.rows[1], _rows(file, part, note)) for part in matrices}
            )
        else:
            _link(file, staged / file.name)
    index = card.path / INDEX_NAME
    if index.is_file():
        values = json.loads(index.read_text(encoding="utf-8"))
        values["metadata"] = {"total_size": sum(data_bytes(file) for file in staged.glob("*.safetensors"))}
        (staged / INDEX_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _rows(file: Path, part: Part, note: Tagging) -> dict[int, Tensor]:
    """New values of a matrix: the tags' rows, and the mean in other rows that are new."""
    with open_weights(file) as opened:
        mean_D, std_D = row_statistics(opened.get_slice(part.name), min(note.tokens, note.rows[0]))
    fresh = {at: fresh_row(tag, mean_D, std_D) for tag, at in note.added.items()}
    return dict.fromkeys(range(*note.rows), mean_D) | fresh


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _others(source: Path, staged: Path) -> None:
    """Small files that are neither weights nor tokenizer: generation settings, the authors' code, licence, card."""
    skipped = {"config.json", INDEX_NAME, *TOKENIZER_FILES}
    for file in source.iterdir():
        if file.is_file() and file.name not in skipped and (file.suffix in _COPIED or file.name.startswith("LICENSE")):
            shutil.copyfile(file, staged / file.name)


def _config(source: Path, staged: Path, rows: int) -> None:
    """The source's config.json, with its number of rows if that changed."""
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    values |= {key: rows for key in ("vocab_size", "embedding_size") if key in values}
    (staged / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
