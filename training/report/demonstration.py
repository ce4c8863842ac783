"""Synthetic cases on disk, and a picture of what was made of a case beside its truth."""

from __future__ import annotations

import argparse
from pathlib import Path

from inference.errors import ExitStatus, UsageError
from inference.intake.cases import find_cases
from inference.intake.label_map import read_label_map
from inference.intake.scan import read_scan
from inference.labels import REGIONS
from inference.report.figures import CaseDrawing, draw_case
from training.data.datasets import labels_of
from training.data.phantoms import make_phantom, write_phantom
from training.evaluation.lesionwise import score_case


def add_phantoms_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `phantoms`."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the cases")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="folder of their label maps")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first; the next has S + 1")
    parser.add_argument("--orientation", default="RAS", help="how they are stored (default: RAS)")
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155), metavar=("X", "Y", "Z"))


def run_phantoms(arguments: argparse.Namespace) -> int:
    """Write synthetic scans of gliomas, and their labels to another folder."""
    x, y, z = arguments.shape
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        case = f"phantom-{seed:05d}-000"
        with_labels = arguments.labels is not None
        phantom = make_phantom(seed, (x, y, z))
        folder = write_phantom(arguments.output, case, phantom, arguments.orientation, with_labels)
        if with_labels:
            arguments.labels.mkdir(parents=True, exist_ok=True)
            (folder / f"{case}-seg.nii.gz").replace(arguments.labels / f"{case}.nii.gz")
    return ExitStatus.OK


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `picture`."""
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder of the cases")
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="reference label maps")
    parser.add_argument("--prediction", type=Path, required=True, metavar="DIR", help="predicted label maps")
    parser.add_argument("--case", help="ID of the case (default: the first)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")


def run_picture(arguments: argparse.Namespace) -> int:
    """Draw a case with its predicted regions, the reference's outlines and the scores."""
    cases = {case.id: case for case in find_cases(arguments.input).cases}
    if arguments.case is not None and arguments.case not in cases:
        raise UsageError(f"--case {arguments.case}: found {', '.join(cases)}")
    case = cases[arguments.case or min(cases)]
    scan = read_scan(case)
    maps = [read_label_map(labels_of(case.id, folder)) for folder in (arguments.reference, arguments.prediction)]
    for label_map in maps:
        label_map.check_place(scan.geometry, "the scan")
    reference, labels = (label_map.canonical for label_map in maps)
    scores = score_case(reference, labels, scan.spacing, 2023, metrics="dice")
    line = "Dice (lesion-wise): " + "   ".join(
        f"{region} {scores[region].dice:.3f} ({scores[region].lesionwise_dice:.3f})" for region in REGIONS
    )
    drawing = CaseDrawing(scan.data, labels, scan.spacing, case.id, reference=reference, scores=line)
    draw_case(drawing, arguments.output)
    return ExitStatus.OK
