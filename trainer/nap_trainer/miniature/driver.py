"""Runs the units of a study one by one: what is on disk is skipped, and nothing is begun that cannot end in time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from nap_runtime.errors import ModelError, NapError, UsageError, WorkerError
from nap_runtime.executor.base import out_of_memory
from nap_runtime.job import DEVICES, DTYPES, one_of
from nap_runtime.models.loading import load_model
from nap_runtime.models.tokenizer import Tokenizer, load_tokenizer
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.worker import Denoiser
from nap_trainer.miniature.arms import ARMS, Tags, prompts_of
from nap_trainer.miniature.decoding import Compiled, Decoder
from nap_trainer.miniature.grading import accuracy, read_answers
from nap_trainer.miniature.problems import Problems, Source, Split
from nap_trainer.miniature.schedule import Schedule
from nap_trainer.miniature.seam import TrainArm, TrainingSet, trainer_of
from nap_trainer.miniature.store import Store
from nap_trainer.miniature.study import Decode, Model, Study

Say = Callable[[str], None]
_TARGET_SAMPLE = 4096
_MARGIN = 1.3  # a unit is begun only if this many times its estimate is left


@dataclass(frozen=True, slots=True)
class Deadline:
    """Seconds from the start after which nothing new may be running; None: no limit."""

    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)

    def allows(self, estimate: float) -> bool:
        """Whether something that takes this long still fits, with a margin."""
        if self.seconds is None:
            return True
        left = self.seconds - (time.monotonic() - self.started)
        return left > 0 and left >= estimate * _MARGIN


class Driver:
    """One study in one folder on one machine.

    Args:
        source: the problem set.
        processes: that make problems.
    """

    def __init__(self, store: Store, study: Study, source: Source, *, processes: int = 0, say: Say = print) -> None:
        self.store, self.study, self.source, self.say = store, study, source, say
        self.processes = processes or os.cpu_count() or 1
        self._problems: dict[Split, Problems] = {}
        self._scores: dict[str, float] = {}

    # -- what all units read ----------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The problem set's, written into the run's folder once."""
        folder = self.store.root / "tokenizer"
        found = load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None
        return found or self.source.tokenizer(folder)

    @cached_property
    def tags(self) -> Tags:
        """The tags' ids."""
        return Tags.of(self.tokenizer)

    def problems(self, split: Split) -> Problems:
        """A split's problems: stored, or made and stored now."""
        if split not in self._problems:
            path = self.store.data(split)
            if not path.exists():
                began = time.monotonic()
                count = {"train": self.study.train, "dev": self.study.dev, "test": self.study.test}[split]
                made = self.source.problems(split, count, self.study.data_seed, self.processes)
                made.save(path, compress=split != "train")
                self.store.log("data", split, time.monotonic() - began, count=count)
                self.say(f"{split}: {count} problems in {time.monotonic() - began:.1f} s")
            self._problems[split] = Problems.load(path)
        return self._problems[split]

    @cached_property
    def training_set(self) -> TrainingSet:
        """What every training is given."""
        folder = self.store.root / "tokenizer"
        assert self.tokenizer is not None  # written by now
        return TrainingSet.of(self.problems("train"), self.study.geometry, self.tags, folder)

    # -- training ---------------------------------------------------------------------------------------------------

    def train(self, deadline: Deadline, *, only: list[Model] | None = None, jobs: int = 1) -> int:
        """Train what is missing, most wanted first; returns how many are missing still."""
        todo = [model for model in only or self.study.models() if not self.store.trained(model)]
        if todo and jobs > 1:
            self._train_side_by_side(todo, deadline, jobs)
        elif todo:
            trainer = trainer_of(self.study.trainer, self.study.training)
            for model in todo:
                if not deadline.allows(self._training_seconds(model)):
                    break
                self.train_one(model, trainer)
        return sum(not self.store.trained(model) for model in only or self.study.models())

    def train_one(self, model: Model, trainer: TrainArm) -> None:
        """One training, and its note.

        Raises:
            ModelError: the trainer left no model.
        """
        arm, table, folder = ARMS[model.arm], self.training_set, self.store.model(model)
        began = time.monotonic()
        made = trainer(arm, model.seed, table, folder)
        seconds = time.monotonic() - began
        if not (made / "config.json").exists():
            raise ModelError(f"{model.name}: the trainer left no model in {made}")
        few = table.problems.take(slice(0, _TARGET_SAMPLE))
        targets = TrainingSet.of(few, table.geometry, table.tags, table.tokenizer).canvases(arm).targets
        where = os.path.relpath(made, self.store.root)
        self.store.note_model(model, {"folder": where, "seconds": round(seconds, 2), "targets": round(targets, 2)})
        self.store.log("train", model.name, seconds, device=device_name())
        self.say(f"trained {model.name} in {seconds:.1f} s")

    def _train_side_by_side(self, todo: list[Model], deadline: Deadline, jobs: int) -> None:
        """Several trainings at once in processes of their own; a failed one ends the run when the others are done."""
        self.problems("train")
        assert self.tags  # the tokenizer is on disk too
        running: set[Future[None]] = set()
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            for model in todo:
                if len(running) >= jobs:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    _raise_any(done)
                if not deadline.allows(self._training_seconds(model)):
                    break
                running.add(pool.submit(_train_in_process, self.store.root, model))
            _raise_any(wait(running).done)

    def _training_seconds(self, model: Model) -> float:
        """As long as the last training of its arm, else the last of any."""
        rows = [row for row in self.store.ledger() if row["kind"] == "train"]
        mine = [row for row in rows if row["name"].rpartition("-s")[0] == model.arm]
        return float((mine or rows or [{"seconds": 0.0}])[-1]["seconds"])

    # -- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, deadline: Deadline, machine: Machine, arms: Collection[str] | None = None) -> bool:
        """Decode what is missing, of all or some arms, most wanted first; True when nothing that can run is left."""
        runner = _Runner(self, machine)
        for unit in Schedule(self.study, self.store, self.score, arms).units():
            if not deadline.allows(self._decode_seconds(unit)):
                return False
            runner.run(unit)
        return True

    def score(self, unit: Decode) -> float:
        """Accuracy of a development decode on disk."""
        if unit.name not in self._scores:
            decoded, problems = self.store.decoded(unit), self.problems(unit.split).take(slice(0, unit.count))
            assert decoded is not None
            answers = read_answers(decoded.ids_nS, unit.arm, self.study.geometry, self.tags, self.source)
            self._scores[unit.name] = accuracy(answers, problems)
        return self._scores[unit.name]

    def probe(self, unit: Decode, machine: Machine) -> float:
        """Decode one development unit and score it: what a pilot looks at."""
        if not self.store.decode(unit).exists():
            _Runner(self, machine).run(unit)
        return self.score(unit)

    def _decode_seconds(self, unit: Decode) -> float:
        """By the median of the last decodes of as many problems, in seconds per step."""
        rows = [row for row in self.store.ledger() if row["kind"] == "decode" and row["count"] == unit.count][-7:]
        each = median([row["seconds"] / row["steps"] for row in rows]) if rows else 0.0
        return each * self.study.geometry.rows / unit.setting.per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decodes: device, precision (None: the study's), canvases at once (None: the study's), torch.compile."""

    device: str = "cpu"
    dtype: str | None = None
    batch: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        one_of("device", self.device, DEVICES)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device: torch sees no CUDA device; use cpu", field="device")
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)


class _Runner:
    """Runs decodes with one network, into which the models' weights are loaded in turn (compiled code stays good)."""

    def __init__(self, driver: Driver, machine: Machine) -> None:
        self._driver, self._machine, self._device = driver, machine, torch.device(machine.device)
        self._dtype: torch.dtype = getattr(torch, machine.dtype or driver.study.dtype)
        self._network: DiffusionTransformer | None = None
        self._decoder: Decoder | None = None
        self._of: Model | None = None

    def run(self, unit: Decode) -> None:
        """Decode and store one unit."""
        driver, study = self._driver, self._driver.study
        decoder = self._decoder_of(unit.model)
        problems = driver.problems(unit.split).take(slice(0, unit.count))
        prompts = prompts_of(problems, study.geometry, driver.tags)
        began = time.monotonic()
        try:
            decoded = decoder.run(prompts, unit.arm, study.geometry, driver.tags, unit.setting)
        except (WorkerError, torch.OutOfMemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UsageError(f"batch: {decoder.batch} canvases do not fit on the device; use fewer") from error
        seconds = time.monotonic() - began
        decoded.first(study.order).save(driver.store.decode(unit))
        steps = -(-study.geometry.rows // unit.setting.per_step)
        driver.store.log("decode", unit.name, seconds, count=unit.count, steps=steps, device=device_name(self._device))
        driver.say(f"{unit.name}: {unit.count} canvases in {seconds:.1f} s")

    def _decoder_of(self, model: Model) -> Decoder:
        if self._decoder is None or self._of != model:
            folder = self._driver.store.root / self._driver.store.model_note(model)["folder"]
            loaded = load_model(folder, dtype=self._dtype, device=self._device).model
            if self._network is None or self._network.config != loaded.config:
                self._network, self._decoder = loaded, self._made(loaded)
            else:
                self._network.load_state_dict(loaded.state_dict())
            self._of = model
        assert self._decoder is not None
        return self._decoder

    def _made(self, network: DiffusionTransformer) -> Decoder:
        model: Denoiser = Compiled(network) if self._machine.compiled else network
        batch = self._machine.batch or self._driver.study.batch
        return Decoder(model=model, dtype=self._dtype, device=self._device, batch=batch)


def _train_in_process(root: Path, model: Model) -> None:
    """One training in a process of its own."""
    from nap_trainer.miniature.seam import source_of

    store = Store(root)
    study = store.open(None)
    driver = Driver(store, study, source_of(study.source, study.problem_set))
    driver.train_one(model, trainer_of(study.trainer, study.training))


def _raise_any(done: set[Future[None]]) -> None:
    for future in done:
        error = future.exception()
        if error is not None:
            raise error if isinstance(error, NapError) else ModelError(f"a training failed: {error}")


def device_name(device: torch.device | None = None) -> str:
    """The accelerator's name, else `cpu`; without a device the one that a training takes."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.cuda.get_device_name(0) if on_gpu else "cpu"


def missing(driver: Driver) -> Iterator[str]:
    """Names of trainings that have not ended."""
    yield from (model.name for model in driver.study.models() if not driver.store.trained(model))
