"""The canvas while it is being filled in: paths side by side, a timeline of syncs, the summary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nap_runtime.cli.output import answer_line, cost_rows
from nap_runtime.decoding.machine import Coordination, Finish
from nap_runtime.decoding.state import Kind
from nap_runtime.executor.coordinator import Batch, JobFailure, Observer
from nap_runtime.job import DecodeResult

if TYPE_CHECKING:
    from nap_runtime.cli.settings import Settings
    from nap_runtime.decoding.layout import CanvasLayout, Ids, ThinkBlock
    from nap_runtime.decoding.record import CanvasDelta
    from nap_runtime.models.tokenizer import Tokenizer
    from nap_runtime.worker import Report

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
MASKED, FILLED = "░", "·"
SYNC_MARKS = {"exact": "┼", "tokens": "t", "shared": "s", "kv": "k", "gather": "G"}
_FRAMES_PER_SECOND = 12


class CanvasView:
    """One canvas as its workers' reports tell it. Not locked: see `LiveView`."""

    def __init__(self, layout: CanvasLayout, prompt: tuple[int, ...], tokenizer: Tokenizer | None) -> None:
        self.layout, self._tokenizer = layout, tokenizer
        self.ids: Ids = layout.initial_ids(prompt)
        self.kind = np.zeros(layout.size, dtype=np.int64)
        self.fresh: dict[int, set[int]] = {}
        self.step = 0
        self._pieces: dict[tuple[int, int], str] = {}

    def take(self, worker: int, step: int, deltas: tuple[CanvasDelta, ...]) -> None:
        """Put a worker's newest tokens in; they alone are highlighted among its own."""
        self.step = max(self.step, step)
        self.fresh[worker] = set()
        for delta in deltas:
            if delta.kind is Kind.PROVISIONAL:
                continue
            self.ids[delta.positions] = delta.ids
            self.kind[delta.positions] = Kind.OPEN if delta.kind is Kind.REMASK else delta.kind
            if delta.kind is Kind.COMMIT:
                self.fresh[worker].update(delta.positions.tolist())

    def text(self, block: ThinkBlock, colour: str) -> Text:
        """A block's slots in place: masks dim, tokens just committed highlighted."""
        line, before = Text(), -1
        fresh = set().union(*self.fresh.values()) if self.fresh else set()
        for slot in block.slots:
            kind, token = self.kind[slot], int(self.ids[slot])
            if kind == Kind.OPEN or kind == Kind.FILL or token in block.end_ids:
                gap = " " if before >= 0 else ""
                line.append(gap + (MASKED if kind == Kind.OPEN else FILLED), style="dim")
                before = -1
                continue
            piece = self._piece(before, token)
            if before < 0 and line:
                line.append(" ")
            line.append(piece, style=f"bold reverse {colour}" if slot in fresh else "")
            before = token
        return line

    def _piece(self, before: int, token: int) -> str:
        """A token's text after the one before it, with the space that belongs between the two."""
        if self._tokenizer is None:
            return f"[{token}]"
        if (before, token) not in self._pieces:
            alone = self._tokenizer.decode([token])
            if before >= 0:
                first = self._tokenizer.decode([before])
                both = self._tokenizer.decode([before, token])
                alone = both[len(first) :] if both.startswith(first) else f" {alone}"
            self._pieces[before, token] = alone.replace("\n", "⏎")
        return self._pieces[before, token]

    @property
    def committed(self) -> int:
        """Slots that are no longer masked."""
        return int((self.kind != Kind.OPEN).sum())


