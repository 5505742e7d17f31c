"""A worker that fails in this process: one error whatever W is, and what is no worker's failure stays what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.errors import ModelError, UsageError, WorkerError
from nap_runtime.executor.base import out_of_memory, worker_failure
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig
from nap_trainer import train


class _Broken:
    """A network that fails in its third forward; each simulated worker fails at the same step."""

    def __init__(self, model: Any, error: Exception) -> None:
        self.model, self.config, self.error, self.left = model, model.config, error, 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward_rows(self, *args: Any, **kwargs: Any) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        hidden_BRD: Tensor = self.model.forward_rows(*args, **kwargs)
        return hidden_BRD


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("out of\n paper"), "worker {rank}: RuntimeError: out of paper"),
        (KeyError("w"), "worker {rank}: KeyError: 'w'"),
        (AssertionError(), "worker {rank}: AssertionError"),
    ],
    ids=["two lines", "key", "no text"],
)
def test_a_failing_model_is_one_error_that_names_the_worker(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, workers: int, error: Exception, message: str
) -> None:
    broken = _Broken(tiny_model("llada-tiny"), error)
    with pytest.raises(WorkerError) as caught:
        decode_inline(broken, nap_layout((4, 4)), DecodeConfig(paths=2), [prompt_of(0)], workers)
    assert str(caught.value) in {message.format(rank=rank) for rank in range(workers)}
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_ours_and_of_the_caller_stay_what_they_are(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any, workers: int
) -> None:
    """A model's own ModelError, and what a live view or a cancel raises: the worker has not failed then."""
    model = tiny_model("llada-tiny")
    task = make_task(nap_layout((4, 4)), DecodeConfig(paths=2), [prompt_of(0)], workers)

    def fails(error: Exception) -> Any:
        def function(*_: Any) -> Any:
            raise error

        return function

    def executor(network: Any) -> InlineExecutor:
        return InlineExecutor(network, workers=workers, dtype=torch.float64)

    for own, on_report, cancelled, network in (
        (ModelError("no such layer"), None, bool, None),
        (BrokenPipeError("no reader"), fails(BrokenPipeError("no reader")), bool, model),
        (KeyError("who"), None, fails(KeyError("who")), model),
    ):
        with pytest.raises(type(own), match=str(own)) as caught:
            executor(network or _Broken(model, own)).run(task, on_report=on_report, cancelled=cancelled)
        assert type(caught.value) is type(own)


def test_a_worker_that_failed_is_not_asked_again(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any
) -> None:
    model = tiny_model("llada-tiny")
    task = make_task(nap_layout((4, 4)), DecodeConfig(paths=2, steps=4), [prompt_of(0)], 1)
    broken = _Broken(model, RuntimeError("once"))
    executor = InlineExecutor(broken, dtype=torch.float64)
    with pytest.raises(WorkerError, match=r"^worker 0: RuntimeError: once$"):
        collect(executor, task)
    broken.left = 10**6
    whole = collect(InlineExecutor(model, dtype=torch.float64), task)
    assert collect(executor, task).ids == whole.ids


def test_out_of_memory_is_known_through_what_it_became() -> None:
    full = worker_failure(1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"))
    assert out_of_memory(full)
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not out_of_memory(worker_failure(1, RuntimeError("out of paper")))
    assert not out_of_memory(UsageError("model: out of memory, says its card"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "lower evaluate.batch_size"),
        (IndexError("index 9"), "worker 0: IndexError: index 9"),
    ],
)
def test_a_training_says_what_its_evaluation_lacked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    def evaluates(*_: object) -> None:
        raise worker_failure(0, error)

    monkeypatch.setattr(train, "run", evaluates)
    assert train.main(["--config", "c.yaml"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(line)
