"""Random weights of a shape, made where they are needed: on the device in seconds, or as a folder for other processes.

The bits depend on the device's generator: equal within a run, not across kinds of devices.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard, part_view
from nap_runtime.models.parts import Part, checkpoint_parts
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.models.weights import staged_folder, write_weights

_STD = 0.02
_SHARD_BYTES = 2 * 1024**3


def drawn_part(part: Part, config: ModelConfig, *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One checkpoint tensor, on the device: norms one, matrices N(0, 0.02), those into the residual stream narrower."""
    if part.param.endswith("norm.weight"):
        return torch.ones(part.shape, dtype=dtype, device=device)
    std = _STD
    if part.param.endswith((".out.weight", ".down.weight")):
        std /= (2 * config.n_layers) ** 0.5
    digest = hashlib.sha256(f"{seed}/{part.param}/{part.start}".encode()).digest()
    generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.empty(part.shape, dtype=dtype, device=device).normal_(0.0, std, generator=generator)


def random_model(config: ModelConfig, *, seed: int, dtype: torch.dtype, device: torch.device) -> DiffusionTransformer:
    """A model of random weights on the device."""
    model = DiffusionTransformer(config, dtype=dtype, device=device)
    params = dict(model.named_parameters())
    with torch.no_grad():
        for part in checkpoint_parts(config):
            part_view(params, part).copy_(drawn_part(part, config, seed=seed, dtype=dtype, device=device))
    return model.requires_grad_(False).eval()


def write_random(config: ModelConfig, folder: Path, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
    """The same weights as a folder."""
    with staged_folder(folder) as staged:
        write_weights(
            staged,
            checkpoint_parts(config),
            lambda part: drawn_part(part, config, seed=seed, dtype=dtype, device=device),
            dtype=dtype,
            max_shard_bytes=_SHARD_BYTES,
        )
        config.to_json(staged)


def card_of(config: ModelConfig, shape: str, folder: Path) -> ModelCard:
    """A card for weights that are in no folder, or in `folder`."""
    return ModelCard(name=shape, path=folder, config=config, tokenizer=None, fingerprint=f"random weights of {shape}")
