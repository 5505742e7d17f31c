"""`threshold`, `factor`, `prophet`, `p2` and guidance against their published loops, written again here.

Like `test_published_rules.py`: the whole canvas through `model.forward` in float64, probabilities and not logarithms,
one canvas at a time, slots in Python loops. Own to this runtime, and done here too: the mask id is never predicted,
ties go to the lowest position, random numbers are the runtime's Philox draws.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.decoding.state import Kind
from nap_runtime.job import DecodeConfig
from nap_runtime.metrics.verify import verify

Events = list[tuple[int, str, int, int]]  # step, kind, position, id
SEED = 11


@pytest.fixture(scope="session")
def sure_model(tiny_model: Any) -> Any:
    """`(shape, seed, scale=40)` → a random model whose candidates have probabilities from 0.3 to 1."""
    return lambda shape, seed, scale=40.0: tiny_model(shape, seed, scale=scale)


def events_of(record: DecodeRecord) -> Events:
    return sorted(
        (delta.step, delta.kind.name.lower(), int(position), int(token))
        for delta in record.deltas
        for position, token in zip(delta.positions, delta.ids, strict=True)
    )


class Loop:
    """A canvas of one prompt and one region, and the published steps on it."""

    def __init__(self, model: Any, prompt: tuple[int, ...], slots: int, **options: Any) -> None:
        self.model, self.mask, self.start, self.slots = model, model.config.mask_id, len(prompt), slots
        self.x = torch.tensor([[*prompt, *[self.mask] * slots]])
        self.temperature: float = options.get("temperature", 0.0)
        self.eos_weight: float = options.get("eos_weight", 1.0)
        self.cfg: float = options.get("cfg", 0.0)
        self.events: Events = []

    def predict(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, V], candidates [N] and their weighed probabilities [N]."""
        logits = self.model.forward(self.x)[0].double()
        if self.cfg > 0:
            un_x = self.x.clone()
            un_x[0, : self.start] = self.mask
            un = self.model.forward(un_x)[0].double()
            logits = un + (self.cfg + 1) * (logits - un)
        if self.model.config.shifted_logits:
            logits = torch.cat([logits[:1], logits[:-1]])
        logits[:, self.mask] = -torch.inf
        x0 = self._draw(logits, step)
        p = logits.softmax(-1).gather(-1, x0[:, None])[:, 0]
        ends = torch.isin(x0, torch.tensor(self.model.config.end_ids))
        return logits, x0, torch.where(ends, p * self.eos_weight, p)

    def _draw(self, logits: Tensor, step: int) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        ids, positions = torch.arange(logits.shape[-1])[None], torch.arange(len(logits))[:, None]
        u = uniform(SEED, ids=ids, positions=positions, step=step, purpose=Purpose.TOKEN)
        return (logits.exp() / (-u.log()) ** self.temperature).argmax(-1)

    def masked(self, first: int = 0, last: int | None = None) -> list[int]:
        last = self.slots if last is None else min(last, self.slots)
        return [s for s in range(self.start + first, self.start + last) if self.x[0, s] == self.mask]

    def put(self, step: int, position: int, token: int, kind: str = "commit") -> None:
        self.x[0, position] = token
        self.events.append((step, kind, position, token))


def best_first(slots: list[int], p: Tensor) -> list[int]:
    return sorted(slots, key=lambda slot: (-float(p[slot]), slot))


def fast_dllm(loop: Loop, *, block_length: int, threshold: float | None = None, factor: float = 1.0) -> Events:
    """`get_transfer_index` with a threshold, or `get_transfer_index_dynamic`: block after block, until each is full."""
    step = 0
    for first in range(0, loop.slots, block_length):
        while slots := loop.masked(first, first + block_length):
            _, x0, p = loop.predict(step)
            ranked = best_first(slots, p)
            if threshold is not None:
                taken = ranked[:1] + [slot for slot in ranked[1:] if p[slot] >= threshold]
            else:
                taken = []
                for n, slot in enumerate(ranked, start=1):
                    if n > 1 and p[slot] < 1 - factor / (n + 1):
                        break
                    taken.append(slot)
            for slot in taken:
                loop.put(step, slot, int(x0[slot]))
            step += 1
    return sorted(loop.events)


