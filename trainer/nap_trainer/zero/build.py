"""A model under ZeRO, random or from a checkpoint; at stage 3 no rank holds more than one whole parameter of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.parts import Part, checkpoint_parts, ignorable
from nap_runtime.models.shapes import random_part
from nap_runtime.models.transformer import DiffusionTransformer, RotaryTable
from nap_runtime.models.weights import check_tensors, open_weights, read_part
from nap_trainer.ranks import Ranks
from nap_trainer.zero.config import OptimizerConfig, ZeroConfig, deepspeed_config
from nap_trainer.zero.load import load_deepspeed


def build_model(
    config: ModelConfig,
    *,
    weights: ModelCard | None,
    seed: int,
    zero: ZeroConfig,
    ranks: Ranks,
    gradient_checkpointing: bool = False,
    scale: float = 1.0,
) -> DiffusionTransformer:
    """The model in training mode on every rank: `weights`, or random ones from `seed` (and `scale`, as `make_model`).

    Weights are bfloat16 under precision `bfloat16`, else float32. Rank 0 alone reads or draws them, one parameter at a
    time, and passes them on; every rank calls this. At stage 3 parameters are born partitioned.

    Raises:
        ModelError: a file is missing or damaged; on every rank, with one text.
    """
    deepspeed = load_deepspeed(ranks)
    dtype = torch.bfloat16 if zero.precision == "bfloat16" else torch.float32
    with _born_partitioned(deepspeed, zero, ranks):
        model = DiffusionTransformer(
            config, dtype=dtype, device=ranks.device, gradient_checkpointing=gradient_checkpointing
        )
    for table in model.modules():
        if isinstance(table, RotaryTable):
            # Partitioned birth casts every tensor to the weights' dtype; this computes the tables anew, in float32.
            table._apply(lambda tensor: tensor)
    source = _Source(config, weights, seed=seed, scale=scale, dtype=dtype, ranks=ranks)
    params = dict(model.named_parameters())
    by_param: dict[str, list[Part]] = {}
    for part in checkpoint_parts(config):
        by_param.setdefault(part.param, []).append(part)
    for name, parts in by_param.items():
        _fill(deepspeed, params[name], source.read(parts), ranks)
    return model.train()


@contextmanager
def _born_partitioned(deepspeed: Any, zero: ZeroConfig, ranks: Ranks) -> Iterator[None]:
    if zero.stage < 3:
        yield
        return
    config = deepspeed_config(zero, OptimizerConfig(), micro_batch=1, accumulation=1, world=ranks.world)
    with deepspeed.zero.Init(config_dict_or_path=config):
        yield


def _fill(deepspeed: Any, param: nn.Parameter, values: list[tuple[int, Tensor]], ranks: Ranks) -> None:
    """Copy rank 0's rows into a parameter, on every rank; the others give none."""
    with deepspeed.zero.GatheredParameters(param, modifier_rank=0), torch.no_grad():
        for start, value in values:
            param[start : start + value.shape[0]].copy_(value)
        if not hasattr(param, "ds_id"):
            ranks.agree_on([param.data])


class _Source:
    """What rank 0 fills parameters with: a checkpoint's tensors, or random ones."""

    def __init__(
        self,
        config: ModelConfig,
        card: ModelCard | None,
        *,
        seed: int,
        scale: float,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        self.config, self.card, self.ranks = config, card, ranks
        self.seed, self.scale, self.dtype = seed, scale, dtype
        self.files: dict[str, Any] = {}
        with ranks.together():
            if card is not None and ranks.leads:
                by_file = check_tensors(card.path, checkpoint_parts(config), ignorable(config))
                self.files = {part.name: file for file, parts in by_file.items() for part in parts}

    def read(self, parts: list[Part]) -> list[tuple[int, Tensor]]:
        """(first row, rows) of each part on rank 0, nothing elsewhere; ModelError on every rank if it fails."""
        values: list[tuple[int, Tensor]] = []
        with self.ranks.together():
            if self.ranks.leads:
                values = [(part.start, self._one(part)) for part in parts]
        return values

    def _one(self, part: Part) -> Tensor:
        if self.card is None:
            return random_part(part, self.config, seed=self.seed, dtype=self.dtype, scale=self.scale)
        with open_weights(self.files[part.name]) as opened:
            return read_part(opened, self.files[part.name], part)
