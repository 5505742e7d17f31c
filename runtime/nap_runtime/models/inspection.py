"""What a model folder holds, from its config and file headers: no weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import resolve_model
from nap_runtime.models.parts import checkpoint_parts, ignorable
from nap_runtime.models.tokenizer import TOKENIZER_FILES
from nap_runtime.models.weights import check_tensors, fingerprint, stored_dtypes, weight_files

_ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def describe(path_or_name: str | Path) -> dict[str, Any]:
    """Facts of a model folder, JSON-ready; ModelError as in ``load_model``.

    ``kv_bytes_per_token`` is at the widest stored dtype; ``files`` are the weights' names and bytes.
    """
    path = resolve_model(path_or_name)
    config = ModelConfig.from_dir(path)
    check_tensors(path, checkpoint_parts(config), ignorable(config))
    dtypes = stored_dtypes(path)
    itemsize = max(_ITEMSIZE.get(dtype, 4) for dtype in dtypes)
    return {
        "path": str(path),
        "family": config.family,
        "fingerprint": fingerprint(path),
        "params": config.n_params,
        "layers": config.n_layers,
        "d_model": config.d_model,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
        "shifted_logits": config.shifted_logits,
        "dtype": "+".join(dtypes),
        "kv_bytes_per_token": config.kv_bytes_per_token(itemsize),
        "files": {file.name: file.stat().st_size for file in weight_files(path)},
        "tokenizer": [name for name in TOKENIZER_FILES if (path / name).is_file()],
        "special_ids": _special_ids(config),
    }


def _special_ids(config: ModelConfig) -> dict[str, Any]:
    return {
        "mask": config.mask_id,
        "eos": config.eos_id,
        "pad": config.pad_id,
        "bos": config.bos_id,
        "end": list(config.end_ids),
    }
