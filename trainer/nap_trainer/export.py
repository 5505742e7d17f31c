"""The model that a training leaves behind: weights under the family's own names, tokenizer, decode defaults."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from nap_runtime.errors import ModelError
from nap_runtime.models.files import write_text_atomic
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.tokenizer import copy_tokenizer
from nap_trainer.batches.loader import high
from nap_trainer.settings import TrainConfig
from nap_trainer.zero.engine import ZeroEngine


def export_model(engine: ZeroEngine, card: ModelCard, settings: TrainConfig, out: Path) -> None:
    """Write a folder that `nap decode --model` loads. Every rank takes part; rank 0 writes.

    Raises:
        ModelError: the folder is larger than `run.max_bytes`.
    """
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings.run.export_dtype]
    engine.export(card.config, out, dtype=dtype)
    if not engine.ranks.leads:
        return
    copy_tokenizer(card.path, out)
    write_text_atomic(out / "decode.json", json.dumps(decode_defaults(settings)) + "\n")
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    if 0 < settings.run.max_bytes < size:
        raise ModelError(f"{out}: {size} bytes exceed run.max_bytes {settings.run.max_bytes}: make the model smaller")


def decode_defaults(settings: TrainConfig) -> dict[str, int | float | str]:
    """What `decode.json` tells the runtime: the canvas that the model was trained on, and who saw whom on it.

    A model that was trained with all topologies (`mixed`) knows them all: none is named.
    """
    data = settings.data
    if data.plain:
        return {"gen_length": data.gen_length, "eos_weight": settings.evaluate.eos_weight}
    topology = settings.objective.topology
    return {
        "path_tokens": high(data.path_tokens),
        "summary_tokens": high(data.summary_tokens),
        "eos_weight": settings.evaluate.eos_weight,
        "paths": max(data.paths) if data.format == "nap" else 1,
        **({} if topology == "mixed" else {"topology": topology}),
    }
