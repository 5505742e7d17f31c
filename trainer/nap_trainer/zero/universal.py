"""From one stage or number of ranks to another: DeepSpeed's universal checkpoints.

A universal checkpoint holds, per parameter, its float32 value and Adam's two moments, whole. Rank 0 makes it from a
checkpoint's own files, every rank reads its share, and it is removed again: the next save is in the new spread.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nap_runtime.errors import ModelError, UsageError
from nap_trainer.zero.trusted import plain_loads

if TYPE_CHECKING:
    from nap_trainer.zero.checkpoints import Meta
    from nap_trainer.zero.engine import ZeroEngine

_KEYS = ("fp32", "exp_avg", "exp_avg_sq")


def load(engine: ZeroEngine, source: Path, meta: Meta, here: Meta) -> None:
    """Load a checkpoint that was saved by another stage, number of ranks or precision; every rank calls it.

    Raises:
        UsageError: it is of Muon, whose state has no universal form.
        ModelError: DeepSpeed could not convert it; on every rank, with one text.
    """
    if meta.optimizer != "adamw":
        raise UsageError(f"{source}: a {meta.optimizer} run resumes at stage 0 only", field="zero.stage")
    ranks, folder = engine.ranks, source.parent / f".universal-{source.name}"
    with ranks.together():
        if ranks.leads:
            print(f"checkpoint {source.name}: from {_spread(meta)} to {_spread(here)}, by way of {folder}", flush=True)
            _convert(source, folder, meta, here, groups=len(engine.groups))
    with plain_loads(source, f"loaded as {_spread(here)}"), redirect_stdout(StringIO()):
        if here.stage == 0:
            _load_whole(engine, folder, meta)
        else:
            _load_spread(engine, folder)
    engine.inner.global_steps = meta.step
    ranks.barrier()
    if ranks.leads:
        shutil.rmtree(folder, ignore_errors=True)


def _spread(meta: Meta) -> str:
    return f"stage {meta.stage} on {meta.world} rank{'s' * (meta.world > 1)}, {meta.precision}"


def _convert(source: Path, folder: Path, meta: Meta, here: Meta, *, groups: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "zero").mkdir(parents=True)
    try:
        with plain_loads(source, f"converted from {_spread(meta)} to {_spread(here)}"):
            step = _from_stage0(source, folder, meta) if meta.stage == 0 else _from_spread(source, folder, meta)
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if here.stage in (1, 2):
        for name in meta.trained:
            _dress(folder / "zero" / name, step)
    _write_global_state(folder, step, groups)


def _from_spread(source: Path, folder: Path, meta: Meta) -> Tensor:
    """Let DeepSpeed's own converter write the parameters' files; returns the optimizer's step."""
    from deepspeed.checkpoint.ds_to_universal import main

    options = Namespace(
        input_folder=str(source),
        output_folder=str(folder),
        num_extract_workers=1,  # in this process: a fork beside running collectives could hang
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        main(options)
    (source.parent / "latest_universal").unlink(missing_ok=True)  # ours is gone after the load
    state = torch.load(folder / "zero" / "optimizer_state.pt", weights_only=True)
    if meta.stage == 3:
        return torch.as_tensor(state["optimizer_state_dict"]["state"][0]["step"])
    return torch.as_tensor(torch.load(folder / "zero" / next(iter(meta.trained)) / "step.pt", weights_only=True))


def _from_stage0(source: Path, folder: Path, meta: Meta) -> Tensor:
    """Stage 0 keeps one torch optimizer's state beside the whole module."""
    (file,) = source.glob("*model_states.pt")
    saved = torch.load(file, map_location="cpu", weights_only=True)
    states = saved["optimizer"]["state"]
    for index, name in enumerate(meta.trained):
        place = folder / "zero" / name
        place.mkdir(parents=True)
        values = {"fp32": saved["module"][name].float(), **states[index]}
        for key in _KEYS:
            torch.save({"param": values[key]}, place / f"{key}.pt")
    return torch.as_tensor(states[0]["step"])


def _dress(place: Path, step: Tensor) -> None:
    """What stages 1 and 2 expect of a parameter's folder, and stage 3 does not write."""
    for key in _KEYS:
        value = torch.load(place / f"{key}.pt", weights_only=True)
        if isinstance(value, Tensor):
            torch.save({"param": value}, place / f"{key}.pt")
    torch.save(step, place / "step.pt")


def _write_global_state(folder: Path, step: Tensor, groups: int) -> None:
    """The file that each stage's loader wants, with no settings in it: those are the running optimizer's."""
    import deepspeed

    none: list[dict[str, Any]] = [{} for _ in range(groups)]
    states = {"state": {0: {"step": step}}, "param_groups": none}
    whole = {"ds_version": deepspeed.__version__, "param_groups": none, "optimizer_state_dict": states}
    torch.save(whole, folder / "zero" / "optimizer_state.pt")


def _load_spread(engine: ZeroEngine, folder: Path) -> None:
    optimizer = engine.inner.optimizer
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict(
        state_dict_list=None,
        load_optimizer_states=True,
        load_from_fp32_weights=True,
        checkpoint_folder=str(folder),
        load_serial=None,
        param_shapes=None,
    )
    for state in optimizer.optimizer.state.values():
        # Stage 3 gives all of its parts one counter, which each of them would then advance.
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()
    if engine.zero.stage < 3:
        optimizer.update_lp_params()


def _load_whole(engine: ZeroEngine, folder: Path, meta: Meta) -> None:
    state = torch.load(folder / "zero" / "optimizer_state.pt", weights_only=True)
    step = state["optimizer_state_dict"]["state"][0]["step"]
    optimizer, params = engine.inner.optimizer, dict(engine.module.named_parameters())
    for name in meta.trained:
        param = params[name]
        values = {key: _tensor(folder / "zero" / name / f"{key}.pt").view(param.shape) for key in _KEYS}
        param.data.copy_(values["fp32"])
        moments = {key: values[key].to(param.device) for key in _KEYS[1:]}
        optimizer.state[param] = {"step": step.to(param.device).clone(), **moments}


def _tensor(file: Path) -> Tensor:
    value = torch.load(file, map_location="cpu", weights_only=True)
    return value["param"] if isinstance(value, dict) else value  # type: ignore[no-any-return]
