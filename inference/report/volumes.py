"""A case as a script that the page's viewer loads: the brain's box of every sequence, the labels and the maps.

Browsers let a page from `file://` load scripts from beside it, and nothing else; so the data is a script that calls one
function with it. Volumes are sheets of axial slices, as pictures that every browser decodes.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from inference.boxes import Box
from inference.labels import REGIONS, SEQUENCES
from inference.report.views import brain_box

# Bytes of a script: seven cases of a report fit into a mail.
_LARGEST: Final = 3_000_000
# Of JPEG, from 0 to 100. The first with which the script is small enough is taken.
_QUALITIES: Final = (82, 70, 55, 40, 25)
# Of a volume; a brain's box at 1 mm has about 3.5 million.
_MOST_VOXELS: Final = 4_500_000
# Pixels of JPEG's blocks: tiles of whole blocks do not show in one another.
_BLOCK: Final = 8
# A map's values are rounded to so many steps, which PNG makes about as small as JPEG would, and keeps exactly.
_FRACTION_STEPS: Final = 50
CLASS_STEP: Final = 60
"""Grey levels between classes, so that no rounding of a browser makes one of another."""


@dataclass(frozen=True)
class _Grid:
    """Which voxels of a scan the viewer has."""

    box: Box
    """The brain's, in the canonical array."""
    step: tuple[int, ...]
    """Voxels of the scan per voxel of the viewer, along X, Y, Z."""

    def reduce(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """A volume (X, Y, Z) of the scan on the viewer's grid: means over blocks."""
        reduced = volume[self.box]
        for axis, step in enumerate(self.step):
            if step > 1:
                starts = np.arange(0, reduced.shape[axis], step)
                counts = np.diff(np.append(starts, reduced.shape[axis]))
                means = np.moveaxis(np.add.reduceat(reduced, starts, axis=axis), axis, -1) / counts
                reduced = np.moveaxis(means.astype(np.float32), -1, axis)
        return reduced

    def pick(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A label map (X, Y, Z) of the scan on the viewer's grid: the first voxel of each block."""
        # A mean of labels is none, and the most frequent label would lose thin rims.
        return labels[self.box][tuple(slice(None, None, step) for step in self.step)]


def viewer_script(
    case: str,
    data: NDArray[np.float32],
    labels: NDArray[np.uint8],
    spacing: tuple[float, float, float],
    maps: Mapping[str, NDArray[np.float32]] | None = None,
) -> bytes:
    """The script of a case: `openCase(id, {…})`.

    `data` is (4, X, Y, Z) and `labels` (X, Y, Z), canonical RAS; `spacing` is in mm; `maps` are (3, X, Y, Z) from 0
    to 1 in the order WT, TC, ET, by what they are. Sequences have 8 bits, between the 0.1st and
    the 99.9th percentile of the brain.
    """
    brain = (data != 0).any(axis=0)
    # With the labels, which may reach beyond the brain; all of them must be seen.
    box = brain_box(brain | (labels > 0), margin=2)
    grid = _Grid(box, _steps([part.stop - part.start for part in box], spacing))
    inside = grid.reduce(brain.astype(np.float32)) > 0
    shown = grid.pick(labels)
    columns = math.ceil(math.sqrt(shown.shape[2]))
    content: dict[str, object] = {
        "shape": shown.shape,
        "spacing": [size * step for size, step in zip(spacing, grid.step, strict=True)],
        "corner": [part.start for part in box],
        "step": grid.step,
        "columns": columns,
        "start": _start(shown, inside),
        "classStep": CLASS_STEP,
        # 0 outside the brain, else the label and 1: JPEG would not keep where the brain ends.
        "classes": _sheet(np.where(inside | (shown > 0), shown + 1, 0).astype(np.uint8) * CLASS_STEP, columns, "PNG"),
    }
    sequences = {name: _levels(grid.reduce(data[index]), inside) for index, name in enumerate(SEQUENCES)}
    content["maps"] = {
        kind: {region: _fractions(grid.reduce(part), columns) for region, part in zip(REGIONS, found, strict=True)}
        for kind, found in (maps or {}).items()
    }
    script = b""
    for quality in _QUALITIES:
        content["sequences"] = {
            name: {"sheet": _sheet(levels, columns, "JPEG", quality), "range": ends, "window": window}
            for name, (levels, ends, window) in sequences.items()
        }
        script = f"openCase({json.dumps(case)}, {json.dumps(content)});\n".encode()
        if len(script) <= _LARGEST:
            break
    return script


def _steps(shape: list[int], spacing: tuple[float, float, float]) -> tuple[int, ...]:
    """Voxels to take as one along each axis: about 1 mm, and more in scans that are still too large."""
    steps = [max(1, round(1 / size)) for size in spacing]
    while math.prod(math.ceil(length / step) for length, step in zip(shape, steps, strict=True)) > _MOST_VOXELS:
        finest = min(range(3), key=lambda axis: spacing[axis] * steps[axis])
        steps[finest] += 1
    return tuple(steps)


def _start(labels: NDArray[np.uint8], inside: NDArray[np.bool_]) -> list[int]:
    """Where the cross-hairs stand first: per axis the slice with most tumour, else with most brain."""
    shown = labels > 0 if labels.any() else inside
    return [int(shown.sum(axis=tuple(other for other in range(3) if other != axis)).argmax()) for axis in range(3)]


def _levels(
    volume: NDArray[np.float32], brain: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], list[float], list[float]]:
    """Levels 1 to 255 of a volume, 0 outside the brain; the intensities of 1 and 255; the window to begin with."""
    if not brain.any():
        return np.zeros(volume.shape, np.uint8), [0.0, 1.0], [0.0, 1.0]
    # A wider range than the window's, so that a reader who changes the window finds something there.
    low, dark, bright, high = (float(value) for value in np.percentile(volume[brain], (0.1, 1.0, 99.7, 99.9)))
    high = max(high, low + 1e-6)
    levels = np.clip((volume - low) / (high - low), 0, 1) * 254 + 1
    return np.where(brain, levels, 0).astype(np.uint8), [low, high], [dark, max(bright, dark + 1e-6)]


def _fractions(volume: NDArray[np.float32], columns: int) -> str:
    """A sheet of values from 0 to 1, whose step is 5 of 250 grey levels."""
    steps = np.rint(_FRACTION_STEPS * np.clip(volume, 0, 1)).astype(np.uint8)
    return _sheet(steps * (250 // _FRACTION_STEPS), columns, "PNG")


def _sheet(volume: NDArray[np.uint8], columns: int, kind: Literal["JPEG", "PNG"], quality: int = 0) -> str:
    """Axial slices of a volume (X, Y, Z) side by side, as a data URL; tiles have Y rows and X columns, unflipped."""
    from PIL import Image

    x, y, z = volume.shape
    rows = math.ceil(z / columns)
    wide, tall = (math.ceil(length / _BLOCK) * _BLOCK for length in (x, y))
    tiles = np.zeros((rows * columns, tall, wide), np.uint8)
    tiles[:z, :y, :x] = volume.T
    sheet = tiles.reshape(rows, columns, tall, wide).transpose(0, 2, 1, 3).reshape(rows * tall, columns * wide)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
