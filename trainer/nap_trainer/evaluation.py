"""A fixed set decoded now and then during training, by the runtime itself: accuracy, ARness, TPF."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from nap_runtime.errors import UsageError
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.transformer import DiffusionTransformer
from nap_trainer.batches.loader import high
from nap_trainer.settings import TrainConfig

Figures = dict[str, float | int | None]


def decode_configs(settings: TrainConfig) -> dict[str, DecodeConfig]:
    """How a model of this training is decoded: `ao`, confidence order over the canvas, and `pf`, parallel-forced.

    Rows see what they saw in training (`mixed`: everything, which is among it). A free answer has one region, in which
    there is nothing to force.
    """
    data, evaluate = settings.data, settings.evaluate
    if data.plain:
        steps = -(-data.gen_length // evaluate.tokens_per_step)
        ao = DecodeConfig(layout="plain", gen_length=data.gen_length, steps=steps, eos_weight=evaluate.eos_weight)
        return {"ao": ao}
    m = max(data.paths) if data.format == "nap" else 1
    path, summary = high(data.path_tokens), high(data.summary_tokens)
    steps = -(-(m * path + summary) // evaluate.tokens_per_step)
    topology = settings.objective.topology
    forced = DecodeConfig(
        paths=m,
        path_tokens=path,
        summary_tokens=summary,
        steps=steps,
        eos_weight=evaluate.eos_weight,
        sync=SyncPolicy("exact", topology="full" if topology == "mixed" else topology),
    )
    return {"ao": forced.with_values(rule="confidence"), "pf": forced}


class Evaluator:
    """Decodes the same questions each time.

    Args:
        card: the model's tokenizer and configuration.
        questions: (question, right answer).
    """

    def __init__(self, card: ModelCard, settings: TrainConfig, questions: Sequence[tuple[str, str]]) -> None:
        self.card, self.configs = card, decode_configs(settings)
        self.batch_size = settings.evaluate.batch_size
        self.jobs = [
            DecodeJob(question=question, gold=gold, index=index) for index, (question, gold) in enumerate(questions)
        ]
        if not self.jobs:
            raise UsageError("evaluate.data: it holds no question", field="evaluate.data")

    def __call__(self, model: DiffusionTransformer) -> Figures:
        """Accuracy, mean ARness and mean TPF of every config, and how many questions could not be decoded."""
        was_training = model.training
        weight = model.norm.weight
        executor = InlineExecutor(model.eval(), dtype=weight.dtype, device=weight.device)
        figures: Figures = {}
        with torch.no_grad():
            for name, config in self.configs.items():
                results = Coordinator(self.card, executor).decode(self.jobs, config, batch_size=self.batch_size)
                done = [result for result in results if isinstance(result, DecodeResult)]
                figures |= {f"{name}_{key}": value for key, value in _figures(done, len(self.jobs)).items()}
        model.train(was_training)
        return figures


def _figures(results: Sequence[DecodeResult], asked: int) -> Figures:
    reports = [result.metrics.arness for result in results]
    means = {
        "arness": [report.path_mean["set_based"] for report in reports],
        "arness_corrected": [report.path_mean["set_based_corrected"] for report in reports],
        "arness_canvas": [report.canvas.content.set_based for report in reports],
        "tpf": [result.metrics.tpf for result in results],
    }
    return {
        "accuracy": sum(bool(result.correct) for result in results) / asked,
        **{
            name: fmean(given) if (given := [v for v in values if v is not None]) else None
            for name, values in means.items()
        },
        "undecoded": asked - len(results),
    }
