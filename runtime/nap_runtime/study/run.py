"""Run a study: every run once, problem by problem on disk, so that a killed study goes on where it was.

DIR/study.json          what was asked for
DIR/runs.jsonl          a line a finished run: settings, every metric, environment
DIR/runs.csv, .parquet  the same as tables
DIR/problems/ID.jsonl   a line a problem of run ID
DIR/traces/ID.nap       the trace of its first problem
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nap_runtime.api import check_device, check_dtype, make_executor, runs_elsewhere
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import CancelledError, NapError, UsageError
from nap_runtime.executor.coordinator import BUCKET, Coordinator
from nap_runtime.job import DecodeConfig, DecodeResult, at_least
from nap_runtime.models.files import atomic_path, write_text_atomic
from nap_runtime.models.loading import ModelCard, read_card
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.storage import Storage
from nap_runtime.study.budget import slots_of, with_tokens_per_step
from nap_runtime.study.distinct import check_runs
from nap_runtime.study.environment import environment
from nap_runtime.study.evaluation import decode_rows, summarise
from nap_runtime.study.listener import Listener
from nap_runtime.study.measures import run_columns
from nap_runtime.study.problems import Problem, read_problems
from nap_runtime.study.rows import RowFile, digest_of
from nap_runtime.study.spec import RunSpec, Study
from nap_runtime.study.table import write_tables

GroupKey = tuple[str, int, str, str, str, str | None, Storage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that has been checked against its model and problems. `config` is resolved, `card` that of its storage."""

    id: str
    spec: RunSpec
    sweeps: tuple[str, ...]
    card: ModelCard
    config: DecodeConfig
    problems: tuple[Problem, ...]

    @property
    def workers(self) -> int:
        """W."""
        return int(self.spec.place("workers", 1))

    @property
    def execution(self) -> str:
        """`inline`, `simulated` or `ray`."""
        if self.workers == 1:
            return "inline"
        return "simulated" if self.spec.place("simulate", False) else "ray"

    @property
    def bucket(self) -> int | None:
        """Which prompts share a batch; None where none do."""
        return int(self.spec.place("bucket", BUCKET)) if self.spec.place("batch_size", 1) > 1 else None

    @property
    def storage(self) -> Storage:
        """How workers hold numbers."""
        return storage_of(self.spec)

    @property
    def group(self) -> GroupKey:
        """Runs of one group share loaded weights and warm workers."""
        place = self.spec.place
        return (str(self.card.path), self.workers, self.execution, place("device", "cpu"), place("dtype", "float32"),
                place("address"), self.storage)  # fmt: skip


def storage_of(spec: RunSpec) -> Storage:
    """`weights` and `kv` of a run.

    Raises:
        UsageError: a value is unknown.
    """
    return Storage(weights=spec.place("weights", "native"), kv=spec.place("kv", "native"))


@dataclass(slots=True)
class Reader:
    """Models' cards and problem sets, each read once."""

    _cards: dict[str, ModelCard] = field(default_factory=dict)
    _problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict)

    def card(self, model: str) -> ModelCard:
        if model not in self._cards:
            self._cards[model] = read_card(model)
        return self._cards[model]

    def problems(self, values: Mapping[str, Any]) -> tuple[Problem, ...]:
        key = digest_of(values)
        if key not in self._problems:
            kept = {k: v for k, v in values.items() if k != "set"}
            data = kept.pop("data", None)
            found = read_problems(str(values["set"]), data=None if data is None else Path(data), **kept)
            self._problems[key] = tuple(found)
        return self._problems[key]


def plan(study: Study) -> list[Run]:
    """Every run of a study, each once, checked; those that share workers one after the other.

    Raises:
        UsageError, ModelError, DataError: a run cannot be made; the sweep is named.
    """
    reader = Reader()
    runs: dict[str, Run] = {}
    for sweep in study.sweeps:
        made = []
        for spec in sweep.runs:
            try:
                run = _checked(reader, spec, sweep.name)
            except NapError as error:
                raise UsageError(f"sweep {sweep.name}: {error}") from error
            made.append((spec.values, run.id))
            known = runs.get(run.id)
            names = (*known.sweeps, sweep.name) if known else (sweep.name,)
            runs[run.id] = replace(known or run, sweeps=tuple(dict.fromkeys(names)))
        check_runs(f"sweep {sweep.name}", made)
    order = list(dict.fromkeys(run.group for run in runs.values()))
    return sorted(runs.values(), key=lambda run: order.index(run.group))


