"""The small fitted tables of a bundle: thresholds and the subtype model, as JSON and plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.bundle.fields import Fields, wrong
from inference.errors import BundleError
from inference.labels import REGIONS, TUMOUR_LABELS

FloatArray = NDArray[np.float16 | np.float32 | np.float64]
"""What tensors are stored as."""

SCALINGS: Final = ("l2", "standard", "none")
"""Scaling before the PCA: each case to unit length, each feature to zero mean and unit variance, or none."""


@dataclass(frozen=True)
class Thresholds:
    """What refinement does to one subtype, or to all."""

    smallest_component_mm3: Mapping[str, float]
    """Per label (NCR, ED, ET): components smaller than this, in mm³, become background; 0 keeps all."""
    et_wt_ratio: float
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
    use: str
    """`global` or `subtypes`: which of the two rules."""


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


def _read_thresholds(fields: Fields) -> Thresholds:
    smallest = fields.fields("smallest_component_mm3")
    thresholds = Thresholds(
        smallest_component_mm3={label.name: smallest.number(label.name, 0) for label in TUMOUR_LABELS},
        et_wt_ratio=fields.number("et_wt_ratio", 0, 1),
    )
    smallest.close()
    fields.close()
    return thresholds


def parse_thresholds(value: object, file: str, clusters: int | None) -> ThresholdTables:
    """The tables in a JSON value; `clusters` is the bundle's number of subtypes, None if it has none (BundleError)."""
    fields = Fields(value, file)
    regions = fields.fields("regions")
    whole, core, enhancing = (regions.number(region, 0, 1) for region in REGIONS)
    regions.close()
    subtypes = fields.fields("subtypes")
    expected = [str(cluster) for cluster in range(clusters or 0)]
    if subtypes.names() and sorted(subtypes.names()) != sorted(expected):
        raise wrong(file, "subtypes", list(subtypes.names()), f"the keys {expected}, or none")
    tables = ThresholdTables(
        regions=(whole, core, enhancing),
        overall=_read_thresholds(fields.fields("global")),
        subtypes={int(key): _read_thresholds(subtypes.fields(key)) for key in subtypes.names()},
        use=fields.choice("use", ("global", "subtypes")),
    )
    fields.close()
    if tables.use == "subtypes" and not tables.subtypes:
        raise fields.wrong("use", "global, since no subtype has thresholds")
    return tables


def thresholds_to_json(tables: ThresholdTables) -> dict[str, object]:
    """What :func:`parse_thresholds` reads."""

    def plain(thresholds: Thresholds) -> dict[str, object]:
        return {
            "smallest_component_mm3": dict(thresholds.smallest_component_mm3),
            "et_wt_ratio": thresholds.et_wt_ratio,
        }

    return {
        "regions": dict(zip(REGIONS, tables.regions, strict=True)),
        "global": plain(tables.overall),
        "subtypes": {str(cluster): plain(thresholds) for cluster, thresholds in tables.subtypes.items()},
        "use": tables.use,
    }


def parse_subtypes(value: object, arrays: Mapping[str, FloatArray], file: str) -> SubtypeTables:
    """The subtype model in a JSON value and its arrays, whose shapes have to agree; `file` is named in BundleError."""
    fields = Fields(value, file)
    tables = SubtypeTables(
        features=fields.texts("features", unique=True),
        extraction=fields.free("extraction"),
        scaling=fields.choice("scaling", SCALINGS),
        clusters=fields.count("clusters", 1),
        arrays={name: array.astype(np.float64) for name, array in arrays.items()},
    )
    fields.close()
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
        raise wrong(file, "its arrays", sorted(tables.arrays), ", ".join(sorted(shapes)))
    for name, shape in shapes.items():
        if tables.arrays[name].shape != shape:
            raise wrong(file, name, list(tables.arrays[name].shape), f"shape {list(shape)}")
        if not np.isfinite(tables.arrays[name]).all():
            raise BundleError(f"{file}: {name}: found numbers that are not finite")
    if "scale" in shapes and not (tables.arrays["scale"] > 0).all():
        raise BundleError(f"{file}: scale: found numbers that are not positive")


def subtypes_to_json(tables: SubtypeTables) -> dict[str, object]:
    """What :func:`parse_subtypes` reads, without the arrays."""
    return {
        "features": list(tables.features),
        "extraction": dict(tables.extraction),
        "scaling": tables.scaling,
        "clusters": tables.clusters,
    }
