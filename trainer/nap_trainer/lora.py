"""LoRA: train small adapters beside frozen matrices of the layers, through peft.

peft and torch are imported on use; a configuration can be read without them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nap_runtime.models.transformer import DiffusionTransformer

# The layers' matrices. Embedding and head stay out: the head is applied as a bare matrix, past any adapter.
TARGETS = ("qkv", "out", "gate_up", "down")
_NAME = "default"


class LoraConfig(BaseModel):
    """Adapters W + (alpha / rank)·B·A, with B zero at the start.

    Args:
        rank: of A and B.
        alpha: scale of the adapters' part, divided by the rank.
        dropout: of the adapters' input, in training.
        targets: which matrices of every layer: `qkv`, `out`, `gate_up`, `down`.
        seed: of A.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = TARGETS
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in targets if name not in TARGETS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no matrix of a layer; use some of {', '.join(TARGETS)}")
        if not targets or len(set(targets)) != len(targets):
            raise ValueError(f"name each once, and at least one of {', '.join(TARGETS)}")
        return targets


def apply_lora(model: DiffusionTransformer, config: LoraConfig) -> DiffusionTransformer:
    """Add adapters in place, freeze everything else, and return the model; its logits do not change yet.

    A is drawn from `config.seed`, alike on every rank. Adapters have the dtype and device of the layers' weights. The
    model may be partitioned (ZeRO stage 3); the engine then partitions the adapters too.
    """
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    weight = model.norm.weight
    given = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        inject_adapter_in_model(given, model, adapter_name=_NAME)
    for name, param in model.named_parameters():
        adapter = ".lora_" in name
        param.requires_grad_(adapter)
        if adapter:
            param.data = param.data.to(weight.device, weight.dtype)
    return model


def adapted(model: nn.Module) -> dict[str, Any]:
    """Name of each adapted matrix, as the model had it before (`layers.0.attn.qkv`), to its peft layer."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def plain_name(name: str) -> str:
    """A base parameter's name as it was before adapters were added."""
    return name.replace(".base_layer.", ".")


def merged_weight(weight: Tensor, layer: Any) -> Tensor:
    """W + scale·B·A of one adapted matrix, computed in float32 and rounded to W's dtype."""
    a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    update = b.detach().float() @ a.detach().float() * layer.scaling[_NAME]
    merged: Tensor = (weight.detach().float() + update.to(weight.device)).to(weight.dtype)
    return merged


def plain(model: DiffusionTransformer) -> DiffusionTransformer:
    """A model in eval mode with neither adapters nor hooks, over the same weights: no copy but of adapted matrices.

    What is done with it trains nothing and calls no collective. A partitioned model must be gathered meanwhile.
    """
    import torch
    from torch import nn

    from nap_runtime.models.transformer import DiffusionTransformer

    result = DiffusionTransformer(model.config, dtype=model.norm.weight.dtype, device="meta")
    layers = adapted(model)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ".lora_" in name:
                continue
            layer = layers.get(name.partition(".base_layer.")[0])
            value = merged_weight(param, layer) if layer is not None and name.endswith(".weight") else param.detach()
            owner, _, leaf = plain_name(name).rpartition(".")
            setattr(result.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    result.rope.cos, result.rope.sin = model.rope.cos, model.rope.sin
    return result.eval()


def merged(model: DiffusionTransformer) -> DiffusionTransformer:
    """A plain copy on the CPU whose matrices hold the adapters' part; without adapters it is a copy.

    A partitioned model is exported through its engine instead, which merges matrix by matrix.
    """
    return deepcopy(plain(model)).cpu()
