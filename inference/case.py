"""The walk of one case, from a scan to its labels: the paper's figure as a list of calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.bundle.store import Bundle, load_bundle
from inference.intake.scan import Scan
from inference.labels import labels_from_regions, most_probable_labels
from inference.predict.engines import Engine, choose_profile, open_engine
from inference.predict.ensemble import Progress, RegionProbabilities, predict
from inference.refine.postprocess import RefinementRecord, Removed, refine, remove_doubtful
from inference.refine.subtypes import SubtypeModel, subtype_model
from inference.report.record import CaseRecord, volumes_ml
from inference.settings import Profile

EMPTY_TUMOUR: Final = "no tumour was found: look at the scan before you believe it"


@dataclass(frozen=True)
class System:
    """Everything that a case passes through, loaded once."""

    bundle: Bundle
    """Networks and tables, verified."""
    engine: Engine
    """Runs the networks; one case at a time."""
    profile: Profile
    """How much is computed."""
    subtypes: SubtypeModel | None
    """The bundle's subtype model, ready for use."""

    def stamp(self, scans: str, *, noted: bool = False) -> str:
        """Name what a result was made from, in at most 79 characters for its header: bundle, profile and scans.

        `scans` is :func:`inference.intake.cases.digest_scans`. `noted` says that the scan was mended or is odd, so that
        a later run knows to look at it again.
        """
        # NIfTI's `descrip` has 80 bytes, and ends with a zero.
        return f"{self.made_by}{scans}{'!' * noted} {self.bundle.manifest.name}"[:79]

    @property
    def made_by(self) -> str:
        """Bundle and profile, as every stamp begins."""
        return f"{self.bundle.digest[:16]} {self.profile.value} "


def open_system(
    bundle: Path | Bundle,
    *,
    profile: str = "auto",
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> System:
    """Verify the bundle in a folder, or take one that is verified, and load all its networks.

    Raises BundleError where a file or tensor is not as it should be, and UsageError or DeviceError for an engine or
    device that cannot be had.
    """
    if isinstance(bundle, Path):
        bundle = load_bundle(bundle)
    # Before the networks, which take seconds: a table that does not fit is found first.
    subtypes = subtype_model(bundle.subtypes) if bundle.subtypes else None
    # Graphs of OpenVINO run on a CPU only, so that a GPU is not looked for.
    if engine == "auto" and device == "auto" and any(model.format == "openvino" for model in bundle.models):
        engine = "openvino"
    runner = open_engine(engine, device, threads=threads)
    for model in bundle.models:
        runner.load(model)
    return System(bundle, runner, choose_profile(profile, runner), subtypes)


@dataclass(frozen=True, eq=False)
class Result:
    """Labels and findings of a case at the end of its walk."""

    labels: NDArray[np.uint8]
    """(X, Y, Z), canonical RAS: 0 background, 1 necrotic core, 2 oedema, 3 enhancing tumour."""
    regions: RegionProbabilities
    """The ensemble's probabilities before refinement."""
    doubtful: Mapping[str, Removed]
    """Lesions left out since the networks doubt them, per region."""
    refinement: RefinementRecord
    """Subtype, thresholds, and what they changed."""


def segment(scan: Scan, system: System, *, progress: Progress | None = None, compare: bool = False) -> Result:
    """Segment one scan.

    `progress` is called with the forward passes done so far and in all. `compare` also measures how far the networks
    agree, which never changes the labels. Raises BundleError, or DeviceError where memory does not suffice or a network
    gives no finite answer.
    """
    regions = predict_regions(scan, system, progress=progress, compare=compare)
    return label_regions(scan, regions, system)


def predict_regions(
    scan: Scan, system: System, *, progress: Progress | None = None, compare: bool = False
) -> RegionProbabilities:
    """First half of the walk: probabilities of WT, TC and ET, averaged over folds and weighted over models."""
    return predict(
        scan.data,
        scan.spacing,
        system.bundle.models,
        system.engine,
        system.profile,
        orientation=system.bundle.manifest.orientation,
        progress=progress,
        compare_at=system.bundle.thresholds.regions if compare else None,
    )


def label_regions(scan: Scan, regions: RegionProbabilities, system: System) -> Result:
    """Second half: labels from regions without lesions in doubt, the subtype of the whole tumour, and cleaning with the
    thresholds that rule.
    """
    bundle = system.bundle
    if bundle.manifest.decision == "argmax":
        predicted = most_probable_labels(regions.array)
    else:
        predicted = labels_from_regions(regions.array, bundle.thresholds.regions)
    trusted, doubtful = remove_doubtful(predicted, regions.array, scan.spacing, bundle.thresholds.confidence)
    labels, refinement = refine(trusted, scan.spacing, scan.data, system.subtypes, bundle.thresholds)
    return Result(labels, regions, doubtful, refinement)


def describe(scan: Scan, result: Result) -> CaseRecord:
    """Sum up a case that went well."""
    return CaseRecord(
        id=scan.case,
        status="repaired" if scan.repairs else "ok",
        repairs=scan.repairs,
        warnings=(*scan.warnings, *([] if result.labels.any() else [EMPTY_TUMOUR])),
        volumes_ml=volumes_ml(result.labels, scan.spacing),
        agreement=result.regions.agreement.overlap if result.regions.agreement else None,
        refinement=result.refinement,
        doubtful=result.doubtful,
    )
