"""Rules without fixed quotas on several paths, each by itself (scope `path`), against a slow loop on one canvas.

The loop knows one canvas and probabilities; every step runs the whole canvas through `model.forward`. The paths go in
step until all are full or closed; the summary begins at step T_p, however early that was.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.decoding.state import Kind
from nap_runtime.job import DecodeConfig
from nap_runtime.metrics.verify import verify

SEED = 5
END = 3


class SlowPaths:
    def __init__(self, model: Any, layout: CanvasLayout, prompt: tuple[int, ...], config: DecodeConfig) -> None:
        self.model, self.layout, self.config = model, layout, config
        self.ids = layout.initial_ids(prompt).tolist()
        self.events: list[tuple[int, str, int, int]] = []

    def candidates(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.model.forward(torch.tensor([self.ids]))[0].double()
        if self.model.config.shifted_logits:
            logits = torch.cat([logits[:1], logits[:-1]])
        logits[:, self.layout.mask_id] = -torch.inf
        ids, positions = torch.arange(logits.shape[-1])[None], torch.arange(len(logits))[:, None]
        u = uniform(SEED, ids=ids, positions=positions, step=step, purpose=Purpose.TOKEN)
        x0 = (logits.exp() / (-u.log()) ** self.config.temperature).argmax(-1)
        return logits, x0, logits.softmax(-1).gather(-1, x0[:, None])[:, 0]

    def open(self, block: int) -> list[int]:
        return [s for s in self.layout.blocks[block].slots if self.ids[s] == self.layout.mask_id]

    def put(self, step: int, slot: int, token: int, kind: str) -> None:
        self.ids[slot] = token
        self.events.append((step, kind, slot, token))

    def close(self, step: int, block: int) -> None:
        """An end id with nothing masked before it: the rest is filled."""
        slots = self.layout.blocks[block].slots
        for slot in slots:
            if self.ids[slot] == self.layout.mask_id:
                return
            if self.ids[slot] in self.layout.blocks[block].end_ids:
                for rest in self.open(block):
                    self.put(step, rest, self.layout.fill_id, "FILL")
                return

    def surest(self, block: int, p: Tensor) -> list[int]:
        return sorted(self.open(block), key=lambda slot: (-float(p[slot]), slot))

    def threshold(self, block: int, p: Tensor, length: int) -> list[int]:
        start, slots = self.layout.blocks[block].slots.start, self.surest(block, p)
        first = min((slot - start) // length for slot in slots)
        slots = [slot for slot in slots if (slot - start) // length == first]
        return slots[:1] + [slot for slot in slots[1:] if p[slot] >= self.config.threshold]

    def sure(self, block: int, logits: Tensor, progress: float) -> bool:
        two = logits[list(self.layout.blocks[block].slots)].topk(2).values
        bar = 7.5 if progress < 0.33 else 5.0 if progress < 0.67 else 2.5
        return float((two[:, 0] - two[:, 1]).sum() / len(two)) >= bar

    def quota(self, block: int, step: int, path_steps: int, steps: int) -> int:
        m = self.layout.n_paths
        if block < m:
            length = self.layout.budgets[block]
            done = [(s * length * m + block * path_steps) // (path_steps * m) for s in (step, step + 1)]
        else:
            n, at = steps - path_steps, step - path_steps
            done = [s * self.layout.summary_budget // n for s in (at, at + 1)]
        return done[1] - done[0]

    def run_threshold(self, length: int) -> None:
        path_steps, paths = max(self.layout.budgets), range(self.layout.n_paths)
        step = 0
        while any(self.open(path) for path in paths):
            self.step_threshold(step, [path for path in paths if self.open(path)], length)
            step += 1
        step = path_steps
        while self.open(len(paths)):
            self.step_threshold(step, [len(paths)], length)
            step += 1

    def step_threshold(self, step: int, blocks: list[int], length: int) -> None:
        _, x0, p = self.candidates(step)
        for block in blocks:
            for slot in self.threshold(block, p, length):
                self.put(step, slot, int(x0[slot]), "COMMIT")
            self.close(step, block)

    def run_prophet(self, path_steps: int, steps: int) -> None:
        for step in range(steps):
            logits, x0, p = self.candidates(step)
            phase = range(self.layout.n_paths) if step < path_steps else [self.layout.n_paths]
            progress = (step + 1) / path_steps if step < path_steps else (step + 1 - path_steps) / (steps - path_steps)
            for block in phase:
                quota = self.quota(block, step, path_steps, steps)
                if not quota:
                    continue  # a block decides when it has a quota
                everything = self.sure(block, logits, progress)
                for slot in self.surest(block, p)[: None if everything else quota]:
                    self.put(step, slot, int(x0[slot]), "COMMIT")
                self.close(step, block)

    def run_p2(self, path_steps: int, steps: int) -> None:
        for step in range(steps):
            _, x0, p = self.candidates(step)
            for block in range(self.layout.n_paths) if step < path_steps else [self.layout.n_paths]:
                quota, slots = self.quota(block, step, path_steps, steps), self.layout.blocks[block].slots
                if not quota:
                    continue
                left = len(self.open(block)) - quota
                lowest = set(sorted(slots, key=lambda slot: (float(p[slot]), -slot))[:left])
                for slot in slots:
                    masked = self.ids[slot] == self.layout.mask_id
                    if masked and slot not in lowest:
                        self.put(step, slot, int(x0[slot]), "COMMIT")
                    elif not masked and slot in lowest:
                        self.put(step, slot, self.layout.mask_id, "REMASK")


@pytest.mark.parametrize("rule", ["threshold", "prophet", "p2"])
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
@pytest.mark.parametrize("seed", range(3))
def test_each_path_by_itself(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, rule: Any, seed: int
) -> None:
    model, layout = tiny_model(shape, seed, scale=30.0), nap_layout((9, 14, 6), summary=5, ends=(END,))
    options: dict[str, Any] = {"threshold": 0.7, "block_length": 8} if rule == "threshold" else {"steps": 17}
    config = DecodeConfig(paths=3, rule=rule, scope="path", temperature=0.6, seed=SEED, **options)
    slow = SlowPaths(model, layout, prompt_of(seed), config)
    if rule == "threshold":
        slow.run_threshold(8)
    else:
        path_steps = min(max(int(17 * 29 / 34 + 0.5), 1), 16)
        (slow.run_prophet if rule == "prophet" else slow.run_p2)(path_steps, 17)
    got = decode_inline(model, layout, config, [prompt_of(seed)])
    record = got.records[0]
    events = [
        (delta.step, delta.kind.name, int(position), int(token))
        for delta in record.deltas
        for position, token in zip(delta.positions, delta.ids, strict=True)
    ]
    assert sorted(events) == sorted(slow.events)
    verify(record)
    if rule == "p2":
        assert any(delta.kind is Kind.REMASK for delta in record.deltas)


def test_closing_early_is_part_of_the_cases_above(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    model, layout = tiny_model("llada-tiny", 1, scale=30.0), nap_layout((9, 14, 6), summary=5, ends=tuple(range(40)))
    config = DecodeConfig(paths=3, rule="threshold", scope="path", threshold=0.7, block_length=8, seed=SEED)
    record = decode_inline(model, layout, config, [prompt_of(1)]).records[0]
    slow = SlowPaths(model, layout, prompt_of(1), config.with_values(temperature=0.0))
    slow.candidates = lambda step: greedy(slow)  # type: ignore[method-assign]
    slow.run_threshold(8)
    assert record.final_ids.tolist() == slow.ids
    assert any(delta.kind is Kind.FILL for delta in record.deltas)
    first_of_summary = min(d.step for d in record.commits if d.positions[0] in layout.summary.slots)
    assert first_of_summary == 14
    assert record.nfe_steps < 14


def greedy(slow: SlowPaths) -> tuple[Tensor, Tensor, Tensor]:
    logits = slow.model.forward(torch.tensor([slow.ids]))[0].double()
    logits[:, slow.layout.mask_id] = -torch.inf
    x0 = logits.argmax(-1)
    return logits, x0, logits.softmax(-1).gather(-1, x0[:, None])[:, 0]
