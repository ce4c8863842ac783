"""The files of a cohort's results: where they lie, how maps and pictures are written, what an earlier run has left."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError, GliomaError, reason
from inference.files import write_whole
from inference.intake.geometry import Geometry
from inference.intake.label_map import read_labels, read_stamp, write_fractions
from inference.intake.scan import Scan
from inference.predict.ensemble import RegionProbabilities
from inference.settings import OnError

log = logging.getLogger(__name__)

# matplotlib draws in one thread at a time (its guide on thread safety), and a resumed case is drawn where it is read.
_DRAWING: Final = threading.Lock()


@dataclass(frozen=True)
class CohortSettings:
    """Where the results of a cohort go, and how it is worked through."""

    labels: Path
    """Folder of the label maps, and of nothing else."""
    report: Path | None = None
    """Folder of the figures and slices of which the run's page is made."""
    probabilities: Path | None = None
    """Folder of the probability maps."""
    uncertainty: Path | None = None
    """Folder of the maps of disagreement between the networks."""
    on_error: OnError = "skip"
    """The policy for a failed case."""
    resume: bool = False
    """Whether to leave out cases whose result is there."""
    shard: tuple[int, int] = (1, 1)
    """(I, N): only every N-th case, from the I-th, counted from 1."""

    def label_map(self, case: str) -> Path:
        """File of the label map of a case."""
        return self.labels / f"{case}.nii.gz"

    def maps(self, case: str) -> dict[str, Path]:
        """Files of the maps of a case that were asked for, by what they show: `probabilities`, `uncertainty`."""
        folders = {"probabilities": self.probabilities, "uncertainty": self.uncertainty}
        return {kind: folder / f"{case}_{kind}.nii.gz" for kind, folder in folders.items() if folder is not None}


def write_maps(
    scan: Scan, regions: RegionProbabilities, settings: CohortSettings, stamp: str
) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Write the maps that were asked for as files of (X, Y, Z, 3), in the order WT, TC, ET.

    `probabilities`: the ensemble's, before refinement. `uncertainty`: twice the standard deviation over networks of
    the probability, weighted by their shares: 0 where all say the same, 1 where half are sure of it and half sure of
    the opposite. Neither takes part in what the label map becomes. Gives the maps, (3, X, Y, Z), by what they show, and
    a warning for each that could not be written.
    """
    maps = {"probabilities": regions.array} if settings.probabilities else {}
    if settings.uncertainty:
        assert regions.agreement is not None, "it is asked for together with the map"
        maps["uncertainty"] = 2 * regions.agreement.spread
    warnings = []
    for kind, path in settings.maps(scan.case).items():
        try:
            write_fractions(np.moveaxis(maps[kind], 0, -1), scan.geometry, path, stamp=stamp)
        except (GliomaError, OSError, MemoryError) as error:
            warnings.append(f"no map of {kind}: {reason(error, scan.case)}")
    return maps, warnings


def draw(
    scan: Scan,
    labels: NDArray[np.uint8],
    maps: Mapping[str, NDArray[np.float32]],
    warnings: Sequence[str],
    report: Path | None,
) -> list[str]:
    """Draw a case if that is wanted; a result without its picture is still a result, with a warning."""
    if report is None:
        return []
    try:
        with _DRAWING:
            from inference.report.figures import CaseDrawing, draw_case
            from inference.report.page import PICTURE_SUFFIX, VIEWER_SUFFIX
            from inference.report.volumes import viewer_script

            drawing = CaseDrawing(scan.data, labels, scan.spacing, scan.case, tuple(warnings))
            write_whole(report / f"{scan.case}{PICTURE_SUFFIX}", draw_case(drawing))
            script = viewer_script(scan.case, scan.data, labels, scan.spacing, maps)
            write_whole(report / f"{scan.case}{VIEWER_SUFFIX}", script)
    except Exception as error:
        log.debug("%s: no picture", scan.case, exc_info=True)
        return [f"no picture: {reason(error, scan.case)}"]
    return []


def is_drawn(case: str, labels: Path, report: Path) -> bool:
    """Whether a report has the pictures of a case, made no earlier than its label map."""
    from inference.report.page import PICTURE_SUFFIX, VIEWER_SUFFIX

    try:
        made = min((report / f"{case}{suffix}").stat().st_mtime for suffix in (PICTURE_SUFFIX, VIEWER_SUFFIX))
    except OSError:
        return False
    return made >= labels.stat().st_mtime


def stamp_of(path: Path) -> str | None:
    """The stamp of a result; None where there is no file, or none that can be read."""
    try:
        return read_stamp(path) if path.is_file() else None
    except CaseError:
        return None


def read_result(path: Path, geometry: Geometry) -> NDArray[np.uint8] | None:
    """The labels (X, Y, Z; canonical RAS) of a result, if it reads back whole and lies where `geometry` says."""
    try:
        labels, found = read_labels(path)
    except CaseError:
        return None
    return labels if found.same_as(geometry) else None
