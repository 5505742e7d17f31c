"""A job's events on a terminal: the canvas while it fills, or one line an update where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nap_runtime.cli.output import align

if TYPE_CHECKING:
    from rich.console import Group

    from nap_runtime.service.answers import Finished, JobEvent, JobInfo

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


class Picture:
    """What is known of a job, event by event."""

    def __init__(self, job: JobInfo, note: str = "") -> None:
        self._job, self._note = job, note
        self.state, self.detail = job.state, ""
        self.steps = self.done = 0
        self.texts: dict[int | None, str] = {}
        self.workers: tuple[int, ...] = ()
        self.finished: Finished | None = None

    def take(self, event: JobEvent) -> str:
        """Take an event; a line that says what it was."""
        from nap_runtime.service.answers import Finished, LaidOut, RolledBack, StateChanged, Update

        body = event.body
        if isinstance(body, StateChanged):
            self.state, self.detail = body.state, body.detail
            return f"{body.state} {body.detail}".strip()
        if isinstance(body, LaidOut):
            self.steps, self.workers, self.texts, self.done = body.steps, body.assignment, {}, 0
            return f"laid out: {len(body.ids)} positions, {body.steps} steps"
        if isinstance(body, RolledBack):
            self.done, self.detail = body.step + 1, body.reason
            return f"resumed after step {body.step}: {body.reason}"
        if isinstance(body, Update):
            self.done = max(self.done, body.last + 1)
            self.texts |= body.texts
            tokens = sum(len(delta.ids) for delta in body.deltas)
            return f"steps {body.first} to {body.last}: {tokens} tokens"
        if not isinstance(body, Finished):
            return f"answer so far: {body.answer}"
        self.finished, self.state, self.detail = body, body.job.state, body.job.error
        return f"{body.job.state} {body.job.error}".strip()

    def rows(self) -> list[tuple[str, str]]:
        """Name and text of every block."""
        named = sorted((path, text) for path, text in self.texts.items() if path is not None)
        rows = [(f"path {path + 1}", f"[worker {self._worker(path)}] {text}") for path, text in named]
        return [*rows, *([("summary", self.texts[None])] if None in self.texts else [])]

    def _worker(self, path: int) -> int:
        return self.workers[path] if path < len(self.workers) else 0

    def render(self) -> Group:
        """The picture for a terminal."""
        from rich.console import Group
        from rich.text import Text

        lines = [Text(self._job.question, style="bold"), Text(self._note, style="dim")]
        for index, (name, text) in enumerate(self.rows()):
            colour = "bold" if name == "summary" else _COLOURS[index % len(_COLOURS)]
            lines.append(Text(f"{name:<8} ", style="dim").append(text, style=colour))
        state = f"job {self._job.id}  {self.state}  step {self.done} of {self.steps or '?'}  {self.detail}"
        return Group(*(line for line in lines if line.plain), Text(state, style="dim"))

    def end(self) -> str:
        """What remains to be said when a job is done."""
        assert self.finished is not None
        result = self.finished.result
        if result is None:
            return ""
        right = {True: "  (correct)", False: "  (wrong)", None: ""}[result.correct]
        rows = [*self.rows(), ("answer", f"{'none' if result.answer is None else result.answer}{right}")]
        return align(rows)


def follow(events: Iterable[JobEvent], job: JobInfo, note: str) -> Finished:
    """Show a job's events to their end."""
    picture = Picture(job, note)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(highlight=False), get_renderable=picture.render, refresh_per_second=12):
            for event in events:
                picture.take(event)
        if picture.finished is not None and picture.finished.result is not None:
            print(picture.end().splitlines()[-1])
    else:
        for event in events:
            print(f"{event.number:>4}  {picture.take(event)}", flush=True)
        print(picture.end())
    assert picture.finished is not None, "a watch ends with the job's end"
    return picture.finished
