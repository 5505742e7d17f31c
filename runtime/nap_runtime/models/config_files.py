"""``config.json`` of the three families: LLaDA's own keys, Dream's (Qwen2) keys, and ours.

LLaDA and Dream files come from others and may hold keys that decoding does not need; keys that
would change the arithmetic are checked. Our own format holds the fields of ``ModelConfig`` and
nothing else: an unknown key is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nap_runtime.errors import ModelError
from nap_runtime.models.config import POSITIVE_FIELDS, ModelConfig
from nap_runtime.models.files import write_text_atomic

CONFIG_NAME = "config.json"

# Ids that the published checkpoints keep in their tokenizers rather than in config.json.
_LLADA_BOS, _LLADA_EOS, _LLADA_EOT = 126080, 126081, 126348
_DREAM_EOS, _DREAM_IM_END = 151643, 151645
# Our addition to the foreign formats, so that toy vocabularies keep their end ids.
_END_KEY = "nap_end_ids"

# Values of foreign keys that this implementation computes; absent means the first one.
_LLADA_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "block_type": ("llama",),
    "include_bias": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "multi_query_attention": (None, False),
    "rope": (True,),
    "scale_logits": (False,),
}
_DREAM_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}

_NAP_INTEGERS = (*POSITIVE_FIELDS, "mask_id", "eos_id", "pad_id")
_NAP_FLAGS = ("qkv_bias", "tied_head", "shifted_logits")


class Fields:
    """Typed access to a parsed config.json; every error names the file and the field."""

    def __init__(self, raw: dict[str, Any], source: Path) -> None:
        self.raw, self.source = raw, source

    def fail(self, field: str, complaint: str) -> ModelError:
        """The one-line error for a field."""
        return ModelError(f"{self.source}: field {field!r} {complaint}")

    def get(self, field: str, kinds: tuple[type, ...], default: Any = ...) -> Any:
        """The field's value, of one of the types (bool is no int); ``default`` when absent or null."""
        value = self.raw.get(field)
        if value is None and default is not ...:
            return default
        if value is None:
            raise self.fail(field, "is missing: add it, or use the checkpoint's own config.json")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.fail(field, f"must be {' or '.join(k.__name__ for k in kinds)}, not {value!r}")
        return value

    def integer(self, field: str, default: Any = ...) -> Any:
        """An integer field."""
        return self.get(field, (int,), default)

    def number(self, field: str, default: Any = ...) -> Any:
        """A number, as float."""
        value = self.get(field, (int, float), default)
        return None if value is None else float(value)

    def flag(self, field: str, default: Any = ...) -> Any:
        """A boolean field."""
        return self.get(field, (bool,), default)

    def integers(self, field: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
        """A list of integers, as a tuple."""
        values = self.get(field, (list,), list(default))
        if not all(type(value) is int for value in values):
            raise self.fail(field, f"must be a list of integers, not {values!r}")
        return tuple(values)

    def check_fixed(self, fixed: dict[str, tuple[Any, ...]]) -> None:
        """Refuse values that would need another architecture."""
        for field, accepted in fixed.items():
            value = self.raw.get(field, accepted[0])
            if value not in accepted:
                raise self.fail(field, f"is {value!r}, which is not supported: only {accepted[0]!r} is")


def read_config(path: Path) -> ModelConfig:
    """Read the model folder's config.json in any of the three formats."""
    source = path / CONFIG_NAME
    try:
        raw = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{source} does not exist: give a model folder (config.json + safetensors)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{source} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{source} must hold a JSON object, not {type(raw).__name__}")
    model_type = str(raw.get("model_type"))
    if model_type.lower() not in _READERS:
        accepted = "'llada', 'Dream' or 'nap'"
        raise ModelError(f"{source}: field 'model_type' is {raw.get('model_type')!r}: accepted are {accepted}")
    return _READERS[model_type.lower()](Fields(raw, source))


def write_config(config: ModelConfig, path: Path) -> Path:
    """Write config.json atomically in the family's format; return its path."""
    target = path / CONFIG_NAME
    write_text_atomic(target, json.dumps(_WRITERS[config.family](config), indent=2) + "\n")
    return target


def _read_llada(f: Fields) -> ModelConfig:
    f.check_fixed(_LLADA_FIXED)
    d_model, n_heads = f.integer("d_model"), f.integer("n_heads")
    if n_heads < 1 or d_model % n_heads:
        raise f.fail("n_heads", f"({n_heads}) must divide d_model ({d_model})")
    vocab, eos = f.integer("embedding_size", f.raw.get("vocab_size")), f.integer("eos_token_id")
    if vocab is None:
        raise f.fail("vocab_size", "is missing: add it, or use the checkpoint's own config.json")
    published = eos == _LLADA_EOS and vocab > _LLADA_EOT
    return ModelConfig(
        family="llada",
        n_layers=f.integer("n_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=f.integer("n_kv_heads", n_heads),
        head_dim=d_model // n_heads,
        d_ff=f.integer("mlp_hidden_size", d_model * f.integer("mlp_ratio", 4)),
        vocab_size=vocab,
        max_positions=f.integer("max_sequence_length"),
        rope_theta=f.number("rope_theta", 10000.0),
        norm_eps=f.number("rms_norm_eps", 1e-5),
        qkv_bias=f.flag("include_qkv_bias", False),
        tied_head=f.flag("weight_tying", False),
        shifted_logits=False,
        mask_id=f.integer("mask_token_id"),
        eos_id=eos,
        pad_id=f.integer("pad_token_id", eos),
        bos_id=f.integer("bos_token_id", _LLADA_BOS if published else None),
        end_ids=f.integers(_END_KEY, (eos, _LLADA_EOT) if published else (eos,)),
    )


def _write_llada(c: ModelConfig) -> dict[str, Any]:
    if c.head_dim * c.n_heads != c.d_model:
        raise ModelError("the llada format cannot express head_dim * n_heads != d_model")
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        **{field: accepted[0] for field, accepted in _LLADA_FIXED.items()},
        "d_model": c.d_model,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "mlp_hidden_size": c.d_ff,
        "vocab_size": c.vocab_size,
        "embedding_size": c.vocab_size,
        "max_sequence_length": c.max_positions,
        "rope_theta": c.rope_theta,
        "rope_full_precision": True,
        "rms_norm_eps": c.norm_eps,
        "include_qkv_bias": c.qkv_bias,
        "weight_tying": c.tied_head,
        **_special_ids(c),
    }


def _read_dream(f: Fields) -> ModelConfig:
    f.check_fixed(_DREAM_FIXED)
    d_model, n_heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    if n_heads < 1 or ("head_dim" not in f.raw and d_model % n_heads):
        raise f.fail("num_attention_heads", f"({n_heads}) must divide hidden_size ({d_model})")
    vocab, eos = f.integer("vocab_size"), f.integer("eos_token_id")
    published = eos == _DREAM_EOS and vocab > _DREAM_IM_END
    newer_rope = Fields(f.get("rope_parameters", (dict,), {}), f.source)  # transformers 5 writes it there
    return ModelConfig(
        family="dream",
        n_layers=f.integer("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=f.integer("num_key_value_heads", n_heads),
        head_dim=f.integer("head_dim", d_model // n_heads),
        d_ff=f.integer("intermediate_size"),
        vocab_size=vocab,
        max_positions=f.integer("max_position_embeddings"),
        rope_theta=f.number("rope_theta", newer_rope.number("rope_theta", 10000.0)),
        norm_eps=f.number("rms_norm_eps", 1e-6),
        qkv_bias=f.flag("attention_bias", True),
        tied_head=f.flag("tie_word_embeddings", False),
        shifted_logits=True,
        mask_id=f.integer("mask_token_id"),
        eos_id=eos,
        pad_id=f.integer("pad_token_id", eos),
        bos_id=f.integer("bos_token_id", None),
        end_ids=f.integers(_END_KEY, (eos, _DREAM_IM_END) if published else (eos,)),
    )


def _write_dream(c: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        **{field: accepted[0] for field, accepted in _DREAM_FIXED.items()},
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_positions,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.norm_eps,
        "attention_bias": c.qkv_bias,
        "tie_word_embeddings": c.tied_head,
        **_special_ids(c),
    }


def _special_ids(c: ModelConfig) -> dict[str, Any]:
    return {
        "mask_token_id": c.mask_id,
        "eos_token_id": c.eos_id,
        "pad_token_id": c.pad_id,
        "bos_token_id": c.bos_id,
        _END_KEY: list(c.end_ids),
    }


def _read_nap(f: Fields) -> ModelConfig:
    names = {field.name for field in fields(ModelConfig)} - {"family"}
    unknown = sorted(set(f.raw) - names - {"model_type"})
    if unknown:
        raise f.fail(unknown[0], f"is unknown in the nap format: known are {', '.join(sorted(names))}")
    return ModelConfig(
        family="nap",
        bos_id=f.integer("bos_id", None),
        end_ids=f.integers("end_ids", (f.integer("eos_id"),)),
        rope_theta=f.number("rope_theta"),
        norm_eps=f.number("norm_eps"),
        **{name: f.integer(name) for name in _NAP_INTEGERS},
        **{name: f.flag(name) for name in _NAP_FLAGS},
    )


def _write_nap(c: ModelConfig) -> dict[str, Any]:
    values = asdict(c)
    return {"model_type": values.pop("family"), **values}


_READERS: dict[str, Callable[[Fields], ModelConfig]] = {
    "llada": _read_llada,
    "dream": _read_dream,
    "nap": _read_nap,
}
_WRITERS: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "llada": _write_llada,
    "dream": _write_dream,
    "nap": _write_nap,
}
