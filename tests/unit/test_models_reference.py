"""Our transformer equals transformers' Llama and Qwen2 with the same weights and no causal mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nap_runtime.models.loading import load_model

transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 80,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
LLADA_JSON = {
    "model_type": "llada",
    "d_model": 64,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 3,
    "mlp_hidden_size": 96,
    "vocab_size": 80,
    "embedding_size": 80,
    "max_sequence_length": 128,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "mask_token_id": 79,
    "eos_token_id": 78,
    "pad_token_id": 78,
    "weight_tying": False,
    "include_qkv_bias": False,
    "include_bias": False,
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
}
DREAM_JSON = {
    "model_type": "Dream",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "mask_token_id": 79,
    "eos_token_id": 78,
    "pad_token_id": 78,
    "tie_word_embeddings": False,
}
# transformers' Llama names to the original LLaDA names.
LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}
LLADA_LAYER_NAMES = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def llada_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in LLADA_NAMES:
        return LLADA_NAMES[stem] + ".weight"
    layer, rest = stem.removeprefix("model.layers.").split(".", 1)
    return f"model.transformer.blocks.{layer}.{LLADA_LAYER_NAMES[rest]}.weight"


def randomise(model: torch.nn.Module) -> None:
    """Weights far from their defaults, so that a norm or a bias left out shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            weight.copy_(mean + 0.2 * torch.randn(weight.shape, generator=generator))


def write_shards(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    (path / "config.json").write_text(json.dumps(config))
    names, shards = sorted(tensors), 3
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        chosen = names[shard::shards]
        save_file({name: tensors[name].contiguous() for name in chosen}, path / file)
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def reference_logits(model: Any, ids_BN: torch.Tensor) -> torch.Tensor:
    """Logits without causal order: an additive mask of zeros lets every row see every key."""
    n = ids_BN.shape[1]
    with torch.no_grad():
        return model(ids_BN, attention_mask=torch.zeros(ids_BN.shape[0], 1, n, n), use_cache=False).logits


@pytest.fixture(name="ids_BN")
def ids_fixture() -> torch.Tensor:
    return torch.randint(0, 80, (2, 37), generator=torch.Generator().manual_seed(1))


def test_llada_equals_bidirectional_llama(tmp_path: Path, ids_BN: torch.Tensor) -> None:
    config = transformers.LlamaConfig(
        **COMMON,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    reference = transformers.LlamaForCausalLM(config).eval()
    randomise(reference)
    tensors = {llada_name(name): tensor for name, tensor in reference.state_dict().items()}
    write_shards(tmp_path, LLADA_JSON, tensors)
    loaded = load_model(tmp_path)
    expected = reference_logits(reference, ids_BN)
    torch.testing.assert_close(loaded.model(ids_BN), expected, rtol=1e-4, atol=1e-4)
    assert not loaded.config.shifted_logits
    assert loaded.tokenizer is None


def test_dream_equals_bidirectional_qwen2(tmp_path: Path, ids_BN: torch.Tensor) -> None:
    config = transformers.Qwen2Config(
        **COMMON,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    reference = transformers.Qwen2ForCausalLM(config).eval()
    randomise(reference)
    write_shards(tmp_path, DREAM_JSON, dict(reference.state_dict()))
    loaded = load_model(tmp_path)
    expected = reference_logits(reference, ids_BN)
    torch.testing.assert_close(loaded.model(ids_BN), expected, rtol=1e-4, atol=1e-4)
    assert loaded.config.shifted_logits


def test_the_reference_really_looks_both_ways(ids_BN: torch.Tensor) -> None:
    config = transformers.Qwen2Config(**COMMON, num_key_value_heads=2)
    reference = transformers.Qwen2ForCausalLM(config).eval()
    randomise(reference)
    changed = ids_BN.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 80
    first = reference_logits(reference, ids_BN)[:, 0]
    assert not torch.allclose(first, reference_logits(reference, changed)[:, 0], atol=1e-3)
