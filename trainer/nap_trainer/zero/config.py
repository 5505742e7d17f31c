"""What the optimizer does and how ZeRO spreads it, and the same in DeepSpeed's words.

Nothing here imports torch or deepspeed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nap_runtime.errors import UsageError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Natural = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Elements = Annotated[int, Field(ge=1)]


class OptimizerConfig(BaseModel):
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest.

    Only the layers' matrices decay; embedding, head, norms and biases never do. The defaults are the paper's rate and
    the settings of the trainer that its authors released.

    Args:
        kind: `adamw` or `muon` (stage 0 only).
        lr, betas, eps, weight_decay: AdamW's peak rate and the rest of its settings.
        muon_lr, muon_weight_decay, muon_momentum: Muon's, used under `muon`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 2e-6
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Natural = 0.01
    muon_lr: Positive = 0.02
    muon_weight_decay: Natural = 0.02
    muon_momentum: Fraction = 0.95


class ZeroConfig(BaseModel):
    """How training state is spread over the ranks, and in which precision it is.

    Args:
        stage: what is partitioned: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters.
        offload_optimizer: `cpu` keeps optimizer state and its step in host memory (stages 1 to 3).
        offload_params: `cpu` keeps partitions of parameters in host memory (stage 3).
        precision: `float32`; `autocast` (float32 weights, matrix products in bfloat16); `bfloat16` (weights and
            activations in bfloat16, master weights and sums of gradients in float32; stages 1 to 3).
        clip: limit of the global gradient norm; 0 does not clip.
        reduce_dtype: what gradients travel in between ranks; `bfloat16` halves the traffic and needs precision
            `bfloat16`. Sums over micro-steps are float32 either way.
        overlap_comm: reduce gradients beside the backward pass; None: at stage 3 only, as DeepSpeed does.
        reduce_bucket, allgather_bucket: elements that go into one collective.
        prefetch_bucket, live_params, reuse_distance, persistence: stage 3: elements gathered ahead of use, held at
            once, kept because they are used again so soon, and the size up to which a parameter is never partitioned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_params: Literal["none", "cpu"] = "none"
    precision: Literal["float32", "bfloat16", "autocast"] = "float32"
    clip: Natural = 1.0
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    overlap_comm: bool | None = None
    reduce_bucket: Elements = 200_000_000
    allgather_bucket: Elements = 200_000_000
    prefetch_bucket: Elements = 50_000_000
    live_params: Elements = 1_000_000_000
    reuse_distance: Elements = 1_000_000_000
    persistence: Annotated[int, Field(ge=0)] = 100_000

    @model_validator(mode="after")
    def _combined(self) -> Self:
        if self.offload_optimizer != "none" and self.stage == 0:
            raise ValueError("`offload_optimizer` needs stage 1, 2 or 3")
        if self.offload_params != "none" and self.stage != 3:
            raise ValueError("`offload_params` needs stage 3")
        if self.precision == "bfloat16" and self.stage == 0:
            # DeepSpeed has no float32 sums of gradients there, and refuses to mix the two.
            raise ValueError("`precision` bfloat16 needs stage 1, 2 or 3; at stage 0 use autocast")
        if self.reduce_dtype == "bfloat16" and self.precision != "bfloat16":
            raise ValueError("`reduce_dtype` bfloat16 needs `precision` bfloat16")
        return self


def check_together(zero: ZeroConfig, optimizer: OptimizerConfig) -> None:
    """UsageError if this optimizer does not run at this stage."""
    if optimizer.kind == "muon" and zero.stage:
        # Muon needs whole matrices, and partitions cut through them.
        text = f"muon needs whole matrices, zero.stage {zero.stage} cuts them: use stage 0, or kind adamw"
        raise UsageError(f"optimizer.kind: {text}", field="optimizer.kind")


