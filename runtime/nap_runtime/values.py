"""Checks of values that a caller chose: each raises a `UsageError` that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nap_runtime.errors import UsageError

LARGEST = 1e6  # of weights: beyond it nothing changes any more, and products leave float32


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """UsageError unless the value is allowed."""
    if value not in allowed:
        raise UsageError(f"{name}: unknown value '{value}'; use one of {', '.join(allowed)}", field=name)


def at_least(name: str, value: object, low: int) -> None:
    """UsageError unless the value is an integer, no bool, of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"{name}: {value!r} is not an integer of at least {low}", field=name)


def number(name: str, value: object, kind: type[int] | type[float]) -> None:
    """UsageError unless the value is a number of that kind; an integer is a float, a bool is neither."""
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        what = "an integer" if kind is int else "a number"
        raise UsageError(f"{name}: {value!r} is not {what}", field=name)


def weight(name: str, value: Any) -> None:
    """UsageError unless the value is a finite number between 0 and `LARGEST`."""
    number(name, value, float)
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{name}: {value} is not a finite number of at least 0", field=name)
    if value > LARGEST:
        raise UsageError(f"{name}: {value:g} is more than the {LARGEST:,.0f} that is taken", field=name)


def known_keys(cls: type[Any], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values as keyword arguments of a dataclass.

    Raises:
        UsageError: a key is no field of it.
    """
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            raise UsageError(f"{prefix}{key}: unknown key; known are {', '.join(sorted(known))}", field=str(key))
    return dict(values)
