"""Seconds and memory of `evaluate`'s scores on a full-size case, by edition.

The scene is a volume of 240 × 240 × 155 voxels with two tumours. `dice` are the scores of 2023 and 2024 without those
that need distances, by which training is tuned.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Meter, positive
from inference.errors import ExitStatus
from inference.labels import Label
from training.evaluation.editions import Edition, score
from training.evaluation.lesionwise import score_case
from training.evaluation.scores import Labels, Version
from training.evaluation.tables import Row, markdown

FULL_SIZE: Final = (240, 240, 155)
SPACING: Final = (1.0, 1.0, 1.0)
"""Of a BraTS volume, in voxels and mm."""


def two_tumours(seed: int = 0) -> tuple[Labels, Labels]:
    """Two uneven tumours of oedema, enhancing rim and necrosis in a full-size volume, and a fair prediction of them."""
    generator = np.random.default_rng(seed)
    reference, prediction = np.zeros((2, *FULL_SIZE), np.uint8)
    for centre, radii in (((80, 90, 70), (34, 38, 30)), ((165, 150, 95), (24, 26, 22))):
        phases = generator.uniform(0, 2 * np.pi, 3)
        # Enough for a lesion-wise Dice of 0.7 to 0.95, as a good system has.
        moved = np.add(centre, generator.normal(0, 1.5, 3))
        for labels, place, scale in (
            (reference, np.array(centre, np.float64), 1.0),
            (prediction, moved, generator.uniform(0.93, 1.07)),
        ):
            _add_tumour(labels, place, np.multiply(radii, scale), phases)
    return reference, prediction


def _add_tumour(
    labels: Labels, centre: NDArray[np.float64], radii: NDArray[np.float64], phases: NDArray[np.float64]
) -> None:
    """Add one tumour, an ellipsoid whose radius changes with direction, shell by shell."""
    box = tuple(slice(int(at - 1.5 * r), int(at + 1.5 * r) + 1) for at, r in zip(centre, radii, strict=True))
    x, y, z = ((axis - at) / r for axis, at, r in zip(np.ogrid[box], centre, radii, strict=True))
    around, up = np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))
    # Uneven, because spheres are the easy case for distances between surfaces.
    wave = 0.25 * np.sin(3 * around + phases[0]) * np.cos(2 * up + phases[1])
    ripple = 0.12 * np.sin(7 * around + phases[2]) * np.cos(5 * up)
    depth = np.sqrt(x**2 + y**2 + z**2) / (1 + wave + ripple)
    for limit, label in ((1, Label.ED), (0.62, Label.ET), (0.4, Label.NCR)):
        labels[box][depth < limit] = label


def least_seconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The least wall and the least processor seconds of some repeats of a call."""
    # What other programs take can only add to the time.
    meters = []
    for _ in range(repeats):
        with Meter("cpu") as meter:
            call()
        meters.append(meter)
    return min(meter.wall for meter in meters), min(meter.processor for meter in meters)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `scoring`."""
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="the fastest of N is reported (default: 3)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    pair = two_tumours()
    calls: list[tuple[int, str, Callable[[], object]]] = [
        (edition, "all", partial(score, *pair, SPACING, edition)) for edition in get_args(Edition)
    ]
    calls += [
        (version, "dice", partial(score_case, *pair, SPACING, version, metrics="dice")) for version in get_args(Version)
    ]
    rows: list[Row] = [(edition, what, *least_seconds(call, arguments.repeats)) for edition, what, call in calls]
    sys.stdout.write(markdown(("edition", "scores", "seconds", "processor seconds"), rows, digits=3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"\nPeak memory of the process: {peak:.0f} MiB\n")
    return ExitStatus.OK
