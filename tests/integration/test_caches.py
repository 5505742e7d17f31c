"""Caches against their descriptions: which rows are computed, what they see, and the logits in the middle of a block.

The reference decodes one canvas, keeps keys and values of every row in a dictionary, and computes just the rows that
Fast-dLLM (prefix and dual cache) or dKV-Cache (one step delayed, refreshed every N steps) would. Logits of all
computed rows are compared at every step, so also where entries are stale.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.verify import verify

SEED = 7
SLOTS, PROMPT = 18, 5
Cache = dict[tuple[int, int], tuple[Tensor, Tensor]]  # (layer, row) → key [G, E], value [G, E]


class DictAttention:
    """Rows of one canvas store their keys and values in a dictionary and see those of `sees[row]`."""

    def __init__(self, cache: Cache, rows: list[int], sees: Tensor) -> None:
        self.cache, self.rows, self.sees = cache, rows, sees

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        for place, row in enumerate(self.rows):
            self.cache[layer, row] = (k_BGRE[0, :, place], v_BGRE[0, :, place])
        out, group = torch.zeros_like(q_BHRE), q_BHRE.shape[1] // k_BGRE.shape[1]
        for place, row in enumerate(self.rows):
            known = self.sees[row].nonzero()[:, 0].tolist()
            keys = torch.stack([self.cache[layer, r][0] for r in known]).repeat_interleave(group, dim=1)
            values = torch.stack([self.cache[layer, r][1] for r in known]).repeat_interleave(group, dim=1)
            weights = torch.einsum("he,khe->hk", q_BHRE[0, :, place], keys) / q_BHRE.shape[-1] ** 0.5
            out[0, :, place] = torch.einsum("hk,khe->he", weights.softmax(-1), values)
        return out


class Reference:
    """One canvas: a prompt, a region, a dictionary of keys and values."""

    def __init__(self, model: Any, layout: Any, prompt: tuple[int, ...], config: DecodeConfig) -> None:
        self.model, self.config, self.mask = model, config, model.config.mask_id
        self.ids = [*prompt, *[self.mask] * SLOTS]
        self.sees = torch.from_numpy(layout.visible(config.sync.sees))
        self.shift = int(model.config.shifted_logits)
        self.caches: list[Cache] = [{}, {}]
        self.logits: dict[int, dict[int, Tensor]] = {}  # step → row → logits, unguided
        self.stale: list[float] = []  # how far each step's logits are from those of a full recomputation
        self.events: list[tuple[int, int, int]] = []

    def compute(self, step: int, rows: list[int]) -> dict[int, Tensor]:
        """Logits of rows, guided where that is asked for; the rest of the cache stays as it is."""
        found = self._through(self.ids, rows, self.caches[0])
        self.logits[step] = found
        fresh = self._through(self.ids, list(range(len(self.ids))), {})
        self.stale.append(max(float((found[row] - fresh[row]).abs().max()) for row in rows))
        if not self.config.cfg:
            return found
        without = [self.mask] * PROMPT + self.ids[PROMPT:]
        un = self._through(without, rows, self.caches[1])
        return {row: un[row] + (self.config.cfg + 1) * (found[row] - un[row]) for row in rows}

    def _through(self, ids: list[int], rows: list[int], cache: Cache) -> dict[int, Tensor]:
        here = torch.tensor([[ids[row] for row in rows]])
        hidden = self.model.forward_rows(here, torch.tensor(rows), DictAttention(cache, rows, self.sees))
        return dict(zip(rows, self.model.logits(hidden)[0], strict=True))

    def candidate(self, logits: dict[int, Tensor], slot: int, step: int) -> tuple[int, float]:
        logits_V = logits[slot - self.shift].clone()
        logits_V[self.mask] = -torch.inf
        noisy_V = logits_V
        if self.config.temperature:
            ids = torch.arange(len(logits_V))
            u = uniform(SEED, ids=ids, positions=torch.tensor(slot), step=step, purpose=Purpose.TOKEN)
            noisy_V = logits_V - self.config.temperature * torch.log(-torch.log(u))
        token = int(noisy_V.argmax())
        return token, float(logits_V.softmax(-1)[token])

    def open(self, first: int = 0, last: int = SLOTS) -> list[int]:
        return [s for s in range(PROMPT + first, PROMPT + min(last, SLOTS)) if self.ids[s] == self.mask]

    def commit(self, step: int, logits: dict[int, Tensor], slots: list[int], quota: int | None) -> None:
        """The quota's best of some slots; without a quota what the rule is sure of."""
        found = {slot: self.candidate(logits, slot, step) for slot in slots}
        ranked = sorted(slots, key=lambda slot: (-found[slot][1], slot))
        for n, slot in enumerate(ranked if quota is None else ranked[:quota], start=1):
            value = self.config.own_value
            bar = value if self.config.picks_by == "threshold" else 1 - value / (n + 1)
            if quota is None and n > 1 and found[slot][1] < bar:
                break
            self.ids[slot] = found[slot][0]
            self.events.append((step, slot, found[slot][0]))

    def fast_dllm(self, block_length: int, steps_per_block: int | None) -> None:
        """A full forward at the start of each block, which commits too; then the block (`dual`), or from it on."""
        everything = list(range(len(self.ids)))
        for first in range(0, SLOTS, block_length):
            last = min(first + block_length, SLOTS)
            per_block = steps_per_block or last - first
            step = first if steps_per_block is None else first // block_length * per_block
            base, more = divmod(last - first, per_block)
            behind = last if self.config.cache == "dual" else SLOTS
            inside = list(range(PROMPT + first - self.shift, PROMPT + behind))
            for i in range(per_block):
                if not self.open(first, last):
                    break
                logits = self.compute(step, inside if i else everything)
                self.commit(
                    step, logits, self.open(first, last), None if steps_per_block is None else base + (i < more)
                )
                step += 1

    def dkv(self, steps: int, every: int) -> None:
        """A token's keys and values are kept from one step after it was decoded."""
        base, more = divmod(SLOTS, steps)
        decoded_at = dict.fromkeys(range(PROMPT), -9)
        for step in range(steps):
            kept = {row for row, at in decoded_at.items() if at <= step - 2}
            if self.shift:  # the row before a masked slot predicts it
                kept -= {slot - 1 for slot in self.open()}
            rows = [row for row in range(len(self.ids)) if step % every == 0 or row not in kept]
            before = set(self.open())
            self.commit(step, self.compute(step, rows), self.open(), base + (step < more))
            decoded_at |= dict.fromkeys(before - set(self.open()), step)


