"""Synthetic four-sequence brains with gliomas whose truth is known.

For the demo, the tests, and as further training data. Everything is drawn in the frame of the SRI24 atlas,
240 × 240 × 155 mm, from signed distances and smooth noise: a folded cortex, fissures, ventricles, deep grey nuclei,
cerebellum and brainstem; then a tumour of several lobes with a necrotic core, an enhancing rim and oedema that follows
white matter. Low-frequency fields are made on a lattice of a few millimetres and interpolated, so that a full-size case
takes seconds. Positions are in mm of that frame, in canonical RAS.

Tissue intensities are such that the parts of tumours come out near their means over 44 real cases (20 adult gliomas and
24 of BraTS-Africa), each sequence z-scored over its brain. One does not: enhancing tumour is brighter in t1c, so that a
thin rim in thick slices still stands out. Healthy tissue has somewhat more contrast than real brains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from inference.files import whole_file
from inference.labels import SEQUENCES
from training.data.phantoms.head import draw_head, tissues_of
from training.data.phantoms.lattice import Canvas, Volume
from training.data.phantoms.picture import image_of
from training.data.phantoms.tumour import draw_tumour, labels_of, place, tumour_fields, tumour_parts


@dataclass(frozen=True)
class Phantom:
    """A synthetic case."""

    data: Volume
    """(4, X, Y, Z), sequences in the order of `SEQUENCES`, canonical RAS, background exactly 0."""
    labels: NDArray[np.uint8]
    """(X, Y, Z), the truth."""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Voxel size along X, Y, Z in mm, as it is written."""


def make_phantom(seed: int, shape: tuple[int, int, int] = (240, 240, 155)) -> Phantom:
    """A brain with a glioma, deterministic by `seed`.

    The frame of `shape` voxels always shows one whole brain where SRI24 has it: with fewer voxels they are larger,
    though still called 1 mm, which is all that training takes.
    """
    # The second number keeps phantoms apart from whatever else the same seed starts. A stream for each step, so that
    # a change of one leaves the others as they are.
    anatomy_rng, tumour_rng, border_rng, image_rng = np.random.default_rng([seed, 0x9B]).spawn(4)
    tumour = draw_tumour(tumour_rng)
    canvas = Canvas.of_shape(shape)
    head = draw_head(anatomy_rng)
    # Placed in the healthy head, which the tumour then pushes: all that follows is drawn in the pushed one.
    centres = place(tumour, head, tumour_rng)
    pushed = head.pushed(centres[0], tumour.radius, tumour.push)
    fine = canvas.interpolate(pushed.fields)
    tissues = tissues_of(fine, pushed)
    core, reach = tumour_fields(tumour, centres, pushed, border_rng)
    fine |= canvas.interpolate({"core": core, "reach": reach})
    parts = tumour_parts(tumour, canvas, fine, tissues, border_rng)
    data = np.zeros((len(SEQUENCES), *shape), np.float32)
    data[:, *canvas.box] = image_of(tissues | parts, fine, canvas, image_rng)
    truth = np.zeros(shape, np.uint8)
    truth[canvas.box] = labels_of(parts, fine["depth"] > 0)
    return Phantom(data, truth)


def write_phantom(
    folder: Path, case_id: str, phantom: Phantom, orientation: str = "RAS", with_labels: bool = False
) -> Path:
    """Write `<folder>/<case_id>/<case_id>-t1n.nii.gz` and so on; returns the case's folder.

    Files are stored in `orientation` (three axis codes). `with_labels` also writes the truth as `<case_id>-seg.nii.gz`.
    World coordinates are the same in every orientation.
    """
    case = folder / case_id
    case.mkdir(parents=True, exist_ok=True)
    names = [*SEQUENCES, "seg"] if with_labels else SEQUENCES
    affine = np.diag((*phantom.spacing, 1.0))
    # The middle of the array is the origin of the world.
    affine[:3, 3] = -np.array(phantom.spacing) * (np.array(phantom.labels.shape) - 1) / 2
    wanted = nib.orientations.axcodes2ornt(tuple(orientation.upper()))
    canonical = nib.orientations.axcodes2ornt("RAS")
    for name, volume in zip(names, [*phantom.data, phantom.labels], strict=False):
        image = nib.Nifti1Image(volume, affine)
        stored = image.as_reoriented(nib.orientations.ornt_transform(canonical, wanted))
        stored.header.set_xyzt_units("mm")
        with whole_file(case / f"{case_id}-{name}.nii.gz") as unfinished:
            nib.save(stored, unfinished)
    return case
