"""`--sync auto`: the freshest sync whose predicted overhead is small enough (docs/cost-model.md, "Choosing").

The overhead of a sync is the share of the predicted time that would be gained if nothing were exchanged, nobody waited
for anybody, and no row were computed for a sync alone. Of syncs with an overhead of at most the limit it is

1. under topology `isolated`: `none`, which equals one device;
2. `exact`;
3. `tokens`, and `kv` (topology `full`) or `shared` (`hub`), at the smallest K of 1, 2, 4, … 64; of two the faster;
4. `none`, whatever its overhead; where the config cannot have it, the sync with the smallest overhead.

Equal inputs give equal choices: nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_runtime.auto import AutoSync
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import DataError, UsageError
from nap_runtime.job import DecodeConfig, Rule, SyncMode
from nap_runtime.models.config import ModelConfig
from nap_runtime.policy import SyncPolicy
from nap_runtime.storage import NATIVE, Storage
from nap_runtime.study.cost.predict import DEVICES, LINKS, Device, Machine, Work
from nap_runtime.study.cost.scenario import ITEM_BYTES

EVERY = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sync that could be chosen, with its predicted seconds a decode and the share of them that it costs."""

    policy: SyncPolicy
    seconds: float
    overhead: float

    @property
    def name(self) -> str:
        """As it is said: `kv every 8`."""
        return self.policy.mode + ("" if self.policy.every is None else f" every {self.policy.every}")

    def __str__(self) -> str:
        return f"{self.name} {100 * self.overhead:.1f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, of what.

    Attributes:
        reason: why, in words.
        candidates: those that were predicted to find it, in the order of the rule.
    """

    policy: SyncPolicy
    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """What is to be decoded, as far as its cost goes.

    Args:
        threads: of each worker on a CPU; 1 on a GPU.
    """

    layout: CanvasLayout
    config: DecodeConfig
    model: ModelConfig
    workers: int
    dtype: str = "float32"
    batch: int = 1
    threads: int = 1
    storage: Storage = NATIVE

    def work(self, policy: SyncPolicy) -> Work | None:
        """Its counts under a policy; None where the config cannot have it.

        A rule whose steps are not known beforehand is counted as if it had quotas, and without its cache.
        """
        try:
            config = self.config.with_values(sync=policy)
        except UsageError:
            return None
        if not config.traits.fixed or config.cache is not None:
            config = self._with_quotas(policy)
        plan = Plan.of(self.layout, config, Assignment.even(config.n_paths, self.workers))
        if policy.every is not None and policy.every >= (plan.path_steps or plan.schedule.steps):
            return None  # no sync would ever happen
        how: dict[str, Any] = {"batch": self.batch, "threads": self.threads, "storage": self.storage}
        return Work.of_plan(plan, self.model, ITEM_BYTES[self.dtype], **how)

    def _with_quotas(self, policy: SyncPolicy) -> DecodeConfig:
        given = self.config
        over = given.picks_over
        names = ("layout", "paths", "path_tokens", "summary_tokens", "gen_length", "steps", "cfg")
        kept: dict[str, Any] = {name: getattr(given, name) for name in names}
        rule: Rule | None = "confidence" if over == "canvas" else None
        return DecodeConfig(**kept, rule=rule, scope=None if rule is None else over, sync=policy)


def choose(asked: AutoSync, decode: Decode, machine: Machine) -> Choice:
    """Choose a sync for a decode on a machine.

    Raises:
        UsageError: the canvas does not fit, or no sync goes with what is asked for.
    """
    if decode.workers == 1:
        return Choice(policy=asked.stand_in(), reason="one worker has nobody to talk to")
    found: list[Candidate] = []
    for group in _groups(asked):
        fresh = list(_predicted(group, decode, machine))
        found += fresh
        fit = [candidate for candidate in fresh if _fits(candidate, asked)]
        if fit:
            return _choice(min(fit, key=lambda candidate: candidate.seconds), found, asked)
    if not found:
        raise UsageError("sync: no sync goes with these options; give a mode", field="sync")
    return _choice(min(found, key=lambda candidate: candidate.overhead), found, asked)


def _fits(candidate: Candidate, asked: AutoSync) -> bool:
    return candidate.policy.mode == "none" or candidate.overhead <= asked.overhead


def _choice(best: Candidate, found: Sequence[Candidate], asked: AutoSync) -> Choice:
    equal = best.policy.mode == "none" and best.policy.sees == "isolated"
    reason = "under topology isolated it equals one device" if equal else _reason(best, found, asked)
    return Choice(policy=best.policy, reason=reason, candidates=tuple(found))


def _groups(asked: AutoSync) -> Iterator[tuple[SyncPolicy, ...]]:
    """Policies from fresh to stale; those of one group are as good as each other."""
    topology = asked.topology or "full"
    none = tuple(_policies(asked, ("none",), None))
    if topology == "isolated":
        yield none
    yield tuple(_policies(asked, ("exact",), None))
    talking: dict[str, tuple[SyncMode, ...]] = {"full": ("tokens", "kv"), "hub": ("tokens", "shared")}
    for every in EVERY:
        yield tuple(_policies(asked, talking.get(topology, ("tokens",)), every))
    if topology != "isolated":
        yield none


def _policies(asked: AutoSync, modes: Sequence[SyncMode], every: int | None) -> Iterator[SyncPolicy]:
    for mode in modes:
        try:
            yield SyncPolicy(mode, every=every, **asked.kept)
        except UsageError:
            continue  # it does not go with topology or summary


def _predicted(group: Sequence[SyncPolicy], decode: Decode, machine: Machine) -> Iterator[Candidate]:
    for policy in group:
        work = decode.work(policy)
        if work is not None:
            seconds = work.on(machine).seconds
            bare = work.without_syncs().on(machine).seconds
            yield Candidate(policy=policy, seconds=seconds, overhead=1 - bare / seconds)


def _reason(best: Candidate, found: Sequence[Candidate], asked: AutoSync) -> str:
    """The overhead, the limit, and what was turned down for it."""
    limit = f"{100 * asked.overhead:g} %"
    said = f"predicted overhead {100 * best.overhead:.1f} % of at most {limit}"
    if best.overhead > asked.overhead:
        said = f"predicted overhead {100 * best.overhead:.1f} %, nothing stays below {limit}"
    others = [c for c in found[: found.index(best)] if c.overhead > asked.overhead]
    alike = [c for c in others if c.policy.mode == best.policy.mode] or others
    shown = others[:1] + [c for c in alike[-1:] if c is not others[0]]
    return said + (f"; {', '.join(map(str, shown))}" if shown else "")


# -- machines --------------------------------------------------------------------------------------


def device_of(device: str, name: str = "") -> Device:
    """The preset of a device: `cpu`, or a GPU by its product's name.

    Raises:
        UsageError: there is none.
    """
    if device == "cpu":
        return DEVICES["cpu"]
    for known, preset in DEVICES.items():
        if known != "cpu" and known in name.lower():
            return preset
    what = f"for the device '{name}'" if name else "for a GPU that this host does not see"
    text = f"link: there is no preset {what}; give a file of nap cost calibrate"
    raise UsageError(text, field="link")


def machine_of(link: str, device: str, name: str = "") -> Machine:
    """The machine of a named link, or of a file of `nap cost calibrate`, which has a device of its own.

    Raises:
        UsageError: the link is neither, or the device has no preset.
        DataError: the file holds something else.
    """
    if link in LINKS:
        return Machine(device=device_of(device, name), link=LINKS[link])
    file = Path(link)
    if not file.is_file():
        known = ", ".join(LINKS)
        raise UsageError(f"link: '{link}' is neither a file nor one of {known}", field="link")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not JSON") from error
    if not isinstance(values, dict) or not {"device", "link"} <= values.keys():
        raise DataError(f"{file}: no calibration; it has 'device' and 'link'")
    return Machine.from_mapping({key: values[key] for key in ("device", "link")})