def prophet(loop: Loop, *, steps: int, block_length: int, answer: range) -> Events:
    """LLaDA's loop, left when the mean gap of the two best logits over the answer reaches the bar of its phase."""
    per_block, step = steps * block_length // loop.slots, 0
    for first in range(0, loop.slots, block_length):
        base, more = divmod(block_length, per_block)
        for i in range(per_block):
            logits, x0, p = loop.predict(step)
            two = [logits[loop.start + slot].topk(2).values for slot in answer]
            gap, progress = sum(float(a - b) for a, b in two) / len(two), (step + 1) / steps
            bar = 7.5 if progress < 0.33 else 5.0 if progress < 0.67 else 2.5
            if gap >= bar:
                for slot in loop.masked():
                    loop.put(step, slot, int(x0[slot]))
                return sorted(loop.events)
            for slot in best_first(loop.masked(first, first + block_length), p)[: base + (i < more)]:
                loop.put(step, slot, int(x0[slot]))
            step += 1
    return sorted(loop.events)


def path_planning(loop: Loop, *, steps: int, eta: float, score: str) -> Events:
    """`p2_sampling` with κ_t = t and the denoiser as its own planner; scores are log-probabilities."""
    for i in range(1, steps + 1):
        logits, x0, p = loop.predict(i - 1)
        log_p = p.log().clamp_min(-1e30)
        to_mask = loop.slots * (steps - i) // steps
        scores = {}
        for slot in range(loop.start, loop.start + loop.slots):
            token = int(loop.x[0, slot])
            scores[slot] = float(log_p[slot])
            if token != loop.mask:
                if score == "token":
                    scores[slot] = float(logits[slot].log_softmax(-1)[token])
                scores[slot] *= eta
        lowest = sorted(scores, key=lambda slot: (scores[slot], -slot))[:to_mask]
        for slot in scores:
            masked = int(loop.x[0, slot]) == loop.mask
            if masked and slot not in lowest:
                loop.put(i - 1, slot, int(x0[slot]))
            elif not masked and slot in lowest:
                loop.put(i - 1, slot, loop.mask, "remask")
    return sorted(loop.events)


# -- against the runtime ------------------------------------------------------------------------------------------

SHAPES = ("llada-tiny", "dream-tiny")
FAST: list[dict[str, Any]] = [
    {"threshold": 0.5},
    {"threshold": 0.9},
    {"threshold": 0.2, "temperature": 1.0},
    {"threshold": 0.3, "eos_weight": 0.0},
    {"threshold": 0.0},
    {"threshold": 1.0},
    {"factor": 1.0},
    {"factor": 2.5},
    {"factor": 0.5, "temperature": 0.7},
    {"factor": 4.0, "eos_weight": 0.3},
]


