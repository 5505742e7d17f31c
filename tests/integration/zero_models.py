"""Checks of `test_zero.py` on loading, exporting, wrapping and adapting models; run like `zero_worker.py`."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zero_worker import (
    CANVASES,
    SAVED,
    SHAPES,
    SPREADS,
    STEPS,
    TOKENS,
    canvases,
    distance,
    hostile,
    more,
    refused,
    resume,
    run,
    share,
    start,
    train,
)

from nap_runtime.errors import ModelError
from nap_runtime.models import (
    CanvasAttention,
    DiffusionTransformer,
    load_model,
    make_model,
    make_model_dir,
    read_card,
    shape_config,
)
from nap_trainer.lora import LoraConfig, apply_lora
from nap_trainer.ranks import Ranks
from nap_trainer.zero import OptimizerConfig, ZeroConfig, ZeroEngine, build_model
from nap_trainer.zero import build as zero_build

DEEP = {"n_layers": 12, "d_model": 256, "head_dim": 64, "d_ff": 1024}


def held_bytes(model: nn.Module) -> int:
    """What this rank holds of a model's weights now, whole or partitioned."""
    parts = [part for param in model.parameters() for part in (param.data, getattr(param, "ds_tensor", None))]
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def build(ranks: Ranks, out: Path) -> None:
    """Stage 3 loads a checkpoint of many shards, and no rank comes near to holding it."""
    if ranks.leads:
        make_model_dir("llada-tiny", out / "deep", seed=5, dtype=torch.float32, max_shard_bytes=8_000_000, **DEEP)
    ranks.barrier()
    card = read_card(out / "deep")
    assert len(list((out / "deep").glob("*.safetensors"))) > 5
    read: list[tuple[int, int]] = []
    fill = zero_build._fill

    def watched(deepspeed: Any, param: nn.Parameter, values: list[tuple[int, Tensor]], ranks: Ranks) -> None:
        read.append((sum(value.nbytes for _, value in values), 4 * param.ds_numel))  # type: ignore[attr-defined]
        fill(deepspeed, param, values, ranks)

    build_model(shape_config("llada-tiny"), weights=None, seed=0, zero=ZeroConfig(stage=3), ranks=ranks)  # warm
    zero, peak = ZeroConfig(stage=3), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zero_build._fill = watched
    model = build_model(card.config, weights=card, seed=0, zero=zero, ranks=ranks)
    zero_build._fill = fill
    grown, whole = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024, 4 * card.config.n_params
    print(f"rank {ranks.rank}: {grown} of {whole} bytes, {held_bytes(model)} held")
    largest = 4 * 2 * DEEP["d_ff"] * DEEP["d_model"]
    assert grown < held_bytes(model) + 5 * largest, f"rank {ranks.rank}: {grown} of {whole} bytes"
    assert held_bytes(model) < whole / ranks.world + 1000
    assert [given for given, _ in read] == [size if ranks.leads else 0 for _, size in read]
    assert max(size for _, size in read) == largest
    engine = ZeroEngine.start(model, zero=zero, optimizer=OptimizerConfig(), ranks=ranks)
    expected, ids_BN = load_model(out / "deep", device=ranks.device).model, share(ranks)[0][0]
    with torch.no_grad():
        assert torch.equal(engine(ids_BN), expected(ids_BN))
    engine.close()


def missing(ranks: Ranks, out: Path) -> None:
    """A shard that is cut off after the folder was checked: every rank ends with one line."""
    if ranks.leads:
        make_model_dir("dream-tiny", out / "cut", seed=5, dtype=torch.float32, max_shard_bytes=60_000)
    ranks.barrier()
    card = read_card(out / "cut")
    ranks.barrier()
    if ranks.leads:
        sorted((out / "cut").glob("*.safetensors"))[1].write_bytes(bytes(100))
    ranks.barrier()
    build_model(card.config, weights=card, seed=0, zero=ZeroConfig(stage=3), ranks=ranks)


def export(ranks: Ranks, out: Path) -> None:
    """What is exported and loaded again gives the logits of the engine."""
    ids_BN = canvases()[0][0].to(ranks.device)
    for shape in SHAPES:
        for spread, dtype in [("3", torch.float32), ("3-bfloat16", torch.bfloat16), ("1-bfloat16", torch.float32)]:
            _, engine = start(ranks, spread, shape)
            train(engine, ranks, 0, 2)
            place = out / f"export-{shape}-{spread}"
            engine.export(shape_config(shape), place, dtype=dtype, max_shard_bytes=60_000)
            ranks.barrier()
            loaded = load_model(place, dtype=torch.bfloat16 if "16" in spread else torch.float32, device=ranks.device)
            assert loaded.config == shape_config(shape)
            with torch.no_grad():
                assert torch.equal(loaded.model(ids_BN), engine(ids_BN)), (shape, spread)
            engine.close()


def looked_at(ranks: Ranks, out: Path) -> None:
    """Row-wise decoding between steps, past the engine: right logits every time, and training goes on unmoved."""
    ids_BN = canvases()[0][0].to(ranks.device)
    rows_R = torch.arange(3, 7, device=ranks.device)
    for spread in ("0", "3", "3-bfloat16", "3-offload"):
        curves = []
        for looks in (False, True):
            _, engine = start(ranks, spread)
            curve = train(engine, ranks, 0, 2)
            if looks:
                engine.export(shape_config("llada-tiny"), out / f"seen-{spread}", dtype=torch.float32)
                ranks.barrier()
                dtype = torch.bfloat16 if "16" in spread else torch.float32
                expected = load_model(out / f"seen-{spread}", dtype=dtype, device=ranks.device).model
                with engine.plain() as model, torch.inference_mode():
                    for _ in range(3 if ranks.leads else 1):  # ranks need not do alike
                        found = model.logits(model.forward_rows(ids_BN[:, 3:7], rows_R, CanvasAttention()))
                        wanted = expected.logits(expected.forward_rows(ids_BN[:, 3:7], rows_R, CanvasAttention()))
                        assert torch.equal(found, wanted), spread
                    assert not model.training
            curves.append(curve + train(engine, ranks, 2, 4))
            engine.close()
        assert curves[0] == curves[1], spread


