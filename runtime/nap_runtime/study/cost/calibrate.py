"""Fit a machine to measured points; points that are held out check it, and are used for nothing else.

Least squares on the logarithms of predicted over measured seconds, so that every point counts by its relative error.
Parameters are fitted as logarithms too: they stay positive. A parameter that no point informs stays where it was, be it
that none feels it at all, or that the best fit lies where none does (no waiting for bytes: an endless bandwidth) and is
hardly better than without it: then it is put back, and the others are fitted again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import DataError, UsageError
from nap_runtime.study.cost.predict import Device, Link, Machine, Work
from nap_runtime.study.cost.scenario import Scenario
from nap_runtime.values import known_keys

Floats = npt.NDArray[np.float64]
PARAMETERS = ("flops", "memory", "launch", "forward", "score", "latency", "bandwidth", "start")
FITTED = ("flops", "launch", "forward", "latency", "bandwidth", "start")
_OF_LINK = ("latency", "bandwidth", "start")
_ROUNDS = 60
_FELT = 1e-3  # a point feels a parameter if twice as much of it changes its seconds by about this share
_WORSE = 1e-2  # what a point's error may grow by where parameters that none feels are put back


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured decode.

    Args:
        name: what it is called in the report.
        seconds: of the whole decode, of one batch.
        hold_out: it is predicted, never fitted.
    """

    name: str
    scenario: Scenario
    seconds: float
    hold_out: bool = False

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Point:
        """From parsed JSON.

        Raises:
            UsageError: a key is unknown, missing or wrong.
        """
        kwargs = known_keys(cls, values, "")
        for key in ("name", "scenario", "seconds"):
            if key not in kwargs:
                raise UsageError(f"{key}: missing", field=key)
        seconds = kwargs["seconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            raise UsageError(f"seconds: {seconds!r} is not a number above 0", field="seconds")
        if not isinstance(kwargs["scenario"], Mapping):
            raise UsageError("scenario: not a mapping of keys to values", field="scenario")
        return cls(**{**kwargs, "scenario": Scenario.from_mapping(kwargs["scenario"])})


def read_points(file: Path) -> list[Point]:
    """Points of a JSON file, `{"points": [{"name", "scenario", "seconds", "hold_out"}, …]}`, whatever else is in it.

    Raises:
        UsageError: there is no such file.
        DataError: it is malformed; the point is named.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"points: {file}: {error.strerror}", field="points") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON") from error
    points = values.get("points") if isinstance(values, dict) else None
    if not isinstance(points, list) or not points:
        raise DataError(f"{file}: no list 'points'")
    found = []
    for number, point in enumerate(points, start=1):
        try:
            found.append(Point.from_mapping(point))
        except (UsageError, AttributeError, TypeError) as error:
            raise DataError(f"{file}: point {number}: {error}") from None
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted machine, and how far it is off.

    Attributes:
        fitted: parameters that were fitted; the others stayed as given, or were put back as no point informs them.
        errors: relative error, predicted over measured − 1, of every point by name.
        held_out: names of the points that were not used.
    """

    machine: Machine
    fitted: tuple[str, ...]
    errors: Mapping[str, float]
    held_out: tuple[str, ...]

    def error(self, *, held_out: bool) -> tuple[float, float] | None:
        """Median and largest absolute relative error of the points that were held out, or used; None without any."""
        sizes = [abs(error) for name, error in self.errors.items() if (name in self.held_out) is held_out]
        return (float(np.median(sizes)), max(sizes)) if sizes else None

    def to_json(self) -> dict[str, Any]:
        """Plain values; `device` and `link` are what `Machine.from_mapping` takes."""
        kinds = {"used": self.error(held_out=False), "held_out": self.error(held_out=True)}
        return {
            "device": asdict(self.machine.device),
            "link": asdict(self.machine.link),
            "fitted": list(self.fitted),
            "errors": dict(self.errors),
            "held_out": list(self.held_out),
            "error": {kind: None if e is None else {"median": e[0], "max": e[1]} for kind, e in kinds.items()},
        }


def calibrate(points: Sequence[Point], start: Machine, *, fitted: Sequence[str] = FITTED) -> Calibration:
    """Fit a machine, from where it starts, to the points that are not held out.

    Raises:
        UsageError: a parameter is unknown, or there are fewer points than parameters, or two of one name.
    """
    used = [point for point in points if not point.hold_out]
    _check(points, used, fitted)
    works = [Work.of(point.scenario) for point in used]
    machine, informed = _fit(works, np.log([point.seconds for point in used]), start, tuple(fitted))
    errors = {p.name: Work.of(p.scenario).on(machine).seconds / p.seconds - 1 for p in points}
    held_out = tuple(point.name for point in points if point.hold_out)
    return Calibration(machine=machine, fitted=informed, errors=errors, held_out=held_out)


def _fit(
    works: Sequence[Work], measured: Floats, start: Machine, names: tuple[str, ...]
) -> tuple[Machine, tuple[str, ...]]:
    """A machine, and the parameters of it that the points inform. `measured` are logarithms of seconds."""

    def residuals(theta: Floats) -> Floats:
        machine = _with(start, names, np.exp(theta))
        return np.log([work.on(machine).seconds for work in works]) - measured

    theta = least_squares(residuals, np.log([_value(start, name) for name in names]))
    found = residuals(theta)
    moves = [np.abs(residuals(theta + np.log(2) * axis) - found).max() for axis in np.eye(len(names))]
    felt = tuple(name for name, move in zip(names, moves, strict=True) if move >= _FELT)
    machine = _with(start, names, np.exp(theta))
    if felt == names:
        return machine, names
    fewer, informed = _fit(works, measured, start, felt) if felt else (start, ())
    left = np.log([work.on(fewer).seconds for work in works]) - measured
    return (fewer, informed) if np.abs(left).max() <= np.abs(found).max() + _WORSE else (machine, names)


def _check(points: Sequence[Point], used: Sequence[Point], fitted: Sequence[str]) -> None:
    for name in fitted:
        if name not in PARAMETERS:
            raise UsageError(f"fit: unknown parameter '{name}'; use some of {', '.join(PARAMETERS)}", field="fit")
    if not fitted or len(used) < len(fitted):
        text = f"points: {len(used)} points for {len(fitted)} parameters; measure more, or fit fewer (--fit)"
        raise UsageError(text, field="points")
    if len({point.name for point in points}) < len(points):
        raise UsageError("points: two have the same name", field="points")


def _value(machine: Machine, name: str) -> float:
    return float(getattr(machine.link if name in _OF_LINK else machine.device, name))


def _with(machine: Machine, names: Sequence[str], values: Floats) -> Machine:
    given = dict(zip(names, values.tolist(), strict=True))
    device: Device = replace(machine.device, **{k: v for k, v in given.items() if k not in _OF_LINK})
    link: Link = replace(machine.link, **{k: v for k, v in given.items() if k in _OF_LINK})
    return Machine(device=device, link=link)


def least_squares(residuals: Callable[[Floats], Floats], theta: Floats, *, rounds: int = _ROUNDS) -> Floats:
    """Levenberg and Marquardt with a numerical Jacobian; steps are at most e² in each parameter."""
    damping, found = 1e-2, residuals(theta)
    for _ in range(rounds):
        jacobian = np.stack([(residuals(theta + 1e-5 * axis) - found) / 1e-5 for axis in np.eye(len(theta))], axis=1)
        step = _step(jacobian, found, damping)
        tried = residuals(theta + step)
        if tried @ tried < found @ found:
            small = float(np.abs(step).max()) < 1e-7
            theta, found, damping = theta + step, tried, max(damping / 4, 1e-9)
            if small:
                break
        else:
            damping *= 6
            if damping > 1e9:
                break
    return theta


def _step(jacobian: Floats, found: Floats, damping: float) -> Floats:
    normal = jacobian.T @ jacobian
    damped = normal + damping * np.diag(np.diag(normal) + 1e-9)
    step: Floats = np.linalg.solve(damped, -jacobian.T @ found).clip(-2.0, 2.0)
    return step