@pytest.mark.parametrize("block_length", [8, 10, 24])
@pytest.mark.parametrize("options", FAST, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_fast_dllm(
    sure_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    shape: str,
    options: dict[str, Any],
    block_length: int,
) -> None:
    model, prompt = sure_model(shape, 3), prompt_of(2)
    rule = "threshold" if "threshold" in options else "factor"
    loop = Loop(model, prompt, 24, **options)
    wanted = {key: value for key, value in options.items() if key in ("threshold", "factor")}
    expected = fast_dllm(loop, block_length=block_length, **wanted)
    config = DecodeConfig(layout="plain", gen_length=24, rule=rule, block_length=block_length, seed=SEED, **options)
    got = decode_inline(model, plain_layout(24), config, [prompt])
    assert events_of(got.records[0]) == expected
    verify(got.records[0])


def test_the_options_above_commit_several_a_step_and_differ(
    sure_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    """Otherwise the comparisons would prove little."""
    orders = set()
    for options in FAST[:3] + FAST[6:8]:
        rule = "threshold" if "threshold" in options else "factor"
        config = DecodeConfig(layout="plain", gen_length=24, rule=rule, block_length=24, seed=SEED, **options)
        record = decode_inline(sure_model("llada-tiny", 3), plain_layout(24), config, [prompt_of(2)]).records[0]
        counts = [len(delta.ids) for delta in record.commits]
        assert 1 < max(counts) < 24
        orders.add(tuple(events_of(record)))
    assert len(orders) == 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("steps", "block_length", "answer"), [(24, None, None), (12, None, "3:8"), (12, 8, "20:24"), (6, 8, None)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_prophet(
    sure_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    shape: str,
    steps: int,
    block_length: int | None,
    answer: str | None,
    temperature: float,
) -> None:
    early = 0
    watched = range(*map(int, answer.split(":"))) if answer else range(24)
    args = {"answer": answer} if answer else {}
    for seed in range(6):
        model, prompt = sure_model(shape, seed), prompt_of(seed)
        loop = Loop(model, prompt, 24, temperature=temperature)
        expected = prophet(loop, steps=steps, block_length=block_length or 24, answer=watched)
        config = DecodeConfig(
            layout="plain",
            gen_length=24,
            rule="prophet",
            steps=steps,
            block_length=block_length,
            rule_args=args,
            temperature=temperature,
            seed=SEED,
        )
        got = decode_inline(model, plain_layout(24), config, [prompt])
        assert events_of(got.records[0]) == expected
        verify(got.records[0])
        early += expected[-1][0] < steps - 1
    assert early, "no decode left early: the test shows nothing"


@pytest.mark.parametrize(
    ("eta", "score"), [(1.0, None), (1.0, "token"), (2.0, "candidate"), (0.0, None), (5.0, "token")]
)
@pytest.mark.parametrize(("steps", "temperature"), [(24, 0.0), (7, 0.0), (10, 1.0), (1, 0.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_path_planning(
    sure_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    shape: str,
    steps: int,
    temperature: float,
    eta: float,
    score: str | None,
) -> None:
    model, prompt = sure_model(shape, 4), prompt_of(3)
    loop = Loop(model, prompt, 24, temperature=temperature)
    expected = path_planning(loop, steps=steps, eta=eta, score=score or "candidate")
    args = {"eta": str(eta)} | ({"score": score} if score else {})
    config = DecodeConfig(
        layout="plain", gen_length=24, rule="p2", steps=steps, rule_args=args, temperature=temperature, seed=SEED
    )
    got = decode_inline(model, plain_layout(24), config, [prompt])
    record = got.records[0]
    assert events_of(record) == expected
    verify(record)
    remasks = [delta for delta in record.deltas if delta.kind is Kind.REMASK]
    assert bool(remasks) == (eta > 0 and steps > 1)
    assert sum(len(delta.ids) for delta in record.commits) == 24  # each slot's last commit, once
    # A record replays to every canvas on the way, also through a file.
    again = DecodeRecord.from_bytes(record.to_bytes())
    for step in range(steps + 1):
        masked = 24 * (steps - step) // steps
        assert (again.canvas(step) == model.config.mask_id).sum() == masked
        assert (again.view(0, step) == again.canvas(step)).all()


@pytest.mark.parametrize("cfg", [0.5, 2.0])
@pytest.mark.parametrize("rule", ["confidence", "threshold", "prophet", "p2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_guidance(
    sure_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, rule: Any, cfg: float
) -> None:
    model, differ = sure_model(shape, 2, 20.0), False
    own: dict[str, Any] = {"threshold": 0.6, "block_length": 16} if rule == "threshold" else {"steps": 8}
    config = DecodeConfig(layout="plain", gen_length=16, rule=rule, temperature=0.5, seed=SEED, cfg=cfg, **own)
    for seed in range(3):
        prompt = prompt_of(seed)
        got = decode_inline(model, plain_layout(16), config, [prompt])
        assert events_of(got.records[0]) == guided(model, prompt, rule, cfg)
        plain = decode_inline(model, plain_layout(16), config.with_values(cfg=0.0), [prompt])
        assert events_of(plain.records[0]) == guided(model, prompt, rule, 0.0)
        differ |= events_of(plain.records[0]) != events_of(got.records[0])
        rows = [outcome.meters.rows_computed for outcome in (got.outcomes[0], plain.outcomes[0])]
        runs = [outcome.meters.forwards for outcome in (got.outcomes[0], plain.outcomes[0])]
        assert rows[0] / runs[0] == 2 * rows[1] / runs[1]  # each canvas goes through the network twice
    assert differ


def guided(model: Any, prompt: tuple[int, ...], rule: str, cfg: float) -> Events:
    loop = Loop(model, prompt, 16, cfg=cfg, temperature=0.5)
    if rule == "threshold":
        return fast_dllm(loop, block_length=16, threshold=0.6)
    if rule == "prophet":
        return prophet(loop, steps=8, block_length=16, answer=range(16))
    if rule == "p2":
        return path_planning(loop, steps=8, eta=1.0, score="candidate")
    for step in range(8):
        _, x0, p = loop.predict(step)
        for slot in best_first(loop.masked(), p)[:2]:
            loop.put(step, slot, int(x0[slot]))
    return sorted(loop.events)


ALL_RULES: list[dict[str, Any]] = [
    {"rule": "threshold", "threshold": 0.3, "block_length": 10},
    {"rule": "factor", "factor": 2.0},
    {"rule": "prophet", "steps": 12},
    {"rule": "p2", "steps": 9, "rule_args": {"eta": "2"}},
    {"rule": "confidence", "cfg": 1.0, "steps": 9},
]


@pytest.mark.parametrize("options", ALL_RULES, ids=lambda options: options["rule"])
@pytest.mark.parametrize("control_every", [None, 1, 3, 100])
def test_neighbours_in_a_batch_and_control_points_do_not_matter(
    sure_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    options: dict[str, Any],
    control_every: int | None,
) -> None:
    model, layout = sure_model("llada-tiny", 5), plain_layout(24)
    config = DecodeConfig(layout="plain", gen_length=24, temperature=1.0, seed=SEED, **options)
    prompts = [prompt_of(seed) for seed in range(4)]
    together = decode_inline(model, layout, config.with_values(control_every=control_every), prompts)
    alone = [events_of(decode_inline(model, layout, config, [prompt]).records[0]) for prompt in prompts]
    assert [events_of(record) for record in together.records] == alone
    assert len({tuple(events) for events in alone}) == 4
    for record in together.records:
        verify(record)


def test_a_decode_that_is_done_is_left_two_steps_later(
    sure_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    """No step waits for the device, so a step learns from a report that the one before the last was the last."""
    config = DecodeConfig(layout="plain", gen_length=24, rule="threshold", threshold=0.0, block_length=8, seed=SEED)
    got = decode_inline(sure_model("llada-tiny", 3), plain_layout(24), config, [prompt_of(2)])
    assert [delta.step for delta in got.records[0].commits] == [0, 1, 2]
    assert got.outcomes[0].forwards == (0, 1, 2, 3, 4)
    assert got.records[0].steps == 24


def test_remasks_in_the_order_count_the_last_commit(
    sure_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    from nap_runtime.metrics.arness import ArnessReport
    from nap_runtime.metrics.order import DecodeOrder

    config = DecodeConfig(layout="plain", gen_length=24, rule="p2", rule_args={"eta": "3"}, seed=SEED)
    record = decode_inline(sure_model("llada-tiny", 4), plain_layout(24), config, [prompt_of(3)]).records[0]
    last: dict[int, int] = {}
    for step, kind, position, _ in events_of(record):
        if kind == "commit":
            last[position] = step
    order = DecodeOrder.from_record(record)
    assert dict(zip(order.positions.tolist(), order.step.tolist(), strict=True)) == last
    assert order.committed.all()
    report = ArnessReport.of_record(record)
    assert report.layout_null.planned is None
    assert report.canvas.all.tokens == 24
    assert math.isfinite(report.canvas.all.set_based or math.nan)
