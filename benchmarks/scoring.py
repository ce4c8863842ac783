"""Speed and memory of the lesion-wise scores on full-size cases.

The scene is a volume of 240 × 240 × 155 voxels with two tumours. `--plain` adds the same lesion-wise scores as the
official programs go about them, step by step on whole volumes with SciPy, and compares both. `--pairs FILE.npz` adds
pairs of label maps (`<name>_gt`, `<name>_pred`), padded to full size, and `--official FILE_2023.json` what the official
program of an edition printed for them, of which all but the specificity has to come out.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from surface_distance import lookup_tables

from inference.errors import ExitStatus
from inference.labels import REGIONS, Label, region_mask
from training.evaluation.lesionwise import RegionScore, Version, score_case
from training.evaluation.tables import Row, markdown

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.int32]
_Result = TypeVar("_Result")

_LOG = logging.getLogger(__name__)

FULL_SIZE: Final = (240, 240, 155)
"""Shape of a BraTS volume of 1 mm voxels."""

_SPACING: Final = (1.0, 1.0, 1.0)
_ELEMENT: Final = ndimage.generate_binary_structure(3, 2)

_PRINTED: Final[Mapping[str, str]] = {
    "Num_TP": "tp",
    "Num_FP": "fp",
    "Num_FN": "fn",
    "Sensitivity": "sensitivity",
    "Legacy_Dice": "dice",
    "Legacy_HD95": "hd95",
    "Legacy NSD @ 0.5": "nsd_05",
    "Legacy NSD @ 1.0": "nsd_10",
    "GT_Complete_Volume": "reference_volume",
    "LesionWise_Score_Dice": "lesionwise_dice",
    "LesionWise_Score_HD95": "lesionwise_hd95",
    "LesionWise_Score_NSD @ 0.5": "lesionwise_nsd_05",
    "LesionWise_Score_NSD @ 1.0": "lesionwise_nsd_10",
}
"""What the official programs call a score, and its field; specificity depends on the padding."""


@dataclass(frozen=True)
class Pair:
    """One case to score."""

    name: str
    reference: Labels
    """(X, Y, Z)."""
    prediction: Labels
    """The same shape."""


@dataclass(frozen=True)
class PlainScore:
    """Lesion-wise scores by the plain way."""

    lesionwise_dice: float
    lesionwise_hd95: float


def two_tumours(seed: int = 0) -> Pair:
    """Two uneven tumours of oedema, enhancing rim and necrosis in a full-size volume, and a fair prediction of them."""
    generator = np.random.default_rng(seed)
    reference, prediction = np.zeros((2, *FULL_SIZE), np.uint8)
    for centre, radii in (((80, 90, 70), (34, 38, 30)), ((165, 150, 95), (24, 26, 22))):
        phases = generator.uniform(0, 2 * np.pi, 3)
        moved = np.add(centre, generator.normal(0, 1.5, 3))
        for labels, place, scale in (
            (reference, np.array(centre, np.float64), 1.0),
            (prediction, moved, generator.uniform(0.93, 1.07)),
        ):
            _paint(labels, place, np.multiply(radii, scale), phases)
    return Pair("two tumours", reference, prediction)


def _paint(
    labels: Labels, centre: NDArray[np.float64], radii: NDArray[np.float64], phases: NDArray[np.float64]
) -> None:
    """Paint one tumour, an ellipsoid whose radius changes with direction, shell by shell."""
    box = tuple(slice(int(at - 1.5 * r), int(at + 1.5 * r) + 1) for at, r in zip(centre, radii, strict=True))
    x, y, z = ((axis - at) / r for axis, at, r in zip(np.ogrid[box], centre, radii, strict=True))
    around, up = np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))
    wave = 0.25 * np.sin(3 * around + phases[0]) * np.cos(2 * up + phases[1])
    ripple = 0.12 * np.sin(7 * around + phases[2]) * np.cos(5 * up)
    depth = np.sqrt(x**2 + y**2 + z**2) / (1 + wave + ripple)
    for limit, label in ((1, Label.ED), (0.62, Label.ET), (0.4, Label.NCR)):
        labels[box][depth < limit] = label


def stored_pairs(path: Path) -> Iterator[Pair]:
    """Pairs of label maps from an NPZ file, each padded to full size."""
    with np.load(path) as stored:
        for name in sorted(key.removesuffix("_gt") for key in stored.files if key.endswith("_gt")):
            yield Pair(name, *(_padded(stored[f"{name}_{side}"]) for side in ("gt", "pred")))


def _padded(labels: Labels) -> Labels:
    missing = [max(full - side, 0) for full, side in zip(FULL_SIZE, labels.shape, strict=True)]
    return np.pad(labels, [(side // 2, side - side // 2) for side in missing])


def measured(call: Callable[[], _Result], repeats: int) -> tuple[_Result, float, float]:
    """The result of a call, and the least wall and processor seconds of some repeats."""
    best = [float("inf"), float("inf")]
    for _ in range(max(repeats, 1)):
        started = (time.perf_counter(), time.process_time())
        result = call()
        best = [min(best[0], time.perf_counter() - started[0]), min(best[1], time.process_time() - started[1])]
    return result, best[0], best[1]


def deviation(scores: Mapping[str, RegionScore], official: Mapping[str, Mapping[str, float]]) -> float:
    """Largest difference to what an official program printed, specificity aside."""
    return max(
        abs(float(getattr(scores[region], _PRINTED[name])) - value)
        for region, values in official.items()
        for name, value in values.items()
        if name in _PRINTED
    )


def plain_scores(pair: Pair, version: Version) -> dict[str, PlainScore]:
    """Lesion-wise Dice and HD95 by region as the official programs compute them: whole volumes, lesion by lesion."""
    return {region: _plain_region(pair, region, version) for region in REGIONS}


def _plain_region(pair: Pair, region: str, version: Version) -> PlainScore:
    lesions = _plain_lesions(pair.reference, region, version, predicted=False)
    predicted = _plain_lesions(pair.prediction, region, version, predicted=True)
    dices, distances, met = [], [], set[int]()
    for number in np.setdiff1d(lesions, [0]):
        lesion = lesions == number
        reached = ndimage.binary_dilation(lesion, _ELEMENT, iterations=3)
        matches = np.setdiff1d(predicted[reached], [0])
        met.update(matches.tolist())
        if np.count_nonzero(lesion) > 50:
            union = np.isin(predicted, matches) & (predicted > 0)
            dices.append(2 * np.count_nonzero(lesion & union) / (np.count_nonzero(lesion) + np.count_nonzero(union)))
            distances.append(_plain_hausdorff95(lesion, union))
    false = len(set(np.unique(predicted).tolist()) - met - {0})
    count = len(dices) + false
    return PlainScore(
        float(sum(dices)) / count if count else 1.0, (sum(distances) + 374 * false) / count if count else 0.0
    )


def _plain_lesions(labels: Labels, region: str, version: Version, *, predicted: bool) -> Numbers:
    if version == 2023 and predicted:
        return _components(region_mask(labels, region))
    lesions = _plain_merged(region_mask(labels, region), predicted=predicted)
    if version == 2023 or region != "ET":
        return lesions
    necrotic = _plain_merged(labels == Label.NCR, predicted=predicted)
    pairs = [
        (first, second)
        for first in np.setdiff1d(lesions, [0]).tolist()
        for second in np.setdiff1d(necrotic, [0]).tolist()
        if (ndimage.binary_dilation(lesions == first, _ELEMENT) & (necrotic == second)).any()
    ]
    separate, highest = lesions.copy(), int(lesions.max())
    if len(pairs) > 1:
        # From the last pair back, so that the lowest necrosis of each lesion is what remains.
        for first, second in reversed(pairs):
            lesions[separate == first] = highest + second
    return lesions


def _plain_merged(mask: Mask, *, predicted: bool) -> Numbers:
    lesions = _components(ndimage.binary_dilation(mask, _ELEMENT, iterations=3)) * mask
    numbers, counts = np.unique(lesions, return_counts=True)
    return np.where(np.isin(lesions, numbers[counts <= 50]), 0, lesions) if predicted else lesions


def _components(mask: Mask) -> Numbers:
    numbered: Numbers = cc3d.connected_components(mask, connectivity=26).astype(np.int32)
    return numbered


def _plain_hausdorff95(first: Mask, second: Mask) -> float:
    if not second.any():
        return 374.0
    table = lookup_tables.create_table_neighbour_code_to_surface_area(_SPACING)
    box = ndimage.find_objects((first | second).astype(np.uint8))[0]
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    codes = [
        ndimage.correlate(np.pad(side[box], 1).astype(np.uint8), kernel, mode="constant") for side in (first, second)
    ]
    borders = [(code != 0) & (code != 255) for code in codes]
    largest = 0.0
    for here, there in ((0, 1), (1, 0)):
        distances = ndimage.distance_transform_edt(~borders[there], sampling=_SPACING)[borders[here]]
        surfaces = np.array(sorted(zip(distances, table[codes[here]][borders[here]], strict=True)))
        covered = np.cumsum(surfaces[:, 1]) / np.sum(surfaces[:, 1])
        largest = max(largest, float(surfaces[min(int(np.searchsorted(covered, 0.95)), len(surfaces) - 1), 0]))
    return largest


def _rows(pair: Pair, version: Version, arguments: argparse.Namespace) -> Iterator[Row]:
    """Name, edition, metrics, wall and processor seconds of each way to score a pair."""
    metrics: Literal["all", "dice"]
    for metrics in ("all", "dice"):
        call = partial(score_case, pair.reference, pair.prediction, _SPACING, version, metrics=metrics)
        scores, wall, processor = measured(call, arguments.repeats)
        yield pair.name, version, metrics, wall, processor
        official = arguments.official.get(version, {}).get(pair.name)
        if metrics == "all" and official:
            _LOG.info("%s %d: largest difference %.1e", pair.name, version, deviation(scores, official))
    if arguments.plain:
        plain, wall, processor = measured(partial(plain_scores, pair, version), 1)
        scores = score_case(pair.reference, pair.prediction, _SPACING, version)
        for region, score in plain.items():
            found = (scores[region].lesionwise_dice, scores[region].lesionwise_hd95)
            if not np.allclose(found, (score.lesionwise_dice, score.lesionwise_hd95), rtol=0, atol=1e-9):
                raise ArithmeticError(f"{pair.name} {version} {region}: {found} is not {score}")
        yield pair.name, version, "lesion-wise, plain", wall, processor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `scoring`."""
    parser.add_argument("--pairs", type=Path, action="append", default=[], metavar="FILE.npz")
    parser.add_argument("--official", type=Path, action="append", default=[], metavar="FILE_2023.json")
    parser.add_argument("--plain", action="store_true", help="also the plain way, which takes a minute a case")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="the fastest of N is reported (default: 3)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    arguments.official = {int(path.stem[-4:]): json.loads(path.read_text()) for path in arguments.official}
    rows: list[Row] = []
    for pair in (two_tumours(), *(pair for path in arguments.pairs for pair in stored_pairs(path))):
        for version in get_args(Version):
            rows.extend(_rows(pair, version, arguments))
    sys.stdout.write(markdown(("case", "edition", "metrics", "seconds", "processor seconds"), rows, digits=3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"\nPeak memory of the process: {peak:.0f} MiB\n")
    return ExitStatus.OK
