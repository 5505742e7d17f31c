"""Finished weights on disk, gathered and written one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nap_runtime.errors import ModelError, NapError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.parts import Part, checkpoint_parts
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.models.weights import staged_folder, write_weights
from nap_trainer.lora import adapted, merged_weight, plain_name
from nap_trainer.ranks import Ranks
from nap_trainer.zero.load import load_deepspeed

if TYPE_CHECKING:
    from nap_trainer.zero.engine import ZeroEngine


def denoiser(module: nn.Module) -> DiffusionTransformer:
    """The transformer in a module (which may be it); ModelError if there is none."""
    for part in module.modules():
        if isinstance(part, DiffusionTransformer):
            return part
    raise ModelError(f"{type(module).__name__} holds no DiffusionTransformer to export")


def write_model(
    engine: ZeroEngine, config: ModelConfig, out: Path, *, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    """Write config.json and safetensors under the family's own names; every rank calls it, rank 0 writes.

    A rank holds one gathered parameter at a time, rank 0 also the shard that it is writing. Under precision `bfloat16`
    a float32 export holds the master weights. Adapters are merged on the way. As with `save_model`, the folder appears
    or changes only when everything is written, and files that are no weights stay.

    Raises:
        ModelError: rank 0 could not write; on every rank, with one text.
    """
    gather = _Gather(engine, config, dtype)
    parts = checkpoint_parts(config)
    if not engine.ranks.leads:
        for part in parts:
            gather(part)
        gather.finish("")
        return
    try:
        with staged_folder(out) as staged:
            write_weights(staged, parts, gather, dtype=dtype, max_shard_bytes=max_shard_bytes)
            config.to_json(staged)
    except (NapError, OSError) as error:
        gather.finish(str(error))
        raise error if isinstance(error, NapError) else ModelError(str(error)) from error
    gather.finish("")


class _Gather:
    """A part's tensor. Rank 0 calls it as it writes; the others call it for the same parts in the same order."""

    def __init__(self, engine: ZeroEngine, config: ModelConfig, dtype: torch.dtype) -> None:
        self.ranks: Ranks = engine.ranks
        self.deepspeed: Any = load_deepspeed(engine.ranks)
        model = denoiser(engine.module)
        self.layers = adapted(model)
        self.params = {plain_name(name): p for name, p in model.named_parameters() if ".lora_" not in name}
        self.masters = dtype == torch.float32 and engine.zero.precision == "bfloat16"

    def __call__(self, part: Part) -> Tensor:
        self.finish("")  # rank 0 says before every part that it is still writing
        param = self.params[part.param]
        layer = self.layers.get(part.param.removesuffix(".weight"))
        rows = slice(part.start, part.start + part.shape[0])
        with self.deepspeed.zero.GatheredParameters(list(self._needed(param, layer))):
            value = self._master(param) if self.masters else param.detach()
            if layer is not None:
                value = merged_weight(value, layer)
            return value[rows].to("cpu", copy=True) if self.ranks.leads else torch.empty(0)

    def finish(self, problem: str) -> None:
        """Hear whether rank 0 could go on; ModelError with its text on the others if not."""
        text = self.ranks.told(problem)
        if text and not self.ranks.leads:
            raise ModelError(text)

    def _needed(self, param: nn.Parameter, layer: Any) -> Iterator[nn.Parameter]:
        yield param
        if layer is not None:
            yield from (p for name, p in layer.named_parameters() if "lora_" in name)

    def _master(self, param: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        value = safe_get_full_fp32_param(param) if param.requires_grad else None
        return param.detach().float() if value is None else value
