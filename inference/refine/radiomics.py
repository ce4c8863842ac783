"""386 radiomic features of a tumour: 14 of its shape, and 93 of the intensities in each of the four sequences.

The features equal those of pyradiomics 3.0.1, in the order in which its extractor yields them. They are computed on the
largest 26-connected component of the whole tumour, and only on the box around it: intensities are standardised with
statistics of the full image first, in the arithmetic of SimpleITK's `Normalize`, so that the values equal those of the
full image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.boxes import Box, bounding_box
from inference.labels import SEQUENCES
from inference.refine.components import largest_component
from inference.refine.shape import shape_features
from inference.refine.texture import intensity_features
from inference.schema import Mismatch, Positive

# Names as pyradiomics has them, in the order of its extractor, which is that of its methods' names: so comes
# MeanAbsoluteDeviation (`getMeanAbsoluteDeviationFeatureValue`) before Mean.
_SHAPE: Final = """
    Elongation Flatness LeastAxisLength MajorAxisLength Maximum2DDiameterColumn Maximum2DDiameterRow
    Maximum2DDiameterSlice Maximum3DDiameter MeshVolume MinorAxisLength Sphericity SurfaceArea SurfaceVolumeRatio
    VoxelVolume
"""

_INTENSITY: Final[Mapping[str, str]] = {
    "firstorder": """
        10Percentile 90Percentile Energy Entropy InterquartileRange Kurtosis Maximum MeanAbsoluteDeviation Mean
        Median Minimum Range RobustMeanAbsoluteDeviation RootMeanSquared Skewness TotalEnergy Uniformity Variance
    """,
    "glcm": """
        Autocorrelation ClusterProminence ClusterShade ClusterTendency Contrast Correlation DifferenceAverage
        DifferenceEntropy DifferenceVariance Id Idm Idmn Idn Imc1 Imc2 InverseVariance JointAverage JointEnergy
        JointEntropy MCC MaximumProbability SumAverage SumEntropy SumSquares
    """,
    "gldm": """
        DependenceEntropy DependenceNonUniformity DependenceNonUniformityNormalized DependenceVariance
        GrayLevelNonUniformity GrayLevelVariance HighGrayLevelEmphasis LargeDependenceEmphasis
        LargeDependenceHighGrayLevelEmphasis LargeDependenceLowGrayLevelEmphasis LowGrayLevelEmphasis
        SmallDependenceEmphasis SmallDependenceHighGrayLevelEmphasis SmallDependenceLowGrayLevelEmphasis
    """,
    "glrlm": """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance HighGrayLevelRunEmphasis
        LongRunEmphasis LongRunHighGrayLevelEmphasis LongRunLowGrayLevelEmphasis LowGrayLevelRunEmphasis RunEntropy
        RunLengthNonUniformity RunLengthNonUniformityNormalized RunPercentage RunVariance ShortRunEmphasis
        ShortRunHighGrayLevelEmphasis ShortRunLowGrayLevelEmphasis
    """,
    "glszm": """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance HighGrayLevelZoneEmphasis
        LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis LargeAreaLowGrayLevelEmphasis LowGrayLevelZoneEmphasis
        SizeZoneNonUniformity SizeZoneNonUniformityNormalized SmallAreaEmphasis SmallAreaHighGrayLevelEmphasis
        SmallAreaLowGrayLevelEmphasis ZoneEntropy ZonePercentage ZoneVariance
    """,
    "ngtdm": "Busyness Coarseness Complexity Contrast Strength",
}

FEATURE_NAMES: Final = (
    *(f"shape_{name}" for name in _SHAPE.split()),
    *(
        f"{sequence}_{kind}_{name}"
        for sequence in SEQUENCES
        for kind, text in _INTENSITY.items()
        for name in text.split()
    ),
)
"""Names of all features in their one order: shape, then t1n, t1c, t2w, t2f."""


class Bins(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How intensities become grey levels: by one of the two."""

    width: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Width of a grey level, in standard deviations."""
    count: Positive | None = None
    """Number of grey levels between a tumour's smallest and largest intensity."""

    def __post_init__(self) -> None:
        if (self.width is None) == (self.count is None):
            found = {"width": self.width, "count": self.count} if self.width else {}
            raise Mismatch("", found, "either a width or a count")


class ExtractionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How features are extracted, as a bundle's `subtypes.json` has it."""

    statistics: Literal["image", "brain"]
    """Where mean and standard deviation of a sequence are taken before extraction: over the whole image with its
    background, or over the brain (voxels that are not 0 in every sequence)."""
    bins: Bins
    """Grey levels of the textures."""
    smallest_tumour_voxels: Positive
    """Tumours of fewer voxels are not described: their textures would be noise."""


PRESETS: Final[Mapping[str, ExtractionSettings]] = {
    "paper": ExtractionSettings("image", Bins(width=25.0), smallest_tumour_voxels=50),
    "brain": ExtractionSettings("brain", Bins(count=32), smallest_tumour_voxels=50),
}
"""`paper`: pyradiomics' defaults with `normalize: True`. `brain`: settings under which the textures carry something."""


@dataclass(frozen=True)
class NoFeatures:
    """A tumour that cannot be described."""

    reason: str
    """Why, in one line."""


def extract_features(
    data: NDArray[np.float32],
    whole_tumour: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    settings: ExtractionSettings,
) -> NDArray[np.float64] | NoFeatures:
    """Features of the largest component of `whole_tumour` (X, Y, Z) in a scan (4, X, Y, Z); `spacing` in mm (x, y, z).

    They are (386,), finite, in the order of :data:`FEATURE_NAMES`. There are none, for a stated reason, where the
    tumour is empty, smaller than the settings ask for, one voxel thick in some direction, or a feature is undefined.
    """
    tumour = largest_component(whole_tumour)
    if reason := _why_not_described(tumour, settings):
        return NoFeatures(reason)
    box = bounding_box(tumour)
    shape = shape_features(tumour[box], spacing)
    # A voxel is brain if any sequence has signal there: an artefact in one of them leaves no hole.
    brain_voxels = int(np.count_nonzero((data != 0).any(axis=0))) if settings.statistics == "brain" else None
    values = [shape[name] for name in _SHAPE.split()]
    for sequence in data:
        features = intensity_features(
            _standardised(sequence, box, brain_voxels),
            tumour[box],
            math.prod(spacing),
            bin_width=settings.bins.width,
            bin_count=settings.bins.count,
        )
        values += [features[kind][name] for kind, text in _INTENSITY.items() for name in text.split()]
    vector = np.array(values, np.float64)
    undefined = np.flatnonzero(~np.isfinite(vector))
    if undefined.size:
        return NoFeatures(f"{undefined.size} features are undefined, {FEATURE_NAMES[undefined[0]]} first")
    return vector


def _why_not_described(tumour: NDArray[np.bool_], settings: ExtractionSettings) -> str:
    """Why a tumour (X, Y, Z) gets no features; empty where it gets them."""
    voxels = int(np.count_nonzero(tumour))
    if voxels == 0:
        return "the whole tumour is empty"
    if voxels < settings.smallest_tumour_voxels:
        return f"the largest component has {voxels} voxels, fewer than {settings.smallest_tumour_voxels}"
    if any(side.stop - side.start < 2 for side in bounding_box(tumour)):
        return "the largest component is one voxel thick"
    return ""


def _standardised(sequence: NDArray[np.float32], box: Box, brain_voxels: int | None) -> NDArray[np.float64]:
    """The box of a sequence (X, Y, Z), less its mean and over its standard deviation in the brain or the image."""
    voxels = sequence.size if brain_voxels is None else brain_voxels
    # Outside the brain all is 0: zeros are counted, not visited.
    values = sequence[sequence != 0].astype(np.float64)
    mean = float(values.sum() / voxels)
    variance = (((values - mean) ** 2).sum() + (voxels - values.size) * mean**2) / (voxels - 1)
    sd = float(np.sqrt(variance))
    if brain_voxels is not None:
        # Whole intensities often lie on a bin's edge; the last bit of a sum must not decide on which side.
        mean, sd = float(np.float32(mean)), float(np.float32(sd))
    # Multiplying by the inverse rounds as SimpleITK's ShiftScale does.
    standardised: NDArray[np.float64] = (sequence[box].astype(np.float64) - mean) * (1 / sd if sd > 0 else 1.0)
    return standardised
