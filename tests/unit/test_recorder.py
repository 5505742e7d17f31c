"""The recorder of foreign loops, on loops written after LLaDA's and Fast-dLLM's, whose true order is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nap_runtime.cli import main
from nap_runtime.metrics.arness import ArnessReport
from nap_runtime.metrics.order import DecodeOrder

MASK, PROMPT, SLOTS, BLOCK = 99, 3, 8, 4
FILE = Path(__file__).resolve().parents[2] / "examples" / "recorders" / "order_recorder.py"


@pytest.fixture(scope="module")
def recorder() -> Any:
    """The class as its file says now: compiled here, not taken from a cache that may be of another moment."""
    names: dict[str, Any] = {"__name__": "order_recorder"}
    exec(compile(FILE.read_text(encoding="utf-8"), FILE, "exec"), names)
    return names["OrderRecorder"]


class Network(nn.Module):
    """Logits that depend on position only: which slot is surest is fixed beforehand."""

    def __init__(self, surest: list[int]) -> None:
        super().__init__()
        self.rank = {slot: place for place, slot in enumerate(surest)}

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return input_ids


def surest(network: Network, masked: list[int], n: int) -> list[int]:
    return sorted(masked, key=lambda slot: network.rank[slot - PROMPT])[:n]


def canvas() -> Tensor:
    return torch.tensor([[1] * PROMPT + [MASK] * SLOTS])


def llada(network: Network, per_step: int, *, guided: bool = False) -> tuple[Tensor, list[list[int]]]:
    """The whole canvas at every call; with guidance a second row, its prompt masked."""
    x, truth = canvas(), []
    while masked := (x[0] == MASK).nonzero()[:, 0].tolist():
        given = x
        if guided:
            blind = x.clone()
            blind[:, :PROMPT] = MASK
            given = torch.cat([x, blind])
        network(given)
        chosen = surest(network, masked, per_step)
        x[0, chosen] = 7
        truth.append(sorted(chosen))
    return x, truth


def fast_dllm(network: Network, *, dual: bool) -> tuple[Tensor, list[list[int]]]:
    """A full call a block, then only the block (dual cache, told by `replace_position`) or the tail (prefix cache)."""
    x, truth = canvas(), []
    for start in range(PROMPT, PROMPT + SLOTS, BLOCK):
        block = range(start, start + BLOCK)
        first = True
        while masked := [at for at in block if x[0, at] == MASK]:
            if first:
                network(x)
            elif dual:
                where = torch.zeros_like(x, dtype=torch.bool)
                where[:, start : start + BLOCK] = True
                network(x[:, start : start + BLOCK], replace_position=where)
            else:
                network(x[:, start:], use_cache=True)
            first = False
            chosen = surest(network, masked, 1 if len(masked) % 2 else 2)
            x[0, chosen] = 7
            truth.append(sorted(chosen))
    return x, truth


ORDER = [6, 0, 3, 7, 1, 2, 5, 4]


@pytest.mark.parametrize(
    "loop",
    [
        lambda network: llada(network, 1),
        lambda network: llada(network, 3),
        lambda network: llada(network, 2, guided=True),
        lambda network: fast_dllm(network, dual=True),
        lambda network: fast_dllm(network, dual=False),
    ],
)
def test_recorded_orders_are_the_true_ones(recorder: Any, loop: Any, tmp_path: Path) -> None:
    network = Network(ORDER)
    hooked = recorder(network, MASK)
    out, truth = loop(network)
    hooked.save(str(tmp_path / "o.json"), out)
    values = json.loads((tmp_path / "o.json").read_text())
    assert values == {"slots": list(range(PROMPT, PROMPT + SLOTS)), "steps": truth}
    assert not network._forward_pre_hooks  # it lets go


def test_its_files_are_scored(recorder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Network(list(range(SLOTS)))
    hooked = recorder(network, MASK)
    out, _ = llada(network, 1)
    hooked.save(str(tmp_path / "o.json"), out)
    report = ArnessReport.of(DecodeOrder.from_json((tmp_path / "o.json").read_text()))
    assert report.canvas.all.set_based == 1.0
    capsys.readouterr()  # whatever else has printed meanwhile
    code = main(["metrics", str(tmp_path / "o.json"), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    *_, last = out.splitlines()
    assert json.loads(last)["arness"]["all"]["set_based"] == 1.0, out
