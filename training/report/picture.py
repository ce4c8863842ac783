"""`python -m training picture`: what was made of a case, with outlines of its reference and the scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from inference.errors import ExitStatus, UsageError
from inference.files import write_whole
from inference.intake.cases import find_cases
from inference.intake.label_map import read_label_map
from inference.intake.scan import read_scan
from inference.labels import REGIONS
from inference.report.figures import CaseDrawing, draw_case
from training.data.datasets import labels_of
from training.evaluation.lesionwise import score_case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `picture`."""
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder of the cases")
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="reference label maps")
    parser.add_argument("--prediction", type=Path, required=True, metavar="DIR", help="predicted label maps")
    parser.add_argument("--case", help="ID of the case (default: the first)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")


def run(arguments: argparse.Namespace) -> int:
    """Draw a case with its predicted regions, the reference's outlines and the scores."""
    cases = {case.id: case for case in find_cases(arguments.input).cases}
    if arguments.case is not None and arguments.case not in cases:
        raise UsageError(f"--case {arguments.case}: found {', '.join(cases)}")
    case = cases[arguments.case or min(cases)]
    scan = read_scan(case)
    maps = [read_label_map(labels_of(case.id, folder)) for folder in (arguments.reference, arguments.prediction)]
    # All three as they lie in the patient, whatever their axes: the picture is of RAS.
    for label_map in maps:
        label_map.check_place(scan.geometry, "the scan")
    reference, labels = (label_map.canonical for label_map in maps)
    # Whole volumes as they are: the edition 2024 leaves small predicted lesions out of its Dice.
    scores = score_case(reference, labels, scan.spacing, 2023, metrics="dice")
    line = "Dice (lesion-wise): " + "   ".join(
        f"{region} {scores[region].dice:.3f} ({scores[region].lesionwise_dice:.3f})" for region in REGIONS
    )
    drawing = CaseDrawing(scan.data, labels, scan.spacing, case.id, reference=reference, scores=line)
    write_whole(arguments.output, draw_case(drawing))
    return ExitStatus.OK
