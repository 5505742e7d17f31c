"""A study as YAML: problems, settings that all runs share, and sweeps over some of them.

    study: sync                       # its name
    title: How often must they talk?
    set: {model: nap-tiny, n: 64}     # ${model} and ${n} below; `--set n=8` wins; null: must be given
    problems: {set: words, n: ${n}}   # set, n, seed, data, ask, options
    base: {model: ${model}, workers: 3, simulate: true, sync.mode: kv}
    sweeps:
      - name: every
        title: Accuracy against K
        x: sync.every                 # what figures have on their x axis
        metrics: [accuracy, arness]   # what the table and the figures show
        grid: {sync.every: [1, 4, 16], seed: [0, 1]}
        cases: [{}, {sync.mode: none, sync.every: null}]

A sweep's runs are `base`, over it each combination of the grid, over it each case; equal ones are one run. A key of
which two values give the same runs, such as `bucket` without batches, is refused. Keys are those of `DecodeConfig`,
those of its sync as `sync.KEY`, of the problems as `problems.KEY`, and model, workers, simulate, device, dtype,
weights, kv, batch_size, bucket, address, tokens_per_step, label. null takes a key of `base` away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.study.distinct import check_grid
from nap_runtime.study.measures import METRICS
from nap_runtime.yaml_files import read_yaml

PLACE = ("model", "workers", "simulate", "device", "dtype", "weights", "kv", "batch_size", "bucket", "address",
         "tokens_per_step", "label")  # fmt: skip
PROBLEMS = ("set", "n", "seed", "data", "ask", "options")
DEFAULT_METRICS = ("accuracy", "arness", "path_agree", "staleness_mean", "bytes_per_token")
_TOP = ("study", "title", "about", "set", "problems", "base", "sweeps", "pareto")
_SWEEP = ("name", "title", "about", "x", "by", "metrics", "grid", "cases")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_KNOWN = (
    {f.name for f in fields(DecodeConfig)} - {"sync"}
    | {f"sync.{f.name}" for f in fields(SyncPolicy) if f.name != "_"}
    | {f"problems.{name}" for name in PROBLEMS}
    | set(PLACE)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run as it is asked for: flat keys, without those that are null."""

    values: Mapping[str, Any]

    def config(self) -> DecodeConfig:
        """How it decodes; the model's defaults are not yet in it.

        Raises:
            UsageError: a value is wrong or unused.
        """
        mapping = {k: v for k, v in self.values.items() if "." not in k and k not in PLACE}
        sync = {k.removeprefix("sync."): v for k, v in self.values.items() if k.startswith("sync.")}
        return DecodeConfig.from_mapping(mapping | ({"sync": sync} if sync else {}))

    def problems(self) -> dict[str, Any]:
        """Arguments of `read_problems`, `set` among them."""
        values = {k.removeprefix("problems."): v for k, v in self.values.items() if k.startswith("problems.")}
        return {"set": "words", **values}

    def place(self, key: str, default: Any = None) -> Any:
        """One of `PLACE`."""
        return self.values.get(key, default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Some runs that belong to one question.

    Attributes:
        x: the key, or the metric, that figures have on their x axis (None: the first key that varies in numbers).
        by: keys that name a series (empty: all that vary, but x).
        metrics: what its table and figures show.
    """

    name: str
    title: str
    about: str
    runs: tuple[RunSpec, ...]
    x: str | None
    by: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A whole study; `source` is what it was read from, variables put in."""

    name: str
    title: str
    about: str
    sweeps: tuple[Sweep, ...]
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Study:
        """Build from parsed YAML; `given` are variables that win over its `set`.

        Raises:
            UsageError: a key is unknown or a value wrong; it is named with its sweep.
        """
        _only("", values, _TOP)
        variables = _variables(values, given or {})
        filled = _filled({key: value for key, value in values.items() if key != "set"}, variables)
        base = _keys("base", filled.get("base")) | {
            f"problems.{k}": v for k, v in _only("problems", filled.get("problems") or {}, PROBLEMS).items()
        }
        sweeps = filled.get("sweeps")
        if not isinstance(sweeps, list) or not sweeps:
            raise UsageError("sweeps: give a list of sweeps", field="sweeps")
        built = tuple(_sweep(number, sweep, base) for number, sweep in enumerate(sweeps, start=1))
        names = [sweep.name for sweep in built]
        if len(set(names)) < len(names):
            raise UsageError("sweeps: two have the same name", field="sweeps")
        title = str(filled.get("title") or filled.get("study") or "A study")
        name = str(filled.get("study") or "study")
        return cls(
            name=name,
            title=title,
            about=str(filled.get("about") or ""),
            sweeps=built,
            source={"set": variables, **filled},
        )


def read_study(file: Path, given: Mapping[str, Any] | None = None) -> Study:
    """A study from a YAML file.

    Raises:
        UsageError: it cannot be read, or holds no study; the message names file and key.
    """
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise UsageError(f"{file}: not a mapping of keys to values")
    try:
        return Study.from_mapping(values, given)
    except UsageError as error:
        raise UsageError(f"{file}: {error}", field=None) from error


def _only(where: str, values: Any, known: tuple[str, ...] | set[str]) -> dict[str, Any]:
    prefix = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        raise UsageError(f"{prefix}not a mapping of keys to values", field=where or None)
    for key in values:
        if key not in known:
            raise UsageError(f"{prefix}{key}: unknown key; known are {', '.join(sorted(known))}", field=str(key))
    return dict(values)


def _variables(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    own = values.get("set") or {}
    if not isinstance(own, Mapping):
        raise UsageError("set: not a mapping of names to values", field="set")
    for name in given:
        if name not in own:
            raise UsageError(f"set: unknown variable '{name}'; the study has {', '.join(own) or 'none'}", field="set")
    found = {**own, **given}
    for name, value in found.items():
        if value is None:
            raise UsageError(f"set: {name} must be given: --set {name}=VALUE", field="set")
    return found


def _filled(value: Any, variables: Mapping[str, Any]) -> Any:
    """The value with `${name}` replaced; a text that is nothing else takes the variable's own type."""
    if isinstance(value, Mapping):
        return {key: _filled(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, variables) for one in value]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in variables:
            raise UsageError(f"${{{name}}}: unknown variable; the study has {', '.join(variables) or 'none'}")
    whole = _VARIABLE.fullmatch(value)
    if whole:
        return variables[whole[1]]
    return _VARIABLE.sub(lambda match: str(variables[match[1]]), value)


def _keys(where: str, values: Any) -> dict[str, Any]:
    return _only(where, values or {}, _KNOWN)


def _sweep(number: int, values: Any, base: Mapping[str, Any]) -> Sweep:
    where = f"sweep {number}"
    found = _only(where, values, _SWEEP)
    name = found.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{where}: name: give one of small letters, digits and -", field="name")
    where = f"sweep {name}"
    runs = _runs(where, found, base)
    return Sweep(
        name=name,
        title=str(found.get("title") or name),
        about=str(found.get("about") or ""),
        runs=runs,
        x=str(found["x"]) if found.get("x") in METRICS else _known_key(where, "x", found.get("x")),
        by=tuple(str(_known_key(where, "by", key)) for key in found.get("by") or ()),
        metrics=_metrics(where, found.get("metrics")),
    )


def _known_key(where: str, what: str, key: Any) -> str | None:
    if key is not None and key not in _KNOWN:
        raise UsageError(f"{where}: {what}: unknown key '{key}'", field=what)
    return None if key is None else str(key)


def _metrics(where: str, names: Any) -> tuple[str, ...]:
    if names is None:
        return DEFAULT_METRICS
    if not isinstance(names, list):
        raise UsageError(f"{where}: metrics: not a list", field="metrics")
    for name in names:
        if name not in METRICS:
            raise UsageError(f"{where}: unknown metric '{name}'; known are {', '.join(METRICS)}", field="metrics")
    return tuple(names)


def _runs(where: str, found: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[RunSpec, ...]:
    grid = _keys(f"{where}: grid", found.get("grid"))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: grid: {key}: give a list of values", field=key)
    cases = found.get("cases") or [{}]
    if not isinstance(cases, list):
        raise UsageError(f"{where}: cases: not a list of mappings", field="cases")
    runs = [
        _run(where, {**base, **dict(zip(grid, chosen, strict=True)), **_keys(f"{where}: cases", case)})
        for case in cases
        for chosen in product(*grid.values())
    ]
    check_grid(where, grid, (run.values for run in runs))
    unique = {repr(sorted(run.values.items(), key=lambda item: item[0])): run for run in runs}
    return tuple(unique.values())


def _run(where: str, values: Mapping[str, Any]) -> RunSpec:
    run = RunSpec(values={key: value for key, value in values.items() if value is not None})
    try:
        run.config()
    except UsageError as error:
        raise UsageError(f"{where}: {error}", field=error.field) from error
    except (TypeError, AttributeError) as error:
        raise UsageError(f"{where}: a value has the wrong type ({error})") from error
    return run
