"""NAP runtime: diffusion language models decoded in parallel across devices.

Names are imported on first use, so that `nap --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nap_runtime.waiting import wait_asleep

if TYPE_CHECKING:
    from nap_runtime.api import close, decode
    from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
    from nap_runtime.models.loading import LoadedModel, load_model
    from nap_runtime.service.client import AsyncClient, Client
    from nap_runtime.storage import Storage
    from nap_runtime.study.cost.ask import choose_sync

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "service.client",
    "Client": "service.client",
    "DecodeConfig": "job",
    "DecodeJob": "job",
    "DecodeResult": "job",
    "LoadedModel": "models.loading",
    "Storage": "storage",
    "SyncPolicy": "job",
    "choose_sync": "study.cost.ask",
    "close": "api",
    "decode": "api",
    "load_model": "models.loading",
}

__all__ = [
    "AsyncClient",
    "Client",
    "DecodeConfig",
    "DecodeJob",
    "DecodeResult",
    "LoadedModel",
    "Storage",
    "SyncPolicy",
    "__version__",
    "choose_sync",
    "close",
    "decode",
    "load_model",
]

wait_asleep()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
