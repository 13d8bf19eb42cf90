"""The picture of compare_backends.py: loss curves, and times of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

DASH = 2.0
"""Length of a dash, in widths of the line."""


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the loss curves and the times of a step."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    _draw_losses(left, content["backends"])
    _draw_times(right, content["backends"], content["options"]["dtype"])
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)


def dashes(place: int, count: int) -> tuple[float, tuple[float, float]] | str:
    """Return the line style of one of several curves: where all agree, their dashes take turns."""
    if count == 1:
        return "solid"
    return DASH * (count - place), (DASH, DASH * (count - 1))


def _draw_losses(axes: Any, results: dict[str, Any]) -> None:
    for place, (name, result) in enumerate(results.items()):
        epochs = range(1, len(result["losses"]) + 1)
        style = dashes(place, len(results))
        axes.plot(epochs, result["losses"], label=name, linewidth=2.5, linestyle=style, dash_capstyle="butt")
    axes.set(yscale="log", xlabel="epoch", ylabel="mean loss of the batches", title="Loss (colours take turns)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.yaxis.set_major_formatter("{x:g}")
    for line in axes.legend().get_lines():
        line.set(linewidth=4.0, linestyle="solid")


def _draw_times(axes: Any, results: dict[str, Any], dtype: str) -> None:
    names = list(results)
    low, middle, high = 1e3 * np.array([result["step_seconds"] for result in results.values()]).T
    colours = [f"C{i}" for i in range(len(names))]
    bars = axes.barh(names, middle, xerr=(middle - low, high - middle), color=colours, ecolor="0.2", capsize=4)
    axes.bar_label(bars, [f"{value:.3g} ms" for value in middle], padding=5)
    axes.set(xscale="log", xlabel="milliseconds, median and quartiles", title=f"Time of a step ({dtype})")
    axes.set_xlim(np.min(low) / 4.0, 4.0 * np.max(high))  # room for bars and labels
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.invert_yaxis()
