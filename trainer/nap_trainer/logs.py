"""What a person and a program see of a training: `train.jsonl`, TensorBoard, a progress bar on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nap_runtime.models.files import write_text_atomic

NAME = "train.jsonl"
Figure = float | int | str | None


class TrainLog:
    """Figures of a run, by optimizer step. Only rank 0 has one that writes.

    Args:
        out: folder of the run.
        total: steps of the run.
        start: steps done already; later lines of an earlier try are dropped.
        tensorboard: write event files too.
        active: False makes a log that does nothing (ranks other than 0).
    """

    def __init__(self, out: Path, *, total: int, start: int, tensorboard: bool, active: bool) -> None:
        self._out, self._active, self._stack = out, active, ExitStack()
        self._total, self._start, self._began = total, start, time.monotonic()
        self._writer: Any = None
        self._bar: Any = None
        if not active:
            return
        out.mkdir(parents=True, exist_ok=True)
        forget_after(out / NAME, start)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> Self:
        if self._active and sys.stderr.isatty():
            self._bar = self._stack.enter_context(_progress())
            self._task = self._bar.add_task("train", total=self._total, completed=self._start, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._writer is not None:
            self._writer.close()

    def tick(self, step: int) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def write(self, kind: str, step: int, figures: Mapping[str, Figure]) -> None:
        """Figures as of a step; `kind` is `train`, `eval` or `end`."""
        if not self._active:
            return
        values = {"kind": kind, "step": step, **{name: _short(value) for name, value in figures.items()}}
        values["elapsed"] = round(time.monotonic() - self._began, 1)
        with (self._out / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if self._writer is not None:
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._show(values)

    def last(self) -> dict[str, Figure]:
        """The figures of the last `train` line; none where there is no such line, or on another rank."""
        file = self._out / NAME
        if not self._active or not file.exists():
            return {}
        lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
        return next((dict(values) for values in reversed(list(lines)) if values["kind"] == "train"), {})

    def say(self, text: str) -> None:
        """One line for a person, on stderr."""
        if self._active:
            (self._bar.console.print if self._bar is not None else _to_stderr)(text)

    def _show(self, values: Mapping[str, Figure]) -> None:
        if self._bar is not None and values["kind"] == "train":
            self._bar.update(self._task, note=f"loss {values.get('loss')}  {values.get('tokens_per_second')} tokens/s")
        else:
            self.say("  ".join(f"{name} {value}" for name, value in values.items() if value is not None))


def forget_after(file: Path, step: int) -> None:
    """Drop lines of steps beyond `step`, and a last line that was cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values["step"] <= step and values["kind"] != "end":
            kept.append(line + "\n")
    write_text_atomic(file, "".join(kept))


def _short(value: Figure) -> Figure:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    return Progress(*columns, console=Console(stderr=True))
