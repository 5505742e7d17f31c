"""Figures, drawn by matplotlib without a display, as SVG and PNG. The same values give the same bytes of SVG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nap_runtime.errors import UsageError
from nap_runtime.metrics.order import OPEN_STEP, DecodeOrder

if TYPE_CHECKING:
    from nap_runtime.decoding.record import DecodeRecord

COLOURS = ("#0b7285", "#9c36b5", "#2b8a3e", "#b35900", "#1c5fb8", "#c2255c", "#495057", "#862e9c")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def pyplot() -> Any:
    """matplotlib's interface, with its backend that needs no display.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError("figures need matplotlib: pip install 'nap-runtime[train]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "nap", "svg.fonttype": "path", "figure.dpi": 120, "font.size": 9,
                         "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip
    return plt


def save(figure: Any, *files: Path, close: bool = True) -> None:
    """Write a figure as what the files' endings say, whole or not at all."""
    from nap_runtime.models.files import atomic_path

    for file in files:
        kind = file.suffix.lstrip(".")
        with atomic_path(file) as temporary:
            figure.savefig(temporary, format=kind, bbox_inches="tight", metadata=_undated(kind))
    if close:
        pyplot().close(figure)


def svg_of(figure: Any) -> str:
    """A figure as an SVG element for a page, and close it."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata=_undated("svg"))
    pyplot().close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _undated(kind: str) -> dict[str, Any]:
    return {"Date": None} if kind == "svg" else {}


def order_figure(orders: Sequence[tuple[str, DecodeOrder]]) -> Any:
    """Heat maps of slot against step, one a decode, on common axes. Fills and open slots are left blank."""
    plt = pyplot()
    wide = max(2.6, min(4.5, 11 / len(orders)))
    figure, axes = plt.subplots(1, len(orders), figsize=(wide * len(orders), 3.4), squeeze=False)
    for axis, (name, order) in zip(axes[0], orders, strict=True):
        _draw_order(axis, order)
        axis.set_title(name, fontsize=9)
    axes[0][0].set_ylabel("step")
    return figure


def _draw_order(axis: Any, order: DecodeOrder) -> None:
    kept = order.committed & (order.step < OPEN_STEP)
    slots = np.arange(len(order.positions))
    for region in np.unique(order.region):
        here = kept & (order.region == region)
        summary = region == order.n_paths
        colour = COLOURS[6] if summary else COLOURS[int(region) % 6]
        axis.scatter(
            slots[here], order.step[here], s=max(1.0, min(14.0, 2400 / len(slots))), marker="s", c=colour, lw=0
        )
    for edge in np.flatnonzero(np.diff(order.region)):
        axis.axvline(edge + 0.5, color="#adb5bd", lw=0.6)
    axis.set_xlim(-0.5, len(slots) - 0.5)
    axis.yaxis.get_major_locator().set_params(integer=True)
    steps = order.step[kept]
    axis.set_ylim((int(steps.max()) if len(steps) else 0) + 0.5, -0.5)
    axis.set_xlabel("slot")


def record_figure(record: DecodeRecord) -> Any:
    """The heat map of one trace, with its exchanges."""
    figure = order_figure([("", DecodeOrder.from_record(record))])
    (axis,) = figure.axes
    for event in record.syncs if len(record.syncs) <= 60 else ():
        axis.axhline(event.step, color="#b42318", lw=0.5, alpha=0.6)
    figure.set_size_inches(7, 4.2)
    return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one curve: x, y, and y's interval where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def curves(
    series: Iterable[Series],
    *,
    x: str,
    y: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    joined: bool = True,
) -> Any:
    """Points with intervals, joined in the order of x or not. Logarithmic axes hold 0 too."""
    plt = pyplot()
    series = list(series)
    figure, axis = plt.subplots(figsize=(5.4, 3.6))
    for at, one in enumerate(series):
        order = np.argsort(np.array(one.x, dtype=float), kind="stable")
        xs, ys = np.array(one.x, dtype=float)[order], np.array(one.y, dtype=float)[order]
        error = None
        if one.low is not None and one.high is not None:
            low, high = np.array(one.low, dtype=float)[order], np.array(one.high, dtype=float)[order]
            error = np.maximum(np.stack([ys - low, high - ys]), 0.0)
        style = {
            "marker": MARKS[at % len(MARKS)],
            "color": COLOURS[at % len(COLOURS)],
            "ms": 4,
            "capsize": 2,
            "lw": 1.2,
        }
        axis.errorbar(xs, ys, yerr=error, ls="-" if joined else "none", label=one.name, elinewidth=0.8, **style)
    if log_y:
        axis.set_yscale("symlog", linthresh=1)
    _scale_x(axis, sorted({value for one in series for value in one.x}), log_x)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10)
    axis.grid(color="#e9ecef", lw=0.6)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)
    return figure


def _scale_x(axis: Any, values: Sequence[float], log: bool) -> None:
    """A tick at every value where these are few."""
    if log:
        axis.set_xscale("symlog", linthresh=1, base=2 if max(values, default=0) <= 4096 else 10)
    if len(values) <= 8 and all(float(value).is_integer() for value in values):
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()


def stacked(
    names: Sequence[str], parts: Sequence[tuple[str, Sequence[float]]], *, x: str, y: str, title: str = ""
) -> Any:
    """Stacked bars, one a name."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.4, 3.6))
    bottom = np.zeros(len(names))
    for at, (label, values) in enumerate(parts):
        axis.bar(range(len(names)), values, bottom=bottom, label=label, color=COLOURS[at], width=0.65)
        bottom += np.array(values, dtype=float)
    axis.set_ylim(0, 1.3 * bottom.max(initial=1e-9))  # room for the legend
    many = len(names) > 5
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=30 * many, ha="right" if many else "center")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=7, frameon=False)
    return figure
