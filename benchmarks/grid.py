"""The cost of a network's grid alone: reference label maps resampled to it and back, as predictions are.

Each region of a reference goes to a grid of the given spacing and back by linear interpolation, and is cut off at 0.5,
as a perfect network's probabilities would be. What Dice is lost, no network on that grid can win.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import labelled_cases
from inference.errors import ExitStatus, UsageError
from inference.intake.label_map import read_label_map
from inference.labels import REGIONS, region_mask
from inference.predict.resampling import LINEAR, Resampling, resample
from training.evaluation.overlap import dice
from training.evaluation.tables import markdown

_LOG = logging.getLogger(__name__)


def grid_dice(labels: NDArray[np.uint8], spacing: Sequence[float], grid: Sequence[float]) -> dict[str, float]:
    """Dice of each region that labels (X, Y, Z) have with itself after a grid of other voxels (mm) and back."""
    # Without thick slices treated apart: the grid is asked about, not a rule of resampling.
    linear = Resampling(LINEAR, 1, force_separate_z=False)
    shape = [max(1, round(n * old / new)) for n, old, new in zip(labels.shape, spacing, grid, strict=True)]
    found = {}
    for region in REGIONS:
        mask = region_mask(labels, region)
        # A region that a case does not have says nothing of the grid.
        if mask.any():
            coarse = resample(mask[None].astype(np.float32), shape, spacing, grid, linear)
            back = resample(coarse, labels.shape, grid, spacing, linear)
            found[region] = dice(mask, back[0] > 0.5)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `grid`."""
    parser.add_argument("--cases", type=Path, action="append", required=True, metavar="DIR")
    parser.add_argument("--spacing", type=float, action="append", required=True, metavar="MM", help="may be repeated")


def run(arguments: argparse.Namespace) -> int:
    """Resample, and print a Markdown table of mean Dice; UsageError where there is no reference."""
    if not all(0 < spacing < np.inf for spacing in arguments.spacing):
        raise UsageError(f"--spacing: found {arguments.spacing}, expected millimetres above 0")
    found: dict[float, dict[str, list[float]]] = {
        spacing: {region: [] for region in REGIONS} for spacing in arguments.spacing
    }
    cases = list(labelled_cases(arguments.cases))
    if not cases:
        raise UsageError(f"no case with a reference below {', '.join(map(str, arguments.cases))}")
    for case, path in cases:
        reference = read_label_map(path)
        for spacing, values in found.items():
            for region, value in grid_dice(reference.labels, reference.geometry.spacing, [spacing] * 3).items():
                values[region].append(value)
        _LOG.info("%s", case.id)
    rows = [(f"{mm:g} mm", *(fmean(each) if each else "" for each in by.values())) for mm, by in found.items()]
    sys.stdout.write(markdown(("grid", *REGIONS), rows, digits=3))
    return ExitStatus.OK