class Spy:
    """A model that remembers the rows and the logits of every forward."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward_rows(self, ids_BR: Tensor, rows: Tensor, attend: Any) -> Tensor:
        hidden = self.model.forward_rows(ids_BR, rows, attend)
        self.seen.append((rows.expand(len(ids_BR), -1), self.model.logits(hidden)))
        return hidden

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        return self.model.logits(hidden_BRD)


CASES: list[dict[str, Any]] = [
    {"cache": "prefix", "rule": "blockwise", "block_length": 6, "steps": 9},
    {"cache": "dual", "rule": "blockwise", "block_length": 6, "steps": 9},
    {"cache": "dual", "rule": "blockwise", "block_length": 6, "steps": 18, "temperature": 0.0},
    {"cache": "dual", "rule": "blockwise", "block_length": 6, "steps": 9, "cfg": 1.5},
    {"cache": "prefix", "rule": "threshold", "threshold": 0.6, "block_length": 7},
    {"cache": "dual", "rule": "threshold", "threshold": 0.7, "block_length": 6},
    {"cache": "dual", "rule": "threshold", "threshold": 0.7, "block_length": 7, "topology": "isolated"},
    {"cache": "prefix", "rule": "factor", "factor": 1.2, "block_length": 6, "cfg": 0.5},
    {"cache": "dual", "rule": "factor", "factor": 1.5, "block_length": 10},
    {"cache": "dkv", "rule": "confidence", "steps": 9, "cache_every": 4},
    {"cache": "dkv", "rule": "confidence", "steps": 18, "cache_every": 100},
    {"cache": "dkv", "rule": "confidence", "steps": 7, "topology": "isolated", "cache_every": 3},
    {"cache": "dkv", "rule": "confidence", "steps": 7, "cfg": 1.0, "cache_every": 3, "temperature": 0.0},
]


def config_of(options: dict[str, Any]) -> DecodeConfig:
    given = {"temperature": 0.5} | {key: value for key, value in options.items() if key != "topology"}
    sync = SyncPolicy("exact", topology=options.get("topology", "full"))
    return DecodeConfig(layout="plain", gen_length=SLOTS, seed=SEED, sync=sync, **given)


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("shape", ["llada-tiny", "dream-tiny"])
def test_logits_and_commits_with_stale_entries(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any, shape: str, options: dict[str, Any]
) -> None:
    model, layout, config = tiny_model(shape, 1, scale=25.0), plain_layout(SLOTS), config_of(options)
    prompts = [prompt_of(seed) for seed in range(2)]
    spy = Spy(model)
    got = decode_inline(spy, layout, config, prompts, narrow=False)  # the spy goes by places in the batch
    stale: list[float] = []
    for canvas, prompt in enumerate(prompts):
        reference = Reference(model, layout, prompt, config)
        if config.cache == "dkv":
            reference.dkv(config.steps or SLOTS, config.refresh_every)
        else:
            length = config.block_length or 0
            per_block = None if config.traits.adaptive else (config.steps or SLOTS) * length // SLOTS
            reference.fast_dllm(length, per_block)
        assert got.commits(canvas) == sorted(reference.events)
        for step, (rows, logits) in zip(got.outcomes[0].forwards, spy.seen, strict=True):
            if step in reference.logits:  # not where a canvas waits for its neighbour, or for the word that all is done
                expected = reference.logits[step]
                assert set(rows[canvas].tolist()) == set(expected)
                for row, logits_V in zip(rows[canvas].tolist(), logits[canvas], strict=True):
                    torch.testing.assert_close(logits_V, expected[row], rtol=1e-9, atol=1e-9)
        stale += reference.stale
        verify(got.records[canvas])
    assert max(stale) > 0.1, "no entry was ever stale: the test shows nothing"
    rows_computed = got.outcomes[0].meters.rows_computed
    assert rows_computed == sum(rows.shape[1] for rows, _ in spy.seen) * (2 if config.cfg else 1)
    assert rows_computed < got.outcomes[0].meters.forwards * (PROMPT + SLOTS) * (2 if config.cfg else 1)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_neighbour_in_the_batch_does_not_matter(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any, options: dict[str, Any]
) -> None:
    """Blocks are left when they are done on all canvases; a canvas that waits commits nothing."""
    model, config = tiny_model("llada-tiny", 3, scale=25.0), config_of(options)
    prompts = [prompt_of(seed) for seed in range(4)]
    together = decode_inline(model, plain_layout(SLOTS), config, prompts)
    for canvas, prompt in enumerate(prompts):
        for control_every in (None, 4):
            options_ = config.with_values(control_every=control_every)
            alone = decode_inline(model, plain_layout(SLOTS), options_, [prompt])
            assert together.commits(canvas) == alone.commits()


def test_a_cache_changes_what_is_decoded(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    model = tiny_model("llada-tiny", 1, scale=25.0)
    base = {"rule": "blockwise", "block_length": 6, "steps": 18}
    decodes = {
        tuple(decode_inline(model, plain_layout(SLOTS), config_of(base | more), [prompt_of(0)]).commits())
        for more in ({}, {"cache": "prefix"}, {"cache": "dual"}, {"cache": "dkv", "cache_every": 50})
    }
    assert len(decodes) == 4


def test_dkv_refreshed_at_every_step_is_no_cache(
    tiny_model: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any
) -> None:
    model, base = tiny_model("dream-tiny", 1, scale=25.0), {"rule": "confidence", "steps": 9}
    plain = decode_inline(model, plain_layout(SLOTS), config_of(base), [prompt_of(0)])
    cached = decode_inline(
        model, plain_layout(SLOTS), config_of(base | {"cache": "dkv", "cache_every": 1}), [prompt_of(0)]
    )
    assert cached.commits() == plain.commits()