def blocked(ranks: Ranks, out: Path) -> None:
    """An export that rank 0 cannot write is one error on every rank, and none waits for it."""
    _, engine = start(ranks, "3")
    if ranks.leads:
        (out / "file").write_text("")
    with pytest.raises(ModelError, match="file"):
        engine.export(shape_config("llada-tiny"), out / "file" / "model")
    engine.close()


class Chunked(nn.Module):
    """A loss around the model that applies the head in recomputed chunks, past the head's own forward."""

    def __init__(self, model: DiffusionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BN: Tensor, targets_BN: Tensor) -> Tensor:
        rows = torch.arange(ids_BN.shape[1], device=ids_BN.device)
        hidden_XD = self.model.forward_rows(ids_BN, rows, CanvasAttention()).flatten(0, 1)
        chunks = zip(hidden_XD.split(5), targets_BN.flatten().split(5), strict=True)
        return torch.stack([checkpoint(self._chunk, *chunk, use_reentrant=False) for chunk in chunks]).sum()

    def _chunk(self, hidden_XD: Tensor, targets_X: Tensor) -> Tensor:
        return F.cross_entropy(self.model.logits(hidden_XD[None])[0].float(), targets_X, reduction="sum")


def wrapped(ranks: Ranks, out: Path) -> None:
    """A module around the model, with the head or a tied one applied in chunks: stage 3 does what stage 0 does."""
    overrides: dict[str, Any]
    for overrides in ({}, {"tied_head": True}):
        config, curves = shape_config("llada-tiny", **overrides), []
        for spread in ("0", "3", "3-autocast"):
            zero = ZeroConfig(clip=0.5, **SPREADS[spread])
            model = build_model(config, weights=None, seed=1, scale=3.0, zero=zero, ranks=ranks)
            engine = ZeroEngine.start(Chunked(model), zero=zero, optimizer=OptimizerConfig(lr=1e-2), ranks=ranks)
            curve = []
            for _ in range(3):
                loss = engine(*share(ranks)[0]) / (TOKENS * ranks.world)
                engine.backward(loss)
                curve += [float(ranks.total(loss.detach().cpu())), float(engine.step())]
            curves.append(curve)
            engine.close()
        for found, rtol in zip(curves[1:], (1e-4, 3e-2), strict=True):
            assert all(abs(a - b) < rtol * abs(b) for a, b in zip(found, curves[0], strict=True)), (overrides, curves)


def adapted(ranks: Ranks, spread: str) -> ZeroEngine:
    """An engine whose model has adapters on two of its four matrices."""
    zero = ZeroConfig(clip=0.5, **SPREADS[spread])
    model = build_model(
        shape_config("dream-tiny"),
        weights=None,
        seed=1,
        scale=3.0,
        zero=zero,
        ranks=ranks,
        gradient_checkpointing=True,
    )
    apply_lora(model, LoraConfig(rank=4, targets=("qkv", "down")))
    settings = OptimizerConfig(lr=3e-2)
    return ZeroEngine.start(model, zero=zero, optimizer=settings, ranks=ranks, accumulation=CANVASES // ranks.world)


def lora(ranks: Ranks, out: Path) -> None:
    """Only adapters train; a checkpoint goes on exactly; the merged export has the adapted logits."""
    ids_BN, (_, base) = canvases()[0][0].to(ranks.device), make_model("dream-tiny", seed=1, scale=3.0)
    for spread in ("0", "2", "3", "1-bfloat16"):
        engine = adapted(ranks, spread)
        curve = train(engine, ranks, 0, SAVED)
        engine.save(out / f"lora-{spread}", step=SAVED, client={})
        curve += train(engine, ranks, SAVED, STEPS)
        assert curve[-2] < 0.95 * curve[0], (spread, curve)
        engine.close()
        engine = adapted(ranks, spread)
        assert engine.resume(out / f"lora-{spread}") == (SAVED, {})
        assert train(engine, ranks, SAVED, STEPS) == curve[2 * SAVED :], spread
        engine.export(shape_config("dream-tiny"), out / f"merged-{spread}", dtype=torch.float32)
        ranks.barrier()
        exported = load_model(out / f"merged-{spread}").model
        for (name, before), after in zip(base.named_parameters(), exported.parameters(), strict=True):
            kept = torch.allclose(before, after, rtol=1e-2, atol=1e-3)
            assert kept != name.endswith(("qkv.weight", "down.weight")), (spread, name)
        with torch.no_grad():
            far = distance(engine(ids_BN).float().cpu(), exported(ids_BN.cpu()))
        assert far < (3e-2 if "16" in spread else 1e-5), (spread, far)
        with torch.no_grad(), engine.plain() as model:
            far = distance(model(ids_BN).float().cpu(), exported(ids_BN.cpu()))
        assert far < (3e-2 if "16" in spread else 1e-5), (spread, far)
        engine.close()


if __name__ == "__main__":
    sys.exit(
        run(sys.argv[1:], (resume, more, refused, hostile, build, export, looked_at, blocked, wrapped, lora, missing))
    )
