"""What a benchmark prints and draws. Every output names hardware, command and commit, and the ids beside each speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nap_runtime.errors import UsageError
from nap_runtime.places import prepare

Row = Mapping[str, Any]
_HEAD = (
    "case",
    "ms/step",
    "x floor",
    "tokens/s",
    "useful/s",
    "speed",
    "x batch 1",
    "first ms",
    "sync",
    "peak MiB",
    "same ids",
    "as",
)
COLOURS = {"ours": "#2a6fbb", "one device": "#7a7a7a", "peer": "#c46a1b"}


def print_report(result: Mapping[str, Any], *, width: int | None = None) -> None:
    """The table on stdout, and what it was measured with."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _HEAD:
        left = name in ("case", "as")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in result["rows"]:
        table.add_row(*cells(row))
    console = Console(width=width, soft_wrap=False)
    console.print(table)
    for failed in result["failed"]:
        console.print(f"{failed['case']}: {failed['error']}", highlight=False, markup=False, style="red")
    console.print(notes(result), highlight=False, markup=False, style="dim")


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table."""
    ids = row["ids"]
    return (
        row["case"],
        f"{row['ms_per_step']:.2f}",
        f"{row['over_floor']:.2f}",
        f"{row['tokens_per_second']:.0f}",
        f"{row['useful_tokens_per_second']:.0f}",
        _dash(row["speed"], "{:.2f} x"),
        _dash(row["over_batch_1"], "{:.2f} x"),
        f"{row['first_commit_ms']:.1f}",
        _dash(row["sync_share"], "{:.1%}"),
        "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
        "–" if ids is None else f"{ids['equal']:.1%}{_verdict(ids)}",
        "–" if ids is None else ids["against"],
    )


def _dash(value: float | None, pattern: str) -> str:
    return "–" if value is None else pattern.format(value)


def _verdict(ids: Mapping[str, Any]) -> str:
    """Whether ids that should agree do: up to a near-tie that rounding may turn."""
    if not ids["must_agree"] or ids["agrees"] is None:
        return ""
    return " agrees" if ids["agrees"] else " DIFFERS"


def notes(result: Mapping[str, Any]) -> str:
    """Hardware, canvas, floor, command and commit."""
    env, canvas, rates, spec = result["environment"], result["canvas"], result["rates"], result["spec"]
    busy = env["load"] > 1.5 * env["cpus"]
    load = f"; BUSY: a load of {env['load']:.0f} on {env['cpus']} cores, other work slowed this down" if busy else ""
    equal = ", numerics invariant: what agrees is equal" if spec.get("numerics") == "invariant" else ""
    weights = f"random weights of {spec['shape']}" if spec["shape"] else spec["model"]
    return "\n".join(
        (
            f"{env['device_name']} ({env['devices']}), torch {env['torch']}, {weights}, {spec['dtype']}{equal}; "
            f"canvas of {canvas['positions']} positions, {canvas['slots']} slots in {canvas['steps']} steps; "
            f"medians of {spec['repeats']}{load}",
            f"speed: tokens/s over those of the whole canvas on one device, carried out alike, in this run. floor: "
            f"{rates['flops'] / 1e12:.3g} TFLOP/s, {rates['bandwidth'] / 1e9:.4g} GB/s ({rates['source']})",
            f"{result['command']}; commit {env['commit']}; {result['when']}",
        )
    )


def plot(result: Mapping[str, Any], file: Path) -> None:
    """Bars: milliseconds a step with the floor as a mark, and tokens a second, of every case.

    Raises:
        UsageError: matplotlib is not installed, or the file's ending is no image's.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plot: matplotlib is not installed; pip install matplotlib", field="plot") from None
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"plot: {file}: use an ending of png, svg or pdf", field="plot")
    rows: Sequence[Row] = result["rows"]
    mpl.rcParams["svg.hashsalt"] = "nap"
    figure = Figure(figsize=(11, 1.6 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = list(range(len(rows)))[::-1]
    colours = [COLOURS[row["family"]] for row in rows]
    left.barh(places, [row["ms_per_step"] for row in rows], color=colours)
    left.plot([row["floor_ms"] for row in rows], places, "|", color="black", markersize=12, label="floor")
    left.set_xlabel("ms a step")
    left.legend(loc="lower right", frameon=False)
    right.barh(places, [row["tokens_per_second"] for row in rows], color=colours)
    right.set_xlabel("tokens a second")
    labels = [f"{row['case']}  ({_same(row)})" for row in rows]
    left.set_yticks(places, labels, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(notes(result), fontsize=7, x=0.01, ha="left")
    prepare(file, "plot")
    figure.savefig(file, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)


def _same(row: Row) -> str:
    return "reference" if row["ids"] is None else f"ids {row['ids']['equal']:.0%}"
