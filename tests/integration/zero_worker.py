"""What the processes of `test_zero.py` run: `python zero_worker.py FOLDER CHECK …`, one process a rank.

A check fails by an assertion. FOLDER is shared by the ranks, and by launches that go on from one another.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "trainer")]

from nap_runtime.errors import ModelError, NapError, UsageError  # noqa: E402
from nap_runtime.models import make_model, shape_config  # noqa: E402
from nap_trainer.ranks import Ranks  # noqa: E402
from nap_trainer.zero import OptimizerConfig, ZeroConfig, ZeroEngine, build_model  # noqa: E402
from nap_trainer.zero.load import load_deepspeed  # noqa: E402

CLIENT = {"seen": [1, "two"], "rate": 0.1}
SHAPES = ("llada-tiny", "dream-tiny")
CANVASES, TOKENS, STEPS, SAVED = 8, 12, 6, 3
SPREADS: dict[str, dict[str, Any]] = {
    "0": {"stage": 0},
    "1": {"stage": 1},
    "2": {"stage": 2},
    "3": {"stage": 3, "persistence": 0},
    "0-autocast": {"stage": 0, "precision": "autocast"},
    "3-autocast": {"stage": 3, "precision": "autocast", "persistence": 0},
    "1-bfloat16": {"stage": 1, "precision": "bfloat16"},
    "2-bfloat16": {"stage": 2, "precision": "bfloat16", "reduce_dtype": "bfloat16"},
    "3-bfloat16": {"stage": 3, "precision": "bfloat16", "persistence": 0},
    "1-offload": {"stage": 1, "offload_optimizer": "cpu"},
    "2-offload": {"stage": 2, "offload_optimizer": "cpu", "precision": "bfloat16"},
    "3-offload": {"stage": 3, "offload_optimizer": "cpu", "offload_params": "cpu", "persistence": 0},
}
Canvas = tuple[Tensor, Tensor]
Check = Callable[[Ranks, Path], None]


def canvases(seed: int = 0) -> list[Canvas]:
    """(ids, targets) of the one global batch."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(0, 96, (2, 1, TOKENS), generator=generator)) for _ in range(CANVASES)]  # type: ignore[misc]


def share(ranks: Ranks) -> list[Canvas]:
    """This rank's micro-steps."""
    each = CANVASES // ranks.world
    mine = canvases()[ranks.rank * each : (ranks.rank + 1) * each]
    return [(ids_BN.to(ranks.device), targets_BN.to(ranks.device)) for ids_BN, targets_BN in mine]


def loss_of(logits_BNV: Tensor, targets_BN: Tensor) -> Tensor:
    """A canvas's share of the mean over all tokens of the global batch."""
    total = F.cross_entropy(logits_BNV.float().flatten(0, 1), targets_BN.flatten(), reduction="sum")
    return total / (CANVASES * TOKENS)


def start(ranks: Ranks, spread: str, shape: str = "llada-tiny", **optimizer: Any) -> tuple[nn.Module, ZeroEngine]:
    zero = ZeroConfig(clip=0.5, **SPREADS[spread])
    model = build_model(
        shape_config(shape), weights=None, seed=1, scale=3.0, zero=zero, ranks=ranks, gradient_checkpointing=True
    )
    settings = OptimizerConfig(**{"lr": 1e-2, **optimizer})
    return model, ZeroEngine.start(
        model, zero=zero, optimizer=settings, ranks=ranks, accumulation=CANVASES // ranks.world
    )


def train(engine: ZeroEngine, ranks: Ranks, first: int, last: int) -> list[float]:
    """The global loss of each step, and the gradient's norm beside it."""
    curve = []
    for step in range(first, last):
        engine.set_rate(1.0 - step / 20)
        total = torch.zeros(1)
        for ids_BN, targets_BN in share(ranks):
            loss = loss_of(engine(ids_BN), targets_BN)
            engine.backward(loss)
            total += loss.detach().cpu()
        curve += [float(ranks.total(total)), float(engine.step())]
    return curve


# --- gradients ---


