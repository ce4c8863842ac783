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
from inference.errors import BundleError
from inference.labels import SEQUENCES
from inference.refine.components import largest_component
from inference.refine.shape import shape_features
from inference.refine.texture import intensity_features
from inference.schema import Mismatch, Positive, convert, mismatch


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_SHAPE: Final = _words(
    """
    Elongation Flatness LeastAxisLength MajorAxisLength Maximum2DDiameterColumn Maximum2DDiameterRow
    Maximum2DDiameterSlice Maximum3DDiameter MeshVolume MinorAxisLength Sphericity SurfaceArea SurfaceVolumeRatio
    VoxelVolume
    """
)

_INTENSITY: Final[Mapping[str, tuple[str, ...]]] = {
    "firstorder": _words(
        """
        10Percentile 90Percentile Energy Entropy InterquartileRange Kurtosis Maximum MeanAbsoluteDeviation Mean
        Median Minimum Range RobustMeanAbsoluteDeviation RootMeanSquared Skewness TotalEnergy Uniformity Variance
        """
    ),
    "glcm": _words(
        """
        Autocorrelation ClusterProminence ClusterShade ClusterTendency Contrast Correlation DifferenceAverage
        DifferenceEntropy DifferenceVariance Id Idm Idmn Idn Imc1 Imc2 InverseVariance JointAverage JointEnergy
        JointEntropy MCC MaximumProbability SumAverage SumEntropy SumSquares
        """
    ),
    "gldm": _words(
        """
        DependenceEntropy DependenceNonUniformity DependenceNonUniformityNormalized DependenceVariance
        GrayLevelNonUniformity GrayLevelVariance HighGrayLevelEmphasis LargeDependenceEmphasis
        LargeDependenceHighGrayLevelEmphasis LargeDependenceLowGrayLevelEmphasis LowGrayLevelEmphasis
        SmallDependenceEmphasis SmallDependenceHighGrayLevelEmphasis SmallDependenceLowGrayLevelEmphasis
        """
    ),
    "glrlm": _words(
        """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance HighGrayLevelRunEmphasis
        LongRunEmphasis LongRunHighGrayLevelEmphasis LongRunLowGrayLevelEmphasis LowGrayLevelRunEmphasis RunEntropy
        RunLengthNonUniformity RunLengthNonUniformityNormalized RunPercentage RunVariance ShortRunEmphasis
        ShortRunHighGrayLevelEmphasis ShortRunLowGrayLevelEmphasis
        """
    ),
    "glszm": _words(
        """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance HighGrayLevelZoneEmphasis
        LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis LargeAreaLowGrayLevelEmphasis LowGrayLevelZoneEmphasis
        SizeZoneNonUniformity SizeZoneNonUniformityNormalized SmallAreaEmphasis SmallAreaHighGrayLevelEmphasis
        SmallAreaLowGrayLevelEmphasis ZoneEntropy ZonePercentage ZoneVariance
        """
    ),
    "ngtdm": _words("Busyness Coarseness Complexity Contrast Strength"),
}

FEATURE_NAMES: Final = (
    *(f"shape_{name}" for name in _SHAPE),
    *(f"{sequence}_{kind}_{name}" for sequence in SEQUENCES for kind, names in _INTENSITY.items() for name in names),
)
"""Names of all features in their one order: shape, then t1n, t1c, t2w, t2f."""


@dataclass(frozen=True)
class ExtractionSettings:
    """How features are extracted."""

    statistics: Literal["image", "brain"]
    """Where mean and standard deviation of a sequence are taken before extraction: over the whole image with its
    background, or over the brain (voxels that are not 0 in every sequence)."""
    bin_width: float | None
    """Width of a grey level in standard deviations; None where `bin_count` rules."""
    bin_count: int | None
    """Number of grey levels between a tumour's smallest and largest intensity; None where `bin_width` rules."""
    smallest_tumour_voxels: int = 50
    """Tumours of fewer voxels are not described: their textures would be noise."""


PRESETS: Final[Mapping[str, ExtractionSettings]] = {
    "paper": ExtractionSettings(statistics="image", bin_width=25.0, bin_count=None),
    "brain": ExtractionSettings(statistics="brain", bin_width=None, bin_count=32),
}
"""`paper`: pyradiomics' defaults with `normalize: True`. `brain`: settings under which the textures carry something."""


@dataclass(frozen=True)
class FeatureVector:
    """Features of one tumour."""

    values: NDArray[np.float64]
    """(386,), finite, in the order of :data:`FEATURE_NAMES`."""


@dataclass(frozen=True)
class NoFeatures:
    """A tumour that cannot be described."""

    reason: str
    """Why, in one line."""


