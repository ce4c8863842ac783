"""A case as a small stack of axial pictures, for a viewer that needs nothing but a browser."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.files import write_whole
from inference.labels import SEQUENCES
from inference.report.views import LABEL_COLOURS, brain_box, brightness, slice_of

_SLICE_MM: Final = 3.0
"""Distance between the slices of the stack, about."""
_MOST_SLICES: Final = 64
"""However long the scan, so many slices and no more."""
_PIXEL_MM: Final = 1.0
"""Edge of a pixel in the stack."""
_QUALITY: Final = 72
"""Of WebP, from 0 to 100."""
_WASH: Final = 70
"""Opacity of a region's inside, of 255; its border is opaque."""
_SHOWN: Final = ("t1c", "t2f")


@dataclass(frozen=True)
class SliceStack:
    """Axial slices from the feet up, tiled row by row into one sheet per sequence and one for the regions."""

    tile: tuple[int, int]
    """Width and height of a slice in pixels of 1 mm."""
    columns: int
    """Slices per row of a sheet."""
    positions: tuple[int, ...]
    """Index of each slice along Z in the canonical array, from 0."""
    start: int
    """The slice of the stack to show first: most tumour."""
    t1c: bytes
    """Sheet of T1c, WebP."""
    t2f: bytes
    """Sheet of T2-FLAIR, WebP."""
    regions: bytes
    """Sheet of the coloured regions, PNG with a transparent background."""

    def as_json(self) -> str:
        """For a file or a page; sheets in base64."""
        sheets = {name: base64.b64encode(getattr(self, name)).decode() for name in ("t1c", "t2f", "regions")}
        numbers = {"tile": self.tile, "columns": self.columns, "positions": self.positions, "start": self.start}
        return json.dumps(numbers | sheets)


def stack_slices(
    data: NDArray[np.float32], labels: NDArray[np.uint8], spacing: tuple[float, float, float]
) -> SliceStack:
    """The stack of a scan (4, X, Y, Z) and its labels (X, Y, Z), canonical RAS, cropped to the brain.

    Pictures are the way round that :func:`inference.report.views.slice_of` says: the patient's right at the left.
    """
    brain = (data != 0).any(axis=0)
    box = brain_box(brain | (labels > 0), margin=2)
    inside, shown = brain[box], labels[box]
    depth = shown.shape[2]
    step = max(1, round(_SLICE_MM / spacing[2]), math.ceil(depth / _MOST_SLICES))
    # The slice with most tumour is one of them.
    fullest = int((shown > 0).sum(axis=(0, 1)).argmax()) if shown.any() else depth // 2
    chosen = range(fullest % step, depth, step)
    tile = tuple(max(1, round(shown.shape[axis] * spacing[axis] / _PIXEL_MM)) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(chosen)))
    grey = {name: brightness(data[SEQUENCES.index(name)][box], inside) for name in _SHOWN}
    return SliceStack(
        tile=(tile[0], tile[1]),
        columns=columns,
        positions=tuple(index + int(box[2].start) for index in chosen),
        start=fullest // step,
        t1c=_grey_sheet(grey["t1c"], chosen, (tile[0], tile[1]), columns),
        t2f=_grey_sheet(grey["t2f"], chosen, (tile[0], tile[1]), columns),
        regions=_region_sheet(shown, chosen, (tile[0], tile[1]), columns),
    )


def write_slices(stack: SliceStack, path: Path) -> None:
    """Write a stack as JSON; FolderError where that fails."""
    write_whole(path, stack.as_json().encode())


def read_slices(path: Path) -> SliceStack | None:
    """A stack that was written before; None where there is none that can be used."""
    try:
        value = json.loads(path.read_bytes())
        sheets = {name: base64.b64decode(value[name], validate=True) for name in ("t1c", "t2f", "regions")}
        width, height = map(int, value["tile"])
        positions = tuple(map(int, value["positions"]))
        start = min(max(int(value["start"]), 0), len(positions) - 1)
        return SliceStack((width, height), int(value["columns"]), positions, start, **sheets)
    except (OSError, ValueError, KeyError, TypeError, binascii.Error):
        return None


def _grey_sheet(volume: NDArray[np.uint8], chosen: range, tile: tuple[int, int], columns: int) -> bytes:
    from PIL import Image

    sheet = Image.new("L", (tile[0] * columns, tile[1] * math.ceil(len(chosen) / columns)))
    for number, index in enumerate(chosen):
        picture = Image.fromarray(np.ascontiguousarray(slice_of(volume, "axial", index)))
        sheet.paste(picture.resize(tile, Image.Resampling.BILINEAR), _corner(number, tile, columns))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()


def _region_sheet(labels: NDArray[np.uint8], chosen: range, tile: tuple[int, int], columns: int) -> bytes:
    """Palette: 0 nothing, 1 to 3 a label's inside, 4 to 6 its border."""
    from PIL import Image

    sheet = Image.new("P", (tile[0] * columns, tile[1] * math.ceil(len(chosen) / columns)))
    palette = [0] * 21
    opacity = [0] * 7
    for label, colour in LABEL_COLOURS.items():
        for entry, alpha in ((int(label), _WASH), (int(label) + 3, 255)):
            palette[3 * entry : 3 * entry + 3] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            opacity[entry] = alpha
    sheet.putpalette(palette)
    for number, index in enumerate(chosen):
        picture = Image.fromarray(np.ascontiguousarray(slice_of(labels, "axial", index)))
        flat = np.asarray(picture.resize(tile, Image.Resampling.NEAREST))
        sheet.paste(Image.fromarray(_with_borders(flat)), _corner(number, tile, columns))
    file = io.BytesIO()
    sheet.save(file, "PNG", transparency=bytes(opacity), optimize=True)
    return file.getvalue()


def _with_borders(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels (rows, columns) with 3 added where a neighbour differs."""
    padded = np.pad(labels, 1)
    centre = padded[1:-1, 1:-1]
    border = np.zeros(labels.shape, bool)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        border |= padded[rows : rows + labels.shape[0], columns : columns + labels.shape[1]] != centre
    return np.where(border & (labels > 0), labels + 3, labels).astype(np.uint8)


def _corner(number: int, tile: tuple[int, int], columns: int) -> tuple[int, int]:
    """Left and top of a slice in its sheet."""
    return tile[0] * (number % columns), tile[1] * (number // columns)
