"""The training loop: draw, mask, predict, step; log, evaluate and save now and then."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import load_model
from nap_runtime.models.shapes import make_model
from nap_runtime.models.tokenizer import Tokenizer, build_word_tokenizer, load_tokenizer
from nap_runtime.models.transformer import DiffusionTransformer
from nap_trainer.canvases import CanvasFormat, token_id
from nap_trainer.checkpoints import check_size, export, save_state
from nap_trainer.dataset import CanvasTable, DeviceData, generate_table
from nap_trainer.evaluate import Evaluator
from nap_trainer.objective import Masked, Objective, normalised, region_means, slot_losses
from nap_trainer.optim import Average, FlatGradients, Pace, make_optimizers, rate_factor, set_rate
from nap_trainer.ranks import Ranks
from nap_trainer.settings import TrainConfig
from nap_trainer.words import Split, vocabulary

MODEL_NAME = "nap-tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a run reads and writes."""

    out: Path
    state: Path
    tokenizer: Path

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.out / MODEL_NAME


def run(
    settings: TrainConfig, *, out: Path, state: Path, init: Path | None, scratch: Path, started: float
) -> dict[str, float]:
    """Generate data, train, export; returns the last evaluation (rank 0; others nothing)."""
    ranks = Ranks.of_environment()
    torch.set_float32_matmul_precision("high")
    tokenizer, folder = _tokenizer(init, scratch)
    form = CanvasFormat.of(
        tokenizer,
        paths=settings.paths,
        path_tokens=settings.path_tokens,
        summary_tokens=settings.summary_tokens,
    )
    tables = [_table(settings, ranks, tokenizer, form, split) for split in ("train", "test")]
    ranks.connect()
    try:
        config, model = _model(settings, ranks, tokenizer, init)
        places = Places(out=out, state=state, tokenizer=folder)
        trainer = Trainer(settings, ranks, tokenizer, form, config, model, places, started)
        return trainer.fit(*tables)
    finally:
        ranks.disconnect()


def _tokenizer(init: Path | None, scratch: Path) -> tuple[Tokenizer, Path]:
    found = load_tokenizer(init) if init else None
    if init and found:
        return found, init
    return build_word_tokenizer(vocabulary(), scratch), scratch