def settings_to_json(settings: ExtractionSettings) -> dict[str, object]:
    """The JSON that :func:`parse_settings` reads."""
    return {
        "statistics": settings.statistics,
        "bins": {"width": settings.bin_width} if settings.bin_count is None else {"count": settings.bin_count},
        "smallest_tumour_voxels": settings.smallest_tumour_voxels,
    }


class _StoredBins(msgspec.Struct, forbid_unknown_fields=True):
    width: Annotated[float, msgspec.Meta(gt=0)] | None = None
    count: Positive | None = None

    def __post_init__(self) -> None:
        if (self.width is None) == (self.count is None):
            found = {"width": self.width, "count": self.count} if self.width else {}
            raise Mismatch("", found, "either a width or a count")


class _StoredSettings(msgspec.Struct, forbid_unknown_fields=True):
    statistics: Literal["image", "brain"]
    bins: _StoredBins
    smallest_tumour_voxels: Positive


class _StoredExtraction(msgspec.Struct):
    extraction: _StoredSettings


def parse_settings(value: object, file: str) -> ExtractionSettings:
    """The settings under the key `extraction` of a bundle's `file`; :class:`BundleError` names what is wrong."""
    stored = convert({"extraction": value}, _StoredExtraction, BundleError, file).extraction
    return ExtractionSettings(stored.statistics, stored.bins.width, stored.bins.count, stored.smallest_tumour_voxels)


def check_feature_names(names: tuple[str, ...], file: str) -> None:
    """Raise :class:`BundleError` unless a bundle's features are the ones of this module, in its order."""
    if len(names) != len(FEATURE_NAMES):
        raise mismatch(file, "features", len(names), f"{len(FEATURE_NAMES)} names", BundleError)
    for index, (found, expected) in enumerate(zip(names, FEATURE_NAMES, strict=True)):
        if found != expected:
            raise mismatch(file, f"features[{index}]", found, expected, BundleError)


def extract_features(
    data: NDArray[np.float32],
    whole_tumour: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    settings: ExtractionSettings,
) -> FeatureVector | NoFeatures:
    """Features of the largest component of `whole_tumour` (X, Y, Z) in a scan (4, X, Y, Z); `spacing` in mm (x, y, z).

    There are none, for a stated reason, where the tumour is empty, smaller than the settings ask for, one voxel thick
    in some direction, or where a feature is undefined.
    """
    tumour = largest_component(whole_tumour)
    if reason := _why_not_described(tumour, settings):
        return NoFeatures(reason)
    box = bounding_box(tumour)
    shape = shape_features(tumour[box], spacing)
    brain_voxels = int(np.count_nonzero((data != 0).any(axis=0))) if settings.statistics == "brain" else None
    values = [shape[name] for name in _SHAPE]
    for sequence in data:
        features = intensity_features(
            _standardised(sequence, box, brain_voxels),
            tumour[box],
            math.prod(spacing),
            bin_width=settings.bin_width,
            bin_count=settings.bin_count,
        )
        values += [features[kind][name] for kind, names in _INTENSITY.items() for name in names]
    vector = np.array(values, np.float64)
    undefined = np.flatnonzero(~np.isfinite(vector))
    if undefined.size:
        return NoFeatures(f"{undefined.size} features are undefined, {FEATURE_NAMES[undefined[0]]} first")
    return FeatureVector(vector)


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


def _mean_and_sd(sequence: NDArray[np.float32], voxels: int) -> tuple[float, float]:
    """Mean and standard deviation (with n − 1) of a sequence (X, Y, Z) over `voxels` voxels.

    What lies outside these voxels is 0, and so are some of them; zeros are counted, not visited.
    """
    values = sequence[sequence != 0].astype(np.float64)
    mean = values.sum() / voxels
    variance = (((values - mean) ** 2).sum() + (voxels - values.size) * mean**2) / (voxels - 1)
    return float(mean), float(np.sqrt(variance))


def _standardised(sequence: NDArray[np.float32], box: Box, brain_voxels: int | None) -> NDArray[np.float64]:
    """The box of a sequence (X, Y, Z), less its mean and over its standard deviation in the brain or the image."""
    mean, sd = _mean_and_sd(sequence, sequence.size if brain_voxels is None else brain_voxels)
    if brain_voxels is not None:
        # Whole intensities often lie on a bin's edge; the last bit of a sum must not decide on which side.
        mean, sd = float(np.float32(mean)), float(np.float32(sd))
    # Multiplying by the inverse rounds as SimpleITK's ShiftScale does.
    standardised: NDArray[np.float64] = (sequence[box].astype(np.float64) - mean) * (1 / sd if sd > 0 else 1.0)
    return standardised