def _checked(reader: Reader, spec: RunSpec, sweep: str) -> Run:
    storage = storage_of(spec)
    card = reader.card(str(spec.place("model", "nap-tiny"))).stored(storage)
    if card.tokenizer is None:
        raise UsageError("model: it has no tokenizer; problems need one", field="model")
    for name in ("workers", "batch_size", "bucket"):
        at_least(name, spec.place(name, 1), 1)
    on_ray = int(spec.place("workers", 1)) > 1 and not spec.place("simulate", False)
    check_device(spec.place("device", "cpu"), elsewhere=runs_elsewhere(on_ray=on_ray, address=spec.place("address")))
    check_dtype(spec.place("dtype", "float32"))
    storage.check(device=spec.place("device", "cpu"), dtype=spec.place("dtype", "float32"))
    per_step = spec.place("tokens_per_step")
    if per_step is not None:
        at_least("tokens_per_step", per_step, 1)
        if spec.values.get("steps") is not None:
            raise UsageError("tokens_per_step: give it or steps, not both", field="tokens_per_step")
    config = with_tokens_per_step(resolve(spec.config(), DecodeDefaults.of(card.path)), per_step)
    workers = int(spec.place("workers", 1))
    if workers > config.n_paths:
        raise UsageError(f"workers: {workers} workers for {config.n_paths} paths", field="workers")
    problems = reader.problems(spec.problems())
    layout = build_layout(card, config, len(prompt_ids(card, problems[0].question)))
    Plan.of(layout, config, Assignment.even(config.n_paths, workers))
    run = Run(id="", spec=spec, sweeps=(sweep,), card=card, config=config, problems=problems)
    return replace(run, id=_id(run))


def _id(run: Run) -> str:
    """A digest of all that decides the run's rows, and of where its times come from."""
    asked = [[problem.question, problem.gold] for problem in run.problems]
    batch = {"batch": run.spec.place("batch_size", 1)} | (
        {} if run.bucket in (None, BUCKET) else {"bucket": run.bucket}
    )
    *where, _ = run.group[1:]  # the storage is in the fingerprint
    values = {"model": run.card.fingerprint, "config": run.config.to_mapping(), "where": where, **batch}
    return digest_of({**values, "problems": digest_of(asked)})


# -- running ---------------------------------------------------------------------------------------


def run_study(
    study: Study,
    out: Path,
    *,
    listener: Listener | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    jobs: int = 1,
) -> int:
    """Make every run that is not finished, and write the tables; returns how many runs failed.

    Args:
        jobs: runs that are made at once, each in a process of its own (`nap_runtime.study.jobs`). Their seconds are
            those of a shared machine, and marked so.

    Raises:
        UsageError: something cannot be run, or another process writes there.
        WorkerError: a process of several was killed.
    """
    listener = listener or Listener()
    runs = plan(study)
    if jobs > 1 and any(run.execution == "ray" for run in runs):
        raise UsageError("jobs: runs on real workers are made one at a time, for their seconds' sake", field="jobs")
    out.mkdir(parents=True, exist_ok=True)
    with RowFile(out / "runs.jsonl", key="run_id") as finished:
        write_text_atomic(out / "study.json", study_json(study, runs))
        todo = [run for run in runs if run.id not in finished.rows]
        listener.on_plan(runs, len(runs) - len(todo))
        if jobs > 1 and len(todo) > 1:
            from nap_runtime.study.jobs import run_at_once

            failed = run_at_once(study, todo, out, jobs=jobs, finished=finished, listener=listener, cancelled=cancelled)
        else:
            failed = _run_in_turn(todo, out, finished, listener, cancelled)
        belongs = sweeps_of(runs)
        write_tables(out, [finished.rows[run] for run in belongs if run in finished.rows], belongs)
    return failed


def _run_in_turn(
    todo: Sequence[Run], out: Path, finished: RowFile, listener: Listener, cancelled: Callable[[], bool]
) -> int:
    """One run after another in this process; how many failed."""
    failed, left = 0, sum(len(run.problems) for run in todo)
    with Workers() as workers:
        for number, run in enumerate(todo, start=1):
            listener.on_run(run, number, len(todo))
            try:
                finished.add(make(run, workers.of(run), out, listener=listener, left=left, cancelled=cancelled))
            except (UsageError, CancelledError):
                raise
            except NapError as error:
                failed += 1
                workers.close()  # whatever broke is not trusted with the next run
                listener.on_failure(run, error)
            left -= len(run.problems)
    return failed


