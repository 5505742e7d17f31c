"""Syncs that promise one device's ids keep the promise, in float64 and under any placement.

These are `exact`, `tokens` K = 1, `shared` K = 1 under hub and isolated `none`. One worker itself is held
against a loop over `model.forward` of the whole canvas.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.agreement import compare
from nap_runtime.metrics.verify import verify
from nap_runtime.models.loading import BUNDLED, load_model, read_card
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.models.shapes import SHAPES

SHAPE_NAMES = ("llada-tiny", "dream-tiny")
TOPOLOGIES = ("full", "hub", "isolated")
BUDGETS = {1: (9,), 2: (7, 4), 3: (5, 8, 3), 4: (4, 7, 2, 6)}
EQUALS_ONE_DEVICE = (
    *(SyncPolicy("exact", topology=topology) for topology in TOPOLOGIES),
    *(SyncPolicy("exact", topology=topology, overlap=True) for topology in TOPOLOGIES),
    *(SyncPolicy("tokens", every=1, topology=topology) for topology in TOPOLOGIES),
    SyncPolicy("shared", every=1),
    SyncPolicy("none", topology="isolated"),
)
PLACEMENTS = [(0, 1), (1, 0), (0, 1, 0), (2, 0, 1), (1, 0, 1, 0), (2, 1, 0, 2), (3, 1, 0, 2)]


def name(policy: SyncPolicy) -> str:
    return f"{policy.mode}-{policy.sees}{'-overlap' * policy.overlap}"


def one_device(policy: SyncPolicy) -> SyncPolicy:
    return SyncPolicy("exact", topology=policy.sees)


@dataclass(frozen=True)
class Case:
    """One decode to repeat on more workers."""

    m: int
    temperature: float
    seed: int
    steps: int | None


QUICK = [
    Case(1, 1.0, 0, None),
    Case(2, 0.0, 1, 9),
    Case(3, 1.0, 2, None),
    Case(4, 0.0, 3, 3),
    Case(3, 0.0, 4, 1),
]
FULL = [Case(m, t, seed, steps) for m in BUDGETS for t in (0.0, 1.0) for seed in range(10) for steps in (None, 5, 1)]


@pytest.fixture
def check_all_policies(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any
) -> Callable[[str, Case], None]:
    """Every promising policy on every number of workers against one worker."""

    def check(shape: str, case: Case) -> None:
        model, layout = tiny_model(shape, case.seed), nap_layout(BUDGETS[case.m])
        config = DecodeConfig(paths=case.m, steps=case.steps, temperature=case.temperature, seed=case.seed)
        prompts = [prompt_of(case.seed)]
        expected = {
            topology: decode_inline(
                model, layout, config.with_values(sync=SyncPolicy("exact", topology=topology)), prompts
            )
            for topology in TOPOLOGIES
        }
        for workers in range(1, case.m + 1):
            for policy in EQUALS_ONE_DEVICE:
                got = decode_inline(model, layout, config.with_values(sync=policy), prompts, workers)
                assert got.commits() == expected[policy.sees].commits(), (name(policy), workers)
                assert got.ids == expected[policy.sees].ids, (name(policy), workers)

    return check


@pytest.mark.parametrize("case", QUICK, ids=str)
@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_any_number_of_workers_gives_the_commits_of_one(
    check_all_policies: Callable[[str, Case], None], shape: str, case: Case
) -> None:
    check_all_policies(shape, case)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", FULL, ids=str)
@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_full_matrix(check_all_policies: Callable[[str, Case], None], shape: str, case: Case) -> None:
    check_all_policies(shape, case)


@pytest.mark.parametrize("policy", EQUALS_ONE_DEVICE, ids=name)
@pytest.mark.parametrize("placed", PLACEMENTS, ids=str)
def test_placement_does_not_matter(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    policy: SyncPolicy,
    placed: tuple[int, ...],
) -> None:
    shape = SHAPE_NAMES[len(placed) % 2]
    layout = nap_layout(BUDGETS[len(placed)])
    config = DecodeConfig(paths=len(placed), steps=9, temperature=1.0, seed=5, sync=policy)
    run = (tiny_model(shape, 1), layout)
    one = decode_inline(*run, config.with_values(sync=one_device(policy)), [prompt_of(6)])
    assert decode_inline(*run, config, [prompt_of(6)], placed).commits() == one.commits()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(40))
def test_random_placements(tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, seed: int) -> None:
    draw = random.Random(seed)
    m = draw.randint(2, 5)
    workers = draw.randint(2, m)
    placed = [*range(workers), *(draw.randrange(workers) for _ in range(m - workers))]
    draw.shuffle(placed)
    layout = nap_layout([draw.randint(1, 9) for _ in range(m)], summary=draw.randint(1, 6))
    config = DecodeConfig(paths=m, steps=draw.randint(1, layout.n_slots), temperature=draw.choice([0, 1]), seed=seed)
    model = tiny_model(draw.choice(SHAPE_NAMES), seed % 5)
    for policy in EQUALS_ONE_DEVICE:
        one = decode_inline(model, layout, config.with_values(sync=one_device(policy)), [prompt_of(seed)])
        got = decode_inline(model, layout, config.with_values(sync=policy), [prompt_of(seed)], placed)
        assert got.commits() == one.commits(), (name(policy), placed)


RULES: list[dict[str, Any]] = [
    {"rule": "parallel-forced", "confidence": "margin"},
    {"rule": "parallel-forced", "confidence": "entropy"},
    {"rule": "parallel-forced", "eos_weight": 0.0},
    {"rule": "confidence", "eos_weight": 0.5},
    {"rule": "confidence", "confidence": "entropy"},
    {"rule": "left-to-right"},
    {"rule": "random"},
    {"rule": "blockwise", "block_length": 4},
]


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_rules_that_pick_within_paths(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, options: dict[str, Any]
) -> None:
    config = DecodeConfig(paths=3, scope="path", steps=12, temperature=1.0, seed=3, **options)
    run = (tiny_model(shape, 2), nap_layout(BUDGETS[3]))
    for policy in EQUALS_ONE_DEVICE:
        one = decode_inline(*run, config.with_values(sync=one_device(policy)), [prompt_of(1)])
        assert decode_inline(*run, config.with_values(sync=policy), [prompt_of(1)], 3).commits() == one.commits()


# Rules without fixed quotas, and guidance, on a model that is sure of many candidates (scale 30).
ADAPTIVE: list[dict[str, Any]] = [
    {"rule": "threshold", "threshold": 0.7, "block_length": 4},
    {"rule": "threshold", "threshold": 0.9, "eos_weight": 0.5},
    {"rule": "factor", "factor": 1.2},
    {"rule": "prophet", "steps": 12},
    {"rule": "p2", "steps": 12, "rule_args": {"eta": "1.5"}},
    {"rule": "p2", "steps": 7, "rule_args": {"score": "token"}},
    {"rule": "blockwise", "block_length": 4, "cfg": 1.5, "steps": 14},
]


@pytest.mark.parametrize("options", ADAPTIVE, ids=str)
@pytest.mark.parametrize("scope", ["path", "canvas"])
@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_rules_without_fixed_quotas_and_guidance(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    shape: str,
    scope: Any,
    options: dict[str, Any],
) -> None:
    run = (tiny_model(shape, 2, scale=30.0), nap_layout((8, 12, 4), ends=(94,)))
    config = DecodeConfig(paths=3, scope=scope, temperature=0.5, seed=3, **options)
    policies = EQUALS_ONE_DEVICE if scope == "path" else EQUALS_ONE_DEVICE[:6]
    for policy in policies:
        one = decode_inline(*run, config.with_values(sync=one_device(policy)), [prompt_of(1)]).records[0]
        got = decode_inline(*run, config.with_values(sync=policy), [prompt_of(1)], (1, 0, 2)).records[0]
        assert decisions(got) == decisions(one), name(policy)
        verify(got)


def decisions(record: DecodeRecord) -> list[tuple[int, str, int, int]]:
    """(step, kind, position, id) of every commit and remask, sorted."""
    return sorted(
        (delta.step, delta.kind.name, int(position), int(token))
        for delta in record.decisions
        for position, token in zip(delta.positions, delta.ids, strict=True)
    )


CANVAS_RULES = [options for options in RULES if options["rule"] != "parallel-forced"]
DREAM_SCHEDULE = [
    {**options, "rule_args": {"schedule": "dream"}} for options in CANVAS_RULES if options["rule"] != "blockwise"
]


@pytest.mark.parametrize("options", [*CANVAS_RULES, *DREAM_SCHEDULE], ids=str)
def test_rules_that_pick_over_the_canvas(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    options: dict[str, Any],
) -> None:
    config = DecodeConfig(paths=3, scope="canvas", steps=10, temperature=1.0, seed=3, **options)
    policies = [policy for policy in EQUALS_ONE_DEVICE if policy.mode in ("exact", "tokens")]
    for shape in SHAPE_NAMES:
        run = (tiny_model(shape, 2), nap_layout(BUDGETS[3]))
        for policy in policies:
            one = decode_inline(*run, config.with_values(sync=one_device(policy)), [prompt_of(1)])
            got = decode_inline(*run, config.with_values(sync=policy), [prompt_of(1)], (1, 0, 2))
            assert got.commits() == one.commits(), (shape, name(policy))


# -- one worker against a loop over the whole canvas ---------------------------------------------------------


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", SHAPE_NAMES)
@pytest.mark.parametrize(
    ("m", "steps", "temperature", "eos_weight"),
    [
        (1, 6, 0.0, None),
        (2, None, 1.0, None),
        (3, 10, 0.0, 0.0),
        (3, 1, 1.0, None),
        (4, 2, 0.0, 0.3),
        (4, 17, 1.0, 0.0),
        (4, 17, 1.0, None),
    ],
)
def test_one_worker_is_the_plain_loop_over_the_whole_canvas(
    tiny_model: Any,
    nap_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    slow_canvas: Any,
    shape: str,
    topology: Any,
    m: int,
    steps: int | None,
    temperature: float,
    eos_weight: float | None,
) -> None:
    model, layout, prompt = tiny_model(shape, 3), nap_layout(BUDGETS[m]), prompt_of(m)
    config = DecodeConfig(
        paths=m,
        steps=steps,
        temperature=temperature,
        eos_weight=eos_weight,
        seed=m,
        sync=SyncPolicy("exact", topology=topology),
    )
    slow = slow_canvas(layout, prompt, config)
    sees = torch.from_numpy(layout.visible(topology))
    shift = int(model.config.shifted_logits)
    for step in range(slow.steps):
        logits = model.forward(torch.tensor([slow.ids]), sees)[0]
        found = {slot: slow.candidate(logits[slot - shift], slot, step) for slot in slow.open}
        if step < slow.path_steps:
            for path in range(m):
                slow.commit(path, slow.quota(path, step), found, step)
        if step >= slow.path_steps or slow.steps == 1:
            slow.commit(m, slow.summary_quota(step), found, step)
    got = decode_inline(model, layout, config, [prompt])
    assert got.commits() == sorted(slow.commits)
    assert got.ids == [slow.ids]
    assert not slow.open


# -- a scripted denoiser: every path closes when the script says ---------------------------------------------

END, FILL, MASK = 94, 94, 95


class Scripted:
    """A denoiser that writes a script: slot i gets `script[i]`, left slots of a block are surer.

    It attends, so that the exchanges inside a layer run, but what it sees changes nothing.
    """

    def __init__(self, script: dict[int, int], size: int) -> None:
        self.config = replace(SHAPES["llada-tiny"], n_layers=1)
        self.logits_NV = torch.zeros(size, self.config.vocab_size, dtype=torch.float64)
        for slot, token in script.items():
            self.logits_NV[slot, token] = 20.0 - slot / size
        self.forwards = 0

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Any) -> Tensor:
        self.forwards += 1
        heads = torch.zeros(len(ids_BR), self.config.n_heads, len(rows_R), self.config.head_dim, dtype=torch.float64)
        seen = attend(0, heads, heads, heads)
        return rows_R.double().expand(ids_BR.shape).unsqueeze(-1) + 0 * seen[:, 0, :, :1]

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        return self.logits_NV[hidden_BRD[..., 0].long()]


def written(layout: CanvasLayout, lengths: tuple[int, ...]) -> tuple[dict[int, int], list[int]]:
    """A script whose block b has `lengths[b]` words before its end tag, and the canvas it must lead to."""
    script, canvas = {}, layout.initial_ids([40] * layout.prompt_tokens).tolist()
    for block, length in zip(layout.blocks, lengths, strict=True):
        for place, slot in enumerate(block.slots):
            script[slot] = END if place >= length else 30 + place
            canvas[slot] = 30 + place if place < length else END if place == length else FILL
    return script, canvas


@pytest.mark.parametrize("control_every", [1, 2, 8])
@pytest.mark.parametrize("policy", EQUALS_ONE_DEVICE, ids=name)
def test_paths_that_close_at_different_steps(
    nap_layout: Any, decode_inline: Any, policy: SyncPolicy, control_every: int
) -> None:
    layout = nap_layout((16, 12, 20), summary=8, ends=(END,))
    script, canvas = written(layout, (2, 11, 5, 3))
    config = DecodeConfig(paths=3, sync=policy, control_every=control_every)
    for placed in ((0, 0, 0), (0, 1, 0), (2, 0, 1)):
        denoiser = Scripted(script, layout.size)
        got = decode_inline(denoiser, layout, config, [(40,) * layout.prompt_tokens], placed)
        assert got.ids == [canvas]
        verify(got.records[0])


def test_a_closed_canvas_stops_early_on_every_worker(nap_layout: Any, decode_inline: Any) -> None:
    layout = nap_layout((40, 40), summary=20, ends=(END,))
    script, canvas = written(layout, (1, 2, 0))
    config = DecodeConfig(paths=2, control_every=4)
    got = decode_inline(Scripted(script, layout.size), layout, config, [(40,) * 5], 2)
    assert got.ids == [canvas]
    # Quotas: one token every second step of each path (T_p = 80), so the paths close within 6 steps. At step 12 all
    # say that they were closed at 8; at 16 all have read it, and go on with step 80. The summary's one commit closes
    # it, and that is known 12 steps later at most.
    for outcome in got.outcomes:
        assert [step for step in outcome.forwards if step < 80][-1] < 16
        assert max(outcome.forwards) < 94


def test_a_batch_goes_on_until_its_last_canvas_has_closed(nap_layout: Any, decode_inline: Any) -> None:
    class TwoScripts(Scripted):
        """The second canvas of the batch never closes its first path early."""

        def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Any) -> Tensor:
            return super().forward_rows(ids_BR, rows_R, attend) + 1000 * torch.arange(len(ids_BR))[:, None, None]

        def logits(self, hidden_BRD: Tensor) -> Tensor:
            rows, long = hidden_BRD[..., 0].long() % 1000, hidden_BRD[..., 0] >= 1000
            return torch.where(long.unsqueeze(-1), self.long_NV[rows], self.logits_NV[rows])

    layout = nap_layout((12, 12), summary=4, ends=(END,))
    short, short_canvas = written(layout, (1, 1, 1))
    long, long_canvas = written(layout, (11, 3, 2))
    denoiser = TwoScripts(short, layout.size)
    denoiser.long_NV = Scripted(long, layout.size).logits_NV  # type: ignore[attr-defined]
    for policy in EQUALS_ONE_DEVICE:
        config = DecodeConfig(paths=2, sync=policy, control_every=2)
        got = decode_inline(denoiser, layout, config, [(40,) * 5, (40,) * 5], 2, narrow=False)
        assert got.ids == [short_canvas, long_canvas], name(policy)


# -- other precision, other models ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", EQUALS_ONE_DEVICE, ids=name)
@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_float32_agrees_up_to_near_ties(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, policy: SyncPolicy
) -> None:
    run = (tiny_model(shape, 0, torch.float32), nap_layout(BUDGETS[3]))
    config = DecodeConfig(paths=3, temperature=1.0, seed=1)
    single = config.with_values(sync=one_device(policy))
    one = decode_inline(*run, single, [prompt_of(2)], 1, torch.float32).records[0]
    several = decode_inline(*run, config.with_values(sync=policy), [prompt_of(2)], 3, torch.float32).records[0]
    assert compare(several, one, rtol=1e-4).agrees


@pytest.mark.skipif(not (BUNDLED["nap-tiny"] / "config.json").exists(), reason="nap-tiny is not bundled yet")
def test_the_bundled_model(decode_inline: Any) -> None:
    card, model = read_card("nap-tiny"), load_model("nap-tiny", dtype=torch.float64).model
    wanted = DecodeConfig(paths=3, path_tokens=8, summary_tokens=4, steps=6)
    config = resolve(wanted, DecodeDefaults.of(card.path))
    prompt = prompt_ids(card, "A shirt costs $50 and is on sale for 20% off. What is the final price?")
    layout = build_layout(card, config, len(prompt))
    for policy in (SyncPolicy("exact"), SyncPolicy("tokens"), SyncPolicy("shared"), EQUALS_ONE_DEVICE[-1]):
        single = config.with_values(sync=one_device(policy))
        one = decode_inline(model, layout, single, [prompt])
        got = decode_inline(model, layout, config.with_values(sync=policy), [prompt], 3)
        assert got.commits() == one.commits(), name(policy)
