"""The seam to the trainer: what a run needs of one arm's training, and the project's trainer behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_runtime.models.loading import ModelCard
from nap_runtime.models.transformer import DiffusionTransformer
from nap_trainer.adapt.arms import Arm
from nap_trainer.adapt.config import AdaptConfig
from nap_trainer.adapt.table import AdaptData
from nap_trainer.batches.collate import OUTSIDE, HostBatch
from nap_trainer.batches.formats import Marks
from nap_trainer.batches.loader import Loader
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.objective.forward import DeviceBatch, ForwardProcess
from nap_trainer.objective.loss import DiffusionLoss
from nap_trainer.objective.views import Views
from nap_trainer.settings import DataSection, ObjectiveSection, TrainConfig

HELD_SEED = 1


class ArmTrainer(Protocol):
    """One arm in training. Steps are counted from 0; its batches and masks depend on the step and not on the arm."""

    @property
    def model(self) -> DiffusionTransformer:
        """The weights as they are now, float32."""
        ...

    def resume(self) -> int:
        """Go on from the last saved state, if there is one; returns the step reached (0 without one)."""
        ...

    def advance(self, until: int) -> float | None:
        """Train up to a step; returns the last step's training loss (None where no step was needed)."""
        ...

    def save(self) -> None:
        """Keep the state for `resume`, replacing the one before only when it is whole."""
        ...

    def export(self, out: Path) -> None:
        """Write the model as it is now, for `nap decode --model`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSetup:
    """What an arm's training is made of.

    Attributes:
        arm, config, data: what to train, how, on what.
        card: the arm's model: configuration with its shift; weights in its folder where the start is pretrained.
        folder: for its state and logs.
        device: where it runs.
    """

    arm: Arm
    config: AdaptConfig
    data: AdaptData
    card: ModelCard
    folder: Path
    device: torch.device


MakeTrainer = Callable[[ArmSetup], ArmTrainer]


def data_section(data: AdaptData, *, seed: int) -> DataSection:
    """How the trainer lays rows out: a prompt and one region, end-of-text padding learnt."""
    return DataSection(
        train="corpus",
        format="text",
        answer="free",
        paths=(1,),
        gen_length=data.gen_length,
        max_prompt=data.max_prompt,
        padding="learn",
        seed=seed,
    )


def train_config(setup: ArmSetup) -> TrainConfig:
    """The whole training in the trainer's own words."""
    config = setup.config
    pretrained = setup.arm.start == "pretrained"
    model: dict[str, Any] = {"init": str(setup.card.path)} if pretrained else {"shape": "nap-tiny", "seed": config.seed}
    return TrainConfig.from_mapping(
        {
            "model": model,
            "data": data_section(setup.data, seed=config.seed).model_dump(mode="json"),
            "objective": config.objective.model_dump(mode="json"),
            "optimizer": config.optimizer.model_dump(mode="json"),
            "zero": config.zero.model_dump(mode="json"),
            "schedule": {
                "global_batch": config.global_batch,
                "micro_batch": config.micro_batch,
                # One more than are taken: at its last step the trainer writes a checkpoint, which only `states` wants.
                "max_steps": config.steps + (not config.states),
                "warmup": config.warmup,
                "decay": config.decay,
                "floor": config.floor,
            },
            "run": {
                "out": str(setup.folder),
                "seed": config.seed,
                "log_every": 10,
                "compile": config.compile,
                "head_chunk": config.head_chunk,
                "tensorboard": False,
            },
        }
    )


# -- the project's trainer ------------------------------------------------------------------------------------------


def make_loop_trainer(setup: ArmSetup) -> ArmTrainer:
    """An arm on `nap_trainer.loop.Trainer`, on this process's device."""
    return LoopTrainer(setup)


