"""Model configuration: one frozen description of the three families, and its JSON on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nap_runtime.errors import ModelError

Family = Literal["nap", "llada", "dream"]
FAMILIES: tuple[Family, ...] = ("nap", "llada", "dream")

# Far beyond any model of today; a config beyond them would only exhaust the memory.
_LIMITS = {"n_layers": 1024, "vocab_size": 1 << 22, "max_positions": 1 << 16}
_WIDEST = 1 << 20

POSITIVE_FIELDS = (
    "n_layers",
    "d_model",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "d_ff",
    "vocab_size",
    "max_positions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and special ids of a denoiser. Invalid values raise ModelError.

    ``shifted_logits``: the hidden state of row i - 1 predicts canvas position i (Dream).
    ``end_ids``: the ids that end a text: EOS, and LLaDA's eot or Dream's im_end.
    """

    family: Family
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_positions: int
    rope_theta: float
    norm_eps: float
    qkv_bias: bool
    tied_head: bool
    shifted_logits: bool
    mask_id: int
    eos_id: int
    pad_id: int
    bos_id: int | None
    end_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ModelError(f"model family {self.family!r} is unknown: use one of {', '.join(FAMILIES)}")
        for name in POSITIVE_FIELDS:
            if getattr(self, name) < 1:
                raise ModelError(f"model config: {name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > _LIMITS.get(name, _WIDEST):
                raise ModelError(f"model config: {name} {getattr(self, name)} is above {_LIMITS.get(name, _WIDEST)}")
        self._check_shape()
        self._check_ids()

    def _check_shape(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ModelError(f"model config: n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ModelError(f"model config: head_dim {self.head_dim} must be even (rotary embedding)")
        if not (0 < self.rope_theta < math.inf and 0 < self.norm_eps < math.inf):
            raise ModelError("model config: rope_theta and norm_eps must be positive and finite")
        if self.mask_id in (self.eos_id, *self.end_ids):
            raise ModelError(f"model config: mask_id {self.mask_id} ends texts too: give it an id of its own")

    def _check_ids(self) -> None:
        ids = {"mask_id": self.mask_id, "eos_id": self.eos_id, "pad_id": self.pad_id, "bos_id": self.bos_id}
        ids |= {f"end_ids[{i}]": end_id for i, end_id in enumerate(self.end_ids)}
        for name, token in ids.items():
            if token is not None and not 0 <= token < self.vocab_size:
                raise ModelError(f"model config: {name} {token} is outside the vocabulary 0..{self.vocab_size - 1}")

    @property
    def n_params(self) -> int:
        """Number of weights (a tied head counted once)."""
        qkv_width = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        attention = self.d_model * (qkv_width + self.n_heads * self.head_dim) + qkv_width * self.qkv_bias
        layer = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        embeddings = self.vocab_size * self.d_model * (1 if self.tied_head else 2)
        return self.n_layers * layer + embeddings + self.d_model

    @property
    def kv_values_per_token(self) -> int:
        """Key and value numbers that one canvas position holds over all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of keys and values per canvas position, at ``itemsize`` bytes a number (bf16: 2)."""
        return self.kv_values_per_token * itemsize

    @classmethod
    def from_dir(cls, path: str | Path) -> ModelConfig:
        """Read ``config.json`` of a model folder: LLaDA's, Dream's or our own format."""
        from nap_runtime.models import config_files

        return config_files.read_config(Path(path))

    def to_json(self, path: str | Path) -> Path:
        """Write ``config.json`` into the folder in the family's own format; return its path."""
        from nap_runtime.models import config_files

        return config_files.write_config(self, Path(path))
