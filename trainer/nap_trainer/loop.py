"""The training loop: draw, mask, predict, step; log, evaluate, checkpoint now and then.

The whole run is a function of the configuration and the step number, so that a run that was stopped goes on as if it
had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nap_runtime.errors import UsageError
from nap_runtime.models.transformer import DiffusionTransformer, compiled_kernels
from nap_trainer import meters
from nap_trainer.batches.collate import HostBatch
from nap_trainer.batches.loader import Loader
from nap_trainer.evaluation import Evaluator
from nap_trainer.export import export_model
from nap_trainer.logs import Figure, TrainLog
from nap_trainer.lora import apply_lora
from nap_trainer.objective.draws import Draws
from nap_trainer.objective.forward import DeviceBatch, ForwardProcess, Masked, with_unknown
from nap_trainer.objective.loss import DiffusionLoss, region_sums, shares
from nap_trainer.objective.views import View, Views
from nap_trainer.prepare import Prepared
from nap_trainer.ranks import Ranks
from nap_trainer.sameness import check_same_training
from nap_trainer.settings import ScheduleSection, TrainConfig
from nap_trainer.zero import ZeroEngine, build_model

Figures = dict[str, Figure]


class Trainer:
    """One run on this rank.

    Args:
        settings: the configuration.
        ranks: connected processes.
        prepared: model card, marks and formed rows.

    Raises:
        UsageError: batches do not divide, the rows do not fit, or `run.out` holds another training.
        ModelError: weights are missing or damaged.
    """

    def __init__(self, settings: TrainConfig, ranks: Ranks, prepared: Prepared) -> None:
        self.settings, self.ranks, self.prepared = settings, ranks, prepared
        schedule, run = settings.schedule, settings.run
        self.accumulation = schedule.accumulation(ranks.world)
        self.fused = bool(run.compile) and ranks.device.type == "cuda"
        self.loader = Loader(
            prepared.table,
            settings.data,
            prepared.marks,
            global_batch=schedule.global_batch,
            micro_batch=schedule.micro_batch,
            rank=ranks.rank,
            world=ranks.world,
        )
        self.total = schedule.steps(len(self.loader.table))
        config = prepared.card.config
        if self.loader.width > config.max_positions:
            text = f"canvases of up to {self.loader.width} positions; the model's context is {config.max_positions}"
            raise UsageError(f"data: {text}", field="data")
        self.forward = ForwardProcess(
            settings.objective,
            global_batch=schedule.global_batch,
            learn_padding=settings.data.padding == "learn",
            mask_id=config.mask_id,
            seed=run.seed,
            fused=self.fused,
        )
        self.views = Views(settings.objective, mask_id=config.mask_id, seed=run.seed, fused=self.fused)
        check_same_training(settings, self.checkpoints, ranks)
        self.model = self._build()
        self.engine = self._start()
        self.step_done = 0
        self._logged, self._last_logged = time.monotonic(), 0

    # -- setting up ---------------------------------------------------------------------------------------------

    def _build(self) -> DiffusionTransformer:
        settings, card = self.settings, self.prepared.card
        model = build_model(
            card.config,
            weights=None if settings.model.init is None else card,
            seed=settings.model.seed,
            zero=settings.zero,
            ranks=self.ranks,
            gradient_checkpointing=settings.run.gradient_checkpointing,
        )
        return apply_lora(model, settings.lora) if settings.lora else model

    def _start(self) -> ZeroEngine:
        settings = self.settings
        loss = DiffusionLoss(self.model, head_chunk=settings.run.head_chunk)
        # Under stage 3 weights come and go inside a layer.
        if settings.run.compile == "parts" or (settings.run.compile and settings.zero.stage == 3):
            self.model.use_kernels(compiled_kernels())
        elif settings.run.compile:
            loss.compile(dynamic=False)
        return ZeroEngine.start(
            loss,
            zero=settings.zero,
            optimizer=settings.optimizer,
            ranks=self.ranks,
            micro_batch=settings.schedule.micro_batch,
            accumulation=self.accumulation,
        )

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return Path(self.settings.run.out) / "checkpoints"

    # -- running ------------------------------------------------------------------------------------------------

    def fit(self, evaluator: Evaluator | None = None) -> Figures:
        """Train to the end, from the last checkpoint if there is one; export. Returns the last figures (rank 0)."""
        settings, run = self.settings, self.settings.run
        self.step_done = self.resume()
        log = TrainLog(
            Path(run.out), total=self.total, start=self.step_done, tensorboard=run.tensorboard, active=self.ranks.leads
        )
        with log:
            self._greet(log)
            figures = self.advance(self.total, log, evaluator) or log.last()
            export_model(self.engine, self.prepared.card, settings, Path(run.out) / "model")
            self._finish(log, figures)
        return figures

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns its step."""
        found = self.engine.resume(self.checkpoints)
        return 0 if found is None else found[0]

    def advance(self, until: int, log: TrainLog, evaluator: Evaluator | None = None) -> Figures:
        """Train up to a step; figures of the last one that was logged."""
        figures: Figures = {}
        self._logged, self._last_logged = time.monotonic(), self.step_done
        for step, batches in enumerate(self.loader.steps(self.step_done, until), start=self.step_done):
            sums, norm = self.step(step, batches)
            self.step_done = step + 1
            log.tick(self.step_done)
            if self._due(self.settings.run.log_every) or self.step_done in (1, self.total):
                figures = self._figures(step, sums, norm, batches)
                log.write("train", self.step_done, figures)
                self._check(figures)
            if evaluator is not None and self._due(self.settings.evaluate.every):
                self._evaluate(log, evaluator)
            if self._due(self.settings.run.checkpoint_every) or self.step_done == self.total:
                self._save()
        return figures

    def _due(self, every: int) -> bool:
        return every > 0 and self.step_done % every == 0

    def step(self, step: int, batches: Sequence[HostBatch]) -> tuple[Tensor, Tensor | float]:
        """One optimizer step; (weighted loss, path and summary sums) and the gradient's norm stay on the device."""
        device = self.ranks.device
        self.engine.set_rate(rate_factor(step, self.total, self.settings.schedule))
        self._seed_dropout(step)
        ready = [self._masked(DeviceBatch.of(batch, device), step) for batch in batches]
        divisor = self.ranks.total(torch.stack([part for *_, part in ready]).sum()).clamp(min=1)
        sums = torch.zeros(5, device=device)
        for batch, masked, view, weight_BN, _ in ready:
            loss, losses_BN = self.engine(
                view.ids_BR, view.positions_R, view.mask, view.start, batch.ids_BN, weight_BN / divisor
            )
            self.engine.backward(loss)
            sums[:1] += loss.detach()
            sums[1:] += region_sums(losses_BN, masked, batch.blocks, summary=batch.summary)
        return sums, self.engine.step()

    def _seed_dropout(self, step: int) -> None:
        """An adapter's dropout is torch's own noise: seeded anew at each step, so that a resumed run draws the same."""
        if self.settings.lora is not None and self.settings.lora.dropout:
            named = np.random.SeedSequence([self.settings.run.seed, step, self.ranks.rank])
            torch.manual_seed(int(named.generate_state(1)[0]))

    def _masked(self, batch: DeviceBatch, step: int) -> tuple[DeviceBatch, Masked, View, Tensor, Tensor]:
        """What a micro-batch looks like to the network: (batch, masked, view, weights, part of the divisor)."""
        data, prepared = self.settings.data, self.prepared
        if data.unknown:
            draws = Draws(self.settings.run.seed, step, self.fused)
            assert prepared.words_V is not None
            batch = with_unknown(batch, data.unknown, prepared.words_V, prepared.unknown_id, draws)
        masked = self.forward(batch, step)
        weight_BN, part = shares(masked, self.settings.objective)
        return batch, masked, self.views(batch, masked, step), weight_BN, part

    # -- figures ------------------------------------------------------------------------------------------------

    def _figures(self, step: int, sums: Tensor, norm: Tensor | float, batches: Sequence[HostBatch]) -> Figures:
        loss, path, paths, summary, summaries = self.ranks.total(sums).tolist()
        n = batches[-1].ids_BN.shape[1]
        steps = self.step_done - self._last_logged
        now = time.monotonic()
        tokens = steps * sum(batch.ids_BN.size for batch in batches) / (now - self._logged)
        self._logged, self._last_logged = now, self.step_done
        config, device = self.prepared.card.config, self.ranks.device
        return {
            "loss": loss,
            "loss_path": path / paths if paths else None,
            "loss_summary": summary / summaries if summaries else None,
            "grad_norm": float(norm),
            "lr": self.settings.optimizer.lr * rate_factor(step, self.total, self.settings.schedule),
            "tokens_per_second": round(tokens * self.ranks.world),
            "mfu": meters.mfu(config, n, tokens, device),
            "memory_gib": None if (held := meters.peak_memory(device)) is None else held / 2**30,
        }

    @staticmethod
    def _check(figures: Figures) -> None:
        for name in ("loss", "grad_norm"):
            value = figures[name]
            if isinstance(value, float) and not math.isfinite(value):
                mend = "go back to a checkpoint, and lower the rate or raise the warm-up"
                raise UsageError(f"optimizer.lr: {name} is {value}: {mend}", field="optimizer.lr")

    def _greet(self, log: TrainLog) -> None:
        schedule, table = self.settings.schedule, self.loader.table
        for name, count in self.loader.dropped.items():
            log.say(f"data: {count} rows left out: they do not fit data.{name}")
        log.say(
            f"{len(table)} rows, {self.total} steps of {schedule.global_batch} canvases ({self.ranks.world} ranks × "
            f"{self.accumulation} micro-steps × {schedule.micro_batch}), {self.prepared.card.config.n_params:,} weights"
        )
        if self.step_done:
            rest = "goes on from" if self.step_done < self.total else "nothing is left to train after"
            log.say(f"{rest} step {self.step_done}")

    def _evaluate(self, log: TrainLog, evaluator: Evaluator) -> None:
        began = time.monotonic()
        with self.engine.plain() as model:
            log.write("eval", self.step_done, evaluator(model))
        self._logged += time.monotonic() - began  # tokens/s are those of training

    def _save(self) -> None:
        began = time.monotonic()
        self.engine.save(self.checkpoints, step=self.step_done, client=self._client(), keep=self.settings.run.keep)
        self._logged += time.monotonic() - began

    def _client(self) -> dict[str, Any]:
        return {"config": self.settings.to_mapping()}

    def _finish(self, log: TrainLog, figures: Figures) -> None:
        log.write("end", self.step_done, {"loss": figures.get("loss"), "weights": self.prepared.card.config.n_params})
        log.say(f"model in {Path(self.settings.run.out) / 'model'}")


def rate_factor(step: int, total: int, schedule: ScheduleSection) -> float:
    """Share of the peak rate at a step (0-based): up over the warm-up, then down to `floor`."""
    warmup = schedule.warmup * total if schedule.warmup < 1 else schedule.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        schedule.decay
    ]
    return schedule.floor + (1 - schedule.floor) * shape
