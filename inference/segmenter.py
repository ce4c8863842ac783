"""The Python interface: a bundle loaded once, and cases given as files, images or arrays."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from inference.case import System, describe, open_system, segment
from inference.errors import CaseError, UsageError
from inference.files import check_name, whole_file
from inference.intake.cases import Case, digest_scans
from inference.intake.label_map import image_bytes
from inference.intake.scan import read_scan
from inference.labels import SEQUENCES
from inference.report.record import CaseRecord
from inference.settings import EMBEDDED, EngineChoice, ProfileChoice

SequenceLike: TypeAlias = "str | PathLike[str] | nib.spatialimages.SpatialImage | tuple[ArrayLike, ArrayLike]"
"""A path, a nibabel image, or an array (X, Y, Z) with its affine (4, 4)."""


@dataclass(frozen=True)
class Segmentation:
    """The result for one case."""

    labels: NDArray[np.uint8]
    """(X, Y, Z) in the orientation and geometry of the t1n: 0 background, 1 necrosis, 2 oedema, 3 enhancing tumour."""
    affine: NDArray[np.float64]
    """(4, 4), voxel indices of `labels` to world mm (RAS+)."""
    image: nib.Nifti1Image
    """The same as an image, with all codes of the t1n's header."""
    record: CaseRecord
    """Volumes, subtype, thresholds, repairs and warnings."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the image to `path` (.nii.gz or .nii)."""
        with whole_file(Path(path)) as unfinished:
            nib.save(self.image, unfinished)


class Segmenter:
    """A loaded bundle that segments cases; several threads may use it, and take turns."""

    def __init__(self, system: System) -> None:
        self._system = system
        # Engines keep one set of buffers, and refinement's libraries have settings of their process.
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls,
        bundle: str | PathLike[str] = EMBEDDED,
        *,
        profile: ProfileChoice = "auto",
        engine: EngineChoice = "auto",
        device: str = "auto",
        threads: int | None = None,
    ) -> Segmenter:
        """Verify and load the bundle in a folder.

        `profile`: paper (tiles and mirroring) or fast; auto is paper on a GPU and fast on a CPU. `device`: auto, cpu,
        cuda or cuda:N. Raises BundleError or DeviceError.
        """
        return cls(open_system(Path(bundle), profile=profile, engine=engine, device=device, threads=threads))

    def segment(
        self, *, t1n: SequenceLike, t1c: SequenceLike, t2w: SequenceLike, t2f: SequenceLike, case: str = "case"
    ) -> Segmentation:
        """Segment one case, each sequence a path, a nibabel image or a pair (array (X, Y, Z), affine (4, 4)).

        `case` is what errors and the record call it. Raises CaseError for what is wrong with the scans, and UsageError
        for a `case` that could not be the name of a file, or a sequence that is none of these.
        """
        try:
            check_name(case)
        except CaseError as error:
            raise UsageError(f"case: {error}") from error
        begin = time.perf_counter()
        given = dict(zip(SEQUENCES, (t1n, t1c, t2w, t2f), strict=True))
        # Images and arrays become files, so that every case passes the same checks.
        with tempfile.TemporaryDirectory() as scratch:
            paths = {name: _as_file(sequence, name, Path(scratch)) for name, sequence in given.items()}
            digest, scan = digest_scans(Case(case, paths)), read_scan(Case(case, paths))
        read = time.perf_counter()
        with self._turn:
            result = segment(scan, self._system)
        seconds = {"read": round(read - begin, 3), "segment": round(time.perf_counter() - read, 3)}
        # The image that would be read back from the file of the command line, held in memory.
        kind = nib.Nifti2Image if isinstance(scan.geometry.header, nib.Nifti2Header) else nib.Nifti1Image
        stamp = self._system.stamp(digest, noted=scan.is_noted)
        read_back = kind.from_bytes(image_bytes(result.labels, scan.geometry, stamp=stamp))
        image = nib.Nifti1Image(np.asarray(read_back.dataobj), read_back.affine, read_back.header)
        record = replace(describe(scan, result), seconds=seconds)
        return Segmentation(np.asarray(image.dataobj), image.affine, image, record)


def _as_file(sequence: SequenceLike, name: str, folder: Path) -> Path:
    """A file that holds a sequence: the given one, or one that is written for it, so that all pass the same checks."""
    if isinstance(sequence, tuple):
        if len(sequence) != 2 or np.shape(sequence[1]) != (4, 4):
            raise UsageError(f"{name}: expected a pair of an array and its 4 × 4 affine")
        # float32, as every sequence is in memory: an array may be of a type that NIfTI has not, such as float16.
        sequence = nib.Nifti1Image(np.asarray(sequence[0], np.float32), np.asarray(sequence[1], np.float64))
    if isinstance(sequence, nib.spatialimages.SpatialImage):
        path = folder / f"{name}.nii"
        nib.save(sequence, path)
        return path
    if isinstance(sequence, np.ndarray):
        raise UsageError(f"{name}: an array needs its affine: pass (array, affine)")
    return Path(sequence)
