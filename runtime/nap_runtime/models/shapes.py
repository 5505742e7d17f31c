"""Named shapes and random weights: real sizes for benchmarks, toy sizes for tests."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nap_runtime.errors import UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import part_view
from nap_runtime.models.parts import Part, checkpoint_parts
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.models.weights import staged_folder, write_weights

_INIT_STD = 0.02
_SHARD_BYTES = 2 * 1024**3
_CHUNK = 1 << 24  # values drawn at a time: bounds the float32 scratch, and fixes the bits

_LLADA_8B = ModelConfig(
    family="llada",
    n_layers=32,
    d_model=4096,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    d_ff=12288,
    vocab_size=126464,
    max_positions=4096,
    rope_theta=5e5,
    norm_eps=1e-5,
    qkv_bias=False,
    tied_head=False,
    shifted_logits=False,
    mask_id=126336,
    eos_id=126081,
    pad_id=126081,
    bos_id=126080,
    end_ids=(126081, 126348),
)
_DREAM_7B = ModelConfig(
    family="dream",
    n_layers=28,
    d_model=3584,
    n_heads=28,
    n_kv_heads=4,
    head_dim=128,
    d_ff=18944,
    vocab_size=152064,
    max_positions=2048,
    rope_theta=1e6,
    norm_eps=1e-6,
    qkv_bias=True,
    tied_head=False,
    shifted_logits=True,
    mask_id=151666,
    eos_id=151643,
    pad_id=151643,
    bos_id=151643,
    end_ids=(151643, 151645),
)
_TOY = {"n_layers": 2, "d_model": 64, "head_dim": 16, "n_heads": 4, "d_ff": 96, "max_positions": 512}
_TOY_IDS = {"mask_id": 95, "eos_id": 94, "pad_id": 94, "bos_id": 93, "end_ids": (94, 92), "vocab_size": 96}
_LLADA_TINY: dict[str, Any] = {**_TOY, **_TOY_IDS, "n_kv_heads": 4}
_DREAM_TINY: dict[str, Any] = {**_TOY, **_TOY_IDS, "n_kv_heads": 2}

SHAPES: dict[str, ModelConfig] = {
    "llada-8b": _LLADA_8B,
    "dream-7b": _DREAM_7B,
    "llada-tiny": replace(_LLADA_8B, **_LLADA_TINY),
    "dream-tiny": replace(_DREAM_7B, **_DREAM_TINY),
    "nap-tiny": ModelConfig(
        family="nap",
        n_layers=9,
        d_model=256,
        n_heads=4,
        n_kv_heads=4,
        head_dim=64,
        d_ff=768,
        vocab_size=1024,
        max_positions=1024,
        rope_theta=1e4,
        norm_eps=1e-5,
        qkv_bias=False,
        tied_head=False,
        shifted_logits=False,
        mask_id=0,
        eos_id=1,
        pad_id=1,
        bos_id=None,
        end_ids=(1,),
    ),
}


def shape_config(shape: str, **overrides: Any) -> ModelConfig:
    """The named shape with fields replaced; UsageError for an unknown name or field."""
    if shape not in SHAPES:
        raise UsageError(f"model shape {shape!r} is unknown: use one of {', '.join(SHAPES)}", field="shape")
    try:
        return replace(SHAPES[shape], **overrides)
    except TypeError:
        unknown = sorted(set(overrides) - set(ModelConfig.__dataclass_fields__))
        raise UsageError(f"model shape field {unknown[0]!r} is unknown", field="shape") from None


def random_part(
    part: Part,
    config: ModelConfig,
    *,
    seed: int,
    dtype: torch.dtype,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The random weights of one checkpoint tensor, drawn on ``device``: the same bits in whatever order parts are made.

    Matrices N(0, 0.02 · scale), those that write into the residual stream narrower by √(2L); norms
    one; biases N(0, 0.02 · scale), so that leaving one out shows. Each kind of device has a generator
    of its own, so the bits are equal on one kind, and only on that.
    """
    if part.param.endswith("norm.weight"):
        return torch.ones(part.shape, dtype=dtype, device=device)
    std = _INIT_STD * scale
    if part.param.endswith((".out.weight", ".down.weight")):
        std /= (2 * config.n_layers) ** 0.5
    digest = hashlib.sha256(f"{seed}/{part.param}/{part.start}".encode()).digest()
    generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))
    flat = torch.empty(part.numel, dtype=dtype, device=device)
    for chunk in flat.split(_CHUNK):
        drawn = torch.empty(chunk.shape, dtype=torch.float32, device=device)
        chunk.copy_(drawn.normal_(0.0, std, generator=generator))
    return flat.view(part.shape)


def random_model(
    config: ModelConfig,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
    draw: torch.device | str = "cpu",
) -> DiffusionTransformer:
    """A model of random weights in memory, in eval mode (its weights take gradients).

    ``draw`` is where :func:`random_part` draws: the host's bits are the same for every device, a GPU
    has its own in a fraction of the time.
    """
    model = DiffusionTransformer(config, dtype=dtype, device=device)
    params = dict(model.named_parameters())
    for part in checkpoint_parts(config):
        drawn = random_part(part, config, seed=seed, dtype=dtype, scale=scale, device=draw)
        part_view(params, part).copy_(drawn)
    return model.eval()


def write_random(
    config: ModelConfig,
    out: Path,
    *,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    scale: float = 1.0,
    max_shard_bytes: int = _SHARD_BYTES,
    draw: torch.device | str = "cpu",
) -> None:
    """A folder of the weights that :func:`random_model` has for the same arguments, one shard in memory at a time."""
    with staged_folder(out) as staged:
        write_weights(
            staged,
            checkpoint_parts(config),
            lambda part: random_part(part, config, seed=seed, dtype=dtype, scale=scale, device=draw),
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
        )
        config.to_json(staged)


def make_model(
    shape: str,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
    **overrides: Any,
) -> tuple[ModelConfig, DiffusionTransformer]:
    """A named shape as :func:`random_model`, drawn on the host.

    ``scale`` widens the initialisation: at 1 the logits of a toy shape are nearly equal, at about
    10 they prefer some ids. ``overrides`` replace fields of the configuration.
    """
    config = shape_config(shape, **overrides)
    return config, random_model(config, seed=seed, dtype=dtype, device=device, scale=scale)


def make_model_dir(
    shape: str,
    out: str | Path,
    *,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    scale: float = 1.0,
    max_shard_bytes: int = _SHARD_BYTES,
    **overrides: Any,
) -> ModelConfig:
    """A named shape as :func:`write_random`, drawn on the host, with no tokenizer.

    An existing folder that holds a config.json raises UsageError; nothing is overwritten.
    """
    config, target = shape_config(shape, **overrides), Path(out)
    if (target / "config.json").exists():
        raise UsageError(f"{target} already holds a model: choose another folder", field="out")
    write_random(config, target, seed=seed, dtype=dtype, scale=scale, max_shard_bytes=max_shard_bytes)
    return config
