"""A training that saves after every step and is killed, again and again: `python zero_killed.py FOLDER KILLS SEED`.

Every life is a fork of this process, so that imports are paid once. Fails by an assertion.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch
from zero_worker import start, train

from nap_trainer.ranks import Ranks
from nap_trainer.zero import ZeroEngine
from nap_trainer.zero.checkpoints import latest, read_meta


def begin() -> tuple[ZeroEngine, Ranks]:
    torch.set_num_threads(1)
    ranks = Ranks.of_environment()
    return start(ranks, "2")[1], ranks


def live(folder: Path, announce: int) -> None:
    """Go on from the latest checkpoint, and train and save until killed."""
    engine, ranks = begin()
    step, client = engine.resume(folder) or (0, {"curve": []})
    os.write(announce, b"saving")
    while True:
        client = {"curve": client["curve"] + train(engine, ranks, step % 20, step % 20 + 1)}
        step += 1
        engine.save(folder, step=step, client=client)


def kill_once(folder: Path, after: float) -> None:
    heard, announce = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live(folder, announce)
        finally:
            os._exit(1)
    ready = select.select([heard], [], [], 60)[0]
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(heard)
    os.close(announce)
    assert ready, "it never came to saving"
    assert os.WTERMSIG(status) == signal.SIGKILL, "it died by itself"


def main(folder: Path, kills: int, seed: int) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401 - once, before the forks

    chance, steps, left = random.Random(seed), [0], 0
    for _ in range(kills):
        kill_once(folder, chance.uniform(0.0, 0.4))
        if name := latest(folder):
            meta = read_meta(folder / name)  # raises if it is not whole
            assert meta.step >= steps[-1]
            steps.append(meta.step)
        left += sum(not (path / "checkpoint.json").exists() for path in folder.glob("step-*"))
    assert steps[-1] > kills / 2, "hardly anything was saved"
    # What the lives left behind is the run that nobody disturbed.
    engine, ranks = begin()
    undisturbed: list[float] = []
    for step in range(steps[-1]):
        undisturbed += train(engine, ranks, step % 20, step % 20 + 1)
    assert read_meta(folder / latest(folder)).client == {"curve": undisturbed}
    print(json.dumps({"steps": steps, "cut off while saving": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