def plain(ranks: Ranks, shape: str, eps: float) -> tuple[dict[str, Tensor], float, dict[str, Tensor]]:
    """Gradients, norm and weights after one clipped step, by torch's DDP, with nothing of ours."""
    _, model = make_model(shape, seed=1, scale=3.0, device=ranks.device)
    wrapped = DistributedDataParallel(model.train())
    mine = share(ranks)
    for index, (ids_BN, targets_BN) in enumerate(mine):
        with wrapped.no_sync() if index < len(mine) - 1 else _nothing():
            (loss_of(wrapped(ids_BN), targets_BN) * ranks.world).backward()
    grads = {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
    decayed = [p for name, p in model.named_parameters() if "layers" in name and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not ("layers" in name and p.dim() == 2)]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.01}]
    torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), eps=eps).step()
    return grads, norm, {name: param.detach() for name, param in model.named_parameters()}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parity(ranks: Ranks, out: Path) -> None:
    """Each stage's gradient of each parameter, its norm and the clipped step are DDP's."""
    load_deepspeed(ranks)
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    for shape in SHAPES if ranks.world == 2 else SHAPES[1:]:
        grads, norm, weights = plain(ranks, shape, eps=1.0)
        if ranks.leads:
            torch.save({name: grad.cpu() for name, grad in grads.items()}, out / f"grads-{shape}-{ranks.world}.pt")
        for spread in ("0", "1", "2", "3", *(("1-offload", "3-offload") if ranks.world == 2 else ())):
            # Adam with a large eps is nearly linear, so that a wrongly clipped gradient shows in the weights.
            model, engine = start(ranks, spread, shape, lr=0.1, eps=1.0)
            for ids_BN, targets_BN in share(ranks):
                engine.backward(loss_of(engine(ids_BN), targets_BN))
            for name, param in model.named_parameters():
                far = distance(safe_get_full_grad(param), grads[name])
                assert far < 1e-5, f"{shape} {spread} {name}: gradient {far}"
            assert norm > 0.5, "clipping must act"
            assert abs(float(engine.step()) / norm - 1) < 1e-5, (shape, spread)
            for name, param in model.named_parameters():
                value = param.detach() if spread == "0" else safe_get_full_fp32_param(param)
                moved = (weights[name] - value).norm() / (weights[name].norm() * 0.1 + 1e-9)
                assert moved < 1e-5, f"{shape} {spread} {name}: weights {moved}"
            engine.close()


# --- curves ---


def fall(ranks: Ranks, out: Path) -> None:
    """Dream's shape trains too: the loss falls (with LLaDA's shape and every spread, `curves` sees it)."""
    for spread in ("1", "3", "3-bfloat16"):
        _, engine = start(ranks, spread, "dream-tiny")
        losses = train(engine, ranks, 0, STEPS)[::2]
        assert losses[-1] < 0.9 * losses[0], (spread, losses)
        engine.close()


def kept_curves(ranks: Ranks, out: Path, spreads: Sequence[str]) -> None:
    """Train with each spread, saving half-way; the curves are kept for those who go on. The loss falls."""
    for spread in spreads:
        _, engine = start(ranks, spread)
        curve = train(engine, ranks, 0, SAVED)
        engine.save(out / spread, step=SAVED, client=CLIENT)
        curve += train(engine, ranks, SAVED, STEPS)
        assert curve[-2] < 0.9 * curve[0], (spread, curve)
        if ranks.leads:
            (out / f"{spread}.json").write_text(json.dumps(curve))
        engine.close()


def curves(ranks: Ranks, out: Path) -> None:
    """Every spread's curve; then the processes are killed."""
    kept_curves(ranks, out, list(SPREADS))
    os.kill(os.getpid(), signal.SIGKILL)


def solo(ranks: Ranks, out: Path) -> None:
    """Some curves of one rank."""
    (out / "solo").mkdir()
    kept_curves(ranks, out / "solo", ("0", "1", "2", "3", "3-bfloat16"))


def resume(ranks: Ranks, out: Path) -> None:
    """As many ranks go on from the checkpoints: the same numbers, bit for bit."""
    for spread in SPREADS:
        _, engine = start(ranks, spread)
        assert engine.resume(out / spread) == (SAVED, CLIENT)
        curve = json.loads((out / f"{spread}.json").read_text())
        assert train(engine, ranks, SAVED, STEPS) == curve[2 * SAVED :], spread
        engine.close()


def go_on(ranks: Ranks, out: Path, before: str, after: str) -> None:
    """Another number of ranks, stage or precision goes on from a checkpoint, within rounding."""
    _, engine = start(ranks, after)
    assert engine.resume(out / before) == (SAVED, CLIENT)
    assert not ranks.leads or not list((out / before).glob(".universal*"))
    found, expected = train(engine, ranks, SAVED, STEPS), json.loads((out / f"{before}.json").read_text())[2 * SAVED :]
    far = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    assert far < (1e-2 if after == "2-bfloat16" else 2e-6), f"{before} to {after}: {far}"
    engine.save(out / f"{before}-{after}", step=STEPS, client={})  # a converted run saves in its own spread
    engine.close()


