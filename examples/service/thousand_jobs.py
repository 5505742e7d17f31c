"""A thousand jobs with bounded concurrency, which may be run again after a crash: each question has its own key.

`python examples/service/thousand_jobs.py [HOST:PORT] [JOBS] [AT ONCE]`; start a server first: `nap serve --batch 16`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from importlib.resources import files

from nap_runtime import AsyncClient, DecodeConfig
from nap_runtime.errors import JobFailedError

CONFIG = DecodeConfig(steps=16)


def problems(count: int) -> list[dict[str, str]]:
    """Held-out word problems, over and over."""
    lines = files("nap_runtime").joinpath("data/heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(lines[number % len(lines)]) for number in range(count)]


async def main(address: str | None = None, jobs: int = 1000, at_once: int = 50) -> None:
    gate, right, failed = asyncio.Semaphore(at_once), 0, 0

    async def one(client: AsyncClient, number: int, problem: dict[str, str]) -> None:
        nonlocal right, failed
        key = hashlib.sha256(f"{number}:{problem['question']}".encode()).hexdigest()
        async with gate:  # a full queue is waited for by the client itself
            try:
                result = await client.decode(problem["question"], CONFIG, key=key, gold=problem["answer"])
                right += result.correct is True
            except JobFailedError as error:
                failed += 1
                print(error, file=sys.stderr)

    async with AsyncClient(address, patience=300.0) as client:
        await asyncio.gather(*(one(client, number, problem) for number, problem in enumerate(problems(jobs))))
    print(f"{jobs} jobs: {right} right, {jobs - right - failed} wrong, {failed} failed")


if __name__ == "__main__":
    where, *numbers = sys.argv[1:] or [None]  # type: ignore[list-item]
    asyncio.run(main(where, *map(int, numbers)))
