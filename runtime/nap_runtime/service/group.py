"""A worker group's own process: coordinator and executor, led by a server over a socket pair.

`python -m nap_runtime.service.group FD SERVER`. A process of its own, because a decode may take all memory, crash, or
be killed, and none of that may reach the server. When the server goes, so does this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nap_runtime.errors import CancelledError, ModelError, NapError, NoRoomError, UsageError, WorkerError
from nap_runtime.executor.base import WorkerPlace
from nap_runtime.executor.coordinator import Batch, Coordinator
from nap_runtime.executor.liveness import SLOW
from nap_runtime.executor.progress import Earlier
from nap_runtime.job import DecodeConfig, DecodeJob
from nap_runtime.service import failpoints
from nap_runtime.service.frames import Channel, Message
from nap_runtime.service.settings import GroupSettings
from nap_runtime.service.telling import Teller, earlier_of, placed
from nap_runtime.worker import Task

_BEAT_SECONDS = 0.5
_CLOSE_SECONDS = 10.0


def make_coordinator(settings: GroupSettings) -> Coordinator:
    """Load the model and bring the workers up.

    Raises:
        UsageError, ModelError: the settings do not fit this machine, or the model.
    """
    import torch

    from nap_runtime.api import check_device, check_dtype, make_executor, runs_elsewhere
    from nap_runtime.executor.base import Executor
    from nap_runtime.models.loading import read_card

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    card = read_card(settings.model)
    if not settings.on_ray:
        executor: Executor = make_executor(
            card,
            workers=settings.workers,
            dtype=settings.dtype,
            device=settings.device,
            compile=settings.compile,
            simulate=settings.simulate,
            storage=settings.storage,
            numerics=settings.numerics,
        )
        return Coordinator(card.stored(settings.storage), executor)
    from nap_runtime.executor.ray_executor import ClusterOptions, RayExecutor

    check_device(settings.device, elsewhere=runs_elsewhere(on_ray=True, address=settings.address))
    cluster = ClusterOptions(
        address=settings.address,
        spares=settings.spares,
        liveness=settings.liveness,
        slow=0.0 if settings.stragglers == "off" else SLOW,
        replace_slow=settings.stragglers == "replace",
        placement=settings.placement or "pack",
    )
    where: dict[str, Any] = {"dtype": check_dtype(settings.dtype), "device": settings.device, "cluster": cluster}
    how: dict[str, Any] = {"workers": settings.workers, "compile": settings.compile, "storage": settings.storage}
    how["numerics"] = settings.numerics
    return Coordinator(card.stored(settings.storage), RayExecutor(card.reference, **how, **where))


class GroupProcess:
    """Takes batches from the server, decodes them, tells what happens."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._teller = Teller(channel)
        self._coordinator: Coordinator | None = None
        self._places: tuple[WorkerPlace, ...] = ()

    def run(self) -> int:
        """Until the server says stop, or goes."""
        start = self._channel.receive()
        if start is None:
            return 0
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        try:
            self._coordinator = make_coordinator(GroupSettings(**start["settings"]))
        except Exception as error:
            self._channel.send(kind="failed", **_described(error))
            return 1
        self._places = self._coordinator.executor.places
        self._channel.send(kind="ready", link=self._link(), **placed(self._places))
        while (message := self._inbox.get()) is not None:
            self._decode(message)
        self._close()
        return 0

    def _link(self) -> dict[str, Any] | None:
        """What the workers talk over, measured; None where they share a process, or it could not be."""
        assert self._coordinator is not None
        with contextlib.suppress(WorkerError):  # one that is lost is replaced when there is something to decode
            found = self._coordinator.executor.probe()
            return None if found is None else asdict(found)
        return None

    def _tell_places(self) -> None:
        """Workers may have been put elsewhere, also between two batches."""
        assert self._coordinator is not None
        if (places := self._coordinator.executor.places) != self._places:
            self._places = places
            self._channel.send(kind="placed", **placed(places))

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._channel.send(kind="beat")
                threading.Event().wait(_BEAT_SECONDS)

    def _listen(self) -> None:
        """Sort what comes in; a cancel must not wait for the batch that it cancels."""
        while (message := self._channel.receive()) is not None:
            kind = message["kind"]
            if kind == "run":
                self._inbox.put(message)
            elif kind == "cancel":
                self._cancelled.add(message["batch"])
            elif kind == "provisional":
                self._teller.provisional = bool(message["on"])
            elif kind == "stop":
                self._inbox.put(None)
        self._leave()

    def _leave(self) -> None:
        """The server is gone: nobody waits for what is being decoded."""
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        os._exit(0)

    def _close(self) -> None:
        if self._coordinator is not None:
            with contextlib.suppress(Exception):
                self._coordinator.executor.close()

    def _decode(self, message: Message) -> None:
        number = message["batch"]
        try:
            batch = batch_of(message, self._coordinator)
            failpoints.reach("group.before_run", *(job.question for job in batch.jobs))
            results = self._run(number, batch)
            failpoints.reach("group.before_result")
            self._tell_places()
            for index, result in enumerate(results):
                self._teller.result(number, index, result)
            self._channel.send(kind="done", batch=number)
        except CancelledError:
            self._channel.send(kind="cancelled", batch=number)
        except OSError:
            raise  # the server is gone
        except NoRoomError as error:  # no fault of the jobs: they wait until this group, started anew, has found room
            self._channel.send(kind="broken", batch=number, waits=True, **_described(error))
            self._inbox.put(None)
        except Exception as error:
            self._channel.send(kind="broken", batch=number, **_described(error))
        finally:
            self._cancelled.discard(number)

    def _run(self, number: int, batch: Batch) -> Sequence[Any]:
        assert self._coordinator is not None
        observer = self._teller.begin(number, self._coordinator)
        return self._coordinator.run(batch, observer, lambda: number in self._cancelled)