def make(
    run: Run,
    coordinator: Coordinator,
    out: Path,
    *,
    listener: Listener,
    left: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Decode what is left of a run's problems; its row of the table.

    Raises:
        NapError: it cannot be decoded, or was cancelled.
    """
    (out / "problems").mkdir(exist_ok=True)
    (out / "traces").mkdir(exist_ok=True)
    started, at = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    trace = out / "traces" / f"{run.id}.nap"
    place = run.spec.place
    with RowFile(out / "problems" / f"{run.id}.jsonl", key="index", run=run.id) as rows:
        written = decode_rows(
            coordinator,
            run.problems,
            run.config,
            rows,
            batch_size=int(place("batch_size", 1)),
            bucket=run.bucket,
            extra=lambda results: _keep_first(results, trace),
            cancelled=cancelled,
        )
        left -= len(rows.rows)
        for row in written:
            left -= 1
            listener.on_problem(run, row, left)
        return _row(run, rows.rows) | {"started": at, "wall_seconds": time.perf_counter() - started}


def _keep_first(results: list[DecodeResult], trace: Path) -> list[Mapping[str, Any]]:
    """Write the trace of problem 0; adds no columns."""
    for result in results:
        if result.job.index == 0:
            with atomic_path(trace) as temporary:
                temporary.write_bytes(result.record.to_bytes())
    return [{}] * len(results)


def _row(run: Run, rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    found = [rows[problem.index] for problem in run.problems]
    simulated = run.execution == "simulated"
    return {
        "run_id": run.id,
        **settings_columns(run),
        **run_columns(summarise(run.problems, rows), found, simulated=simulated),
        "times_from": "none: simulated workers share a device" if simulated else "measured",
        "bytes_from": "none: one worker" if run.workers == 1 else "simulated" if simulated else "measured",
        **environment(run.spec.place("device", "cpu")),
    }


def settings_columns(run: Run) -> dict[str, Any]:
    """The resolved settings as flat columns; `sync.every` is `sync_every`."""
    config = run.config.to_mapping()
    sync = config.pop("sync")
    config["rule_args"] = ",".join(f"{k}={v}" for k, v in sorted(config["rule_args"].items())) or None
    each = config["path_tokens"]
    config["path_tokens"] = ",".join(map(str, each)) if isinstance(each, list) else each
    steps = run.config.steps or slots_of(run.config)
    place = run.spec.place
    problems = run.spec.problems()
    return {
        "label": place("label"),
        "model": run.card.name,
        "fingerprint": run.card.fingerprint,
        "workers": run.workers,
        "execution": run.execution,
        "device": place("device", "cpu"),
        "dtype": place("dtype", "float32"),
        "weights": run.storage.weights,
        "kv": run.storage.kv,
        "batch_size": place("batch_size", 1),
        "bucket": run.bucket,
        "tokens_per_step": slots_of(run.config) / steps,
        **config,
        "steps": steps,
        **{f"sync_{key}": value for key, value in sync.items()},
        "sync_every": None if run.config.sync.mode in ("exact", "none") else run.config.sync.period,
        **{f"problems_{key}": problems.get(key) for key in ("set", "seed", "ask")},
        "problems_options": json.dumps(problems["options"], sort_keys=True) if "options" in problems else None,
        "n": len(run.problems),
    }


def sweeps_of(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Names of the sweeps that each run belongs to."""
    return {run.id: run.sweeps for run in runs}


def study_json(study: Study, runs: Sequence[Run]) -> str:
    """What a report needs to know of a study: its texts, and which runs each sweep has, in order."""
    sweeps = [
        {
            "name": sweep.name,
            "title": sweep.title,
            "about": sweep.about,
            "x": sweep.x,
            "by": list(sweep.by),
            "metrics": list(sweep.metrics),
            "runs": [run.id for run in runs if sweep.name in run.sweeps],
        }
        for sweep in study.sweeps
    ]
    values = {"schema": "nap.study/1", "name": study.name, "title": study.title, "about": study.about}
    return json.dumps({**values, "sweeps": sweeps, "source": study.source}, indent=1, default=str) + "\n"


class Workers:
    """The warm group of the runs at hand; another group is started in its place."""

    def __init__(self) -> None:
        self._key: GroupKey | None = None
        self._coordinator: Coordinator | None = None

    def __enter__(self) -> Workers:
        return self

    def of(self, run: Run) -> Coordinator:
        """The coordinator of a run's group."""
        if self._coordinator is None or self._key != run.group:
            self.close()
            executor = make_executor(
                run.card,
                workers=run.workers,
                dtype=run.spec.place("dtype", "float32"),
                device=run.spec.place("device", "cpu"),
                simulate=run.execution == "simulated",
                address=run.spec.place("address"),
                storage=run.storage,
            )
            self._key, self._coordinator = run.group, Coordinator(run.card, executor)
        return self._coordinator

    def close(self) -> None:
        """Stop the group."""
        if self._coordinator is not None:
            self._coordinator.executor.close()
        self._key, self._coordinator = None, None

    def __exit__(self, *_: object) -> None:
        self.close()
