"""`Storage`: which numbers stand for weights, and for keys and values, where they are not those of the dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nap_runtime.values import one_of

Stored = Literal["native", "fp8"]
STORED: tuple[Stored, ...] = get_args(Stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a worker holds numbers (`models/quantised.py`).

    Args:
        weights: of the layers' matrices, and of the activations that they multiply: those of the dtype, or float8 e4m3
            with a scale a row, made when the weights are loaded.
        kv: of keys and values, in the same two ways; exchanges carry them as they are held.

    Raises:
        UsageError: a value is unknown.
    """

    weights: Stored = "native"
    kv: Stored = "native"

    def __post_init__(self) -> None:
        one_of("weights", self.weights, STORED)
        one_of("kv", self.kv, STORED)

    @property
    def marks(self) -> str:
        """What a model's fingerprint is followed by: records of different storage are not each other's."""
        held = {"weights": self.weights, "kv": self.kv}
        return "".join(f"+{name}-{kind}" for name, kind in held.items() if kind != "native")


NATIVE = Storage()