def batch_of(message: Message, coordinator: Coordinator | None) -> Batch:
    """The batch that a server asks for."""
    from nap_runtime.decoding.machine import Plan
    from nap_runtime.decoding.placement import Assignment
    from nap_runtime.models.prompting import build_layout

    assert coordinator is not None
    config = DecodeConfig.from_mapping(message["config"])
    prompts = tuple(tuple(np.frombuffer(job["prompt"], dtype="<u4").tolist()) for job in message["jobs"])
    jobs = tuple(
        DecodeJob(question=job["question"], index=index, id=job["name"], gold=job["gold"])
        for index, job in enumerate(message["jobs"])
    )
    layout = build_layout(coordinator.card, config, max(map(len, prompts)))
    plan = Plan.of(layout, config, Assignment.even(config.n_paths, coordinator.executor.workers))
    earlier: Earlier | None = earlier_of(message["earlier"]) if message["earlier"] else None
    return Batch(jobs=jobs, task=Task(plan=plan, prompts=prompts), earlier=earlier)


def _described(error: BaseException) -> dict[str, Any]:
    """Code, one line, and the field at fault."""
    code = "INTERNAL"
    if isinstance(error, UsageError):
        code = "USAGE"
    elif isinstance(error, ModelError):
        code = "MODEL"
    elif isinstance(error, WorkerError):
        code = "WORKERS_LOST"
    elif isinstance(error, NapError):
        code = "DECODE"
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, NapError):
        text = f"{type(error).__name__}: {text}"
    return {"code": code, "message": text, "field": getattr(error, "field", None) or ""}


def _die_with(server: int) -> None:
    """Let the kernel end this process with the server, even where it is stopped and cannot see its socket close."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != server:
        os._exit(0)  # it has gone already


def main() -> int:
    """Serve the socket that the server left open."""
    _die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's: it says stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    return GroupProcess(channel).run()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # Ray's and torch's threads must not keep a group that is done
