"""The small fitted tables of a bundle: thresholds and the subtype model, as JSON and plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.errors import BundleError
from inference.labels import REGIONS, TUMOUR_LABELS
from inference.schema import Amount, Mismatch, Positive, Share, Text, convert, mismatch, one_of

FloatArray = NDArray[np.float16 | np.float32 | np.float64]
"""Types that tensors are stored in."""

SCALINGS: Final = ("l2", "standard", "none")
"""Scaling before the PCA: each case to unit length, each feature to zero mean and unit variance, or none."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of refinement for one subtype, or for all."""

    smallest_component_mm3: Mapping[str, Amount]
    """Per label (NCR, ED, ET): components smaller than this, in mm³, become background; 0 keeps all."""
    et_wt_ratio: Share
    """ET becomes NCR where ET/WT is below this; 0 keeps ET."""


@dataclass(frozen=True)
class ThresholdTables:
    """`thresholds.json`."""

    regions: tuple[float, float, float]
    """Probabilities of WT, TC and ET above which a voxel belongs to the region."""
    overall: Thresholds
    """For every case (`global`), or where a case has no subtype."""
    subtypes: Mapping[int, Thresholds]
    """By subtype; empty where none were fitted."""
    use: Literal["global", "subtypes"]
    """`global` or `subtypes`: which of the two rules."""
    confidence: float = 0.0
    """A lesion of WT, TC or ET stays where the mean probability in it is at least this share of that in the region's
    largest lesion; 0 keeps all."""


@dataclass(frozen=True)
class SubtypeTables:
    """`subtypes.json` and `subtypes.safetensors`."""

    features: tuple[str, ...]
    """Names of the features, in the arrays' order."""
    extraction: Mapping[str, object]
    """Settings that the features were extracted with."""
    scaling: str
    """One of :data:`SCALINGS`."""
    clusters: int
    """Number of subtypes, k."""
    arrays: Mapping[str, NDArray[np.float64]]
    """`pca_mean` (features,), `pca_components` (components, features), `centroids` (k, components); for `standard` also
    `mean` and `scale` (features,)."""


# Apart from `ThresholdTables`, since JSON names the regions and calls `overall` what is no name in Python.
class StoredThresholds(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`thresholds.json` as it is written."""

    regions: dict[str, Share]
    overall: Thresholds = msgspec.field(name="global")
    subtypes: dict[int, Thresholds]
    use: Literal["global", "subtypes"]
    confidence: Share = 0.0

    def __post_init__(self) -> None:
        _check_keys("regions", self.regions, list(REGIONS))
        parts = {"global": self.overall} | {f"subtypes.{key}": part for key, part in self.subtypes.items()}
        for key, part in parts.items():
            sizes = part.smallest_component_mm3
            _check_keys(f"{key}.smallest_component_mm3", sizes, [label.name for label in TUMOUR_LABELS])
        # Else a case of some subtype would find no thresholds, in the middle of a run.
        if self.use == "subtypes" and not self.subtypes:
            raise Mismatch("use", self.use, "global, since no subtype has thresholds")

    def tables(self, file: str, clusters: int | None) -> ThresholdTables:
        """The tables for so many subtypes, None or 0 for none; BundleError, which names `file`, for other ones."""
        expected = list(range(clusters or 0))
        if self.subtypes and sorted(self.subtypes) != expected:
            found = [str(cluster) for cluster in self.subtypes]
            wanted = f"the keys {[str(cluster) for cluster in expected]}, or none"
            raise mismatch(file, "subtypes", found, wanted, BundleError)
        whole, core, enhancing = (self.regions[region] for region in REGIONS)
        return ThresholdTables((whole, core, enhancing), self.overall, self.subtypes, self.use, self.confidence)


class _StoredSubtypes(msgspec.Struct, forbid_unknown_fields=True):
    """`subtypes.json` as it is written."""

    features: tuple[Text, ...]
    extraction: dict[str, object]
    scaling: Annotated[str, one_of(SCALINGS)]
    clusters: Positive

    def __post_init__(self) -> None:
        if len(set(self.features)) != len(self.features):
            raise Mismatch("features", list(self.features), "a list of different texts")


def _check_keys(key: str, values: Mapping[str, float], expected: list[str]) -> None:
    for name in expected:
        if name not in values:
            raise Mismatch(f"{key}.{name}", None, "a number of at least 0")
    if unknown := [name for name in values if name not in expected]:
        raise Mismatch(key, unknown, f"only {', '.join(expected)}")


def stored_thresholds(tables: ThresholdTables) -> StoredThresholds:
    """The tables as files have them."""
    regions = dict(zip(REGIONS, tables.regions, strict=True))
    return StoredThresholds(regions, tables.overall, dict(tables.subtypes), tables.use, tables.confidence)


def parse_subtypes(value: object, arrays: Mapping[str, FloatArray], file: str) -> SubtypeTables:
    """The subtype model in a JSON value and its arrays, whose shapes have to agree; `file` is named in BundleError."""
    stored = convert(value, _StoredSubtypes, BundleError, file)
    # In the precision in which scikit-learn fitted them: nearest centroids are compared.
    arrays64 = {name: array.astype(np.float64) for name, array in arrays.items()}
    tables = SubtypeTables(stored.features, stored.extraction, stored.scaling, stored.clusters, arrays64)
    _check_arrays(tables, file.replace(".json", ".safetensors"))
    return tables


def _check_arrays(tables: SubtypeTables, file: str) -> None:
    count = len(tables.features)
    components = tables.arrays["pca_components"].shape[0] if "pca_components" in tables.arrays else 0
    shapes = {
        "pca_mean": (count,),
        "pca_components": (components, count),
        "centroids": (tables.clusters, components),
    }
    if tables.scaling == "standard":
        shapes |= {"mean": (count,), "scale": (count,)}
    if set(tables.arrays) != set(shapes):
        raise mismatch(file, "its arrays", sorted(tables.arrays), ", ".join(sorted(shapes)), BundleError)
    for name, shape in shapes.items():
        if tables.arrays[name].shape != shape:
            raise mismatch(file, name, list(tables.arrays[name].shape), f"shape {list(shape)}", BundleError)
        if not np.isfinite(tables.arrays[name]).all():
            raise BundleError(f"{file}: {name}: found numbers that are not finite")
    # scikit-learn replaces a deviation of 0 by 1 when it fits, so that 0 is damage.
    if "scale" in shapes and not (tables.arrays["scale"] > 0).all():
        raise BundleError(f"{file}: scale: found numbers that are not positive")


def subtypes_to_json(tables: SubtypeTables) -> dict[str, object]:
    """The JSON that :func:`parse_subtypes` reads, without the arrays."""
    return {
        "features": list(tables.features),
        "extraction": dict(tables.extraction),
        "scaling": tables.scaling,
        "clusters": tables.clusters,
    }
