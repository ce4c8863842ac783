"""The ranked system's own container and the bundle that was imported from it, on the same cases.

The original runs through the `brats` package (`AfricaAlgorithms.BraTS24_1`), which needs Docker, a GPU and the package
(`pip install brats`); with `--program`, any command that takes a folder of cases and one for label maps stands in its
place; with `--original`, label maps that it made earlier are read. The bundle runs as `python -m inference infer`.
The result, as JSON, has per case the voxels whose label differs and the Dice of each region between the two, and the
seconds per case of both. Equal systems differ in a few voxels, since one of them computes in half precision.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measuring import Meter, report
from inference.errors import ExitStatus, FolderError, UsageError
from inference.labels import REGIONS, region_mask
from training.evaluation.files import check_geometry, match, read_one
from training.evaluation.overlap import dice

# The ranked system's name in the `brats` package, among those for African scans.
_ALGORITHM: Final = "BraTS24_1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ranked`."""
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="DIR", help="folder of cases, ID/ID-t1n.nii.gz and so on")
    add("--bundle", type=Path, required=True, metavar="DIR", help="what `import-ranked` wrote")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for both systems' label maps")
    original = parser.add_mutually_exclusive_group()
    original.add_argument("--program", metavar="WORDS", help="run `WORDS CASES LABELS` instead of the container")
    original.add_argument("--original", type=Path, metavar="DIR", help="the original's label maps, made earlier")
    add("--profile", default="paper", choices=("paper", "fast"), help="the bundle's (default: %(default)s)")
    add("--cuda-devices", default="0", metavar="N", help="GPUs of the container (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result to a file as well")


def run(arguments: argparse.Namespace) -> int:
    """Run both systems and report where they differ."""
    ours, theirs = arguments.output / "imported", arguments.original or arguments.output / "original"
    seconds: dict[str, float] = {}
    if arguments.original is None:
        theirs.mkdir(parents=True, exist_ok=True)
        with Meter("cpu") as meter:
            if arguments.program:
                _execute([*shlex.split(arguments.program), str(arguments.input), str(theirs)])
            else:
                _run_container(arguments.cuda_devices, arguments.input, theirs)
        seconds["original"] = meter.wall
    # A process of its own, as the container is: start-up counts for both.
    infer = [sys.executable, "-m", "inference", "infer", "--bundle", str(arguments.bundle)]
    infer += ["--profile", arguments.profile, "-i", str(arguments.input), "-o", str(ours)]
    with Meter("cpu") as meter:
        _execute(infer)
    seconds["imported"] = meter.wall
    cases = compare(theirs, ours)
    per_case = {system: round(spent / len(cases), 2) for system, spent in seconds.items()}
    report({"seconds_per_case": per_case, "cases": cases}, arguments.json)
    return ExitStatus.OK


def compare(theirs: Path, ours: Path) -> dict[str, dict[str, float]]:
    """Differing voxels, and Dice of each region, of every case that both folders of label maps have.

    Raises FolderError where one system lacks a case, CaseError for maps on different grids.
    """
    matching = match(theirs, ours)
    missing = [*matching.extra, *(pair.case for pair in matching.pairs if not pair.prediction)]
    if missing:
        listed = ", ".join(sorted(missing)[:5])
        raise FolderError(f"{theirs}, {ours}: {listed}: found a label map of one system only, expected both")
    found: dict[str, dict[str, float]] = {}
    for pair in matching.pairs:
        case, one, other = pair.case, read_one(pair.reference, pair.case), read_one(pair.prediction, pair.case)
        check_geometry(other, one, "the original's")
        masks = {region: [region_mask(side.labels, region) for side in (one, other)] for region in REGIONS}
        found[case] = {"differing_voxels": int(np.count_nonzero(one.labels != other.labels))}
        found[case] |= {f"dice_{region}": round(dice(*pair), 6) for region, pair in masks.items()}
    return found


def _execute(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False)  # noqa: S603 (what the user asked for)
    except OSError as error:
        raise UsageError(f"{command[0]}: cannot be run ({error.strerror})") from error
    if done.returncode:
        raise UsageError(f"{shlex.join(command)}: exit status {done.returncode}, expected 0")


def _run_container(devices: str, cases: Path, labels: Path) -> None:
    """Run the original through the `brats` package."""
    try:
        from brats import AfricaSegmenter
        from brats.constants import AfricaAlgorithms
    except ImportError as error:
        raise UsageError(
            "no package brats: `pip install brats` (and Docker), or give --program or --original"
        ) from error
    segmenter = AfricaSegmenter(algorithm=AfricaAlgorithms[_ALGORITHM], cuda_devices=devices)
    segmenter.infer_batch(data_folder=cases, output_folder=labels)
