"""Label maps to score, and the surface distance written down plainly."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage
from surface_distance import lookup_tables

NCR, ED, ET = 1, 2, 3
ISOTROPIC = (1.0, 1.0, 1.0)


def empty(shape=(40, 40, 40)):
    return np.zeros(shape, np.uint8)


def with_boxes(*boxes, shape=(40, 40, 40)):
    """Boxes of (label, first corner, extent), later ones over earlier ones."""
    labels = empty(shape)
    for label, corner, extent in boxes:
        labels[tuple(slice(c, c + e) for c, e in zip(corner, extent, strict=True))] = label
    return labels


def save(labels, path, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.eye(4) if affine is None else affine), path)
    return path


def plain_hausdorff95(reference, prediction, spacing):
    """The algorithm of `surface-distance`, on whole volumes and with distance transforms."""
    table = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    codes = [
        ndimage.correlate(np.pad(side, 1), lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL, mode="constant")
        for side in (reference, prediction)
    ]
    borders = [(code != 0) & (code != 255) for code in codes]
    if not (borders[0].any() and borders[1].any()):
        return np.inf
    far = []
    for here, there in ((0, 1), (1, 0)):
        distances = ndimage.distance_transform_edt(~borders[there], sampling=spacing)[borders[here]]
        pairs = np.array(sorted(zip(distances, table[codes[here]][borders[here]], strict=True)))
        covered = np.cumsum(pairs[:, 1]) / np.sum(pairs[:, 1])
        far.append(pairs[min(np.searchsorted(covered, 0.95), len(pairs) - 1), 0])
    return max(far)


def plain_surface_dice(reference, prediction, spacing, tolerance):
    """nnU-Net's normalised surface Dice with distance transforms."""
    borders = [side & ~ndimage.binary_erosion(side) for side in (reference, prediction)]
    shares = []
    for here, there in ((0, 1), (1, 0)):
        distances = ndimage.distance_transform_edt(~borders[there], sampling=spacing)[borders[here]]
        shares.append(np.mean(distances <= tolerance))
    return sum(shares) / (2 + 1e-8)
