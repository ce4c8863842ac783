"""`python -m training phantoms`: synthetic scans of gliomas on disk, with their truth."""

from __future__ import annotations

import argparse
from pathlib import Path

from inference.errors import ExitStatus
from training.data.phantoms import make_phantom, write_phantom


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `phantoms`."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the cases")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="folder of their label maps")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first; the next has S + 1")
    parser.add_argument("--orientation", default="RAS", help="how they are stored (default: RAS)")
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155), metavar=("X", "Y", "Z"))


def run(arguments: argparse.Namespace) -> int:
    """Write synthetic scans of gliomas, and their labels to another folder."""
    x, y, z = arguments.shape
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        case = f"phantom-{seed:05d}-000"
        with_labels = arguments.labels is not None
        phantom = make_phantom(seed, (x, y, z))
        folder = write_phantom(arguments.output, case, phantom, arguments.orientation, with_labels)
        if with_labels:
            # As a challenge keeps its reference: apart from what is predicted, named by the case alone.
            arguments.labels.mkdir(parents=True, exist_ok=True)
            (folder / f"{case}-seg.nii.gz").replace(arguments.labels / f"{case}.nii.gz")
    return ExitStatus.OK
