"""Figures of the report, as SVG that can be read on a phone and in every common form of colour blindness."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from training.evaluation.systems import Systems

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which white paper swallows; a grey instead.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
# So that nothing is told by colour alone.
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
# Inches: on a phone's screen letters keep nearly their size.
_WIDTH: Final = 4.4
_SETTINGS: Final[Mapping[str, object]] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # The same report twice is the same bytes: matplotlib else draws IDs at random, and writes the date.
    "svg.hashsalt": "report",
}


def clusters(points: Mapping[str, Sequence[float]], of: Mapping[str, int], folds: Mapping[str, int]) -> bytes:
    """Every case in its first two principal components: colour is the cluster, shape the fold."""
    from matplotlib.lines import Line2D

    figure, (axes,) = _new(3.6)
    for case, (x, y, *_) in points.items():
        fold, cluster = folds[case], of[case]
        axes.plot(x, y, MARKERS[fold % len(MARKERS)], color=COLOURS[cluster % len(COLOURS)], markersize=7, alpha=0.85)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    keys = [
        Line2D([], [], linestyle="", marker="o", color=COLOURS[c % len(COLOURS)], label=f"cluster {c}")
        for c in sorted(set(of.values()))
    ]
    keys += [
        Line2D([], [], linestyle="", marker=MARKERS[f % len(MARKERS)], mfc="none", color="0.3", label=f"fold {f}")
        for f in sorted(set(folds.values()))
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, handletextpad=0.1, columnspacing=1)
    return _svg(figure)


def silhouettes(values: Mapping[int, float]) -> bytes:
    """The mean silhouette by number of clusters, the chosen one ringed."""
    figure, (axes,) = _new(2.6)
    counts = sorted(values)
    best = max(counts, key=lambda count: values[count])
    axes.plot(counts, [values[count] for count in counts], "o-", color=COLOURS[0])
    axes.plot(best, values[best], "o", markersize=14, markerfacecolor="none", markeredgewidth=2, color=COLOURS[1])
    axes.annotate(
        f"chosen: {best}", (best, values[best]), (0, -22), textcoords="offset points", ha="center", color="#A03F00"
    )
    axes.margins(x=0.15, y=0.35)
    axes.set_xticks(counts)
    axes.set_xlabel("clusters")
    axes.set_ylabel("mean silhouette")
    return _svg(figure)


def arms(systems: Systems, metric: str, caption: str) -> bytes:
    """Every case's value in every arm, region below region; a diamond is the mean."""
    count, at = len(systems.names), systems.metrics.index(metric)
    # Inches: a line for each arm, and room for a panel's title and its axis.
    figure, panels = _new(0.7 + len(systems.regions) * (0.45 + 0.24 * count), panels=len(systems.regions))
    for r, (panel, region) in enumerate(zip(panels, systems.regions, strict=True)):
        for s in range(count):
            values = systems.values[s, :, r, at]
            panel.plot(
                values, np.full(values.size, s), "o", color=COLOURS[0], alpha=0.35, markersize=4.5, clip_on=False
            )
            panel.plot(values.mean(), s, "D", color=COLOURS[1], markersize=6, markeredgecolor="white", clip_on=False)
        panel.set_yticks(range(count), systems.names, fontsize=8.5)
        panel.set_ylim(count - 0.4, -0.6)
        panel.set_title("mean of the regions" if region == "mean" else region, loc="left", fontsize=9.5, weight="bold")
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    panels[-1].set_xlabel(caption)
    # All of the range, so that small differences look small.
    if metric.endswith("dice"):
        panels[-1].set_xlim(0, 1)
    return _svg(figure)


def _new(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with panels below each other that share the horizontal axis."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # `Figure` alone and never pyplot, which keeps figures and looks for a screen.
    with mpl.rc_context(dict(_SETTINGS)):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        return figure, figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0].tolist()


def _svg(figure: Figure) -> bytes:
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context(dict(_SETTINGS)):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
