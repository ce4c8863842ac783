"""One picture per case: the slices that show most, with and without the regions, and the numbers beside them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from inference.labels import REGIONS, SEQUENCES, region_mask
from inference.report.record import volumes_ml
from inference.report.views import (
    EDGE_MARKS,
    LABEL_COLOURS,
    LABEL_NAMES,
    NORMAL_AXIS,
    SEQUENCE_NAMES,
    Plane,
    View,
    brain_box,
    brightness,
    choose_views,
    extent_mm,
    slice_of,
    with_errors,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The two sequences that are shown, each without and with the regions: T1c has the core and its rim, FLAIR the oedema.
_COLUMNS: Final = ("t1c", "t2f")
# Millimetres of the head per inch of paper: all pictures have one scale, and a head is about three inches tall.
_INCH_MM: Final = 60.0
# Inches above and below the pictures, of a line of text, and between pictures; each warning adds a line above.
_HEADER, _FOOTER, _LINE, _GAP = 1.0, 0.42, 0.2, 0.05
# Opacity of a region's inside: anatomy stays visible.
_FILL: Final = 0.28
_Frame = tuple[float, float, float, float]
"""Left, right, bottom and top of a picture, mm."""
_PAPER, _INK, _FAINT, _WARNING = "#101014", "#F2F2F2", "#A8A8B0", "#FFB000"


@dataclass(frozen=True)
class CaseDrawing:
    """Contents of a figure."""

    data: NDArray[np.float32]
    """(4, X, Y, Z), canonical RAS, background 0."""
    labels: NDArray[np.uint8]
    """(X, Y, Z)."""
    spacing: tuple[float, float, float]
    """Voxel size along X, Y, Z in mm."""
    title: str
    """Of the figure; the case's ID, say."""
    warnings: tuple[str, ...] = ()
    """Warnings for the reader, one line each."""
    reference: NDArray[np.uint8] | None = None
    """(X, Y, Z): a reference segmentation, drawn as white outlines of WT, TC and ET."""
    scores: str = ""
    """A line of scores, for a case with a reference."""


def draw_case(drawing: CaseDrawing, *, dpi: int = 110) -> bytes:
    """A PNG of a case: axial, coronal and sagittal slices, T1c and FLAIR, each without and with the regions.

    An empty segmentation is drawn as the middle of the brain with a note. All pictures have the same scale, which the
    bar shows.
    """
    for what, labels in (("scan", drawing.data[0]), ("reference", drawing.reference)):
        if labels is not None and labels.shape != drawing.labels.shape:
            raise ValueError(f"{what} {labels.shape} and labels {drawing.labels.shape} are not of one shape")
    picture = io.BytesIO()
    _figure(drawing).savefig(picture, format="png", dpi=dpi, facecolor=_PAPER)
    return picture.getvalue()


