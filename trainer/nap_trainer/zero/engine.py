"""One training under DeepSpeed: forward, backward, step, rate, checkpoint, export.

Nothing of DeepSpeed's averaging is left: the gradient of a step is the sum over micro-steps and ranks of what
`backward` was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from nap_runtime.models.config import ModelConfig
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.models.weights import DEFAULT_SHARD_BYTES
from nap_trainer.lora import plain
from nap_trainer.ranks import Ranks
from nap_trainer.zero import checkpoints
from nap_trainer.zero.config import OptimizerConfig, ZeroConfig, deepspeed_config
from nap_trainer.zero.export import denoiser, write_model
from nap_trainer.zero.load import load_deepspeed
from nap_trainer.zero.optim import make_optimizer


class ZeroEngine:
    """A module, its optimizer and their state, spread over the ranks as `zero` says.

    ``module`` is the module that was given; under stage 3 its parameters are partitioned between calls.
    ``device`` is where inputs belong.
    """

    def __init__(self, inner: Any, *, zero: ZeroConfig, optimizer: OptimizerConfig, ranks: Ranks, accumulation: int):
        self.inner, self.zero, self.optimizer, self.ranks = inner, zero, optimizer, ranks
        self.module: nn.Module = inner.module
        self.accumulation = accumulation
        self._peaks = [float(group["lr"]) for group in self.groups]
        self._micro_step = 0

    @classmethod
    def start(
        cls,
        module: nn.Module,
        *,
        zero: ZeroConfig,
        optimizer: OptimizerConfig,
        ranks: Ranks,
        micro_batch: int = 1,
        accumulation: int = 1,
    ) -> Self:
        """Hand a module over to ZeRO; every rank calls it, and it joins the process group if that is not done yet.

        Parameters that require no gradient stay as they are. `accumulation` is the number of `backward` calls before
        each `step`.

        Raises:
            UsageError: the optimizer does not run at this stage.
        """
        config = deepspeed_config(
            zero, optimizer, micro_batch=micro_batch, accumulation=accumulation, world=ranks.world
        )
        deepspeed = load_deepspeed(ranks)
        if zero.precision == "autocast":
            _autocast(module, ranks.device, cached=zero.stage < 3)
        at = torch.device("cpu") if zero.offload_optimizer == "cpu" else ranks.device
        stepper = make_optimizer(module, optimizer, device=at)
        with redirect_stdout(StringIO()):  # some of its memory reports cannot be switched off
            inner = deepspeed.initialize(model=module, optimizer=stepper, config=config, dist_init_required=False)[0]
        inner._copy_recovery_script = lambda _: None  # no scripts among checkpoints: they unpickle freely
        return cls(inner, zero=zero, optimizer=optimizer, ranks=ranks, accumulation=accumulation)

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return self.ranks.device

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, with their present rates."""
        return self.inner.optimizer.param_groups  # type: ignore[no-any-return]

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        return self.inner(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar, this micro-step's share of the global loss, to the step's gradient."""
        self._micro_step += 1
        assert self._micro_step <= self.accumulation, "more backward calls than `accumulation`; call step"
        self.inner.set_gradient_accumulation_boundary(self._micro_step == self.accumulation)
        # DeepSpeed takes the mean over ranks; undone before it, where a power of two costs no rounding.
        self.inner.backward(loss * self.ranks.world, scale_wrt_gas=False)

    def step(self) -> Tensor | float:
        """Clip, step, forget the gradients; returns the global gradient norm before clipping.

        Mostly a tensor on the device, so that nothing waits for it. Where the norm is not finite, stages 1 to 3 have
        skipped the step and return inf; stage 0 has taken it, and its weights are lost: go back to a checkpoint.
        """
        assert self._micro_step == self.accumulation, f"{self._micro_step} of {self.accumulation} backward calls"
        self._micro_step = 0
        if self.zero.stage:
            self.inner.step()
            return self.inner.get_global_grad_norm()  # type: ignore[no-any-return]
        params = [p for p in self.module.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(params, self.zero.clip or float("inf"))
        self.inner.step()
        return norm

    def set_rate(self, factor: float) -> None:
        """Set each group's learning rate to its peak times `factor`."""
        for group, peak in zip(self.groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    @contextmanager
    def plain(self) -> Iterator[DiffusionTransformer]:
        """The transformer as it is now, whole on every rank, in eval mode, adapters merged: to be looked at only.

        Every rank enters and leaves together; in between each may do with it what it likes, or nothing. It shares the
        engine's weights; at stage 3 every rank needs memory for all of them meanwhile.
        """
        deepspeed, model = load_deepspeed(self.ranks), denoiser(self.module)
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=self.zero.stage == 3):
            yield plain(model)

    def save(self, folder: Path, *, step: int, client: dict[str, Any], keep: int = 2) -> None:
        """Write a checkpoint that replaces the latest only when it is whole; see `checkpoints.save`."""
        checkpoints.save(self, Path(folder), step=step, client=client, keep=keep)

    def resume(self, folder: Path) -> tuple[int, dict[str, Any]] | None:
        """Go on from the latest checkpoint, if there is one: its step and client; see `checkpoints.resume`."""
        return checkpoints.resume(self, Path(folder))

    def export(
        self,
        config: ModelConfig,
        out: Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ) -> None:
        """Write config.json and weights under the family's names, adapters merged; see `export.write_model`."""
        write_model(self, config, Path(out), dtype=dtype, max_shard_bytes=max_shard_bytes)

    def close(self) -> None:
        """Release what DeepSpeed holds; the process group stays."""
        self.inner.destroy()


def _autocast(module: nn.Module, device: torch.device, *, cached: bool) -> None:
    """Run the module's forward under bfloat16 autocast. DeepSpeed switches off one that is around its own forward.

    Without the cache no cast copy outlives the matrix that it was made from, which stage 3 releases after use.
    """
    forward: Callable[..., Any] = module.forward

    @wraps(forward)
    def cast(*inputs: Any, **options: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=cached):
            return forward(*inputs, **options)

    module.forward = cast
