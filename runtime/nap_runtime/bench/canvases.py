"""The canvases of a benchmark: prompts, layouts and plans, the same for every way of decoding them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nap_runtime.api import check_device
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.executor.coordinator import Batch
from nap_runtime.job import DecodeConfig, DecodeJob, SyncPolicy
from nap_runtime.models.loading import ModelCard, load_weights, read_card
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.models.shapes import random_model, shape_config, write_random
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.worker import Task

_QUESTION = "A {thing} costs ${price} and is on sale for {off}% off. What is the final price?"
_THINGS = ("shirt", "book", "jacket", "bag", "ticket", "game", "chair", "lamp")


@dataclass(frozen=True, slots=True)
class Canvases:
    """Prompts, one of each canvas of the largest batch, and how a canvas is laid out around them.

    `random` weights never close a path, so that every slot is committed by the network.
    """

    card: ModelCard
    spec: BenchSpec
    prompts: tuple[tuple[int, ...], ...]

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.spec.shape is not None

    def config(self, policy: SyncPolicy, **changes: object) -> DecodeConfig:
        """The resolved config of a sync policy, of layout `nap` unless `changes` say otherwise."""
        spec = self.spec
        values: dict[str, object] = {"sync": policy, **changes}
        if values.get("layout") != "plain":
            values |= {"paths": spec.paths}
            values |= {"path_tokens": spec.path_tokens} if spec.path_tokens else {}
            values |= {"summary_tokens": spec.summary_tokens} if spec.summary_tokens else {}
        if self.random:
            values.setdefault("eos_weight", 0.0)
        return resolve(DecodeConfig(**values), DecodeDefaults.of(self.card.path))  # type: ignore[arg-type]

    @property
    def layout(self) -> CanvasLayout:
        """The canvas of the longest prompt."""
        return self.layout_of(self.config(SyncPolicy()), self.prompts)

    @property
    def plain_slots(self) -> int:
        """Slots of the peers' plain region; of random weights a multiple of 32, so that blocks of 32 fit."""
        slots = self.layout.n_slots
        whole = -(-slots // 32) * 32
        return whole if self.random and self.layout.prompt_tokens + whole <= self.card.config.max_positions else slots

    @property
    def steps(self) -> int:
        """T: as many as it takes at so many tokens a step."""
        return max(round(self.layout.n_slots / self.spec.tokens_per_step), 2)

    def layout_of(self, config: DecodeConfig, prompts: Sequence[tuple[int, ...]]) -> CanvasLayout:
        """The layout of a batch."""
        layout = build_layout(self.card, config, max(map(len, prompts)))
        never = ((layout.mask_id,),) * len(layout.end_ids)  # the mask is never predicted
        return replace(layout, end_ids=never) if self.random else layout

    def batch(self, config: DecodeConfig, *, size: int, workers: int, first: int = 0) -> Batch:
        """`size` canvases on so many workers."""
        prompts = self.prompts[first : first + size]
        plan = Plan.of(self.layout_of(config, prompts), config, Assignment.even(config.n_paths, workers))
        jobs = tuple(DecodeJob(question="-", index=index) for index in range(size))
        return Batch(jobs=jobs, task=Task(plan=plan, prompts=prompts))


@contextmanager
def opened(spec: BenchSpec) -> Iterator[tuple[Canvases, DiffusionTransformer]]:
    """The canvases, and the model on the device of this process.

    With groups of workers, random weights are written to a folder too, which the workers load and this process also.
    """
    check_device(spec.device)
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    with TemporaryDirectory(prefix="nap-bench-") as scratch:
        if spec.shape is None:
            card = read_card(spec.model)
            yield (
                Canvases(card, spec, _questions(card, max(spec.batch_size))),
                load_weights(card, dtype=dtype, device=device),
            )
            return
        config, folder = shape_config(spec.shape), Path(scratch) / "model"
        if max(spec.workers) > 1:
            write_random(config, folder, seed=spec.seed, dtype=dtype, draw=device)
            card = read_card(folder)
        else:
            fingerprint = f"random weights of {spec.shape}"
            card = ModelCard(
                name=spec.shape, path=Path(scratch), config=config, tokenizer=None, fingerprint=fingerprint
            )
        model = random_model(config, seed=spec.seed, dtype=dtype, device=device, draw=device).requires_grad_(False)
        yield Canvases(card, spec, _random_prompts(spec, config.vocab_size)), model


def _questions(card: ModelCard, count: int) -> tuple[tuple[int, ...], ...]:
    asked = []
    for number in range(count):
        price, off = 50 + 10 * (number % 7), 10 * (1 + (number + 1) % 8)
        asked.append(_QUESTION.format(thing=_THINGS[number % len(_THINGS)], price=price, off=off))
    return tuple(prompt_ids(card, question) for question in asked)


def _random_prompts(spec: BenchSpec, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    draw, ids = random.Random(spec.seed), range(2, min(vocabulary, 90))
    return tuple(tuple(draw.choices(ids, k=spec.prompt_tokens)) for _ in range(max(spec.batch_size)))