def _table(settings: TrainConfig, ranks: Ranks, tokenizer: Tokenizer, form: CanvasFormat, split: Split) -> CanvasTable:
    """This rank's share of the training problems, or the held-out ones."""
    began = time.monotonic()
    train = split == "train"
    cores = settings.processes or max(1, (os.cpu_count() or 1) // ranks.world)
    table = generate_table(
        tokenizer,
        form,
        split=split,
        seed=settings.seed * 1000 + ranks.rank if train else settings.seed,
        count=max(1, settings.samples // ranks.world) if train else settings.eval_samples,
        error_rate=settings.error_rate,
        processes=cores if train else 1,
    )
    if ranks.leads:
        kept, seconds = len(table.ids_nN), time.monotonic() - began
        print(
            f"{split}: {kept} canvases, {table.dropped} dropped, width {table.width}, {seconds:.1f} s",
            flush=True,
        )
    return table


def _model(
    settings: TrainConfig, ranks: Ranks, tokenizer: Tokenizer, init: Path | None
) -> tuple[ModelConfig, DiffusionTransformer]:
    if init:
        loaded = load_model(init, device=ranks.device, trainable=True)
        return loaded.config, loaded.model.train()
    used = 1 + max(token_id(tokenizer, word) for word in (*vocabulary(), "<summary>", "</summary>"))
    config, model = make_model(
        "nap-tiny",
        seed=settings.seed,
        n_layers=settings.n_layers,
        d_model=settings.d_model,
        n_heads=settings.n_heads,
        n_kv_heads=settings.n_heads,
        head_dim=settings.d_model // settings.n_heads,
        d_ff=settings.d_ff,
        vocab_size=-(-used // 8) * 8,
        mask_id=token_id(tokenizer, "<mask>"),
        eos_id=token_id(tokenizer, "<eos>"),
        pad_id=token_id(tokenizer, "<eos>"),
        end_ids=(token_id(tokenizer, "<eos>"),),
    )
    return config, model.to(ranks.device).train().requires_grad_(True)


class Trainer:
    """One run on this rank."""

    def __init__(
        self,
        settings: TrainConfig,
        ranks: Ranks,
        tokenizer: Tokenizer,
        form: CanvasFormat,
        config: ModelConfig,
        model: DiffusionTransformer,
        places: Places,
        started: float,
    ) -> None:
        self.settings, self.ranks, self.tokenizer, self.form = settings, ranks, tokenizer, form
        self.config, self.model, self.places, self.started = config, model, places, started
        check_size(config, settings)
        params = list(model.parameters())
        ranks.agree_on([p.detach() for p in params])
        self.gradients = FlatGradients(params)
        self.optimizers = make_optimizers(model, settings)
        self.average = Average(model, settings.ema)
        self.pace = Pace(settings, ranks, started)
        self.objective = Objective(
            mix=settings.patterns,
            weighting=settings.weighting,
            aside=settings.aside_weight,
            paths=form.n_paths,
            mask_id=form.mask_id,
        )
        seed = settings.seed * 1000 + ranks.rank + 1
        self.generator = torch.Generator(device=ranks.device).manual_seed(seed)
        self.predict = torch.compile(self._losses, dynamic=False) if settings.compile else self._losses
        self.saved = self.logged = time.monotonic()

    def fit(self, train: CanvasTable, test: CanvasTable) -> dict[str, float]:
        """Train until the pace reaches 1; returns the last evaluation."""
        data = DeviceData(train, self.form, self.tokenizer, self.ranks.device, width=test.width)
        held = DeviceData(test, self.form, self.tokenizer, self.ranks.device)
        evaluator = Evaluator(
            held,
            self.form,
            digits=[token_id(self.tokenizer, digit) for digit in "0123456789"],
            size=self.settings.eval_batch,
            tokens_per_step=self.settings.eval_tokens_per_step,
            bf16=self.settings.bf16,
        )
        step = 0
        while (progress := self.pace.progress(step)) < 1:
            set_rate(self.optimizers, rate_factor(step, progress, self.settings))
            figures = self.step(data)
            self.average.update(step)
            step += 1
            self._housekeeping(step, progress, figures, evaluator, data)
        return self._finish(step, evaluator)

    def step(self, data: DeviceData) -> dict[str, Tensor]:
        """One optimizer step; figures stay on the device."""
        with torch.no_grad():
            batch = data.draw(self.settings.batch_size, self.generator, self.settings.unknown)
            masked = self.objective.mask(batch, self.generator)
        self.gradients.flat.zero_()
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.settings.bf16):
            loss, path, summary = self.predict(masked, batch.ids_BN, batch.region_BN, batch.attn_mask)
        loss.backward()
        self.ranks.average(self.gradients.flat)
        norm = self.gradients.clip(self.settings.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        return {"loss": loss.detach(), "loss_path": path, "loss_summary": summary, "grad_norm": norm}

    def _losses(
        self, masked: Masked, ids_BN: Tensor, region_BN: Tensor, attn_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits_BNV = self.model(masked.noisy_BN, attn_mask)
        losses_BN = slot_losses(logits_BNV, ids_BN)
        path, summary = region_means(losses_BN.detach(), masked.hidden_BN, region_BN, self.form.n_paths)
        return normalised(losses_BN, masked), path, summary

    def _housekeeping(
        self, step: int, progress: float, figures: dict[str, Tensor], evaluator: Evaluator, data: DeviceData
    ) -> None:
        if not self.ranks.leads:
            return
        if step == 1 or step % self.settings.log_every == 0:
            self._log_step(step, progress, figures, data)
        if step % self.settings.eval_every == 0 and step != self.settings.max_steps:
            self._evaluate(step, evaluator)
        if time.monotonic() - self.saved > self.settings.checkpoint_seconds:
            self._save()

    def _log_step(self, step: int, progress: float, figures: dict[str, Tensor], data: DeviceData) -> None:
        values = {name: round(float(value), 5) for name, value in figures.items()}
        now, steps = time.monotonic(), 1 if step == 1 else min(step - 1, self.settings.log_every)
        positions = steps * self.settings.batch_size * self.ranks.world * int(data.ids_nN.shape[1])
        rate = self.optimizers[0].param_groups[0]["lr"]
        self._log(
            kind="train", step=step, progress=round(progress, 4), **values, lr=round(rate, 7),
            tokens_per_second=round(positions / (now - self.logged)),
        )  # fmt: skip
        self.logged = time.monotonic()

    def _evaluate(self, step: int, evaluator: Evaluator) -> dict[str, float]:
        began = time.monotonic()
        self.average.swap()
        figures = evaluator(self.model.eval())
        self.model.train()
        self.average.swap()
        self._log(kind="eval", step=step, **{name: round(value, 4) for name, value in figures.items()})
        self.logged += time.monotonic() - began
        return figures

    def _save(self) -> int:
        began = time.monotonic()
        self.average.swap()
        size = export(self.model, self.config, self.settings, self.places.tokenizer, self.places.model)
        save_state(self.model, self.config, self.settings, self.places.tokenizer, self.places.state)
        self.average.swap()
        self.saved = time.monotonic()
        self.logged += self.saved - began
        return size

    def _finish(self, step: int, evaluator: Evaluator) -> dict[str, float]:
        if not self.ranks.leads:
            return {}
        size = self._save()
        figures = self._evaluate(step, evaluator)
        self._log(kind="end", step=step, bytes=size, parameters=self.config.n_params)
        return figures

    def _log(self, **values: Any) -> None:
        values["elapsed"] = round(time.monotonic() - self.started, 1)
        self.places.out.mkdir(parents=True, exist_ok=True)
        with (self.places.out / "train.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        print("  ".join(f"{name} {value}" for name, value in values.items()), flush=True)
