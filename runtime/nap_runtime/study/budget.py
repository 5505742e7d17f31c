"""Steps from tokens a step."""

from __future__ import annotations

from nap_runtime.job import DecodeConfig


def slots_of(config: DecodeConfig) -> int:
    """Slots of a resolved config's canvas, headers left out."""
    if config.layout == "plain":
        return config.gen_length or 0
    each = config.path_tokens
    paths = sum(each) if isinstance(each, tuple) else (each or 0) * config.n_paths
    return paths + (config.summary_tokens or 0)


def with_tokens_per_step(config: DecodeConfig, tokens_per_step: int | None) -> DecodeConfig:
    """The config with T = ⌈slots / tokens a step⌉; unchanged for None."""
    if tokens_per_step is None:
        return config
    return config.with_values(steps=-(-slots_of(config) // tokens_per_step))
