"""The four models: one architecture and tokenizer, {pretrained weights, random start} × {shifted, unshifted logits}."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nap_runtime.models.loading import ModelCard
from nap_trainer.adapt.config import AdaptConfig, Logits, Start


@dataclass(frozen=True, slots=True)
class Arm:
    """Where a model starts, and which row of it predicts a position."""

    start: Start
    logits: Logits

    @property
    def name(self) -> str:
        """As in file names: `pretrained-shifted`."""
        return f"{self.start}-{self.logits}"

    @property
    def shifted(self) -> bool:
        """Whether row i − 1 predicts position i."""
        return self.logits == "shifted"

    def card(self, base: ModelCard) -> ModelCard:
        """The base model's card with this arm's shift; its weights are read only where the start is pretrained."""
        return replace(base, name=self.name, config=replace(base.config, shifted_logits=self.shifted))


def arms_of(config: AdaptConfig) -> tuple[Arm, ...]:
    """Every pair of start and logits, in the configuration's order."""
    return tuple(Arm(start, logits) for start in config.starts for logits in config.logits)
