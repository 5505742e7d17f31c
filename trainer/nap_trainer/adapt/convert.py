"""`nap model convert`: a causal checkpoint becomes a model folder of ours that can be adapted to masked diffusion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.parts import Part, checkpoint_parts
from nap_runtime.models.tokenizer import MASK
from nap_runtime.models.weights import DEFAULT_SHARD_BYTES, staged_folder, write_weights
from nap_trainer.adapt.source import Source, read_source
from nap_trainer.adapt.vocabulary import SPREAD, add_tokens, extended, padded_size

NOTE = "conversion.json"
MAX_POSITIONS = 1024
# Tokens that end a text or a turn in the vocabularies of the covered families.
_TEXT_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
# Fields of the source's configuration that would need another architecture, and what they may be.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu"),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "pretraining_tp": (None, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion did; `conversion.json` in the folder says the same.

    Attributes:
        source, sha256: the weights' file or folder, and the hash of its bytes.
        stored: tensors that the source holds in each type; quantised ones were dequantised.
        dtype: of the written weights.
        vocabulary: tokens of the source's embedding, then rows of ours.
        added: ids of the tokens that are new.
        spread: see `nap_trainer.adapt.vocabulary.extended`.
    """

    source: str
    sha256: str
    stored: Mapping[str, int]
    dtype: str
    vocabulary: tuple[int, int]
    added: Mapping[str, int]
    spread: float = SPREAD


def convert(
    source: Path | Source,
    out: Path,
    *,
    mask_token: str = MASK,
    shifted: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    max_positions: int = MAX_POSITIONS,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> tuple[ModelConfig, Conversion]:
    """Write a causal checkpoint as a model folder of family `nap`, with its tokenizer extended.

    Args:
        source: a folder (Llama or Qwen2 architecture, safetensors), a GGUF file, or one that is read already; the
            tokenizer of a read one gets the new tokens.
        out: a folder without a model.
        mask_token: name of the mask; one that the vocabulary has is used as it is.
        shifted: the row of position i − 1 predicts position i, as in the causal model itself.
        dtype: of the written weights.
        max_positions: context of the new model, at most the source's.

    Raises:
        UsageError: `out` holds a model, or there is no such source.
        ModelError: the source cannot be read or is of another architecture.
    """
    if (out / "config.json").exists():
        raise UsageError(f"out: {out} already holds a model; choose another folder", field="out")
    read = read_source(source) if isinstance(source, Path) else source
    old_rows = len(read.tensors["model.embed_tokens.weight"])
    added = add_tokens(read.tokenizer, mask_token)
    size = padded_size(old_rows, list(added.values()))
    config = config_of(read, vocab_size=size, mask_token=mask_token, shifted=shifted, max_positions=max_positions)
    note = Conversion(
        source=read.name,
        sha256=read.sha256,
        stored=read.stored,
        dtype=str(dtype).removeprefix("torch."),
        vocabulary=(old_rows, size),
        added=added,
    )
    with staged_folder(out) as staged:
        parts = checkpoint_parts(config)
        write_weights(staged, parts, _provider(read, config, added), dtype=dtype, max_shard_bytes=max_shard_bytes)
        read.tokenizer.eos_token = read.tokenizer.convert_ids_to_tokens(config.eos_id)
        save_tokenizer(read.tokenizer, staged)
        (staged / NOTE).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
        config.to_json(staged)
    return config, note


def config_of(source: Source, *, vocab_size: int, mask_token: str, shifted: bool, max_positions: int) -> ModelConfig:
    """Our description of the source's network; ModelError if it does something that ours does not."""
    config, name = source.config, source.name
    for field, accepted in _FIXED.items():
        if getattr(config, field, None) not in accepted:
            raise ModelError(f"{name}: {field} is {getattr(config, field)!r}, which is not supported")
    qwen = config.model_type == "qwen2"
    if not qwen and getattr(config, "attention_bias", False):
        raise ModelError(f"{name}: attention_bias is set, which is not supported for Llama")
    ends = _ends(source)
    return ModelConfig(
        family="nap",
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        d_ff=config.intermediate_size,
        vocab_size=vocab_size,
        max_positions=min(max_positions, config.max_position_embeddings),
        rope_theta=_rope_theta(config, name),
        norm_eps=float(config.rms_norm_eps),
        qkv_bias=qwen,
        tied_head=bool(config.tie_word_embeddings),
        shifted_logits=shifted,
        mask_id=int(source.tokenizer.get_vocab()[mask_token]),
        eos_id=ends[0],
        pad_id=ends[0],
        bos_id=config.bos_token_id,
        end_ids=ends,
    )


def _rope_theta(config: Any, name: str) -> float:
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": getattr(config, "rope_theta", None)}
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta")
    if kind != "default" or theta is None:
        raise ModelError(f"{name}: rotary embedding of type {kind!r} with theta {theta} is not supported")
    return float(theta)


def _ends(source: Source) -> tuple[int, ...]:
    """Ids that end a text: what the configuration names, the tokenizer's where it names none, and the usual ones.

    The configuration goes first: some versions of transformers give a GGUF file's tokenizer its begin token as end.
    """
    listed, vocabulary = source.config.eos_token_id, source.tokenizer.get_vocab()
    found = [*listed] if isinstance(listed, list | tuple) else [listed]
    if found == [None]:
        found = [source.tokenizer.eos_token_id]
    found += [vocabulary[token] for token in _TEXT_ENDS if token in vocabulary]
    ends = tuple(dict.fromkeys(int(token) for token in found if token is not None))
    if not ends:
        raise ModelError(f"{source.name}: neither tokenizer nor config names an end-of-text token")
    return ends


def _provider(source: Source, config: ModelConfig, added: Mapping[str, int]) -> Callable[[Part], Tensor]:
    """What our checkpoint's tensors are made of: a fused one is the source's own, one under the other."""
    pieces: dict[str, list[Part]] = {}
    for part in checkpoint_parts(replace(config, family="dream")):  # Dream has the names of Qwen2 and Llama
        pieces.setdefault(part.param, []).append(part)

    def provide(part: Part) -> Tensor:
        tensors = [_tensor(source, piece.name) for piece in pieces[part.param]]
        if part.param in ("embed.weight", "head.weight"):
            return extended(tensors[0], config.vocab_size, added)
        found = torch.cat(tensors)
        if tuple(found.shape) != part.shape:
            raise ModelError(f"{source.name}: {part.param} has shape {list(found.shape)}, not {list(part.shape)}")
        return found

    return provide


def _tensor(source: Source, name: str) -> Tensor:
    if name not in source.tensors:
        raise ModelError(f"{source.name}: tensor {name!r} is missing: the checkpoint is not whole")
    return source.tensors[name].float()


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save it so that every transformers 5 loads it as a plain fast tokenizer, which leaves a text's spaces alone."""
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key in ("is_local", "local_files_only", "backend", "name_or_path"):
        values.pop(key, None)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_types(stored: Mapping[str, int]) -> str:
    """`210 tensors Q4_1, 61 F32, 1 Q8_0`, most frequent first."""
    (kind, count), *rest = sorted(stored.items(), key=lambda item: -item[1])
    return ", ".join([f"{count} tensors {kind}", *(f"{count} {kind}" for kind, count in rest)])