class LiveView(Observer):
    """Draws the first canvas of the batch that is running. Reports may come from any thread."""

    report_every = 1  # so that there is something to see

    def __init__(self, settings: Settings, tokenizer: Tokenizer | None, note: str) -> None:
        self._settings, self._tokenizer, self._note = settings, tokenizer, note
        self._lock = threading.Lock()
        self._batch: Batch | None = None
        self._view: CanvasView | None = None
        self._syncs: list[tuple[int, str]] = []
        self._result: DecodeResult | None = None

    def on_batch(self, batch: Batch) -> None:
        """A canvas of masks."""
        with self._lock:
            self._batch, self._result = batch, None
            self._view = CanvasView(batch.task.layout_of(0), batch.task.prompts[0], self._tokenizer)
            self._syncs = planned_syncs(batch)

    def on_report(self, batch: Batch, report: Report) -> None:
        """Tokens appear."""
        with self._lock:
            if self._view is not None:
                self._view.take(report.worker, report.step, report.deltas[0])

    def on_result(self, result: DecodeResult | JobFailure) -> None:
        """Nothing is fresh any more, and the syncs are those that happened."""
        if isinstance(result, DecodeResult):
            with self._lock:
                self._result = result
                self._syncs = [(event.step, event.kind) for event in result.record.syncs]
                if self._view is not None:
                    self._view.fresh = {}

    def render(self) -> Group | Text:
        """The picture as of now."""
        with self._lock:
            if self._batch is None or self._view is None:
                return Text("laying out the canvas …", style="dim")
            parts: list[RenderableType] = [
                self._question(self._batch),
                self._paths(self._batch, self._view),
                self._timeline(self._batch),
            ]
            summary = self._view.layout.summary
            if summary is not None:
                parts.append(Panel(self._view.text(summary, "white"), title="summary", title_align="left"))
            return Group(*parts)

    def _question(self, batch: Batch) -> Text:
        text = Text(batch.jobs[0].question, style="bold")
        return text.append(f"  ({self._note})", style="not bold dim") if self._note else text

    def _paths(self, batch: Batch, view: CanvasView) -> Table:
        grid = Table.grid(expand=True)
        panels, owners = [], batch.task.plan.assignment.worker_of
        for path, block in enumerate(view.layout.paths):
            colour = COLOURS[owners[path] % len(COLOURS)]
            title = f"path {path + 1} · worker {owners[path]}" if view.layout.summary is not None else "region"
            panels.append(Panel(view.text(block, colour), title=title, title_align="left", border_style=colour))
            grid.add_column(ratio=1)
        grid.add_row(*panels)
        return grid

    def _timeline(self, batch: Batch) -> Text:
        steps = batch.task.plan.schedule.steps
        at = steps if self._result is not None else self._view.step if self._view else 0
        return timeline(steps, at, self._syncs, width=60)


def planned_syncs(batch: Batch) -> list[tuple[int, str]]:
    """Step and kind of every sync, from a replica of the workers' state machine."""
    machine = Coordination(batch.task.plan)
    while not isinstance(machine.next(), Finish):
        pass
    return [(event.step, event.kind) for event in machine.events]


def timeline(steps: int, at: int, syncs: list[tuple[int, str]], *, width: int) -> Text:
    """A line of steps with a mark where workers talked; what lies ahead is dim."""
    width = min(width, steps)
    cells = ["─"] * width
    for step, kind in syncs:
        cells[min(step * width // steps, width - 1)] = SYNC_MARKS.get(kind, "?")
    done = at * width // steps
    line = Text(f"step {min(at, steps):>{len(str(steps))}}/{steps} ")
    line.append("".join(cells[:done]), style="bold").append("".join(cells[done:]), style="dim")
    kinds = dict.fromkeys(kind for _, kind in syncs)
    legend = ", ".join(f"{SYNC_MARKS.get(kind, '?')} {kind}" for kind in kinds)
    return line.append(f" {legend}" if legend else " no syncs", style="dim")


@contextmanager
def live_canvas(view: LiveView, console: Console) -> Iterator[None]:
    """Keep the picture on the terminal up to date; its last state stays."""
    get: Callable[[], Group | Text] = view.render
    with Live(console=console, get_renderable=get, refresh_per_second=_FRAMES_PER_SECOND):
        yield


def print_end(console: Console, result: DecodeResult, settings: Settings) -> None:
    """Answer and costs below the canvas."""
    style = {True: "bold green", False: "bold red", None: "bold"}[result.correct]
    console.print(Text("answer  ").append(answer_line(result), style=style))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, text in cost_rows(result.metrics, settings):
        table.add_row(name, Text(text))
    console.print(table)
