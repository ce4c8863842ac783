"""Pictures of the cases that went worst: what was predicted, and what it should have been, side by side."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.labels import REGIONS, SEQUENCES, region_mask
from inference.report.views import EDGE_MARKS, LABEL_COLOURS, Plane, brain_box, brightness, slice_of

_SHOWN: Final = (("t1c", "T1 with contrast"), ("t2f", "T2-FLAIR"))
"""Rows of a picture."""
_FILL: Final = 0.35
"""Opacity of a label."""
_PAPER, _INK = "#101014", "#F2F2F2"


def worst_slice(reference: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> int:
    """The axial slice (index along Z) of label maps (X, Y, Z) in which most voxels of all regions are wrong.

    Where nothing is wrong, the one with most tumour.
    """
    wrong = np.zeros(reference.shape[2], np.int64)
    for region in REGIONS:
        wrong += (region_mask(reference, region) ^ region_mask(predicted, region)).sum(axis=(0, 1))
    return int((wrong if wrong.any() else (reference > 0).sum(axis=(0, 1))).argmax())


def draw_pair(data: NDArray[np.float32], reference: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> bytes:
    """A WebP of one axial slice of a scan (4, X, Y, Z): left the prediction, right the reference, labels (X, Y, Z)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    brain = (data != 0).any(axis=0)
    box = brain_box(brain | (reference > 0) | (predicted > 0))
    plane: Plane = "axial"
    index = worst_slice(reference[box], predicted[box])
    figure = Figure(figsize=(4.4, 4.9), facecolor=_PAPER, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(_SHOWN), 2)
    for row, (sequence, caption) in zip(panels, _SHOWN, strict=True):
        grey = brightness(data[SEQUENCES.index(sequence)][box], brain[box])
        for axes, labels, side in zip(row, (predicted, reference), ("predicted", "reference"), strict=True):
            axes.imshow(_washed(slice_of(grey, plane, index), slice_of(labels[box], plane, index)))
            axes.set_axis_off()
            axes.set_title(f"{side}, {caption}", color=_INK, size=8.5)
            for mark, x, align in zip(EDGE_MARKS[plane], (0.02, 0.98), ("left", "right"), strict=True):
                axes.text(x, 0.5, mark, transform=axes.transAxes, color=_INK, size=9, ha=align, va="center")
    figure.supxlabel(f"axial slice {index + int(box[2].start) + 1}", color=_INK, size=8.5)
    figure.set_dpi(160)
    canvas.draw()
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(file, "WEBP", quality=82)
    return file.getvalue()


def _washed(grey: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A slice (rows, columns) in RGB with its labels as a light wash and opaque borders."""
    picture = np.repeat(grey[..., None].astype(np.float32), 3, axis=2)
    padded = np.pad(labels, 1)
    inner = np.ones(labels.shape, np.bool_)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= padded[rows : rows + labels.shape[0], columns : columns + labels.shape[1]] == labels
    for label, colour in LABEL_COLOURS.items():
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        here = labels == label
        strength = np.where(inner, _FILL, 1.0)[here, None]
        picture[here] = (1 - strength) * picture[here] + strength * rgb
    return picture.astype(np.uint8)
