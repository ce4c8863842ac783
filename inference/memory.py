"""Memory that a case needs, foreseen from headers and networks, so that no case is begun that cannot end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from inference.boxes import bounding_box
from inference.case import System
from inference.errors import CaseError
from inference.intake.cases import Case
from inference.intake.nifti import open_image
from inference.intake.scan import SIDE_BY_SIDE, Scan
from inference.labels import REGIONS, SEQUENCES
from inference.machine import free_memory
from inference.predict.engines.base import pass_bytes
from inference.predict.preprocess import read_plan
from inference.settings import Profile

PLENTY: Final = 8 * 2**30
"""Bytes with which the largest scan that is accepted can be read beside the prediction of a usual one: where so much is
free nothing is foreseen, since headers take time to read."""

# Bytes per voxel, by what is in memory at the same time; what was measured with the embedded bundle is in brackets.
_SCAN: Final = 4 * len(SEQUENCES)
_PROBABILITIES: Final = 4 * len(REGIONS)
# Of one sequence, beside its stored voxels: masks of what is not finite.
_DECODED: Final = 2
# On the networks' grid: the preprocessed scan, the logits of one network and the mean of all.
_PASS: Final = _SCAN + 2 * _PROBABILITIES
# On the scan's grid, where it is not that of the networks: one array in float64.
_RESAMPLED: Final = 8 * len(REGIONS)
FINISHING: Final = 24
"""On the scan's grid: labels, their components, and the intensities of one sequence in float64."""


def need_to_read(case: Case) -> int:
    """Bytes that a case takes at least, by its headers: the scan, with what decodes it, or with its probabilities.

    0 where a header cannot be read, which reading tells.
    """
    try:
        images = [open_image(case.paths[sequence], case.id) for sequence in SEQUENCES]
    except (CaseError, KeyError):
        return 0
    voxels = math.prod(images[0].geometry.shape)
    decoded = [voxels * (image.dtype.itemsize + _DECODED) for image in images]
    decoding = sum(decoded) if voxels <= SIDE_BY_SIDE else max(decoded)
    return voxels * _SCAN + max(decoding, voxels * _PROBABILITIES)


def need_to_predict(scan: Scan, system: System) -> int:
    """Bytes that predicting a scan takes at its most, beside the scan itself.

    On a CPU a `fast` pass holds activations of the whole brain, a `paper` pass those of a patch.
    """
    nonzero = (scan.data != 0).any(axis=0)
    box = bounding_box(nonzero) if nonzero.any() else ()
    inside = math.prod(part.stop - part.start for part in box) if box else 0
    most = 0.0
    for model in system.bundle.models:
        plan = read_plan(model.plans)
        voxels = inside * math.prod(scan.spacing) / math.prod(plan.spacing)
        need = voxels * _PASS
        if not np.allclose(sorted(scan.spacing), sorted(plan.spacing)):
            need += inside * _RESAMPLED
        if system.engine.device == "cpu":
            width = 2 if "bfloat16" in system.engine.description else 4
            at_once = max(voxels, math.prod(plan.patch)) if system.profile is Profile.FAST else math.prod(plan.patch)
            need += pass_bytes(at_once, model.architecture, width)
        most = max(most, need)
    return int(nonzero.size * _PROBABILITIES + most)


def fits(need: int) -> bool:
    """Whether so many bytes are free."""
    free = free_memory()
    return free is None or need <= free


def check_fits(case: str, step: str, foresee: Callable[[], int]) -> None:
    """CaseError where a step needs more memory than is free; `foresee` gives its bytes, and is asked if it is close."""
    # Better before than in the middle: Linux kills a process that takes too much, and the whole cohort ends.
    free = free_memory()
    if free is not None and free < PLENTY and (need := foresee()) > free:
        raise CaseError(
            case,
            f"too little memory to {step} it",
            found=f"{free / 1e9:.2f} GB free",
            expected=f"about {need / 1e9:.2f} GB: use a machine with more, or raise the limit of this one",
        )
