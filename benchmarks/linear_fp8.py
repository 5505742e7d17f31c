"""FP8 against bfloat16 on the linear layers of a shape: `torch._scaled_mm` with a scale a row, quantising included.

    python benchmarks/linear_fp8.py --out out/linear-fp8.json                    # LLaDA-8B's shape on this GPU
    python benchmarks/linear_fp8.py --shape llada-tiny --device cpu --rows 8,32  # that it runs; no speed is shown

One figure is the four matrices of a layer (query-key-value, output, gate-up, down), one after another over `--layers`
different layers' weights, so that no matrix stays in the cache from one use to the next. FP8 quantises each matrix's
input row by row, as a decode does. A figure is the median of `--repeats`; FP8 and bfloat16 take turns. `eager` runs
operations one by one (inside a CUDA graph, so that the host's launches do not count), `compiled` the same through
torch.compile; `layer` is a compiled layer as a decode runs it, norms, rotation and gate included, without attention
(quantising and scaling are then part of what stands beside them). `floor` is the larger of arithmetic and memory at
`--flops` and `--bandwidth`, of the matrices alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from origin import head
from torch import Tensor, nn

from nap_runtime.models.compiled import CompiledDenoiser, CompileOptions
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.quantised import QuantisedProjection, check_fp8, quantise
from nap_runtime.models.shapes import shape_config
from nap_runtime.models.transformer import DiffusionTransformer

Run = Callable[[], Any]


def main() -> None:
    """Measure every number of rows, print a table, write JSON."""
    args = _arguments()
    device, config = torch.device(args.device), shape_config(args.shape)
    torch._dynamo.config.recompile_limit = 64  # one variant a kind and number of rows
    check_fp8("device", device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        layers = [_matrices(config, device) for _ in range(args.layers)]
        packed = [[QuantisedProjection(linear) for linear in layer] for layer in layers]
        whole = {} if args.no_compile else _decoders(config, args)
        rows = [_measure(layers, packed, whole, count, args) for count in args.rows]
    print(_table(rows))
    values = {**head(args.device), "shape": args.shape, "layers": args.layers, "repeats": args.repeats, "rows": rows}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(values, indent=1) + "\n")
    elif args.json:
        print(json.dumps(values))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="llada-8b")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[32, 330, 1152])
    parser.add_argument("--layers", type=int, default=4, help="layers of different weights that are gone through")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--flops", type=float, default=790e12, help="bfloat16 FLOP/s of the floor; FP8 counts double")
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes/s of the floor")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes of it")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--json", action="store_true", help="JSON after the table")
    return parser.parse_args()


def _matrices(config: ModelConfig, device: torch.device) -> list[nn.Linear]:
    heads, d, f = config.n_heads * config.head_dim, config.d_model, config.d_ff
    qkv = heads + 2 * config.n_kv_heads * config.head_dim
    sizes = ((d, qkv), (heads, d), (d, 2 * f), (f, d))
    return [nn.Linear(i, o, bias=False, dtype=torch.bfloat16, device=device) for i, o in sizes]


def _measure(
    layers: list[list[nn.Linear]],
    packed: list[list[QuantisedProjection]],
    whole: dict[str, CompiledDenoiser],
    rows: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Milliseconds a layer of both kinds, both ways; each matrix has an input of its own."""
    inputs = [torch.randn(rows, linear.in_features, dtype=torch.bfloat16).to(args.device) for linear in layers[0]]
    ways: dict[str, Run] = {
        "bf16 eager": _all(layers, inputs),
        "fp8 eager": _all(packed, inputs),
    }
    if not args.no_compile:
        ways["bf16 compiled"] = _all(layers, inputs, compiled=True)
        ways["fp8 compiled"] = _all(packed, inputs, compiled=True)
        ways |= {name: _forward(one, rows, args.device) for name, one in whole.items()}
    ready = {name: _captured(run, args.device) for name, run in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(args.repeats):
        for name, run in ready.items():
            taken[name].append(_milliseconds(run, args.device) / len(layers))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    weights = sum(linear.weight.numel() for linear in layers[0])
    flop = 2 * rows * weights
    floors = {
        "bf16": 1e3 * max(flop / args.flops, 2 * weights / args.bandwidth),
        "fp8": 1e3 * max(flop / (2 * args.flops), weights / args.bandwidth),
    }
    speed = {
        way: medians[f"bf16 {way}"] / medians[f"fp8 {way}"]
        for way in ("eager", "compiled", "layer")
        if f"fp8 {way}" in medians
    }
    return {
        "rows": rows,
        "ms_per_layer": medians,
        "ms_per_layer_all": taken,
        "floor_ms": floors,
        "fp8_over_bf16": speed,
        "relative_error": _error(layers[0], packed[0], inputs),
    }


def _decoders(config: ModelConfig, args: argparse.Namespace) -> dict[str, CompiledDenoiser]:
    """Layers of random weights as a decode runs them, in bfloat16 and in FP8."""
    config, options = replace(config, n_layers=args.layers), CompileOptions(mode="default", dynamic=False)
    found = {}
    for name in ("bf16 layer", "fp8 layer"):
        model = DiffusionTransformer(config, dtype=torch.bfloat16, device=args.device).requires_grad_(False)
        for part, weight in model.named_parameters():
            weight.fill_(1.0) if part.endswith("norm.weight") else weight.normal_(0.0, 0.02)
        found[name] = CompiledDenoiser(quantise(model) if name.startswith("fp8") else model, options)
    return found


def _forward(denoiser: CompiledDenoiser, rows: int, device: str) -> Run:
    ids_BR, rows_R = torch.arange(rows, device=device).unsqueeze(0), torch.arange(rows, device=device)
    return lambda: denoiser.forward_rows(ids_BR, rows_R, lambda layer, q, k, v: q)


def _all(layers: Sequence[Sequence[nn.Module]], inputs: list[Tensor], *, compiled: bool = False) -> Run:
    """Every matrix of every layer, once; compiled, one function serves all layers."""
    call = torch.compile(_layer, dynamic=False) if compiled else _layer

    def run() -> list[list[Tensor]]:
        return [call(layer, inputs) for layer in layers]

    return run


def _layer(layer: Sequence[nn.Module], inputs: list[Tensor]) -> list[Tensor]:
    return [linear(x) for linear, x in zip(layer, inputs, strict=True)]


def _captured(run: Run, device: str) -> Run:
    """Warmed up, and on a GPU captured in a graph: what the device takes, not what the host does."""
    for _ in range(3):
        run()
    if device != "cuda":
        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _milliseconds(run: Run, device: str) -> float:
    if device != "cuda":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop))


