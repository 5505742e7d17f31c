"""The run as a figure: ARness and held-out loss against adaptation tokens, one curve an arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_runtime.errors import ModelError
from nap_runtime.models.files import atomic_path
from nap_trainer.adapt.figures import Point

# Colour says the start, line and marker the shift; both palettes survive grey print and common colour blindness.
COLOURS = {"pretrained": "#0072b2", "random": "#d55e00"}
STYLES = {"shifted": ("-", "o"), "unshifted": ("--", "s")}


def draw(points: Sequence[Point], rate: int, out: Path) -> None:
    """Write an SVG; the same points give the same bytes.

    Raises:
        ModelError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ModelError("the figure needs matplotlib: pip install 'nap-runtime[train]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "nap", "svg.fonttype": "none", "font.size": 10}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
        _arness(left, points, rate)
        _loss(right, points)
        for axes in (left, right):
            _tokens_axis(axes, points)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        with atomic_path(out) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _curves(points: Sequence[Point]) -> dict[str, list[Point]]:
    curves: dict[str, list[Point]] = {}
    for point in points:
        curves.setdefault(point.arm.name, []).append(point)
    return curves


def _look(point: Point) -> dict[str, Any]:
    line, marker = STYLES[point.arm.logits]
    label = f"{point.arm.start}, {point.arm.logits}"
    return {"color": COLOURS[point.arm.start], "linestyle": line, "marker": marker, "markersize": 4, "label": label}


def _arness(axes: Any, points: Sequence[Point], rate: int) -> None:
    for curve in _curves(points).values():
        measured = [point for point in curve if rate in point.scores and point.scores[rate].defined]
        if measured:
            spans = [point.scores[rate].interval("arness") for point in measured]
            tokens = [point.tokens for point in measured]
            axes.plot(tokens, [span.value for span in spans], **_look(measured[0]))
            colour = COLOURS[measured[0].arm.start]
            axes.fill_between(tokens, [s.low for s in spans], [s.high for s in spans], color=colour, alpha=0.12, lw=0)
    axes.set_ylabel(f"ARness@1, content slots, {rate} token{'s' if rate > 1 else ''} a step")
    axes.set_ylim(0, 1)


def _loss(axes: Any, points: Sequence[Point]) -> None:
    for curve in _curves(points).values():
        axes.plot([p.tokens for p in curve], [p.held_loss["text"] for p in curve], **_look(curve[0]))
    axes.set_ylabel("held-out loss, nats a hidden text token")
    axes.set_ylim(bottom=0)


def _tokens_axis(axes: Any, points: Sequence[Point]) -> None:
    """Logarithmic, with a place for 0 tokens."""
    seen = sorted({point.tokens for point in points if point.tokens})
    if seen:
        axes.set_xscale("symlog", linthresh=seen[0])
    axes.set_xlim(left=0)
    axes.set_xlabel("adaptation tokens")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
