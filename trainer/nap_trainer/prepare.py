"""What a training needs before its first step: the model's card, the marks of its texts, and the rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nap_runtime.errors import UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard, read_card
from nap_runtime.models.shapes import shape_config
from nap_runtime.models.tokenizer import EOS, MASK, UNK, Tokenizer, copy_tokenizer, load_tokenizer
from nap_trainer.batches.formats import Marks, formed
from nap_trainer.batches.procedural import SETS, set_tokenizer
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.batches.sources import training_table
from nap_trainer.settings import DataSection, ModelSection, TrainConfig

_WORD = re.compile("[a-z]+")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything but weights.

    Attributes:
        card: the model's; of a new shape its folder holds the tokenizer only.
        marks: what frames texts.
        table: the rows as they are laid out.
        words_V, unknown_id: which ids are words, and what replaces them (`data.unknown`).
    """

    card: ModelCard
    marks: Marks
    table: SegmentTable
    words_V: Tensor | None = None
    unknown_id: int = 0


def prepare(settings: TrainConfig, device: torch.device, table: SegmentTable | None = None) -> Prepared:
    """Read the model's card and the rows (`table`: rows that are there already, not yet formed).

    Raises:
        UsageError, ModelError, DataError: the configuration, the model or a row cannot be used.
    """
    card = model_card(settings.model, Path(settings.run.out) / "tokenizer")
    assert card.tokenizer is not None
    data = settings.data
    marks = Marks.of_text(card) if data.format == "text" else Marks.of(card, max(data.paths))
    rows = training_table(data, card.tokenizer) if table is None else table
    words_V, unknown_id = _words(data, card, device)
    return Prepared(card=card, marks=marks, table=formed(rows, data, marks), words_V=words_V, unknown_id=unknown_id)


def model_card(model: ModelSection, scratch: Path) -> ModelCard:
    """The card of `model.init`, or of a new shape, whose tokenizer is written into `scratch`.

    Raises:
        UsageError: the shape or its tokenizer is unknown.
        ModelError: the folder is no model, or has no tokenizer.
    """
    if model.init is not None:
        card = read_card(model.init)
        if card.tokenizer is None:
            raise UsageError(f"model.init: {model.init} has no tokenizer; training texts need one", field="model.init")
        return card
    scratch.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(model, scratch)
    config = shape_config(str(model.shape), **model.overrides)
    if model.tokenizer in SETS:
        config = _fitted(config, tokenizer)
    name = str(model.shape)
    return ModelCard(name=name, path=scratch, config=config, tokenizer=tokenizer, fingerprint=f"new {name}")


def _tokenizer(model: ModelSection, scratch: Path) -> Tokenizer:
    if model.tokenizer in SETS:
        return set_tokenizer(str(model.tokenizer), scratch)
    source = Path(str(model.tokenizer))
    copied = copy_tokenizer(source, scratch) if source.is_dir() else []
    found = load_tokenizer(scratch) if copied else None
    if found is None:
        known = ", ".join(SETS)
        raise UsageError(f"model.tokenizer: use {known}, or a folder with tokenizer.json", field="model.tokenizer")
    return found


def _fitted(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The shape with the special ids of a word tokenizer, and a vocabulary that is a multiple of 8."""
    mask, eos = (tokenizer.token_id(token) for token in (MASK, EOS))
    assert mask is not None
    assert eos is not None
    size = -(-len(tokenizer) // 8) * 8
    return replace(config, vocab_size=size, mask_id=mask, eos_id=eos, pad_id=eos, bos_id=None, end_ids=(eos,))


def _words(data: DataSection, card: ModelCard, device: torch.device) -> tuple[Tensor | None, int]:
    """Which ids are words, [V], and the unknown token's id."""
    if not data.unknown:
        return None, 0
    tokenizer = card.tokenizer
    unknown = None if tokenizer is None else tokenizer.token_id(UNK)
    if tokenizer is None or unknown is None:
        raise UsageError("data.unknown: the model's tokenizer has no unknown token; leave it out", field="data.unknown")
    is_word = [bool(_WORD.fullmatch(tokenizer.decode([token]))) for token in range(card.config.vocab_size)]
    return torch.tensor(is_word, device=device), unknown
