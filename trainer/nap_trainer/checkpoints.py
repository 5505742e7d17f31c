"""What a training leaves behind: the model to bundle (bfloat16), and a float32 copy to go on from."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.files import write_text_atomic
from nap_runtime.models.loading import save_model
from nap_runtime.models.tokenizer import copy_tokenizer
from nap_runtime.models.transformer import DiffusionTransformer
from nap_trainer.settings import TrainConfig

STATE_SHARD_BYTES = 15_000_000
OVERHEAD_BYTES = 40_000  # tokenizer, configuration, tensor names


def decode_defaults(settings: TrainConfig) -> dict[str, int | float]:
    """What `decode.json` tells the runtime: the canvas that the model was trained on."""
    return {
        "path_tokens": settings.path_tokens,
        "summary_tokens": settings.summary_tokens,
        "eos_weight": 0.0,
        "paths": settings.paths,
    }


def check_size(config: ModelConfig, settings: TrainConfig) -> None:
    """UsageError, before any training, if the exported model could not fit in `max_bytes`."""
    expected = 2 * config.n_params + OVERHEAD_BYTES
    if settings.max_bytes and expected > settings.max_bytes:
        limit = f"exceed max_bytes {settings.max_bytes}"
        raise UsageError(f"d_ff: about {expected} bytes {limit}: make the model smaller", field="d_ff")


def export(
    model: DiffusionTransformer, config: ModelConfig, settings: TrainConfig, tokenizer_dir: Path, out: Path
) -> int:
    """Write config.json, bfloat16 weights, tokenizer and decode.json; returns the folder's bytes.

    Raises:
        ModelError: the folder is larger than `max_bytes`.
    """
    small = copy.deepcopy(model).to(torch.bfloat16)
    _save(small, config, settings, tokenizer_dir, out)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    if settings.max_bytes and size > settings.max_bytes:
        raise ModelError(f"{out}: {size} bytes exceed max_bytes {settings.max_bytes}: make the model smaller")
    return size


def save_state(
    model: DiffusionTransformer, config: ModelConfig, settings: TrainConfig, tokenizer_dir: Path, out: Path
) -> None:
    """Write the model in float32, in small shards, for `--init`."""
    _save(model, config, settings, tokenizer_dir, out)


def _save(
    model: DiffusionTransformer, config: ModelConfig, settings: TrainConfig, tokenizer_dir: Path, out: Path
) -> None:
    small = next(model.parameters()).dtype == torch.bfloat16
    limit = settings.max_bytes + STATE_SHARD_BYTES if small else STATE_SHARD_BYTES
    save_model(model, config, out, max_shard_bytes=limit)
    copy_tokenizer(tokenizer_dir, out)
    write_text_atomic(out / "decode.json", json.dumps(decode_defaults(settings)) + "\n")
