"""The run: four arms side by side, from point to point; at each one the held-out loss and a decode of the questions.

All arms reach a point before any goes on to the next, so that a run that ends early has measured them equally far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.loading import ModelCard, read_card
from nap_trainer.adapt.arms import Arm, arms_of
from nap_trainer.adapt.config import AdaptConfig
from nap_trainer.adapt.convert import NOTE
from nap_trainer.adapt.corpus import file_hash, tokenizer_hash
from nap_trainer.adapt.decoding import decode_questions
from nap_trainer.adapt.folder import RunFolder
from nap_trainer.adapt.table import AdaptData
from nap_trainer.adapt.training import (
    ArmSetup,
    ArmTrainer,
    MakeTrainer,
    held_out_loss,
    make_loop_trainer,
    tokens_at,
)

Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Budget:
    """Seconds that may be spent, and what units have cost so far.

    Args:
        seconds: from `started` on (None: no limit).
        started, clock: as `time.monotonic`.
    """

    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)
    clock: Callable[[], float] = time.monotonic
    per_step: float = 0.0
    per_point: float = 0.0

    def allows(self, steps: int) -> bool:
        """Whether a unit with this many optimizer steps is expected to end in time, at the dearest rates seen."""
        if self.seconds is None:
            return True
        return self.clock() - self.started + steps * self.per_step + self.per_point <= self.seconds

    def learn(self, *, steps: int, training: float, measuring: float) -> None:
        """Take note of what a unit cost."""
        if steps:
            self.per_step = training / steps
        self.per_point = max(self.per_point, measuring)


@dataclass(slots=True, kw_only=True)
class Driver:
    """One call of `run`: where everything is, and the arms that are in memory.

    Args:
        folder, config, data: the run.
        base: the card of the converted model.
        make_trainer: the seam to the trainer.
        device: where arms live.
        budget: when to stop.
        say: takes lines for a person.
    """

    folder: RunFolder
    config: AdaptConfig
    data: AdaptData
    base: ModelCard
    tokens: dict[int, int]
    make_trainer: MakeTrainer
    device: torch.device
    budget: Budget
    say: Say
    trainers: dict[Arm, ArmTrainer] = field(default_factory=dict)
    reached: dict[Arm, int] = field(default_factory=dict)

    def run(self) -> bool:
        """Measure every point that is missing; False where the budget ended first."""
        for point in self.config.points:
            for arm in arms_of(self.config):
                if self.folder.done(arm.name, point):
                    continue
                self._load(arm)
                if not self.budget.allows(point - self.reached[arm]):
                    self.say(f"out of time before {arm.name} at step {point}; the same command goes on from here")
                    return False
                self._measure(arm, point)
        return True

    def _load(self, arm: Arm) -> None:
        if arm in self.trainers:
            return
        setup = ArmSetup(
            arm=arm,
            config=self.config,
            data=self.data,
            card=arm.card(self.base),
            folder=self.folder.state(arm.name),
            device=self.device,
        )
        self.trainers[arm] = self.make_trainer(setup)
        self.reached[arm] = self.trainers[arm].resume() if self.config.states else 0

    def _measure(self, arm: Arm, point: int) -> None:
        trainer, began, steps = self.trainers[arm], time.monotonic(), point - self.reached[arm]
        if steps < 0:
            raise DataError(f"{self.folder.root}: the state of {arm.name} is at step {self.reached[arm]}, past {point}")
        loss = trainer.advance(point)
        self._wait()
        training = time.monotonic() - began
        self.reached[arm] = point
        note, decodes = self._measured(arm, trainer, point)
        seconds = {"training": training, "measuring": time.monotonic() - began - training}
        self.folder.write_point(arm.name, point, {**note, "train_loss": loss, "seconds": seconds}, decodes)
        if self.config.states and steps:
            trainer.save()
        if self.config.models and point == self.config.steps:
            trainer.export(self.folder.model(arm.name))
        self.folder.log(arm=arm.name, step=point, steps=steps, **{k: round(v, 3) for k, v in seconds.items()})
        self.budget.learn(steps=steps, **seconds)
        text = f"loss {note['held_loss']['text']:.3f} ({seconds['training']:.1f} s + {seconds['measuring']:.1f} s)"
        self.say(f"{arm.name} step {point}, {self.tokens[point]:,} tokens: held-out {text}")

    def _measured(self, arm: Arm, trainer: ArmTrainer, point: int) -> tuple[dict[str, Any], dict[int, Any]]:
        model, card, settings = trainer.model, arm.card(self.base), self.config.decode
        losses = held_out_loss(model, self.data, card, self.config.held_batch)
        rates = [settings.tokens_per_step, *(settings.last_tokens_per_step if point == self.config.steps else ())]
        decodes = {
            rate: decode_questions(
                model, card, self.data.prompts, settings, gen_length=self.data.gen_length, per_step=rate
            )
            for rate in rates
        }
        return {"arm": arm.name, "step": point, "tokens": self.tokens[point], "held_loss": losses}, decodes

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def run(
    model: Path,
    data_file: Path,
    config: AdaptConfig,
    out: Path,
    *,
    make_trainer: MakeTrainer = make_loop_trainer,
    budget: Budget | None = None,
    device: torch.device | None = None,
    say: Say = print,
) -> bool:
    """Train and measure the arms; the same call goes on where an earlier one ended.

    Args:
        model: folder that `nap model convert` made; its `shifted_logits` does not matter.
        data_file: what `python -m nap_trainer.adapt data` made with the same tokenizer.
        out: the run's folder.

    Returns:
        Whether every point of every arm is measured.

    Raises:
        UsageError: model and data do not fit each other, or the folder holds another run.
        ModelError, DataError: a file is damaged.
    """
    data, base = AdaptData.load(data_file), read_card(model)
    check_fits(base, data, model)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = tokens_at(data, base, config)
    facts = {
        "config": config.to_mapping(),
        "model": {"fingerprint": base.fingerprint, **asdict(base.config)},
        "data": {"sha256": file_hash(data_file), **data.facts},
        "conversion": conversion_note(base.path),
        "arms": [arm.name for arm in arms_of(config)],
        "tokens": tokens,
    }
    folder = RunFolder(out)
    folder.begin(facts, data=data_file, tokenizer=base.path)
    folder.log(event="begin", device=device_name(device), torch=torch.__version__)
    driver = Driver(
        folder=folder,
        config=config,
        data=data,
        base=base,
        tokens=dict(zip(config.points, tokens, strict=True)),
        make_trainer=make_trainer,
        device=device,
        budget=budget or Budget(),
        say=say,
    )
    return driver.run()


def check_fits(base: ModelCard, data: AdaptData, model: Path) -> None:
    """UsageError unless the data was tokenised for this model and its canvases fit."""
    if tokenizer_hash(model) != data.facts["tokenizer"]:
        raise UsageError(f"data: it was tokenised with another tokenizer than {model}'s; make it again", field="data")
    longest = max(data.max_prompt, *map(len, data.prompts)) + data.gen_length
    if longest > base.config.max_positions:
        text = f"canvases of up to {longest} positions; the model's context is {base.config.max_positions}"
        raise UsageError(f"data: {text}", field="data")


def conversion_note(folder: Path) -> dict[str, Any] | None:
    """What `nap model convert` left in a folder; None where it did not make it."""
    file = folder / NOTE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def device_name(device: torch.device) -> str:
    """`NVIDIA H200`, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
