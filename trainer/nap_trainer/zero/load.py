"""Bring deepspeed into the process: quiet, with no compiler, on the right accelerator and process group."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from nap_trainer.ranks import Ranks


def load_deepspeed(ranks: Ranks) -> Any:
    """The deepspeed module, ready for these ranks (the import takes seconds; later calls do not).

    Its ops, which it would compile with g++ or nvcc when they are first used, are never asked for: optimizers are
    torch's, and the one op that a process group on CPUs wants is marked as unavailable.
    """
    if ranks.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["LOCAL_RANK"] = str(ranks.device.index or 0)  # read, not asked for, in several of its corners
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as compatible

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch 2.13 has new names for two collectives; DeepSpeed still calls the old ones, many times a step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    compatible["deepspeed_shm_comm"] = False
    ranks.connect()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # takes the group that is there
    return deepspeed
