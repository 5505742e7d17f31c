"""A causal checkpoint as it is found: a Hugging Face folder or a GGUF file, read by transformers without remote code.

GGUF files may hold quantised weights and rotary rows in llama.cpp's order; transformers dequantises the one and
undoes the other while it loads. `tests/integration/test_adapt_smollm2.py` compares logits, which would show either.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.causal import GGUF, read_causal, unreadable
from nap_runtime.models.weights import open_weights, weight_files

ARCHITECTURES = ("llama", "qwen2")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint in memory.

    Attributes:
        name: of the file or folder.
        config: transformers' configuration object.
        tensors: weights by their Hugging Face names, float32.
        tokenizer: transformers' tokenizer.
        stored: how many tensors the files hold in each type ("Q4_1": 210).
        sha256: of the weight files' bytes, in name order.
    """

    name: str
    config: Any
    tensors: Mapping[str, Tensor]
    tokenizer: Any
    stored: Mapping[str, int]
    sha256: str


def read_source(path: Path) -> Source:
    """Read a folder or a GGUF file.

    Raises:
        UsageError: there is no such folder or file.
        ModelError: it cannot be loaded, or is of an architecture that is not covered.
    """
    gguf = path.suffix == GGUF
    if not (path.is_file() if gguf else path.is_dir()):
        raise UsageError(f"source: {path} is neither a model folder nor a .gguf file", field="source")
    files = [path] if gguf else weight_files(path)
    stored = _gguf_types(path) if gguf else _tensor_types(files)
    causal = read_causal(path, architectures=ARCHITECTURES)
    return Source(
        name=path.resolve().name,
        config=causal.model.config,
        tensors=causal.model.state_dict(),
        tokenizer=causal.tokenizer,
        stored=stored,
        sha256=_digest(files),
    )


def _gguf_types(path: Path) -> dict[str, int]:
    try:
        import gguf
    except ImportError:
        raise ModelError(f"{path}: reading GGUF needs the package gguf: pip install 'nap-runtime[train]'") from None
    try:
        return dict(Counter(str(tensor.tensor_type.name) for tensor in gguf.GGUFReader(str(path)).tensors))
    except Exception as error:  # the reader raises many kinds for a damaged file
        raise unreadable(path, error) from error


def _tensor_types(files: list[Path]) -> dict[str, int]:
    types: Counter[str] = Counter()
    for file in files:
        with open_weights(file) as opened:
            types.update(str(opened.get_slice(name).get_dtype()) for name in opened.keys())  # noqa: SIM118
    return dict(types)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
