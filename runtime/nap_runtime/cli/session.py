"""From settings to a coordinator with its workers up: checks that cost little come first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nap_runtime.cli.settings import Settings
from nap_runtime.errors import UsageError
from nap_runtime.executor.interrupts import on_interrupt

if TYPE_CHECKING:
    from nap_runtime.executor.coordinator import Coordinator
    from nap_runtime.models.loading import LoadedModel, ModelCard


def open_card(settings: Settings) -> ModelCard:
    """The model's card, after checking that it can be used as the settings ask.

    Raises:
        UsageError: the model is no folder, or the device cannot be used.
        ModelError: the folder is damaged.
    """
    folder = settings.model_folder
    if folder is not None and not folder.is_dir():
        raise UsageError(f"model: {settings.model} is no folder; give a checkpoint folder or nap-tiny", field="model")
    from nap_runtime.api import check_device, runs_elsewhere
    from nap_runtime.models.loading import read_card

    check_device(settings.device, elsewhere=runs_elsewhere(on_ray=settings.on_ray, address=settings.address))
    card = read_card(settings.model if folder is None else folder)
    if card.tokenizer is None and settings.config.headers not in (None, "nap"):
        raise UsageError("headers: the model has no tokenizer; leave it out", field="headers")
    return card


def check_fits(card: ModelCard, settings: Settings, question: str | None = None) -> None:
    """Check resolved settings against the model, and one question, before anything is started.

    Raises:
        UsageError: they do not fit.
    """
    from nap_runtime.decoding.machine import Plan
    from nap_runtime.decoding.placement import Assignment
    from nap_runtime.models.prompting import build_layout, prompt_ids

    config = settings.config
    tokens = 1 if question is None else len(prompt_ids(card, question))
    assignment = Assignment.even(config.n_paths, settings.workers)
    try:
        Plan.of(build_layout(card, config, tokens), config, assignment)
    except UsageError as error:
        if error.field != "path_tokens" and not (error.field == "prompt" and question is None):
            raise
        name = _longest(settings) if question is None else "prompt"  # the settings alone fit
        text = f"{name}: the canvas is longer than the model's context of {card.config.max_positions}"
        raise UsageError(text, field=name) from error


def _longest(settings: Settings) -> str:
    """The key that makes a canvas long."""
    config = settings.config
    if config.layout == "plain":
        return "gen_length"
    each = config.path_tokens
    paths = sum(each) if isinstance(each, tuple) else (each or 0) * config.n_paths
    return "summary_tokens" if (config.summary_tokens or 0) > paths else "path_tokens"


@contextmanager
def coordinator(
    card: ModelCard, settings: Settings, *, quiet: bool, loaded: LoadedModel | None = None, measures: bool = False
) -> Iterator[Coordinator]:
    """A coordinator whose workers are up; they are stopped again whatever happens.

    Args:
        measures: the caller chooses the sync of `--sync auto` once the workers are up.

    Raises:
        UsageError: the cluster has no room, or a sync is yet to be chosen.
    """
    if settings.auto is not None and not measures:
        raise UsageError("link: this command measures none for --sync auto; give --link NAME|FILE", field="link")
    from nap_runtime.api import make_executor
    from nap_runtime.executor.coordinator import Coordinator

    def start() -> Any:
        return make_executor(
            card,
            workers=settings.workers,
            dtype=settings.dtype,
            device=settings.device,
            compile=settings.compile,
            model=loaded,
            simulate=settings.simulate,
            address=settings.address,
            placement=settings.stands,
            storage=settings.storage,
            numerics=settings.numerics,
        )

    if interrupted():
        raise KeyboardInterrupt
    executor = _with_status(start, settings) if settings.on_ray and not quiet else start()
    if settings.on_ray and settings.stands == "one-host" and executor.placement != "strict-pack":
        _say_apart(executor, settings)
    try:
        yield Coordinator(card.stored(settings.storage), executor)
    finally:
        with _undisturbed():
            executor.close()


def _say_apart(executor: Any, settings: Settings) -> None:
    hosts, mode = len({place.host for place in executor.places}), settings.config.sync.mode
    text = f"no host has room for {settings.workers} workers; sync '{mode}' sends keys and values between {hosts} hosts"
    print(f"nap: {text} (--sync auto weighs that)", file=sys.stderr, flush=True)


def _with_status(start: Callable[[], Any], settings: Settings) -> Any:
    """Say what is being waited for: a spinner on a terminal, else a line."""
    address = settings.address or os.environ.get("RAY_ADDRESS")  # which Ray sets inside a job
    where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
    text = f"starting {settings.workers} workers on {where}"
    if not sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)
        return start()
    from rich.console import Console

    with Console(stderr=True).status(f"{text} …"):
        return start()


_pressed = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, as ever, and is remembered: it is lost where it hits a destructor or a library's import."""

    def press(*_: object) -> None:
        _pressed.set()
        raise KeyboardInterrupt

    _pressed.clear()
    with on_interrupt(press):
        yield


def interrupted() -> bool:
    """Whether Ctrl-C has been pressed since the command began."""
    return _pressed.is_set()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not keep the workers from being stopped."""
    with on_interrupt(signal.SIG_IGN):
        yield
