"""Plain decodes against LLaDA's `generate` and Dream's `_sample`, written again here from their descriptions.

The loops below run the whole canvas through `model.forward` in float64 and keep the published formulas:
probabilities, not logarithms, and `exp(logits) / (−log u)^T` for the Gumbel draw. Two things are this
runtime's own and done here too: the mask id is never predicted, and random numbers are the runtime's Philox
draws, so that both sides see the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.job import DecodeConfig, SyncPolicy

Commits = list[tuple[int, int, int]]  # step, position, id
SEED = 11


def uniform_draws(vocab: int, positions: Tensor, step: int) -> Tensor:
    return uniform(SEED, ids=torch.arange(vocab)[None], positions=positions[:, None], step=step, purpose=Purpose.TOKEN)


def transfers_per_step(masked: int, steps: int) -> list[int]:
    base, remainder = masked // steps, masked % steps
    return [base + 1] * remainder + [base] * (steps - remainder)


def llada_generate(
    model: Any,
    prompt: tuple[int, ...],
    *,
    gen_length: int,
    block_length: int,
    steps: int,
    temperature: float,
    remasking: str,
    topology_mask: Tensor | None = None,
) -> Commits:
    """Blocks from left to right, steps / blocks each; low-confidence or random remasking."""
    mask_id, start = model.config.mask_id, len(prompt)
    x = torch.tensor([[*prompt, *[mask_id] * gen_length]])
    blocks = gen_length // block_length
    commits: Commits = []
    step = 0
    for block in range(blocks):
        end = start + (block + 1) * block_length
        in_block = x[0, end - block_length : end] == mask_id
        for transfer in transfers_per_step(int(in_block.sum()), steps // blocks):
            logits = model.forward(x, topology_mask)[0].double()
            logits[:, mask_id] = -torch.inf
            if temperature == 0:
                x0 = logits.argmax(-1)
            else:
                u = uniform_draws(logits.shape[-1], torch.arange(x.shape[1]), step)
                x0 = (logits.exp() / (-u.log()) ** temperature).argmax(-1)
            if remasking == "low_confidence":
                confidence = logits.softmax(-1).gather(-1, x0[:, None])[:, 0]
            else:
                zero = torch.zeros(x.shape[1], dtype=torch.int64)
                confidence = uniform(
                    SEED, ids=zero, positions=torch.arange(x.shape[1]), step=step, purpose=Purpose.ORDER
                )
            confidence[end:] = -torch.inf
            confidence[x[0] != mask_id] = -torch.inf
            for position in confidence.topk(transfer).indices.tolist():
                x[0, position] = x0[position]
                commits.append((step, position, int(x0[position])))
            step += 1
    return sorted(commits)


def dream_sample(model: Any, prompt: tuple[int, ...], *, gen_length: int, steps: int, alg: str) -> Commits:
    """Greedy tokens; `maskgit_plus`, `topk_margin` or `entropy`; k = int(masked·(1 − s/t)), then the rest."""
    mask_id = model.config.mask_id
    x = torch.tensor([[*prompt, *[mask_id] * gen_length]])
    times = torch.linspace(1, 1e-3, steps + 1)
    commits: Commits = []
    for step in range(steps):
        masked = (x[0] == mask_id).nonzero()[:, 0]
        if not len(masked):
            break
        logits = model.forward(x)[0].double()
        logits = torch.cat([logits[:1], logits[:-1]])  # hidden state i − 1 predicts position i
        logits[:, mask_id] = -torch.inf
        p = logits[masked].softmax(-1)
        top = p.topk(2).values
        if alg == "maskgit_plus":
            confidence = top[:, 0]
        elif alg == "topk_margin":
            confidence = top[:, 0] - top[:, 1]
        else:
            confidence = (p * torch.log(p + 1e-10)).sum(-1)
        share = 1 - times[step + 1] / times[step]
        k = len(masked) if step == steps - 1 else int(torch.tensor(float(len(masked))) * share)
        for place in confidence.topk(k).indices.tolist():
            position, token = int(masked[place]), int(p[place].argmax())
            x[0, position] = token
            commits.append((step, position, token))
    return sorted(commits)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    ("gen_length", "block_length", "steps"),
    [(24, 24, 24), (24, 24, 7), (24, 8, 12), (24, 8, 24), (24, 4, 6), (20, 20, 1)],
)
def test_llada_low_confidence(
    tiny_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    gen_length: int,
    block_length: int,
    steps: int,
    temperature: float,
) -> None:
    model, prompt = tiny_model("llada-tiny", 6), prompt_of(4, 7)
    expected = llada_generate(
        model,
        prompt,
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        remasking="low_confidence",
    )
    blocks = {"rule": "blockwise", "block_length": block_length}
    whole = {"rule": "confidence"}
    for rule in [blocks] + [whole] * (block_length == gen_length):
        config = DecodeConfig(
            layout="plain", gen_length=gen_length, steps=steps, temperature=temperature, seed=SEED, **rule
        )
        got = decode_inline(model, plain_layout(gen_length, 7), config, [prompt])
        assert got.commits() == expected, rule


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("steps", [20, 9, 1])
def test_llada_random_remasking(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any, steps: int, temperature: float
) -> None:
    model, prompt = tiny_model("llada-tiny", 7), prompt_of(5)
    expected = llada_generate(
        model,
        prompt,
        gen_length=20,
        block_length=20,
        steps=steps,
        temperature=temperature,
        remasking="random",
    )
    config = DecodeConfig(layout="plain", gen_length=20, steps=steps, rule="random", temperature=temperature, seed=SEED)
    assert decode_inline(model, plain_layout(20), config, [prompt]).commits() == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [24, 23, 10, 2, 1])
@pytest.mark.parametrize(
    ("alg", "confidence"), [("maskgit_plus", "max-prob"), ("topk_margin", "margin"), ("entropy", "entropy")]
)
def test_dream(
    tiny_model: Any,
    plain_layout: Any,
    prompt_of: Any,
    decode_inline: Any,
    alg: str,
    confidence: Any,
    steps: int,
    seed: int,
) -> None:
    model, prompt = tiny_model("dream-tiny", seed), prompt_of(seed)
    expected = dream_sample(model, prompt, gen_length=24, steps=steps, alg=alg)
    config = DecodeConfig(
        layout="plain",
        gen_length=24,
        steps=steps,
        confidence=confidence,
        rule_args={"schedule": "dream"},
        seed=SEED,
    )
    assert decode_inline(model, plain_layout(24), config, [prompt]).commits() == expected


def test_topology_reaches_the_plain_layout(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    model, prompt, layout = tiny_model("llada-tiny", 6), prompt_of(4), plain_layout(12)
    options = {
        "gen_length": 12,
        "block_length": 12,
        "steps": 12,
        "temperature": 0.0,
        "remasking": "low_confidence",
    }
    sees = torch.ones(17, 17, dtype=torch.bool)
    sees[:5, 5:] = False  # isolated: the prompt sees only itself
    expected = llada_generate(model, prompt, topology_mask=sees, **options)  # type: ignore[arg-type]
    assert expected != llada_generate(model, prompt, **options)  # type: ignore[arg-type]
    config = DecodeConfig(layout="plain", gen_length=12, sync=SyncPolicy("exact", topology="isolated"), seed=SEED)
    assert decode_inline(model, layout, config, [prompt]).commits() == expected


def test_the_mask_id_is_never_committed(tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any) -> None:
    """Hot draws over a vocabulary of 96 would hit it otherwise: 40 slots, 10 canvases."""
    model = tiny_model("llada-tiny", 1)
    config = DecodeConfig(layout="plain", gen_length=40, steps=5, temperature=50.0, seed=SEED)
    got = decode_inline(model, plain_layout(40), config, [prompt_of(seed) for seed in range(10)])
    assert not any(model.config.mask_id in ids for ids in got.ids)
