"""Tensor names on disk: which rows of which parameter each checkpoint tensor holds.

The module tree fuses query, key and value (and gate and up) into one matrix; the LLaDA and Dream
checkpoints keep them apart. One ``Part`` is one checkpoint tensor; the list of a configuration is
complete and in a fixed order, so that loading, saving and streaming all walk the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nap_runtime.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint tensor: ``param[start : start + shape[0]]`` of the module tree."""

    name: str
    param: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def numel(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class _Names:
    """A family's names; layer names take the layer index. Fused projections are split when not None."""

    embed: str
    norm: str
    head: str
    attn_norm: str
    mlp_norm: str
    qkv: tuple[str, ...]
    out: str
    gate_up: tuple[str, ...]
    down: str


_NAP = _Names(
    embed="embed",
    norm="norm",
    head="head",
    attn_norm="layers.{}.attn_norm",
    mlp_norm="layers.{}.mlp_norm",
    qkv=("layers.{}.attn.qkv",),
    out="layers.{}.attn.out",
    gate_up=("layers.{}.mlp.gate_up",),
    down="layers.{}.mlp.down",
)
_LLADA_BLOCK = "model.transformer.blocks.{}."
_LLADA = _Names(
    embed="model.transformer.wte",
    norm="model.transformer.ln_f",
    head="model.transformer.ff_out",
    attn_norm=_LLADA_BLOCK + "attn_norm",
    mlp_norm=_LLADA_BLOCK + "ff_norm",
    qkv=(_LLADA_BLOCK + "q_proj", _LLADA_BLOCK + "k_proj", _LLADA_BLOCK + "v_proj"),
    out=_LLADA_BLOCK + "attn_out",
    gate_up=(_LLADA_BLOCK + "ff_proj", _LLADA_BLOCK + "up_proj"),
    down=_LLADA_BLOCK + "ff_out",
)
_DREAM_LAYER = "model.layers.{}."
_DREAM_ATTN, _DREAM_MLP = _DREAM_LAYER + "self_attn.", _DREAM_LAYER + "mlp."
_DREAM = _Names(
    embed="model.embed_tokens",
    norm="model.norm",
    head="lm_head",
    attn_norm=_DREAM_LAYER + "input_layernorm",
    mlp_norm=_DREAM_LAYER + "post_attention_layernorm",
    qkv=(_DREAM_ATTN + "q_proj", _DREAM_ATTN + "k_proj", _DREAM_ATTN + "v_proj"),
    out=_DREAM_ATTN + "o_proj",
    gate_up=(_DREAM_MLP + "gate_proj", _DREAM_MLP + "up_proj"),
    down=_DREAM_MLP + "down_proj",
)
_FAMILY_NAMES = {"nap": _NAP, "llada": _LLADA, "dream": _DREAM}


def checkpoint_parts(config: ModelConfig) -> list[Part]:
    """Every tensor of the family's checkpoint format, in a fixed order."""
    names, vocab, d_model = _FAMILY_NAMES[config.family], config.vocab_size, config.d_model
    parts = [Part(f"{names.embed}.weight", "embed.weight", (vocab, d_model))]
    for layer in range(config.n_layers):
        parts.extend(_layer_parts(config, names, layer))
    parts.append(Part(f"{names.norm}.weight", "norm.weight", (d_model,)))
    if not config.tied_head:
        parts.append(Part(f"{names.head}.weight", "head.weight", (vocab, d_model)))
    return parts


def _layer_parts(config: ModelConfig, names: _Names, layer: int) -> Iterator[Part]:
    def one(pattern: str, param: str, shape: tuple[int, ...]) -> Part:
        return Part(f"{pattern.format(layer)}.weight", f"layers.{layer}.{param}.weight", shape)

    d_model, q_width = config.d_model, config.n_heads * config.head_dim
    kv_width = config.n_kv_heads * config.head_dim
    yield one(names.attn_norm, "attn_norm", (d_model,))
    widths = (q_width, kv_width, kv_width)
    yield from _fused(names.qkv, f"layers.{layer}.attn.qkv", widths, d_model, layer, bias=config.qkv_bias)
    yield one(names.out, "attn.out", (d_model, q_width))
    yield one(names.mlp_norm, "mlp_norm", (d_model,))
    yield from _fused(names.gate_up, f"layers.{layer}.mlp.gate_up", (config.d_ff,) * 2, d_model, layer, bias=False)
    yield one(names.down, "mlp.down", (d_model, config.d_ff))


def _fused(
    patterns: tuple[str, ...], param: str, widths: tuple[int, ...], d_in: int, layer: int, *, bias: bool
) -> Iterator[Part]:
    """The tensors that one fused matrix is split into (or the matrix itself, for one pattern)."""
    if len(patterns) == 1:
        widths = (sum(widths),)
    start = 0
    for pattern, width in zip(patterns, widths, strict=True):
        name = pattern.format(layer)
        yield Part(f"{name}.weight", f"{param}.weight", (width, d_in), start)
        if bias:
            yield Part(f"{name}.bias", f"{param}.bias", (width,), start)
        start += width


def ignorable(config: ModelConfig) -> Callable[[str], bool]:
    """Tells tensors that a checkpoint may hold beside its weights: rotary tables, a tied head's copy."""
    head = f"{_FAMILY_NAMES[config.family].head}.weight"
    return lambda name: name.endswith("rotary_emb.inv_freq") or (config.tied_head and name == head)
