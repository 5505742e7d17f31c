"""Reading DeepSpeed's files without running what is in them, and with one line where that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nap_runtime.errors import ModelError, NapError

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def plain_loads(source: Path, doing: str) -> Iterator[None]:
    """Inside, every `torch.load` of this process is one with `weights_only`, whatever it asks for.

    DeepSpeed asks for `weights_only=False`. Its files hold tensors, plain values and a few small classes of its own,
    which are allowed here by name. Anything else in them is refused.

    Raises:
        ModelError: torch or DeepSpeed could not go on; says what it was `doing` with which checkpoint.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    except NapError:
        raise
    except Exception as error:  # torch and DeepSpeed raise anything from KeyError to UnpicklingError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{source} cannot be {doing} ({reason})") from error
    finally:
        os.environ.pop(_FORCE)
        if before is not None:
            os.environ[_FORCE] = before
