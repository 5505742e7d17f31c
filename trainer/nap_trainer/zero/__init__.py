"""Training state over many devices, by DeepSpeed's ZeRO. The only package that imports deepspeed.

`config` describes it (no torch is imported for that), `engine` runs it, `build` makes or loads a model under it,
`checkpoints` and `universal` save and resume, `export` writes the finished weights.

Names are imported on first use, so that reading a configuration imports neither torch nor deepspeed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nap_trainer.zero.build import build_model
    from nap_trainer.zero.config import OptimizerConfig, ZeroConfig, deepspeed_config
    from nap_trainer.zero.engine import ZeroEngine

_HOMES = {
    "OptimizerConfig": "config",
    "ZeroConfig": "config",
    "ZeroEngine": "engine",
    "build_model": "build",
    "deepspeed_config": "config",
}

__all__ = ["OptimizerConfig", "ZeroConfig", "ZeroEngine", "build_model", "deepspeed_config"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
