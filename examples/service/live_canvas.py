"""The canvas while it fills, in a terminal or a notebook (there: `await show("A question …")`).

Brings its own server, so it needs nothing else: `python examples/service/live_canvas.py`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from nap_runtime import AsyncClient, DecodeConfig
from nap_runtime.service.answers import Finished, LaidOut, RolledBack, Update
from nap_runtime.service.local import LocalServer

QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


def picture(texts: dict[int | None, str], state: str) -> Group:
    """Paths and summary as they stand; ░ is a slot that is masked."""
    named = [("summary" if path is None else f"path {path + 1}", text) for path, text in texts.items()]
    return Group(*(Panel(Text(text), title=name, title_align="left") for name, text in sorted(named)), Text(state))


async def show(question: str, address: str | None = None, config: DecodeConfig | None = None) -> str | None:
    """Decode a question on a server before one's eyes; the answer."""
    texts: dict[int | None, str] = {}
    answer: str | None = None
    async with AsyncClient(address) as client:
        job = await client.submit(question, config or DecodeConfig(steps=33, control_every=2))
        with Live(console=Console(highlight=False), refresh_per_second=12) as live:
            async for event in client.watch(job.id):
                state = f"event {event.number}"
                if isinstance(event.body, LaidOut):
                    texts.clear()
                elif isinstance(event.body, RolledBack):
                    state = f"went on from step {event.body.step}: {event.body.reason}"
                elif isinstance(event.body, Update):
                    texts |= event.body.texts
                elif isinstance(event.body, Finished) and event.body.result is not None:
                    answer = event.body.result.answer
                    state = f"answer: {answer}"
                live.update(picture(texts, state))
    return answer


def main(question: str = QUESTION) -> None:
    with tempfile.TemporaryDirectory() as folder, LocalServer(["--journal", str(Path(folder) / "jobs.db")]) as server:
        asyncio.run(show(question, server.address))


if __name__ == "__main__":
    main(*sys.argv[1:2])
