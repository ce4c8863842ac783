"""Label maps on disk: which case a file belongs to, and its voxels as they are stored.

The official programs score arrays in the order of the file, and the 2024 scores depend on it. So nothing is turned to a
canonical orientation here; a prediction has to lie in the geometry of its reference.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from inference.errors import CaseError, FolderError
from inference.labels import Label
from training.evaluation.surfaces import Spacing

_FILE: Final = re.compile(
    r"(?P<stem>.*?)(?:(?:^|[-_.])(?:seg|segmentation|label|labels|pred|prediction))?\.nii(?:\.gz)?", re.IGNORECASE
)
_SEQUENCE: Final = re.compile(r"(?:.*[-_])?(?:t1n|t1ce|t1c|t1gd|t1|t2w|t2f|t2|flair)", re.IGNORECASE)
_BRATS_ID: Final = re.compile(r"BraTS-[A-Za-z]+-\d{5}-\d{3}")

_OLD_ET: Final = 4
"""Enhancing tumour in releases up to BraTS 2021."""

_AFFINE_TOLERANCE: Final = 1e-3
"""Largest difference between two entries of affines that count as equal."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """One label map as stored."""

    labels: NDArray[np.uint8]
    """(X, Y, Z) in the orientation of the file: 0, 1 (NCR), 2 (ED), 3 (ET)."""
    affine: NDArray[np.float64]
    """(4, 4), voxel indices to world mm."""
    spacing: Spacing
    """Voxel size along the stored axes in mm, as the header states it."""
    relabelled: bool
    """Whether label 4 was read as 3."""


def find_label_maps(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The label maps below a folder by case ID; more than one for a case where that is ambiguous.

    The ID is what remains of a file's name without its ending (`.nii`, `.nii.gz`) and a word such as `-seg`; where that
    is nothing, the name of its folder; and where the name contains an ID of BraTS 2023 or later, that ID. Files of
    sequences and hidden files are passed over.

    Raises:
        FolderError: the folder cannot be read, or holds no label map.

    """
    if not folder.is_dir():
        raise FolderError(f"no folder {folder}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.nii*")):
        parts = _FILE.fullmatch(path.name)
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if parts is None or hidden or _SEQUENCE.fullmatch(parts["stem"]) or not path.is_file():
            continue
        named = _BRATS_ID.search(parts["stem"])
        case = named.group() if named else parts["stem"] or path.parent.name
        found.setdefault(case, []).append(path)
    if not found:
        raise FolderError(f"no label map (*.nii, *.nii.gz) in {folder}")
    return {case: tuple(paths) for case, paths in found.items()}


def read_label_map(paths: tuple[Path, ...], case: str) -> LabelMap:
    """Read the one label map of a case.

    Where no voxel is 3, label 4 (enhancing tumour up to BraTS 2021) is read as 3.

    Raises:
        CaseError: several files claim the case, the file cannot be read, or it holds anything but labels.

    """
    if len(paths) > 1:
        raise CaseError(case, "more than one label map", found=", ".join(map(str, paths)), expected="one")
    path = paths[0]
    try:
        image = nib.load(path)
        values = np.asanyarray(image.dataobj)
        spacing = tuple(float(side) for side in image.header.get_zooms()[:3])
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise CaseError(case, f"{path} cannot be read: {error}") from error
    values = values.reshape(values.shape[:3]) if values.ndim > 3 and set(values.shape[3:]) == {1} else values
    if values.ndim != 3:
        raise CaseError(case, f"{path} is no volume", found=f"shape {values.shape}", expected="three axes")
    present = np.unique(values)
    relabelled = _OLD_ET in present and Label.ET not in present
    if not np.isin(present, [*Label, *[_OLD_ET] * relabelled]).all():
        raise CaseError(
            case, f"{path} holds other values than labels", found=str(present[:8].tolist()), expected="0 to 3"
        )
    labels = np.ascontiguousarray(values, dtype=np.uint8)
    labels = np.where(labels == _OLD_ET, np.uint8(Label.ET), labels)
    return LabelMap(
        labels, np.asarray(image.affine, np.float64), (spacing[0], spacing[1], spacing[2]), bool(relabelled)
    )


def check_geometry(reference: LabelMap, prediction: LabelMap, case: str) -> None:
    """Raise CaseError where two label maps differ in shape or in an entry of the affine by more than 0.001."""
    if reference.labels.shape != prediction.labels.shape:
        raise CaseError(
            case,
            "shapes differ",
            found=f"{prediction.labels.shape}",
            expected=f"{reference.labels.shape}, the reference's",
        )
    if not np.allclose(reference.affine, prediction.affine, rtol=0, atol=_AFFINE_TOLERANCE):
        raise CaseError(
            case,
            "affines differ",
            found=str(prediction.affine[:3].round(3).tolist()),
            expected=f"{reference.affine[:3].round(3).tolist()}, the reference's",
        )


def unmatched(reference: Mapping[str, object], prediction: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """IDs that have no prediction, and IDs that have no reference."""
    return sorted(set(reference) - set(prediction)), sorted(set(prediction) - set(reference))
