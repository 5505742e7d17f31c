"""`Storage`: which numbers stand for weights, and for keys and values, where they are not those of the dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nap_runtime.errors import UsageError
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

    def check(self, *, device: str, dtype: str) -> None:
        """Whether workers of that device and dtype can hold numbers so, as far as it can be told from afar.

        Raises:
            UsageError: FP8 products of a GPU give bfloat16.
        """
        if self.weights == "fp8" and device == "cuda" and dtype != "bfloat16":
            raise UsageError("weights: 'fp8' on a GPU gives bfloat16; use dtype bfloat16", field="weights")

    @property
    def marks(self) -> str:
        """What a model's fingerprint is followed by: records of different storage are not each other's."""
        held = {"weights": self.weights, "kv": self.kv}
        return "".join(f"+{name}-{kind}" for name, kind in held.items() if kind != "native")


NATIVE = Storage()