def fewer(ranks: Ranks, out: Path) -> None:
    """One rank goes on from two, as they were spread and from stage to stage."""
    crossed = [("0", "3"), ("1", "2"), ("2", "3"), ("3", "1"), ("3", "0")]
    same = ("0", "1", "2", "3", "1-bfloat16", "3-bfloat16", "2-offload", "3-offload")
    for before, after in [*((name, name) for name in same), *crossed]:
        go_on(ranks, out, before, after)


def more(ranks: Ranks, out: Path) -> None:
    """Two ranks go on from one."""
    for spread in ("0", "1", "2", "3", "3-bfloat16"):
        go_on(ranks, out / "solo", spread, spread)
    go_on(ranks, out / "solo", "0", "2")


def refused(ranks: Ranks, out: Path) -> None:
    """A checkpoint of other parameters or of another optimizer is one clear error on every rank."""
    for options, text in [
        ({"shape": "dream-tiny"}, "holds other parameters"),
        ({"kind": "muon"}, "was trained with adamw"),
    ]:
        _, engine = start(ranks, "0", **options)
        with pytest.raises(UsageError, match=text) as caught:
            engine.resume(out / "0")
        assert "\n" not in str(caught.value)
        engine.close()


# --- what is not finite ---


def nonfinite(ranks: Ranks, out: Path) -> None:
    """A gradient that is not finite shows in the norm, and stages 1 to 3 keep their weights."""
    for spread in ("0", "1", "2", "3", "1-bfloat16", "2-bfloat16", "2-offload"):
        _, engine = start(ranks, spread)
        ids_BN = share(ranks)[0][0]
        with torch.no_grad():
            before = engine(ids_BN).clone()
        for index in range(engine.accumulation):
            engine.backward(engine(ids_BN).float().sum() * (torch.nan if index == 0 and ranks.leads else 1.0))
        assert not math.isfinite(float(engine.step())), spread
        with torch.no_grad():
            after = engine(ids_BN)
        assert torch.equal(before, after) == (engine.zero.stage > 0), spread
        engine.close()


def muon(ranks: Ranks, out: Path) -> None:
    """Muon and AdamW as one optimizer: the loss falls, and a checkpoint goes on exactly."""
    _, engine = start(ranks, "0", kind="muon")
    curve = train(engine, ranks, 0, SAVED)
    engine.save(out / "muon", step=SAVED, client={})
    curve += train(engine, ranks, SAVED, STEPS)
    assert curve[-2] < 0.9 * curve[0], curve
    assert {group["lr"] for group in engine.groups} == {0.02 * 0.75, 0.01 * 0.75}
    engine.close()
    _, engine = start(ranks, "0", kind="muon")
    engine.resume(out / "muon")
    assert train(engine, ranks, SAVED, STEPS) == curve[2 * SAVED :]
    assert {group["lr"] for group in engine.groups} == {0.02 * 0.75, 0.01 * 0.75}
    engine.close()


class Trap:
    """What a free unpickling would run."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sprung),)


def hostile(ranks: Ranks, out: Path) -> None:
    """Files of a checkpoint that hold more than tensors and plain values are refused, and nothing in them runs."""
    for before, after, pattern in [("0", "0", "*model_states.pt"), ("1", "2", "*optim_states.pt")]:
        place = out / f"hostile-{before}"
        if ranks.leads:
            shutil.copytree(out / before, place)
            meta = place / f"step-{SAVED:08d}" / "checkpoint.json"
            values = json.loads(meta.read_text())
            for file in meta.parent.glob(pattern):
                torch.save(torch.load(file, weights_only=False) | {"more": Trap(out / "sprung")}, file)
                values["files"][file.name] = file.stat().st_size
            meta.write_text(json.dumps(values))
        ranks.barrier()
        _, engine = start(ranks, after)
        with pytest.raises(ModelError, match="Weights only load failed") as caught:
            engine.resume(place)
        assert "\n" not in str(caught.value)
        assert not (out / "sprung").exists()
        engine.close()
        ranks.barrier()


def run(arguments: list[str], checks: Sequence[Check]) -> int:
    """Join the ranks and go through the named checks; one line and exit code 1 for an error of ours."""
    torch.set_num_threads(1)
    out, *names = (given for given in arguments if not given.startswith("--local_rank"))
    named = {check.__name__: check for check in checks}
    ranks = Ranks.of_environment()
    ranks.connect()
    try:
        for name in names:
            named[name](ranks, Path(out))
            print(f"passed {name} on rank {ranks.rank} of {ranks.world}", flush=True)
    except NapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        ranks.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], (parity, fall, nonfinite, muon, curves, fewer, solo)))
