"""New tokens for an old vocabulary: the mask and NAP's tags, their ids, and where their embeddings begin.

Shapes: V rows of a matrix, D width of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nap_runtime.errors import UsageError
from nap_runtime.job import MAX_PATHS
from nap_runtime.models.tokenizer import MASK

TAGS = (
    *(tag for j in range(1, MAX_PATHS + 1) for tag in (f"<think {j}>", f"</think {j}>")),
    "<think>",
    "</think>",
    "<summary>",
    "</summary>",
)
MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, which matrix kernels like."""
SPREAD = 0.1
"""How far a new row lies from the mean of the old ones, in their standard deviations."""


def add_tokens(tokenizer: Any, mask_token: str = MASK) -> dict[str, int]:
    """Add the mask and the tags to a transformers tokenizer, in place, as special tokens.

    Returns the ids of those that it did not have yet, in their order; one that it has keeps its id and its row.

    Raises:
        UsageError: the mask token is empty, or is a tag.
    """
    if not mask_token.strip() or mask_token in TAGS:
        raise UsageError(
            f"mask-token: {mask_token!r} cannot be the mask: give it a name of its own", field="mask_token"
        )
    had = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"mask_token": mask_token}, replace_extra_special_tokens=False)
    tokenizer.add_tokens([tag for tag in TAGS if tag not in had], special_tokens=True)
    now = tokenizer.get_vocab()
    return {token: int(now[token]) for token in (mask_token, *TAGS) if token not in had}


def padded_size(rows: int, ids: Sequence[int]) -> int:
    """V: rows that hold the old vocabulary and the new ids, up to the next multiple of `MULTIPLE`."""
    used = max(rows, max(ids, default=-1) + 1)
    return -(-used // MULTIPLE) * MULTIPLE


def extended(old_VD: Tensor, size: int, added: Mapping[str, int]) -> Tensor:
    """A matrix of `size` rows: the old ones, then padding at their mean, and the new tokens' rows near it.

    A new token's row is the mean of the old rows plus `SPREAD` of their standard deviation times normal noise,
    all per dimension. The noise depends on the token's text only, so a token starts alike in every model of one
    width, and two tokens differ. float32 in, float32 out.
    """
    mean_D, std_D = old_VD.mean(0), old_VD.std(0)
    rows_VD = mean_D.expand(size, -1).clone()
    rows_VD[: len(old_VD)] = old_VD
    for token, at in added.items():
        rows_VD[at] = fresh_row(token, mean_D, std_D)
    return rows_VD


def fresh_row(token: str, mean_D: Tensor, std_D: Tensor) -> Tensor:
    """Where a new token's row begins, given mean and standard deviation of the old rows; see `extended`. Shape [D]."""
    return mean_D + SPREAD * std_D * _noise(token, len(mean_D))


def _noise(token: str, width: int) -> Tensor:
    """Standard normal values, the same for the same token. Shape [D]."""
    seed = int.from_bytes(hashlib.sha256(token.encode()).digest()[:7], "big")
    return torch.empty(width).normal_(generator=torch.Generator().manual_seed(seed))