def _figure(drawing: CaseDrawing) -> Figure:
    """The figure; rows are views, columns are sequences without and with the regions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    brain = (drawing.data != 0).any(axis=0)
    # All labels are in the box, those outside the brain too: volumes of the crop are those of the whole.
    box = brain_box(brain | (drawing.labels > 0))
    reference = None if drawing.reference is None else drawing.reference[box]
    drawing = replace(drawing, data=drawing.data[:, *box], labels=drawing.labels[box], reference=reference)
    grey = {name: brightness(drawing.data[SEQUENCES.index(name)], brain[box]) for name in _COLUMNS}
    views = choose_views(drawing.labels, brain[box], drawing.spacing)
    if reference is not None:
        views = with_errors(views, drawing.labels, reference, drawing.spacing[2])

    sizes = [extent_mm(drawing.labels.shape, drawing.spacing, view.plane) for view in views]
    heights = [height / _INCH_MM for height, _ in sizes]
    column = max(width for _, width in sizes) / _INCH_MM
    width = 2 * len(_COLUMNS) * (column + _GAP) + _GAP
    # About 13 letters of a note's size to the inch.
    notes = _notes(drawing, int(width * 13))
    above = _HEADER + _LINE * len(notes)
    height = above + sum(heights) + _GAP * len(heights) + _FOOTER
    # Without pyplot, whose figures are global and stay until they are closed: cases are drawn in threads.
    figure = Figure(figsize=(width, height), facecolor=_PAPER)
    FigureCanvasAgg(figure)
    _write_header(figure, drawing, notes)
    top = height - above
    for row, (view, tall) in enumerate(zip(views, heights, strict=True)):
        number = view.index + box[NORMAL_AXIS[view.plane]].start + 1
        for place in range(2 * len(_COLUMNS)):
            sequence, left = _COLUMNS[place // 2], _GAP + place * (column + _GAP)
            axes = figure.add_axes((left / width, (top - tall) / height, column / width, tall / height))
            _draw_panel(axes, drawing, grey[sequence], view, segmented=place % 2 == 1)
            if row == 0:
                caption = SEQUENCE_NAMES[sequence] + (", segmented" if place % 2 else "")
                at = (left + column / 2) / width, (top + 0.05) / height
                figure.text(*at, caption, color=_INK, size=9, ha="center")
            if place == 0:
                where = f"{view.plane} {number}\n{view.reason}"
                axes.text(0.02, 0.98, where, transform=axes.transAxes, color=_INK, size=7.5, va="top")
        _draw_scale(axes)
        top -= tall + _GAP
    return figure


def _draw_panel(axes: Axes, drawing: CaseDrawing, grey: NDArray[np.uint8], view: View, *, segmented: bool) -> None:
    """One slice of one sequence, with the regions where it is `segmented`."""
    tall, wide = extent_mm(drawing.labels.shape, drawing.spacing, view.plane)
    axes.set_axis_off()
    axes.set_aspect("equal")
    frame = (0, wide, tall, 0)
    picture = slice_of(grey, view.plane, view.index)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=frame, interpolation="bilinear")
    if segmented:
        _draw_regions(axes, slice_of(drawing.labels, view.plane, view.index), frame)
        if drawing.reference is not None:
            reference = slice_of(drawing.reference, view.plane, view.index)
            for region in REGIONS:
                _outline(axes, region_mask(reference, region), frame, "white", dashed=True)
    axes.set_xlim(0, wide)
    axes.set_ylim(tall, 0)
    _mark_edges(axes, view.plane)


def _draw_scale(axes: Axes) -> None:
    """A bar of 50 mm, or of 10 in a small picture, at the lower right."""
    wide, tall = axes.get_xlim()[1], axes.get_ylim()[0]
    length, y, right = 50 if wide > 100 else 10, tall * 0.965, wide * 0.97
    axes.plot([right - length, right], [y, y], color=_INK, linewidth=2, solid_capstyle="butt")
    middle = right - length / 2
    axes.text(middle, y - tall * 0.012, f"{length} mm", color=_INK, size=7, ha="center", va="bottom")


def _draw_regions(axes: Axes, labels: NDArray[np.uint8], frame: _Frame) -> None:
    """Labels as a light wash with a thin outline, so that anatomy shows through."""
    from matplotlib.colors import to_rgb

    wash = np.zeros((*labels.shape, 4), np.float32)
    for label, colour in LABEL_COLOURS.items():
        wash[labels == label] = (*to_rgb(colour), _FILL)
    axes.imshow(wash, extent=frame, interpolation="nearest")
    for label, colour in LABEL_COLOURS.items():
        _outline(axes, labels == label, frame, colour)


def _outline(axes: Axes, mask: NDArray[np.bool_], frame: _Frame, colour: str, *, dashed: bool = False) -> None:
    """The border of a mask (rows, columns) halfway between its pixels and their neighbours."""
    # matplotlib warns of a contour without a line, and cannot draw one of fewer than two rows or columns.
    if not mask.any() or min(mask.shape) < 2:
        return
    rows, columns = mask.shape
    x = (np.arange(columns) + 0.5) * frame[1] / columns
    y = (np.arange(rows) + 0.5) * frame[2] / rows
    style = (0, (2.5, 1.5)) if dashed else "solid"
    axes.contour(x, y, mask.astype(np.float32), levels=[0.5], colors=[colour], linewidths=0.75, linestyles=[style])


def _mark_edges(axes: Axes, plane: Plane) -> None:
    """R and L, or A and P, at the edges of a picture."""
    from matplotlib.patheffects import withStroke

    for mark, x, side in zip(EDGE_MARKS[plane], (0.015, 0.985), ("left", "right"), strict=True):
        text = axes.text(
            x, 0.5, mark, transform=axes.transAxes, color=_INK, size=9, weight="bold", ha=side, va="center"
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground=_PAPER)])


def _notes(drawing: CaseDrawing, letters: int) -> list[str]:
    """Lines under the numbers: what is missing, and the warnings, wrapped."""
    lines = [] if drawing.labels.any() else ["No tumour was segmented."]
    return lines + [line for warning in drawing.warnings for line in textwrap.wrap(f"Warning: {warning}", letters)]


def _write_header(figure: Figure, drawing: CaseDrawing, notes: Sequence[str]) -> None:
    """Title, volumes, legend, scores, notes, and what is where."""
    width, height = figure.get_size_inches()

    def write(x: float, y: float, text: str, colour: str = _INK, *, size: float = 9, align: str = "left") -> None:
        """Text at inches from the upper left corner."""
        # An ID or a warning may hold dollars, which matplotlib takes for mathematics.
        figure.text(x / width, 1 - y / height, text, va="top", color=colour, size=size, ha=align, parse_math=False)

    write(0.12, 0.1, drawing.title, size=14)
    regions = volumes_ml(drawing.labels, drawing.spacing)
    write(0.12, 0.4, "     ".join(f"{name} {volume:.1f} mL" for name, volume in regions.items()), size=10)
    write(width - 0.12, 0.14, drawing.scores, size=10, align="right")
    x = 0.12
    voxel = float(np.prod(drawing.spacing)) / 1000
    for label, colour in reversed(list(LABEL_COLOURS.items())):
        text = f"■ {LABEL_NAMES[label]} ({label.name}) {np.count_nonzero(drawing.labels == label) * voxel:.1f} mL"
        write(x, 0.63, text, colour)
        # The width of a letter of this size, roughly: to measure one would need a renderer.
        x += 0.078 * len(text) + 0.2
    if drawing.reference is not None:
        write(x, 0.63, "┅ reference (WT, TC, ET)")
    for number, note in enumerate(notes):
        write(0.12, 0.85 + _LINE * number, note, _WARNING)
    convention = (
        "The patient's right (R) is at the left of axial and coronal pictures; sagittal ones face left (A: front)."
    )
    figure.text(0.12 / width, 0.14 / height, convention, color=_FAINT, size=7.5, va="bottom")