class LoopTrainer:
    """`nap_trainer.loop.Trainer` behind the seam. Its random start is `random_part`'s, of the card's own shape."""

    def __init__(self, setup: ArmSetup) -> None:
        from nap_trainer.logs import TrainLog
        from nap_trainer.loop import Trainer
        from nap_trainer.prepare import Prepared
        from nap_trainer.ranks import Ranks

        class Steady(Trainer):
            """Every batch as wide as the widest, so that one compiled graph serves all steps of all arms."""

            def step(self, step: int, batches: Sequence[HostBatch]) -> tuple[Tensor, Tensor | float]:
                return super().step(step, [widened(batch, self.loader.width) for batch in batches])

        ranks = Ranks.of_environment()
        ranks.connect()
        prepared = Prepared(card=setup.card, marks=Marks.of_text(setup.card), table=setup.data.train)
        self._trainer = Steady(train_config(setup), ranks, prepared)
        self._log = TrainLog(setup.folder, total=setup.config.steps, start=0, tensorboard=False, active=True)

    @property
    def model(self) -> DiffusionTransformer:
        """See `ArmTrainer`."""
        return self._trainer.model

    def resume(self) -> int:
        """See `ArmTrainer`."""
        self._trainer.step_done = self._trainer.resume()
        return self._trainer.step_done

    def advance(self, until: int) -> float | None:
        """See `ArmTrainer`."""
        figures = self._trainer.advance(until, self._log)
        loss = figures.get("loss")
        return float(loss) if isinstance(loss, float | int) else None

    def save(self) -> None:
        """See `ArmTrainer`."""
        trainer = self._trainer
        trainer.engine.save(trainer.checkpoints, step=trainer.step_done, client={}, keep=1)

    def export(self, out: Path) -> None:
        """See `ArmTrainer`."""
        from nap_trainer.export import export_model

        export_model(self._trainer.engine, self._trainer.prepared.card, self._trainer.settings, out)


def widened(batch: HostBatch, n: int) -> HostBatch:
    """A batch with columns outside every canvas up to N = n; nobody sees those, and nothing there is learnt."""
    extra = n - batch.ids_BN.shape[1]

    def wide(array: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
        return np.pad(array, ((0, 0), (0, extra)), constant_values=fill)

    return replace(
        batch,
        ids_BN=wide(batch.ids_BN, int(batch.ids_BN[0, -1])),
        block_BN=wide(batch.block_BN, 0),
        header_BN=wide(batch.header_BN, 0),
        owner_BN=wide(batch.owner_BN, OUTSIDE),
        text_BN=wide(batch.text_BN, 0),
        full=False,
    )


# -- tokens and the held-out loss ------------------------------------------------------------------------------------


def tokens_at(data: AdaptData, card: ModelCard, config: AdaptConfig) -> list[int]:
    """Adaptation tokens seen at each point: positions of all canvases so far, prompt and region, no padding outside."""
    loader = _loader(data.train, data, card, config.global_batch, seed=config.seed)
    counted, total, step = [], 0, 0
    for point in config.points:
        for batches in loader.steps(step, point):
            total += sum(int((batch.owner_BN != OUTSIDE).sum()) for batch in batches)
        counted.append(total)
        step = point
    return counted


@torch.no_grad()
def held_out_loss(model: DiffusionTransformer, data: AdaptData, card: ModelCard, size: int) -> dict[str, float]:
    """Mean cross-entropy in nats of hidden slots of the held-out rows, under the same masks each time.

    t is spread evenly over (0, 1) within each batch of `size` rows. `all`: every hidden slot; `text`: those of the
    response, without the end-of-text padding.
    """
    device = model.embed.weight.device
    size = min(size, len(data.held))
    settings = ObjectiveSection(weighting="constant")
    forward = ForwardProcess(
        settings, global_batch=size, learn_padding=True, mask_id=card.config.mask_id, seed=HELD_SEED
    )
    views, loss = Views(settings, mask_id=card.config.mask_id, seed=HELD_SEED), DiffusionLoss(model, head_chunk=8192)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for number, host in enumerate(_held_batches(data, card, size)):
            batch = DeviceBatch.of(host, device)
            masked = forward(batch, number)
            view = views(batch, masked, number)
            weight_BN = masked.hidden_BN.float()
            _, losses_BN = loss(view.ids_BR, view.positions_R, view.mask, view.start, batch.ids_BN, weight_BN)
            text_BN = masked.hidden_BN & batch.text_BN
            parts = [(losses_BN * masked.hidden_BN).sum(), masked.hidden_BN.sum()]
            parts += [(losses_BN * text_BN).sum(), text_BN.sum()]
            sums += torch.stack([part.double() for part in parts])
    total, slots, text, texts = sums.tolist()
    return {"all": total / max(slots, 1.0), "text": text / max(texts, 1.0)}


def _held_batches(data: AdaptData, card: ModelCard, size: int) -> Iterator[HostBatch]:
    """Whole batches of the held-out rows; rows that fill none are left out."""
    loader = _loader(data.held, data, card, size, seed=0)
    for batches in loader.steps(0, len(data.held) // size):
        yield from batches


def _loader(table: SegmentTable, data: AdaptData, card: ModelCard, size: int, *, seed: int) -> Loader:
    section = data_section(data, seed=seed)
    return Loader(table, section, Marks.of_text(card), global_batch=size, micro_batch=size)