def _error(layer: list[nn.Linear], packed: list[QuantisedProjection], inputs: list[Tensor]) -> float:
    """Largest, over the matrices, of ‖FP8 − bfloat16‖ / ‖bfloat16‖."""
    errors = []
    for linear, quantised, x in zip(layer, packed, inputs, strict=True):
        want, got = linear(x).float(), quantised(x).float()
        errors.append(float((got - want).norm() / want.norm()))
    return max(errors)


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["ms_per_layer"])
    head = ["rows", *names, *(f"fp8 is faster, {way}" for way in rows[0]["fp8_over_bf16"]), "floor bf16", "floor fp8"]
    lines = ["  ".join(f"{name:>16}" for name in head)]
    for row in rows:
        cells = [str(row["rows"])]
        cells += [f"{row['ms_per_layer'][name]:.4f} ms" for name in names]
        cells += [f"{value:.2f} x" for value in row["fp8_over_bf16"].values()]
        cells += [f"{row['floor_ms'][kind]:.4f} ms" for kind in ("bf16", "fp8")]
        lines.append("  ".join(f"{cell:>16}" for cell in cells))
    worst = max(row["relative_error"] for row in rows)
    return "\n".join([*lines, f"relative error of an output (random weights and inputs): {worst:.3f}"])


if __name__ == "__main__":
    main()
