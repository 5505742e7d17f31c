"""Kernels of numerics `invariant` compile for GPUs that are not there, fit into them, and have one order of sums."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.models import invariant

compiles = pytest.mark.skipif(
    invariant.triton is None or os.environ.get("TRITON_INTERPRET") == "1", reason="needs Triton, not interpreted"
)
SHARED = {90: 227 * 1024, 89: 99 * 1024, 80: 163 * 1024}  # bytes a block may have


def compiled(function: Any, capability: int, types: dict[str, str], aligned: tuple[str, ...], **more: Any) -> Any:
    """A kernel's code for a compute capability. `aligned`: arguments that are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {name: value for name, value in more.items() if name.isupper()}
    options = {name: value for name, value in more.items() if not name.isupper()}
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    pointers = [name for name in types if types[name].startswith("*")]
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *aligned)}
    source = ASTSource(fn=function, signature=signature, constexprs=values, attrs=attrs)
    return invariant.triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """What would be launched, with which arguments."""
    seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    class Noted:
        def __init__(self, function: Any) -> None:
            self.function = function

        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **more: seen.append((self.function, args, more))

    for name in ("_product", "_rms_norm", "_gate", "_attention", "_draw", "_score"):
        monkeypatch.setattr(invariant, name, Noted(getattr(invariant, name)))
    return seen


_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64", torch.int64: "i64", torch.uint8: "u8"}


def code_of(launch: tuple[Any, tuple[Any, ...], dict[str, Any]], capability: int, *, aligned: bool = True) -> Any:
    """The code of a launch."""
    function, args, more = launch
    types, multiples = {}, []
    for name, value in zip(function.arg_names, args, strict=False):
        types[name] = f"*{_TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32"
        types[name] = "fp32" if isinstance(value, float) else types[name]
        if aligned and isinstance(value, int) and value % 16 == 0 and name not in ("rows", "keys"):
            multiples.append(name)
    return compiled(function, capability, types, tuple(multiples), **more)


@compiles
@pytest.mark.parametrize("capability", list(SHARED))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiled_for_a_gpu(
    dtype: torch.dtype, capability: int, launches: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every kernel of a layer and of the head, of an 8B model: it compiles, fits, and fuses no sum of its own.

    What is fused is what products of float32 are made of, and logarithms.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, w = torch.zeros((331, 4096), dtype=dtype), torch.zeros((4096, 4096), dtype=dtype)
    invariant.product(x, w, w[0])
    invariant.add_product(x, x, w)
    invariant.rms_norm(x, w[0], 1e-5)
    invariant.gated(x)
    q, kv = torch.zeros((1, 8, 331, 128), dtype=dtype), torch.zeros((1, 2, 1152, 128), dtype=dtype)
    variants: list[tuple[Any, Any]] = [(None, None), (torch.ones((331, 1152)).bool(), None)]
    variants += [(torch.ones((1, 1, 1, 1152)).bool(), torch.zeros(1, dtype=torch.int64))]
    for mask, first_B in variants:
        invariant.attention(q, kv, kv, mask, first_B)
    for width in (16, 64):
        q_narrow, kv_narrow = q[..., :width].contiguous(), kv[..., :width].contiguous()
        invariant.attention(q_narrow, kv_narrow, kv_narrow, *variants[2])
    logits, number = torch.zeros((8, 126464), dtype=dtype), torch.tensor(3)
    for kind in range(3):
        invariant._scores(logits, torch.zeros(8, dtype=torch.int64), 7, kind)
    for temperature in (0.0, 0.5):
        invariant._drawn(logits, 7, temperature, number, torch.arange(8), number)
    assert len(launches) == 14
    orders = []
    for launch in launches:
        code = code_of(launch, capability)
        assert code.metadata.shared <= SHARED[capability]
        name, fused = launch[0].__name__, "fma.rn.f32" in code.asm["ptx"]
        assert not fused or name in ("_draw", "_score") or dtype == torch.float32
        if name == "_product" and dtype == torch.bfloat16:
            assert ("wgmma" if capability == 90 else "mma.sync") in code.asm["ptx"]
        if name == "_attention" and launch[2]["WIDTH"] == 128:
            orders += [order_of(code), order_of(code_of(launch, capability, aligned=False))]
    assert len(orders) == 2 * len(variants)
    assert orders[0]
    assert all(order == orders[0] for order in orders)  # with a mask or without, columns aligned or not


def order_of(code: Any) -> list[str]:
    """How sums over keys are laid out among threads, which decides their order."""
    text = code.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE))
    found = re.findall(r"(?:\}\) : \(tensor<(\S+), (#\w+)>\) -> |warp_group_dot .* -> tensor<(\S+), (#\w+)>)", text)
    found += re.findall(r"tt\.dot .* -> tensor<(\S+), (#\w+)>()()", text)
    return sorted(f"{shape}{other} {layouts[one or two]}" for shape, one, other, two in found)
