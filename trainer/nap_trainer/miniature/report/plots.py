"""The plots, as PNG and SVG. matplotlib is imported inside: only the report needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nap_trainer.miniature import stats
from nap_trainer.miniature.report.results import Results, order_of_heat
from nap_trainer.miniature.report.tables import AO, HEADLINE, PF, accuracy_of, arness_of, rules_of
from nap_trainer.miniature.stats import Interval

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKS = "osD^vP"


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there is to draw; returns the PNG files."""
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with rc_context({"svg.hashsalt": "nap", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        for name, figure in _figures(results):
            figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            made.append(folder / f"{name}.png")
    return made


def _figures(results: Results) -> Iterator[tuple[str, Any]]:
    if results.tests:
        yield "accuracy-by-steps", _by_steps(results)
        yield "accuracy-by-depth", _by_depth(results)
    if results.orders:
        yield "accuracy-against-arness", _trade(results)
        yield "decoding-order", _heat(results)


def _panels(count: int, width: float = 4.0, height: float = 3.2) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, [figure.add_subplot(1, count, index + 1) for index in range(count)]


def _bars(axes: Any, xs: list[float], found: list[Interval], index: int, label: str) -> None:
    values = np.array([interval.value for interval in found])
    lows, highs = (np.array([getattr(interval, end) for interval in found]) for end in ("low", "high"))
    errors = np.abs(np.stack([values - lows, highs - values]))
    axes.errorbar(
        [x * (1 + 0.02 * (index - 1)) for x in xs],  # side by side, so that no interval hides another
        values,
        yerr=errors,
        label=label,
        color=_COLOURS[index % 6],
        marker=_MARKS[index % 6],
        ms=4,
        capsize=2,
        lw=1.2,
    )


def _by_steps(results: Results) -> Any:
    """Accuracy and ARness against tokens a step."""
    figure, (left, middle, right) = _panels(3)
    for index, arm in enumerate(results.arms):
        found = [(k, cell[0]) for k in results.numbers if (cell := results.accuracy(arm, k))]
        if found:
            _bars(left, [k for k, _ in found], [interval for _, interval in found], index, arm)
        for axes, figure_name in ((middle, HEADLINE), (right, "set_content")):
            scores = [(k, score) for k in results.numbers if (score := results.arness(arm, k, figure_name))]
            if scores:
                _bars(axes, [k for k, _ in scores], [score for _, score in scores], index, arm)
    for axes, title in ((left, "accuracy"), (middle, "ARness@1 per path"), (right, "ARness@1 of the canvas")):
        axes.set(xscale="log", xlabel="tokens a step", ylabel=title, ylim=(0, 1.02))
        axes.set_xticks(results.numbers, [str(k) for k in results.numbers])
        axes.minorticks_off()
    left.legend(frameon=False, fontsize=7)
    return figure


def _by_depth(results: Results) -> Any:
    numbers = [k for k in (1, 4) if any(key[2] == k for key in results.tests)] or results.numbers[:1]
    figure, panels = _panels(len(numbers))
    for axes, per_step in zip(panels, numbers, strict=True):
        for index, arm in enumerate(results.arms):
            seeds = results.seeds(arm, per_step)
            if seeds:
                _depth_line(axes, results, arm, per_step, seeds, index)
        axes.set(xlabel="depth (operations)", ylabel="accuracy", ylim=(0, 1.02), title=f"{per_step} a step")
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def _depth_line(axes: Any, results: Results, arm: str, per_step: int, seeds: list[int], index: int) -> None:
    depth_n = results.tests[arm, seeds[0], per_step].depth_n
    right_sn = results.right(arm, per_step, seeds)
    depths = [int(depth) for depth in np.unique(depth_n)]
    found = [stats.two_level_bootstrap(right_sn[:, depth_n == depth], resamples=2000) for depth in depths]
    _bars(axes, [float(depth) for depth in depths], found, index, arm)


def _trade(results: Results) -> Any:
    """The paper's Figure 2: accuracy against ARness, one mark a rule."""
    numbers = sorted({key[3] for key in results.orders})
    figure, panels = _panels(len(numbers))
    for axes, per_step in zip(panels, numbers, strict=True):
        for index, arm in enumerate(results.arms):
            for rule, mark in zip(rules_of(results), _MARKS, strict=False):
                record = results.orders.get((arm, arm, rule, per_step))
                if record is not None:
                    x, y = arness_of(record, "set_content").value, accuracy_of(record).value
                    axes.plot([x], [y], mark, color=_COLOURS[index % 6], ms=5)
        axes.set(xlabel="ARness@1 of the canvas, content slots", ylabel="accuracy", title=f"{per_step} a step")
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.02))
    for index, arm in enumerate(results.arms):
        panels[0].plot([], [], "-", color=_COLOURS[index % 6], label=arm)
    for rule, mark in zip(rules_of(results), _MARKS, strict=False):
        panels[0].plot([], [], mark, color="grey", label=rule)
    panels[0].legend(frameon=False, fontsize=6, ncols=2)
    return figure


def _heat(results: Results) -> Any:
    """The paper's Figure 1: when each slot is committed, a column of panels for arms and rules."""
    from matplotlib.colors import PowerNorm

    wanted = [("cot", AO), ("cot-clamped", AO), ("nap", AO), ("nap", PF)]
    records = [(arm, rule, results.orders.get((arm, arm, rule, 1))) for arm, rule in wanted]
    shown = [(arm, rule, record) for arm, rule, record in records if record is not None]
    if not shown:
        (arm, _, rule, _), record = next(iter(results.orders.items()))
        shown = [(arm, rule, record)]
    figure, panels = _panels(len(shown), width=3.0)
    # End of text goes at one step in all problems, content at many: on a linear scale only the former would be seen.
    norm = PowerNorm(0.4, vmin=0, vmax=max(float(order_of_heat(record).max()) for _, _, record in shown))
    for axes, (arm, rule, record) in zip(panels, shown, strict=True):
        shares = order_of_heat(record)
        extent = (0, 1, len(shares), 0)
        drawn = axes.imshow(shares, aspect="auto", cmap="magma_r", norm=norm, interpolation="nearest", extent=extent)
        axes.set(xlabel="time (share of the steps)", title=f"{arm}, {rule}")
    panels[0].set_ylabel("slot, in canvas order")
    figure.colorbar(drawn, ax=panels[-1], label="share of the problems")
    return figure