def deepspeed_config(
    zero: ZeroConfig, optimizer: OptimizerConfig, *, micro_batch: int, accumulation: int, world: int
) -> dict[str, Any]:
    """DeepSpeed's configuration, every default that matters or that changed between versions written out.

    The optimizer itself is handed over as an object, so there is no `optimizer` section.

    Raises:
        UsageError: the optimizer does not run at this stage.
    """
    check_together(zero, optimizer)
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world,
        # Ours says where an accumulation ends (`set_gradient_accumulation_boundary`), which needs DeepSpeed's counting.
        "managed_gradient_accumulation": True,
        # 0.0 before 0.19, 1.0 since. At stage 0 the engine clips by itself, because DeepSpeed throws that norm away.
        "gradient_clipping": zero.clip if zero.stage else 0.0,
        # The mean over ranks is undone exactly in the loss; `sum` is refused at stage 3.
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        # None means the model's dtype: sums over ranks would be bfloat16.
        "communication_data_type": {"float32": "fp32", "bfloat16": "bf16"}[zero.reduce_dtype],
        "seq_parallel_communication_data_type": "fp32",
        # None means the model's dtype: sums over micro-steps would lose small gradients.
        "data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": []},
        "bf16": _bf16(zero),
        "fp16": {"enabled": False},
        # Ours is around the forward pass, without the cache of cast weights, which would hold a whole stage 3 model.
        "torch_autocast": {"enabled": False},
        # A torch optimizer is handed over; both of these are in its way by default.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero_optimization(zero),
        "checkpoint": {
            # Compared by a collective otherwise, with a warning only; our tags come from the step.
            "tag_validation": "Ignore",
            "load_universal": False,
            # All ranks share one folder.
            "use_node_local_storage": False,
        },
        "flops_profiler": {"enabled": False},
        "wall_clock_breakdown": False,  # synchronises the device at every phase
        "memory_breakdown": False,
        # On by default, and it synchronises the device twice a step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "dump_state": False,
        "steps_per_print": None,  # progress is the trainer's
        "disable_python_gc": False,
        "disable_allgather": False,
    }


def _bf16(zero: ZeroConfig) -> dict[str, Any]:
    return {
        "enabled": zero.precision == "bfloat16",
        # Keep sums of gradients in float32 beside the bfloat16 ones of a micro-step.
        "immediate_grad_update": False,
        "bf16_master_weights_and_grads": False,
        "bf16_optimizer_states": False,
        # Off before 0.17. Stages 1 to 3 skip a step whose gradient is not finite, in float32 whatever this says;
        # so does bfloat16 then, and `step` returns inf.
        "check_grad_overflow": True,
    }


def _zero_optimization(zero: ZeroConfig) -> dict[str, Any]:
    section: dict[str, Any] = {
        "stage": zero.stage,
        "contiguous_gradients": True,
        "overlap_comm": zero.stage == 3 if zero.overlap_comm is None else zero.overlap_comm,
        "reduce_scatter": True,
        "reduce_bucket_size": zero.reduce_bucket,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": zero.allgather_bucket,
        "round_robin_gradients": False,  # another order of parameters in the flat buffers
        "parameter_alignment": False,
        "load_from_fp32_weights": True,  # a resumed run goes on from the master weights, not from rounded ones
        "elastic_checkpoint": False,  # other world sizes go through universal checkpoints
        "ignore_unused_parameters": True,
        "legacy_stage1": False,
    }
    if zero.stage in (1, 2):
        section["compute_grad_norm"] = True  # `step` returns it
    if zero.offload_optimizer == "cpu":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": True, "ratio": 1.0}
    return section | (_stage3(zero) if zero.stage == 3 else {})


def _stage3(zero: ZeroConfig) -> dict[str, Any]:
    section: dict[str, Any] = {
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": zero.prefetch_bucket,
        "stage3_param_persistence_threshold": zero.persistence,
        "stage3_max_live_parameters": zero.live_params,
        "stage3_max_reuse_distance": zero.reuse_distance,
        "stage3_module_granularity_threshold": 0,
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        # It would hold the whole model on every rank; `export` gathers one parameter at a time.
        "stage3_gather_16bit_weights_on_model_save": False,
        # It replaces torch.nn.functional.linear for the whole process and for good.
        "memory_efficient_linear": False,
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_gradients": False,
        "log_trace_cache_warnings": False,
    }
    if zero.offload_params == "cpu":
        section["offload_param"] = {"device": "cpu", "pin_memory": True}
    return section
