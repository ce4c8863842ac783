"""A case as the networks want it: four sequences read, checked, repaired and in canonical RAS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.intake.cases import Case
from inference.intake.geometry import Geometry, atlas_geometry, check_place
from inference.intake.nifti import Image, open_image, read_voxels, scale_into
from inference.intake.repairs import mend_voxels, odd_anatomy
from inference.labels import SEQUENCES

SIDE_BY_SIDE: Final = 2**24
"""Voxels up to which the four sequences are decoded side by side; larger ones one after another, to save memory."""

# The sequence whose geometry the result takes; organisers compare label maps with it.
_REFERENCE: Final = "t1n"


@dataclass(frozen=True, eq=False)
class Scan:
    """One case, read, checked and repaired."""

    case: str
    """ID of the case."""
    data: NDArray[np.float32]
    """(4, X, Y, Z), canonical RAS, sequences as in `labels.SEQUENCES`. In memory x runs fastest, as in files."""
    spacing: tuple[float, float, float]
    """Voxel edges in mm along the canonical axes."""
    geometry: Geometry
    """Of the stored t1n."""
    repairs: tuple[str, ...]
    """Repairs, each with its sequence."""
    warnings: tuple[str, ...]
    """Oddities that were left alone, each with its sequence."""

    @property
    def is_noted(self) -> bool:
        """Whether there is anything to say about it."""
        return bool(self.repairs or self.warnings)


def read_scan(case: Case) -> Scan:
    """Read, check and repair the four sequences of a case.

    All four headers are compared before any voxel is read: in canonical RAS the shapes must be equal, and every corner
    must lie in the same place to within a tenth of a voxel. Raises CaseError with the file, what was found and what was
    expected.
    """
    images = {sequence: open_image(case.paths[sequence], case.id) for sequence in SEQUENCES}
    reference = images[_REFERENCE].geometry
    for image in images.values():
        check_place(image.geometry, reference, images[_REFERENCE].path.name, image.notes)
        if image.geometry.codes != reference.codes:
            image.notes.repairs.append(f"stored as {image.geometry.codes}, t1n as {reference.codes}: reoriented")
    x, y, z = reference.canonical_shape
    # x runs fastest, as in files, so that both are walked through in the order of memory.
    data = np.empty((len(SEQUENCES), z, y, x), np.float32).transpose(0, 3, 2, 1)
    if x * y * z <= SIDE_BY_SIDE:
        # Decompression and numpy release the interpreter's lock.
        reading = [_readers().submit(_read_sequence, *pair) for pair in zip(images.values(), data, strict=True)]
        wait(reading)  # before any error is raised: the others still write into `data`
        for sequence in reading:
            sequence.result()
    else:
        for image, into in zip(images.values(), data, strict=True):
            _read_sequence(image, into)
    return Scan(
        case=case.id,
        data=data,
        spacing=reference.spacing,
        geometry=reference,
        repairs=_merged({sequence: image.notes.repairs for sequence, image in images.items()}),
        warnings=(
            *_merged({sequence: image.notes.warnings for sequence, image in images.items()}),
            *odd_anatomy(data, reference.spacing),
        ),
    )


@cache
def _readers() -> ThreadPoolExecutor:
    """Threads that are started once and not for every case: one that finds no memory to start with never says so."""
    return ThreadPoolExecutor(len(SEQUENCES), "sequence")


def _read_sequence(image: Image, into: NDArray[np.float32]) -> None:
    """Fill `into` (X, Y, Z; canonical RAS) with the voxels of an image, mended."""
    scale_into(image, image.geometry.to_canonical(read_voxels(image)), into)
    mend_voxels(into.T, image.notes)


def _merged(notes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Notes with their sequence in front; one that all sequences share is said once."""
    shared = [note for note in notes[_REFERENCE] if all(note in others for others in notes.values())]
    single = [f"{sequence}: {note}" for sequence, own in notes.items() for note in own if note not in shared]
    return (*(f"all sequences: {note}" for note in shared), *single)


def any_geometry(paths: Mapping[str, Path]) -> Geometry:
    """A geometry for the empty result of a case that failed: of the first of its sequences whose header can be read.

    That is t1n where possible. Where none can be read, it is the grid of the BraTS atlas.
    """
    for sequence in SEQUENCES:
        try:
            return open_image(paths[sequence], sequence).geometry
        except (KeyError, CaseError):
            continue
    return atlas_geometry()
