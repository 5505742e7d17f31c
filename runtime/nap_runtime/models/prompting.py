"""From a question and a config to a canvas: the model's decode defaults, prompt ids, headers, layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.headers import STYLES, OwnHeaders, read_headers
from nap_runtime.job import DecodeConfig
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.tokenizer import Tokenizer
from nap_runtime.policy import CONSENSUS_TOP, SyncPolicy, Topology

_Blocks = tuple[tuple[int, ...], ...]  # ids of each block, the summary's last


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeDefaults:
    """What a model was trained with; `decode.json` in its folder overrides the paper's figures."""

    paths: int = 3
    path_tokens: int = 330
    summary_tokens: int = 32
    gen_length: int = 128
    eos_weight: float = 1.0
    topology: Topology | None = None  # of canvases with paths; None: not known, or all of them

    @classmethod
    def of(cls, folder: Path) -> DecodeDefaults:
        """The defaults of a model folder.

        Raises:
            ModelError: `decode.json` is not an object with known keys.
        """
        file = folder / "decode.json"
        if not file.exists():
            return cls()
        try:
            values: Mapping[str, Any] = json.loads(file.read_text())
            defaults = cls(**values)
            DecodeConfig(paths=defaults.paths, path_tokens=defaults.path_tokens, summary_tokens=defaults.summary_tokens)
            DecodeConfig(layout="plain", gen_length=defaults.gen_length, eos_weight=defaults.eos_weight)
            SyncPolicy(topology=defaults.topology)
            return defaults
        except (TypeError, ValueError, RecursionError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise ModelError(f"{file}: {error}; known keys are {known}") from error


def resolve(config: DecodeConfig, defaults: DecodeDefaults) -> DecodeConfig:
    """The same config with every default written out, so that a record or a printed config repeats the run.

    Raises:
        UsageError: its sync needs another topology than the model was trained with, and none was asked for.
    """
    changes: dict[str, Any] = {"rule": config.picks_by, "scope": config.picks_over, **config.defaults_of_rule()}
    nap = config.layout == "nap"
    wanted: tuple[str, ...] = ("paths", "path_tokens", "summary_tokens") if nap else ("gen_length",)
    if config.ranks_by_confidence:
        wanted += ("eos_weight",)
    for name in wanted:
        if getattr(config, name) is None:
            changes[name] = getattr(defaults, name)
    if nap and config.headers is None:
        changes["headers"] = "nap"
    if nap and isinstance(config.path_tokens, tuple):
        changes["paths"] = config.n_paths
    summary = (config.sync.summary or "gather") if nap else None
    top = config.sync.top or (CONSENSUS_TOP if summary == "consensus" else None)
    changes["sync"] = replace(config.sync, topology=_topology(config, defaults), summary=summary, top=top)
    return replace(config, **changes)


def _topology(config: DecodeConfig, defaults: DecodeDefaults) -> Topology:
    """Who sees whom: as asked for, else as the model was trained, else as the sync has it."""
    sync, trained = config.sync, defaults.topology
    if sync.topology is not None or trained is None or config.layout == "plain":
        return sync.sees
    if sync.mode in ("shared", "kv") and sync.sees != trained:
        text = (
            f"topology: sync '{sync.mode}' needs '{sync.sees}', and the model was trained with '{trained}'; "
            f"choose another sync, or give topology '{sync.sees}' to decode it so all the same"
        )
        raise UsageError(text, field="topology")
    return trained


def prompt_ids(card: ModelCard, question: str) -> tuple[int, ...]:
    """The prompt as the model expects it: chat template applied where its tokenizer has one.

    A model without a tokenizer (random weights) gets the UTF-8 bytes modulo its vocabulary.

    Raises:
        UsageError: the question is empty or no text.
    """
    if not question.strip():
        raise UsageError("prompt: it is empty; give a question", field="prompt")
    try:
        data = question.encode()
    except UnicodeEncodeError:
        raise UsageError("prompt: it is not valid Unicode text", field="prompt") from None
    if card.tokenizer is None:
        ids = [byte % card.config.vocab_size for byte in data]
    else:
        ids = card.tokenizer.encode_prompt(question)
    if not ids:
        raise UsageError("prompt: no token is left of it; give a question", field="prompt")
    return tuple(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Header and end-tag texts of the blocks, the summary's last; None for a block without an end tag."""

    headers: tuple[str, ...]
    ends: tuple[str | None, ...]


def _texts(config: DecodeConfig, newline: str) -> _Texts:
    numbers = range(1, config.n_paths + 1)
    if config.headers == "nap":
        headers = (*(f"<think {j}>{newline}" for j in numbers), f"<summary>{newline}")
        return _Texts(headers=headers, ends=(*(f"</think {j}>" for j in numbers), "</summary>"))
    if config.headers == "text":
        headers = (*(f"<think #{j}>{newline}" for j in numbers), f"<summary>{newline}")
        return _Texts(headers=headers, ends=("</think>",) * config.n_paths + ("</summary>",))
    return _own_texts(read_headers(str(config.headers)), config.n_paths)


def _own_texts(own: OwnHeaders, paths: int) -> _Texts:
    for key, texts in (("path headers", own.paths), ("path ends", own.path_ends)):
        if texts is not None and len(texts) != paths:
            raise own.wrong(f"{len(texts)} {key}, the canvas has {paths} paths")
    return _Texts(headers=(*own.paths, own.summary), ends=(*(own.path_ends or (None,) * paths), own.summary_end))


def _check_headers(own: OwnHeaders, tokenizer: Tokenizer, mask_id: int) -> None:
    """Check texts against the tokenizer that reads them."""
    for text in (*own.paths, own.summary):
        ids = tokenizer.encode(text)
        if not ids:
            raise own.wrong(f"no token is left of the header {text!r}")
        if mask_id in ids:
            raise own.wrong(f"the header {text!r} contains the mask token")
    for end in (*(own.path_ends or ()), own.summary_end):
        if end is not None and tokenizer.token_id(end) in (None, mask_id):
            raise own.wrong(f"the end {end!r} is not one token of the model's tokenizer, or is its mask")


def build_layout(card: ModelCard, config: DecodeConfig, prompt_tokens: int) -> CanvasLayout:
    """The layout of a resolved config for a prompt of `prompt_tokens`.

    Raises:
        UsageError: the canvas is longer than the model's context, or a header is empty.
    """
    model = card.config
    layout = _plain(config, model, prompt_tokens) if config.layout == "plain" else _nap(card, config, prompt_tokens)
    if layout.size > model.max_positions:
        raise UsageError(
            f"prompt: with {prompt_tokens} prompt tokens the canvas has {layout.size} positions; "
            f"the model's context is {model.max_positions}",
            field="prompt",
        )
    return layout


def _plain(config: DecodeConfig, model: ModelConfig, prompt_tokens: int) -> CanvasLayout:
    return CanvasLayout(
        kind="plain",
        prompt_tokens=prompt_tokens,
        headers=((),),
        budgets=(config.gen_length or DecodeDefaults().gen_length,),
        summary_header=(),
        summary_budget=0,
        end_ids=(model.end_ids, model.end_ids),
        mask_id=model.mask_id,
        fill_id=model.eos_id,
    )


def _nap(card: ModelCard, config: DecodeConfig, prompt_tokens: int) -> CanvasLayout:
    budgets = config.path_tokens if isinstance(config.path_tokens, tuple) else (config.path_tokens,) * config.n_paths
    headers: _Blocks
    ends: _Blocks
    if card.tokenizer is None:
        headers = tuple((_free_id(card.config, j),) for j in range(config.n_paths + 1))
        ends = (card.config.end_ids,) * (config.n_paths + 1)
    else:
        headers, ends = block_ids(card, config)
    return CanvasLayout(
        kind="nap",
        prompt_tokens=prompt_tokens,
        headers=headers[:-1],
        budgets=tuple(int(b) for b in budgets if b is not None),
        summary_header=headers[-1],
        summary_budget=config.summary_tokens or DecodeDefaults().summary_tokens,
        end_ids=ends,
        mask_id=card.config.mask_id,
        fill_id=card.config.eos_id,
    )


def block_ids(card: ModelCard, config: DecodeConfig) -> tuple[_Blocks, _Blocks]:
    """Ids of each block's header, and the ids that close it (its end tag first, where that is one token).

    Raises:
        UsageError: a header of a file is empty or holds the mask; `card` must have a tokenizer.
    """
    tokenizer = card.tokenizer
    assert tokenizer is not None
    texts = _texts(config, newline="" if card.config.family == "nap" else "\n")
    if config.headers not in STYLES:
        _check_headers(read_headers(str(config.headers)), tokenizer, card.config.mask_id)
    tags = tuple(None if end is None else tokenizer.token_id(end) for end in texts.ends)
    headers = tuple(tuple(tokenizer.encode(header)) for header in texts.headers)
    return headers, tuple((*(() if tag is None else (tag,)), *card.config.end_ids) for tag in tags)


def _free_id(model: ModelConfig, number: int) -> int:
    """An id that is neither mask nor end of text, for headers of models without a tokenizer."""
    special = {model.mask_id, model.eos_id, model.pad_id, *model.end_ids}
    ordinary = [token for token in range(min(model.vocab_size, 64)) if token not in special]
    return ordinary[number % len(ordinary)]
