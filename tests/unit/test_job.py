"""Configs: defaults, the values they refuse and the field they name, mappings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.prompting import DecodeDefaults, resolve


def test_defaults() -> None:
    config = DecodeConfig()
    assert (config.n_paths, config.picks_by, config.picks_over) == (3, "parallel-forced", "path")
    assert (config.sync.mode, config.sync.sees, config.sync.period) == ("exact", "full", 1)
    plain = DecodeConfig(layout="plain")
    assert (plain.n_paths, plain.picks_by, plain.picks_over) == (1, "confidence", "canvas")
    assert DecodeConfig(rule="confidence").picks_over == "canvas"
    assert SyncPolicy("shared").sees == "hub"


@pytest.mark.parametrize(
    ("policy", "every_step"),
    [
        (SyncPolicy("exact"), True),
        (SyncPolicy("tokens"), True),
        (SyncPolicy("tokens", every=2), False),
        (SyncPolicy("shared", every=1), True),
        (SyncPolicy("kv"), False),
        (SyncPolicy("none"), False),
    ],
)
def test_which_policies_refresh_at_every_step(policy: SyncPolicy, every_step: bool) -> None:
    assert policy.refreshes_every_step is every_step


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: SyncPolicy("all"), "sync"),  # type: ignore[arg-type]
    (lambda: SyncPolicy("exact", every=2), "every"),
    (lambda: SyncPolicy("none", every=1), "every"),
    (lambda: SyncPolicy("none", warmup=1), "warmup"),
    (lambda: SyncPolicy("exact", warmup=1), "warmup"),
    (lambda: SyncPolicy("kv", every=0), "every"),
    (lambda: SyncPolicy("kv", warmup=-1), "warmup"),
    (lambda: SyncPolicy("kv", topology="hub"), "topology"),
    (lambda: SyncPolicy("shared", topology="full"), "topology"),
    (lambda: SyncPolicy("exact", topology="ring"), "topology"),  # type: ignore[arg-type]
    (lambda: SyncPolicy("kv", every=True), "every"),
    (lambda: DecodeConfig(layout="wide"), "layout"),  # type: ignore[arg-type]
    (lambda: DecodeConfig(steps=0), "steps"),
    (lambda: DecodeConfig(steps=2.5), "steps"),  # type: ignore[arg-type]
    (lambda: DecodeConfig(paths=0), "paths"),
    (lambda: DecodeConfig(paths=7), "paths"),
    (lambda: DecodeConfig(path_tokens=0), "path_tokens"),
    (lambda: DecodeConfig(paths=2, path_tokens=(4, 0)), "path_tokens"),
    (lambda: DecodeConfig(paths=2, path_tokens=(4, 4, 4)), "path_tokens"),
    (lambda: DecodeConfig(summary_tokens=0), "summary_tokens"),
    (lambda: DecodeConfig(control_every=0), "control_every"),
    (lambda: DecodeConfig(temperature=-0.1), "temperature"),
    (lambda: DecodeConfig(temperature=float("nan")), "temperature"),
    (lambda: DecodeConfig(temperature=1e308), "temperature"),
    (lambda: DecodeConfig(cfg=1.1e6), "cfg"),
    (lambda: DecodeConfig(rule="p2", rule_args={"eta": "1e308"}), "rule_args"),
    (lambda: DecodeConfig(eos_weight=float("inf")), "eos_weight"),
    (lambda: DecodeConfig(seed=-1), "seed"),
    (lambda: DecodeConfig(seed=2**63), "seed"),
    (lambda: DecodeConfig(gen_length=4), "gen_length"),
    (lambda: DecodeConfig(layout="plain", paths=2), "paths"),
    (lambda: DecodeConfig(layout="plain", path_tokens=2), "path_tokens"),
    (lambda: DecodeConfig(layout="plain", summary_tokens=2), "summary_tokens"),
    (lambda: DecodeConfig(layout="plain", headers="nap"), "headers"),
    (lambda: DecodeConfig(layout="plain", rule="parallel-forced"), "rule"),
    (lambda: DecodeConfig(block_length=4), "block_length"),
    (lambda: DecodeConfig(rule="random", confidence="margin"), "confidence"),
    (lambda: DecodeConfig(rule="left-to-right", confidence="entropy"), "confidence"),
    (lambda: DecodeConfig(scope="canvas"), "scope"),
    (lambda: DecodeConfig(rule_args={"schedule": "dream"}), "rule_args"),
    (lambda: DecodeConfig(rule="blockwise", rule_args={"schedule": "dream"}), "rule_args"),
    (lambda: DecodeConfig(rule="confidence", rule_args={"schedul": "dream"}), "rule_args"),
    (lambda: DecodeConfig(rule="confidence", rule_args={"schedule": "cosine"}), "rule_args: schedule"),
    (lambda: DecodeConfig(rule="confidence", sync=SyncPolicy("kv")), "sync"),
    (lambda: DecodeConfig(rule="confidence", sync=SyncPolicy("tokens", every=2)), "sync"),
    (lambda: DecodeConfig(layout="plain", sync=SyncPolicy("none")), "sync"),
    (lambda: DecodeConfig(rule="confidence", sync=SyncPolicy("tokens", overlap=True)), "sync"),
    (lambda: SyncPolicy("shared", overlap=True), "overlap"),
    (lambda: SyncPolicy("shared", overlap=True), "overlap"),
    (lambda: SyncPolicy("none", overlap=True), "overlap"),
    (lambda: SyncPolicy("kv", overlap="yes"), "overlap"),  # type: ignore[arg-type]
    (lambda: SyncPolicy("exact", summary="consensus"), "summary"),
    (lambda: SyncPolicy("shared", summary="consensus"), "summary"),
    (lambda: SyncPolicy("none", summary="live"), "summary"),
    (lambda: SyncPolicy("kv", top=4), "top"),
    (lambda: SyncPolicy("kv", summary="live", top=4), "top"),
    (lambda: SyncPolicy("kv", summary="consensus", top=0), "top"),
    (lambda: SyncPolicy("kv", settle=2), "settle"),
    (lambda: SyncPolicy("kv", summary="live", settle=0), "settle"),
    (lambda: DecodeConfig(rule="p2", scope="path", sync=SyncPolicy("kv", summary="live", settle=2)), "settle"),
    (lambda: DecodeConfig(rule="confidence", sync=SyncPolicy("exact", summary="live")), "summary"),
    (lambda: DecodeConfig(layout="plain", sync=SyncPolicy("exact", summary="live")), "summary"),
    (lambda: DecodeConfig(confidence="margin", sync=SyncPolicy("kv", summary="consensus")), "confidence"),
    (lambda: DecodeConfig(rule="prophet", scope="path", sync=SyncPolicy("kv", summary="consensus")), "summary"),
    (lambda: DecodeConfig(rule="threshold", steps=4), "steps"),
    (lambda: DecodeConfig(rule="factor", steps=4), "steps"),
    (lambda: DecodeConfig(threshold=0.5), "threshold"),
    (lambda: DecodeConfig(rule="factor", threshold=0.5), "threshold"),
    (lambda: DecodeConfig(rule="threshold", threshold=1.5), "threshold"),
    (lambda: DecodeConfig(rule="threshold", threshold=-0.5), "threshold"),
    (lambda: DecodeConfig(rule="threshold", factor=1.0), "factor"),
    (lambda: DecodeConfig(rule="factor", factor=float("nan")), "factor"),
    (lambda: DecodeConfig(cfg=-1.0), "cfg"),
    (lambda: DecodeConfig(cfg=float("inf")), "cfg"),
    (lambda: DecodeConfig(rule="p2", block_length=4), "block_length"),
    (lambda: DecodeConfig(rule="p2", rule_args={"schedule": "llada"}), "rule_args"),
    (lambda: DecodeConfig(rule="p2", rule_args={"eta": "-1"}), "rule_args"),
    (lambda: DecodeConfig(rule="p2", rule_args={"eta": "inf"}), "rule_args"),
    (lambda: DecodeConfig(rule="p2", rule_args={"score": "best"}), "rule_args: score"),
    (lambda: DecodeConfig(rule="prophet", rule_args={"answer": "0:4"}), "rule_args"),
    (lambda: DecodeConfig(layout="plain", rule="prophet", rule_args={"answer": "4:4"}), "rule_args"),
    (lambda: DecodeConfig(layout="plain", rule="prophet", rule_args={"answer": "-4:9"}), "rule_args"),
    (lambda: DecodeConfig(layout="plain", rule="prophet", rule_args={"answer": "4"}), "rule_args"),
    (lambda: DecodeConfig(rule="blockwise", cache="dual"), "cache"),
    (lambda: DecodeConfig(layout="plain", rule="blockwise", scope="path", cache="dual"), "cache"),
    (lambda: DecodeConfig(layout="plain", rule="blockwise", cache="triple"), "cache"),  # type: ignore[arg-type]
    (lambda: DecodeConfig(layout="plain", rule="confidence", cache="dual"), "cache"),
    (lambda: DecodeConfig(layout="plain", rule="threshold", cache="dkv"), "cache"),
    (lambda: DecodeConfig(layout="plain", rule="p2", cache="dkv"), "cache"),
    (lambda: DecodeConfig(layout="plain", rule="prophet", cache="dual"), "cache"),
    (lambda: DecodeConfig(layout="plain", cache="closed"), "cache"),
    (lambda: DecodeConfig(cache="closed"), "cache"),
    (lambda: DecodeConfig(cache="closed", sync=SyncPolicy("kv")), "cache"),
    (lambda: DecodeConfig(cache="dkv", sync=SyncPolicy("tokens", overlap=True)), "cache"),
    (lambda: DecodeConfig(cache="closed", rule="p2", scope="path", sync=SyncPolicy("none")), "cache"),
    (lambda: DecodeConfig(cache="dkv", rule="threshold", scope="path", sync=SyncPolicy("none")), "cache"),
    (lambda: DecodeConfig(cache="dkv", cache_every=4, sync=SyncPolicy("none")), "cache_every"),
    (lambda: DecodeConfig(layout="plain", cache_every=4), "cache_every"),
    (lambda: DecodeConfig(layout="plain", rule="blockwise", cache="dual", cache_every=4), "cache_every"),
    (lambda: DecodeConfig(layout="plain", cache="dkv", cache_every=0), "cache_every"),
    (lambda: DecodeConfig.from_mapping({"step": 4}), "step"),
    (lambda: DecodeConfig.from_mapping({"sync": {"mode": "kv", "evry": 4}}), "evry"),
    (lambda: DecodeConfig.from_mapping({"steps": "4"}), "steps"),
]


@pytest.mark.parametrize(("make", "field"), WRONG, ids=[f"{i}-{field}" for i, (_, field) in enumerate(WRONG)])
def test_wrong_values_are_one_line_that_names_the_field(make: Callable[[], object], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    assert field.split(":")[0] in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": "hot"},
        {"eos_weight": [1]},
        {"seed": "lucky"},
        {"seed": None},
        {"seed": 1.5},
        {"sync": "kv"},
        {"rule_args": None},
        {"headers": 3},
        {"paths": 3, "path_tokens": [4, None, 4]},
    ],
    ids=str,
)
def test_values_of_a_wrong_type_in_a_file_are_usage_errors(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DecodeConfig.from_mapping(values)


@pytest.mark.parametrize(
    "config",
    [
        DecodeConfig(),
        DecodeConfig(paths=2, path_tokens=(4, 5), steps=9, seed=2**63 - 1, sync=SyncPolicy("kv", every=4, warmup=2)),
        DecodeConfig(layout="plain", gen_length=8, rule_args={"schedule": "dream"}),
        DecodeConfig(rule="blockwise", scope="path", block_length=4, sync=SyncPolicy("tokens", topology="hub")),
        DecodeConfig(layout="plain", rule="threshold", threshold=0.8, block_length=8, cache="prefix", cfg=1.5),
        DecodeConfig(layout="plain", cache="dkv", cache_every=4),
        DecodeConfig(cache="closed", sync=SyncPolicy("kv", every=8)),
        DecodeConfig(rule="p2", rule_args={"eta": "2", "score": "token"}),
        DecodeConfig(sync=SyncPolicy("kv", every=4, overlap=True, summary="consensus", top=8)),
    ],
    ids=lambda config: f"{config.layout}-{config.picks_by}-{config.sync.mode}",
)
def test_mapping_round_trip(config: DecodeConfig) -> None:
    values = config.to_mapping()
    assert DecodeConfig.from_mapping(values) == config
    assert set(values) == {field.name for field in dataclasses.fields(DecodeConfig)}


def test_configs_are_frozen_and_copies_are_checked() -> None:
    config = DecodeConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 4  # type: ignore[misc]
    assert config.with_values(steps=4).steps == 4
    with pytest.raises(UsageError):
        config.with_values(steps=-4)
    with pytest.raises(TypeError):
        DecodeConfig("nap")  # type: ignore[call-arg]


def test_defaults_of_rules_without_quotas() -> None:
    plain = DecodeConfig(layout="plain", rule="threshold")
    assert (plain.own_value, plain.fast_block, plain.reports_every) == (0.9, 32, 1)
    assert DecodeConfig(rule="factor", factor=2.0).own_value == 2.0
    assert DecodeConfig(rule="factor").own_value == 1.0
    assert DecodeConfig(rule="prophet").reports_every == 1
    assert (DecodeConfig().reports_every, DecodeConfig(rule="p2").reports_every) == (8, 8)
    assert DecodeConfig(rule="threshold", control_every=4).reports_every == 4
    assert DecodeConfig(layout="plain", cache="dkv").refresh_every == 8


def test_overlap_is_never_one_device() -> None:
    assert not SyncPolicy("tokens", overlap=True).refreshes_every_step
    assert not DecodeConfig(sync=SyncPolicy("tokens", overlap=True)).tokens_each_step


def test_resolving_writes_every_default_out_and_changes_no_meaning() -> None:
    defaults = DecodeDefaults(paths=2, path_tokens=11, summary_tokens=5, gen_length=9, eos_weight=0.5)
    nap = resolve(DecodeConfig(), defaults)
    assert (nap.paths, nap.path_tokens, nap.summary_tokens, nap.gen_length) == (2, 11, 5, None)
    assert (nap.rule, nap.scope, nap.headers, nap.eos_weight) == ("parallel-forced", "path", "nap", 0.5)
    assert nap.sync.topology == "full"
    plain = resolve(DecodeConfig(layout="plain"), defaults)
    assert (plain.gen_length, plain.paths, plain.rule, plain.scope) == (9, None, "confidence", "canvas")
    given = DecodeConfig(paths=4, path_tokens=3, eos_weight=0.0, sync=SyncPolicy("shared"))
    kept = resolve(given, defaults)
    assert (kept.paths, kept.path_tokens, kept.eos_weight, kept.sync.topology) == (4, 3, 0.0, "hub")
    assert resolve(kept, defaults) == kept
    fast = resolve(DecodeConfig(layout="plain", rule="factor"), defaults)
    assert (fast.factor, fast.threshold, fast.block_length, fast.control_every, fast.steps) == (1.0, None, 32, 1, None)
    cached = resolve(DecodeConfig(layout="plain", cache="dkv"), defaults)
    assert (cached.cache_every, cached.control_every, cached.block_length) == (8, 8, None)
    agreed = resolve(DecodeConfig(sync=SyncPolicy("none", summary="consensus")), defaults)
    assert (agreed.sync.top, agreed.sync.settle) == (32, None)
    for resolved in (fast, cached, agreed):
        assert resolve(resolved, defaults) == resolved
