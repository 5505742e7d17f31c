"""Matrix products of a layer as custom operations, so that compiled regions keep them apart and in place.

`add_product` adds a product to the residual stream where it stands: the sum is part of the product's own kernel, and
the stream is neither read nor written once more for it. The `tuned` ones run the vendor's algorithm (cuBLASLt, through
nvmath-python) that was quickest for these sizes, in place of the one its heuristic puts first. Not timed in a step yet.

Shapes: X rows of all canvases, I inputs, O outputs.
"""

from __future__ import annotations

import statistics
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nap_runtime.errors import UsageError

_ALGORITHMS = 12  # that are tried of those the library proposes
_ROUNDS, _IN_A_ROW = 5, 4
_CACHED_BYTES = 128 * 2**20  # more than a GPU's second-level cache: weights come from memory, as in a step
_CLEARLY = 0.98  # of the first one's time: less is noise

_tuned: dict[tuple[int, int, int, bool, torch.dtype, torch.device], _Tuned] = {}


def check_tuned() -> None:
    """Whether tuned products can run here.

    Raises:
        UsageError: the package they come from is missing.
    """
    if find_spec("nvmath") is None:
        text = "gemm: 'tuned' needs the package nvmath-python: pip install 'nap-runtime[tuned]'"
        raise UsageError(text, field="gemm")


@torch.library.custom_op("nap::add_product", mutates_args=("x_XO",))
def add_product(x_XO: Tensor, a_XI: Tensor, w_OI: Tensor) -> None:
    """x += a wᵀ, in place; one rounding."""
    x_XO.addmm_(a_XI, w_OI.t())


@torch.library.custom_op("nap::tuned_product", mutates_args=())
def tuned_product(a_XI: Tensor, w_OI: Tensor) -> Tensor:
    """a wᵀ by the quickest algorithm. [X, O]."""
    out_XO = a_XI.new_empty((a_XI.shape[0], w_OI.shape[0]))
    _run(out_XO, a_XI, w_OI, add=False)
    return out_XO


@tuned_product.register_fake
def _(a_XI: Tensor, w_OI: Tensor) -> Tensor:
    return a_XI.new_empty((a_XI.shape[0], w_OI.shape[0]))


@torch.library.custom_op("nap::add_tuned_product", mutates_args=("x_XO",))
def add_tuned_product(x_XO: Tensor, a_XI: Tensor, w_OI: Tensor) -> None:
    """x += a wᵀ by the quickest algorithm, in place."""
    _run(x_XO, a_XI, w_OI, add=True)


def _run(x_XO: Tensor, a_XI: Tensor, w_OI: Tensor, *, add: bool) -> None:
    key = (*a_XI.shape, w_OI.shape[0], add, a_XI.dtype, a_XI.device)
    if key not in _tuned and not torch.cuda.is_current_stream_capturing():
        _tuned[key] = _Tuned(x_XO, a_XI, w_OI, add=add)
    if key in _tuned:
        _tuned[key](x_XO, a_XI, w_OI)
    elif add:  # captured before it ever ran: nothing can be timed now
        x_XO.addmm_(a_XI, w_OI.t())
    else:
        torch.mm(a_XI, w_OI.t(), out=x_XO)


@cache
def _library() -> Any:
    check_tuned()
    from nvmath.linalg import advanced

    return advanced


class _Tuned:
    """One product of fixed sizes with the algorithm that was quickest when it was made."""

    def __init__(self, x_XO: Tensor, a_XI: Tensor, w_OI: Tensor, *, add: bool) -> None:
        library, beta = _library(), float(add)
        scratch_XO = torch.zeros_like(x_XO)
        self._product = library.Matmul(a_XI, w_OI.t(), c=scratch_XO, beta=beta, options={"inplace": True})
        preferences = library.MatmulPlanPreferences(limit=_ALGORITHMS)
        self._algorithm = self._quickest(self._product.plan(preferences=preferences), w_OI)

    def __call__(self, x_XO: Tensor, a_XI: Tensor, w_OI: Tensor) -> None:
        """Add to `x_XO`, or overwrite it."""
        self._product.reset_operands_unchecked(a=a_XI, b=w_OI.t(), c=x_XO)
        self._product.execute(algorithm=self._algorithm)

    def _quickest(self, algorithms: Any, w_OI: Tensor) -> Any:
        """Medians over rounds in which each runs in turn; the library's first stays unless one is clearly quicker."""
        copies = [w_OI.clone() for _ in range(1 + _CACHED_BYTES // w_OI.nbytes)]
        graphs = [self._captured(algorithm, copies) for algorithm in algorithms]
        taken: list[list[float]] = [[] for _ in graphs]
        for _ in range(1 + _ROUNDS):  # the first to warm up
            for times, graph in zip(taken, graphs, strict=True):
                times.append(_milliseconds(graph))
        medians = [statistics.median(times[1:]) for times in taken]
        best = min(range(len(medians)), key=medians.__getitem__)
        return algorithms[best if medians[best] < _CLEARLY * medians[0] else 0]

    def _captured(self, algorithm: Any, copies: list[Tensor]) -> torch.cuda.CUDAGraph:
        """As it will run: launched one by one, the host would take longer than the product."""
        graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            self._run_all(algorithm, copies[:1])  # what is loaded when it first runs cannot be captured
            graph.capture_begin(capture_error_mode="thread_local")
            self._run_all(algorithm, copies * _IN_A_ROW)
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(beside)
        return graph

    def _run_all(self, algorithm: Any, weights: list[Tensor]) -> None:
        for w_OI in weights:
            self._product.reset_operands_unchecked(b=w_OI.t())
            self._product.execute(algorithm=algorithm)


def _milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop))
