"""The network, as workers see it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nap_runtime.models.compiled import CompiledDenoiser, CompileOptions
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.invariant_denoiser import InvariantDenoiser
from nap_runtime.models.transformer import Attend, DiffusionTransformer


class Denoiser(Protocol):
    """The network: hidden states of any canvas rows, and logits of hidden states."""

    config: ModelConfig

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Attend) -> Tensor:
        """Hidden states [B, R, D] of the rows at canvas positions `rows_R`; [B, R] where canvases differ (`dkv`)."""
        ...

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        """Scores over the vocabulary, [B, R, V]."""
        ...


def prepare(denoiser: Denoiser, options: CompileOptions) -> Denoiser:
    """The denoiser as steps of these options run it. Make it once: it keeps what was compiled.

    Raises:
        UsageError: its numbers are not such that these numerics take.
    """
    if options.mode == "none" or not isinstance(denoiser, DiffusionTransformer):
        return denoiser
    if options.numerics == "invariant":
        return InvariantDenoiser(denoiser)
    return CompiledDenoiser(denoiser, options)
