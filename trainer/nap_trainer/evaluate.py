"""Held-out figures of a model in training: loss and accuracy per region, and a short real decode."""

from __future__ import annotations

import torch
from torch import Tensor

from nap_runtime.models.transformer import DiffusionTransformer
from nap_trainer.canvases import CanvasFormat
from nap_trainer.dataset import Batch, DeviceData
from nap_trainer.objective import PATTERNS, Objective, region_means, slot_losses


class Evaluator:
    """Scores the same canvases under the same masks each time.

    Args:
        data: held-out canvases; the first `size` of them are used.
        digits: ids of the ten digits.
        tokens_per_step: slots that the decode commits in one step.
    """

    def __init__(
        self,
        data: DeviceData,
        form: CanvasFormat,
        *,
        digits: list[int],
        size: int,
        tokens_per_step: int,
        bf16: bool,
    ) -> None:
        self.form, self.bf16, self.device = form, bf16, data.device
        self.batch = data.rows(torch.arange(min(size, len(data)), device=data.device))
        uniform = Objective(
            mix={"uniform": 1.0}, weighting="constant", aside=1.0, paths=form.n_paths, mask_id=form.mask_id
        )
        generator = torch.Generator(device=data.device).manual_seed(1)
        which = torch.full((len(self.batch.ids_BN),), PATTERNS.index("uniform"), device=data.device)
        self.masked = uniform.mask(self.batch, generator, which)
        self.is_summary = self.batch.region_BN == form.n_paths + 1
        self.is_path = (self.batch.region_BN > 0) & ~self.is_summary
        is_digit = torch.isin(self.batch.ids_BN, torch.tensor(digits, device=data.device))
        self.answer = self.is_summary & is_digit
        self.tokens_per_step = tokens_per_step

    @torch.no_grad()
    def __call__(self, model: DiffusionTransformer) -> dict[str, float]:
        """Every figure as a plain number (waits for the device)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return {name: float(value) for name, value in self._figures(model).items()}

    def _figures(self, model: DiffusionTransformer) -> dict[str, Tensor]:
        batch, masked, mask_id = self.batch, self.masked, self.form.mask_id
        logits_BNV = model(masked.noisy_BN, batch.attn_mask)
        places = (masked.hidden_BN, batch.region_BN, self.form.n_paths)
        loss_path, loss_summary = region_means(slot_losses(logits_BNV, batch.ids_BN), *places)
        acc_path, acc_summary = region_means(logits_BNV.argmax(-1) == batch.ids_BN, *places)
        one_clean = batch.ids_BN.masked_fill(self.is_summary, mask_id)
        all_hidden = one_clean.masked_fill(self.is_path, mask_id)
        clean = model(one_clean, batch.attn_mask).argmax(-1)
        hidden = model(all_hidden, batch.attn_mask).argmax(-1)
        decoded = decode(model, all_hidden, batch, self.form, self.tokens_per_step)
        return {
            "loss_path": loss_path,
            "loss_summary": loss_summary,
            "accuracy_path": acc_path,
            "accuracy_summary": acc_summary,
            "digits_paths_clean": self._digits(clean),
            "digits_paths_hidden": self._digits(hidden),
            "answers_paths_clean": self._answers(clean),
            "answers_paths_hidden": self._answers(hidden),
            "answers_decoded": self._answers(decoded),
        }

    def _digits(self, guess_BN: Tensor) -> Tensor:
        """Share of the answers' digits that are right."""
        right_BN = (guess_BN == self.batch.ids_BN) & self.answer
        return right_BN.sum() / self.answer.sum().clamp(min=1)

    def _answers(self, guess_BN: Tensor) -> Tensor:
        """Share of the canvases whose whole summary is right."""
        return ((guess_BN == self.batch.ids_BN) | ~self.is_summary).all(-1).float().mean()


def decode(model: DiffusionTransformer, ids_BN: Tensor, batch: Batch, form: CanvasFormat, per_step: int) -> Tensor:
    """Fill masked canvases as `parallel-forced` does, end-of-text last: paths in step, then the summary."""
    ids_BN = ids_BN.clone()
    share = max(1, per_step // form.n_paths)
    for regions, budget, quota in (
        (range(1, form.n_paths + 1), form.path_tokens, share),
        (range(form.n_paths + 1, form.n_paths + 2), form.summary_tokens, per_step),
    ):
        for _ in range(-(-budget // quota)):
            _commit(model, ids_BN, batch, form, regions, quota)
    return ids_BN


def _commit(
    model: DiffusionTransformer, ids_BN: Tensor, batch: Batch, form: CanvasFormat, regions: range, quota: int
) -> None:
    """One step in place: in each region the `quota` most confident masked slots are fixed."""
    confidence_BN, guess_BN = model(ids_BN, batch.attn_mask).float().softmax(-1).max(-1)
    confidence_BN = confidence_BN.masked_fill(guess_BN == form.eos_id, 0.0)
    open_BN = ids_BN == form.mask_id
    for region in regions:
        scores_BN = confidence_BN.masked_fill(~(open_BN & (batch.region_BN == region)), -1.0)
        top_Bq, at_Bq = scores_BN.topk(quota, dim=-1)
        old_Bq, new_Bq = ids_BN.gather(1, at_Bq), guess_BN.gather(1, at_Bq)
        ids_BN.scatter_(1, at_Bq, torch.where(top_Bq >= 0, new_Bq, old_Bq))
