"""From a question and a config to a canvas: the model's decode defaults, prompt ids, headers, layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.job import DecodeConfig
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.tokenizer import Tokenizer

_Blocks = tuple[tuple[int, ...], ...]  # ids of each block, the summary's last


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeDefaults:
    """What a model was trained with; `decode.json` in its folder overrides the paper's figures."""

    paths: int = 3
    path_tokens: int = 330
    summary_tokens: int = 32
    gen_length: int = 128
    eos_weight: float = 1.0

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
            return cls(**values)
        except (TypeError, ValueError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise ModelError(f"{file}: {error}; known keys are {known}") from error


def resolve(config: DecodeConfig, defaults: DecodeDefaults) -> DecodeConfig:
    """The same config with every default written out, so that a record or a printed config repeats the run."""
    changes: dict[str, Any] = {"rule": config.picks_by, "scope": config.picks_over}
    nap = config.layout == "nap"
    wanted = ("paths", "path_tokens", "summary_tokens") if nap else ("gen_length",)
    for name in (*wanted, "eos_weight"):
        if getattr(config, name) is None:
            changes[name] = getattr(defaults, name)
    if nap and config.headers is None:
        changes["headers"] = "nap"
    if nap and isinstance(config.path_tokens, tuple):
        changes["paths"] = config.n_paths
    changes["sync"] = replace(config.sync, topology=config.sync.sees)
    return replace(config, **changes)


def prompt_ids(card: ModelCard, question: str) -> tuple[int, ...]:
    """The prompt as the model expects it: chat template applied where its tokenizer has one.

    A model without a tokenizer (random weights) gets the UTF-8 bytes modulo its vocabulary.

    Raises:
        UsageError: the question is empty or longer than the model's context.
    """
    if not question.strip():
        raise UsageError("prompt: it is empty; give a question", field="prompt")
    if card.tokenizer is None:
        ids = [byte % card.config.vocab_size for byte in question.encode()]
    else:
        ids = card.tokenizer.encode_prompt(question)
    if not ids:
        raise UsageError("prompt: no token is left of it; give a question", field="prompt")
    return tuple(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Header and end-tag texts of the blocks, the summary's last."""

    headers: tuple[str, ...]
    ends: tuple[str, ...]


def _texts(config: DecodeConfig, newline: str) -> _Texts:
    numbers = range(1, config.n_paths + 1)
    if config.headers == "nap":
        headers = (*(f"<think {j}>{newline}" for j in numbers), f"<summary>{newline}")
        return _Texts(headers=headers, ends=(*(f"</think {j}>" for j in numbers), "</summary>"))
    if config.headers == "text":
        headers = (*(f"<think #{j}>{newline}" for j in numbers), f"<summary>{newline}")
        return _Texts(headers=headers, ends=("</think>",) * config.n_paths + ("</summary>",))
    return _texts_from_file(Path(str(config.headers)), config.n_paths)


def _texts_from_file(file: Path, paths: int) -> _Texts:
    """`{"paths": [header, …], "summary": header, "path_ends": [tag, …], "summary_end": tag}`; ends are optional."""
    try:
        values = json.loads(file.read_text())
        headers = (*map(str, values["paths"]), str(values["summary"]))
        ends = (*map(str, values.get("path_ends", [""] * paths)), str(values.get("summary_end", "")))
    except OSError as error:
        raise UsageError(
            f"headers: use 'nap', 'text' or a JSON file; {file} cannot be read", field="headers"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f'headers: {file}: not {{"paths": [...], "summary": "..."}} ({error})', field="headers"
        ) from error
    if len(headers) != paths + 1 or len(ends) != paths + 1:
        raise UsageError(f"headers: {file} has {len(headers) - 1} path headers, the canvas {paths}", field="headers")
    return _Texts(headers=headers, ends=ends)


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
        headers, ends = _tokenised(card, card.tokenizer, config)
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


def _tokenised(card: ModelCard, tokenizer: Tokenizer, config: DecodeConfig) -> tuple[_Blocks, _Blocks]:
    texts = _texts(config, newline="" if card.config.family == "nap" else "\n")
    tags = tuple(tokenizer.token_id(end) for end in texts.ends)
    headers = tuple(tuple(tokenizer.encode(header)) for header in texts.headers)
    return headers, tuple((*(() if tag is None else (tag,)), *card.config.end_ids) for tag in tags)


def _free_id(model: ModelConfig, number: int) -> int:
    """An id that is neither mask nor end of text, for headers of models without a tokenizer."""
    special = {model.mask_id, model.eos_id, model.pad_id, *model.end_ids}
    ordinary = [token for token in range(min(model.vocab_size, 64)) if token not in special]
    return ordinary[number % len(ordinary)]
