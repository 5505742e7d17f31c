"""Arithmetic of a training step, and how much of the device's peak it uses."""

from __future__ import annotations

import torch

from nap_runtime.models.config import ModelConfig

# Dense bfloat16 peaks by the makers' data sheets, in FLOP/s; other devices have no MFU here.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12}


def flops_per_token(config: ModelConfig, positions: int) -> float:
    """Useful floating-point operations of one position in a training step, forward and backward.

    6 per weight that multiplies (the input embedding does not, unless it is the head too), and 12·L·H·E·N for attention
    over N positions (PaLM, appendix B). What gradient checkpointing computes again is not counted.
    """
    weights = config.n_params - (0 if config.tied_head else config.vocab_size * config.d_model)
    attention = 12.0 * config.n_layers * config.n_heads * config.head_dim * positions
    return 6.0 * weights + attention


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 peak of a device, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def mfu(config: ModelConfig, positions: int, tokens_per_second: float, device: torch.device) -> float | None:
    """Model FLOPs utilisation of one device at its own tokens/s; None where the peak is not known."""
    peak = peak_flops(device)
    return None if peak is None else tokens_per_second * flops_per_token(config, positions) / peak


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that torch held on a GPU since the process began; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
