"""A causal checkpoint as it is found: a Hugging Face folder or a GGUF file, read by transformers without remote code.

GGUF files may hold quantised weights and rotary rows in llama.cpp's order; transformers dequantises the one and
undoes the other while it loads. `tests/integration/test_adapt_smollm2.py` compares logits, which would show either.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.weights import open_weights, weight_files

ARCHITECTURES = ("llama", "qwen2")
_GGUF = ".gguf"
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
    gguf = path.suffix == _GGUF
    if not (path.is_file() if gguf else path.is_dir()):
        raise UsageError(f"source: {path} is neither a model folder nor a .gguf file", field="source")
    folder, extra = (path.parent, {"gguf_file": path.name}) if gguf else (path, {})
    files = [path] if gguf else weight_files(path)
    stored = _gguf_types(path) if gguf else _tensor_types(files)
    config, tensors = _weights(path, folder, extra)
    return Source(
        name=path.resolve().name,
        config=config,
        tensors=tensors,
        tokenizer=_tokenizer(path, folder, extra),
        stored=stored,
        sha256=_digest(files),
    )


def _weights(path: Path, folder: Path, extra: dict[str, str]) -> tuple[Any, Mapping[str, Tensor]]:
    """Configuration and weights of a causal LM; ModelError if transformers cannot give them."""
    transformers = _transformers(path)
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, **extra}
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), **common)
        if config.model_type not in ARCHITECTURES:
            raise ModelError(f"{path}: architecture {config.model_type!r} is not one of {', '.join(ARCHITECTURES)}")
        with _silence(transformers):
            loader = transformers.AutoModelForCausalLM
            weights = {} if extra else {"use_safetensors": True}
            model = loader.from_pretrained(str(folder), dtype=torch.float32, **weights, **common)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a broken checkpoint
        raise _unreadable(path, error) from error
    return model.config, model.state_dict()


def _tokenizer(path: Path, folder: Path, extra: dict[str, str]) -> Any:
    transformers = _transformers(path)
    try:
        with _silence(transformers):
            return transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **extra
            )
    except Exception as error:
        raise _unreadable(path, error) from error


def _transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: reading it needs transformers ({reason}): pip install transformers") from None
    return transformers


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ModelError(f"{path}: transformers cannot load it ({reason}): give a causal LM with its tokenizer")


@contextlib.contextmanager
def _silence(transformers: Any) -> Any:
    """Without transformers' progress bars and its advice on the checkpoint."""
    logging = transformers.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def _gguf_types(path: Path) -> dict[str, int]:
    try:
        import gguf
    except ImportError:
        raise ModelError(f"{path}: reading GGUF needs the package gguf: pip install 'nap-runtime[train]'") from None
    try:
        return dict(Counter(str(tensor.tensor_type.name) for tensor in gguf.GGUFReader(str(path)).tensors))
    except Exception as error:  # the reader raises many kinds for a damaged file
        raise _unreadable(path, error) from error


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
