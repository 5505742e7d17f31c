"""Denoisers: configuration, row-wise transformer, attention over K/V stores, files, tokenizers.

Names are imported on first use, so that reading a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nap_runtime.models.attention import StoreAttention, merge_partials, partial_attention
    from nap_runtime.models.config import ModelConfig
    from nap_runtime.models.inspection import describe
    from nap_runtime.models.loading import (
        LoadedModel,
        ModelCard,
        load_model,
        load_weights,
        read_card,
        resolve_model,
        save_model,
    )
    from nap_runtime.models.sdpa import grouped_sdpa
    from nap_runtime.models.shapes import SHAPES, make_model, make_model_dir, shape_config
    from nap_runtime.models.tokenizer import (
        Tokenizer,
        WordTokenizer,
        build_word_tokenizer,
        copy_tokenizer,
        load_tokenizer,
    )
    from nap_runtime.models.transformer import Attend, CanvasAttention, DiffusionTransformer, KVStore

_HOMES = {
    "Attend": "transformer",
    "CanvasAttention": "transformer",
    "DiffusionTransformer": "transformer",
    "KVStore": "transformer",
    "LoadedModel": "loading",
    "ModelCard": "loading",
    "ModelConfig": "config",
    "SHAPES": "shapes",
    "StoreAttention": "attention",
    "Tokenizer": "tokenizer",
    "WordTokenizer": "tokenizer",
    "build_word_tokenizer": "tokenizer",
    "copy_tokenizer": "tokenizer",
    "describe": "inspection",
    "grouped_sdpa": "sdpa",
    "load_model": "loading",
    "load_tokenizer": "tokenizer",
    "load_weights": "loading",
    "make_model": "shapes",
    "make_model_dir": "shapes",
    "merge_partials": "attention",
    "partial_attention": "attention",
    "read_card": "loading",
    "resolve_model": "loading",
    "save_model": "loading",
    "shape_config": "shapes",
}

__all__ = [  # noqa: RUF022 - classes, then functions
    "Attend",
    "CanvasAttention",
    "DiffusionTransformer",
    "KVStore",
    "LoadedModel",
    "ModelCard",
    "ModelConfig",
    "SHAPES",
    "StoreAttention",
    "Tokenizer",
    "WordTokenizer",
    "build_word_tokenizer",
    "copy_tokenizer",
    "describe",
    "grouped_sdpa",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "make_model",
    "make_model_dir",
    "merge_partials",
    "partial_attention",
    "read_card",
    "resolve_model",
    "save_model",
    "shape_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
