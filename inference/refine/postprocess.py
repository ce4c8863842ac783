"""Cleaning a label map, and the record of what that did.

First lesions go that the networks doubt. Then the thresholds of the tumour's subtype rule: per label, small
26-connected components become background; and, with the whole tumour counted after that, enhancing tumour becomes
necrotic core where there is too little of it. All comparisons are strict, so that a threshold of zero leaves everything
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.boxes import bounding_box
from inference.bundle.tables import Thresholds, ThresholdTables
from inference.labels import REGIONS, TUMOUR_LABELS, Label, region_mask
from inference.refine.components import connected_components
from inference.refine.radiomics import NoFeatures, extract_features
from inference.refine.subtypes import Subtype, SubtypeModel
from inference.schema import Mismatch

# Of component volumes: a spacing of 0.9999999 mm, as headers have it, counts as 1.
_MM3_DIGITS = 3


@dataclass(frozen=True)
class Removed:
    """Components removed of one label or region."""

    components: int
    """Number of components."""
    mm3: float
    """Their volume."""


@dataclass(frozen=True)
class RefinementRecord:
    """Findings and changes of refinement in one case."""

    cluster: int | None
    """Subtype of the tumour; None where there is none."""
    distances: tuple[float, ...]
    """Distances to the two nearest centroids, nearest first."""
    no_subtype: str | None
    """Why there is no subtype; None where there is one."""
    thresholds: Thresholds
    """The thresholds that were used."""
    thresholds_of: str
    """Whose they are, and why: `subtype 3`, `all cases: …`."""
    removed: Mapping[str, Removed]
    """Components smaller than the threshold, per label."""
    et_wt_ratio: float | None
    """ET/WT after the removal; None where no tumour was left."""
    et_relabelled: bool
    """Whether ET became NCR."""

    def __post_init__(self) -> None:
        if self.cluster is not None and not self.distances:
            raise Mismatch("distances", self.distances, "one or more, beside a cluster")
        if self.cluster is None and self.no_subtype is None:
            raise Mismatch("no_subtype", None, "why there is no cluster")


def remove_doubtful(
    labels: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    spacing: tuple[float, float, float],
    confidence: float,
) -> tuple[NDArray[np.uint8], dict[str, Removed]]:
    """A label map (X, Y, Z) without the lesions that the networks doubt, and what was left out per region.

    A lesion is a 26-connected component of WT, TC or ET. It goes where the mean of its region's `probabilities`
    (3, X, Y, Z) in it is below `confidence` times that in the region's largest lesion: a share, since the mean of ten
    networks is less sure of everything than one network is. What goes of WT becomes background, of TC ED, of ET NCR.
    """
    removed = dict.fromkeys(REGIONS, Removed(0, 0.0))
    if not confidence:
        return labels, removed
    cleaned = labels.copy()
    outside = (Label.BACKGROUND, Label.ED, Label.NCR)
    for region, probability, label in zip(REGIONS, probabilities, outside, strict=True):
        mask = region_mask(cleaned, region)
        if not mask.any():
            continue
        box = bounding_box(mask)
        lesions = connected_components(mask[box])
        voxels = np.bincount(lesions.ravel())
        means = np.bincount(lesions.ravel(), weights=probability[box].ravel()) / np.maximum(voxels, 1)
        doubtful = means < confidence * means[1 + np.argmax(voxels[1:])]
        doubtful[0] = False
        cleaned[box][doubtful[lesions]] = label
        mm3 = round(float(voxels[doubtful].sum()) * math.prod(spacing), _MM3_DIGITS)
        removed[region] = Removed(int(doubtful.sum()), mm3)
    return cleaned, removed


def remove_components(
    labels: NDArray[np.uint8], spacing: tuple[float, float, float], smallest_mm3: Mapping[str, float]
) -> tuple[NDArray[np.uint8], dict[str, Removed]]:
    """A label map (X, Y, Z) without the 26-connected components that are smaller than their label's threshold.

    `spacing` in mm (x, y, z); `smallest_mm3` by label name. Also says what was removed per label.
    """
    cleaned = labels.copy()
    if not labels.any():
        return cleaned, {label.name: Removed(0, 0.0) for label in TUMOUR_LABELS}
    box = bounding_box(labels > 0)
    # Of equal values: where two labels touch, each has a component of its own.
    components = connected_components(labels[box])
    volumes = np.round(np.bincount(components.ravel()) * math.prod(spacing), _MM3_DIGITS)
    label_of = np.zeros(volumes.shape, np.uint8)
    label_of[components] = labels[box]
    removed: dict[str, Removed] = {}
    for label in TUMOUR_LABELS:
        small = (label_of == label) & (volumes < smallest_mm3[label.name])
        cleaned[box][small[components]] = Label.BACKGROUND
        removed[label.name] = Removed(int(small.sum()), round(float(volumes[small].sum()), _MM3_DIGITS))
    return cleaned, removed


def relabel_by_ratio(labels: NDArray[np.uint8], smallest_ratio: float) -> tuple[NDArray[np.uint8], float | None, bool]:
    """A label map (X, Y, Z) with ET as NCR where ET/WT is below `smallest_ratio`; the ratio; whether ET was relabelled.

    Without a whole tumour there is no ratio, and without ET nothing to relabel.
    """
    whole = np.count_nonzero(region_mask(labels, "WT"))
    enhancing = region_mask(labels, "ET")
    if whole == 0:
        return labels, None, False
    ratio = float(np.count_nonzero(enhancing) / whole)
    if not 0 < ratio < smallest_ratio:  # 0: a tumour that does not enhance, with nothing to relabel
        return labels, ratio, False
    return np.where(enhancing, np.uint8(Label.NCR), labels), ratio, True


def refine(
    labels: NDArray[np.uint8],
    spacing: tuple[float, float, float],
    data: NDArray[np.float32],
    model: SubtypeModel | None,
    tables: ThresholdTables,
) -> tuple[NDArray[np.uint8], RefinementRecord]:
    """Final labels (X, Y, Z) from labels as predicted (X, Y, Z) on a scan (4, X, Y, Z); `spacing` in mm (x, y, z).

    Where there is a model the subtype is found and recorded, whichever thresholds rule. A tumour without a subtype gets
    the thresholds of all cases.
    """
    subtype: Subtype | NoFeatures
    if model is None:
        subtype = NoFeatures("the bundle has no subtype model")
    else:
        features = extract_features(data, region_mask(labels, "WT"), spacing, model.extraction)
        subtype = features if isinstance(features, NoFeatures) else model.assign(features)
    if tables.use == "global":
        thresholds, thresholds_of = tables.overall, "all cases: the bundle uses one set of thresholds"
    elif isinstance(subtype, NoFeatures):
        thresholds, thresholds_of = tables.overall, f"all cases: no subtype, since {subtype.reason}"
    else:
        thresholds, thresholds_of = tables.subtypes[subtype.cluster], f"subtype {subtype.cluster}"
    # In this order, as in the paper: what is removed first no longer counts in the ratio.
    cleaned, removed = remove_components(labels, spacing, thresholds.smallest_component_mm3)
    final, ratio, relabelled = relabel_by_ratio(cleaned, thresholds.et_wt_ratio)
    return final, RefinementRecord(
        cluster=subtype.cluster if isinstance(subtype, Subtype) else None,
        distances=subtype.distances if isinstance(subtype, Subtype) else (),
        no_subtype=None if isinstance(subtype, Subtype) else subtype.reason,
        thresholds=thresholds,
        thresholds_of=thresholds_of,
        removed=removed,
        et_wt_ratio=ratio,
        et_relabelled=relabelled,
    )
