"""The one authority on sequences, labels and regions, and on getting one from the other.

Conventions of BraTS 2023 and later: four co-registered sequences, three tumour labels, three evaluated regions that
contain each other (WT ⊇ TC ⊇ ET).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

SEQUENCES: Final = ("t1n", "t1c", "t2w", "t2f")
"""Order of the first axis of every scan array: native T1, contrast T1, T2, T2-FLAIR."""


class Label(IntEnum):
    """Values of a label map."""

    BACKGROUND = 0
    NCR = 1
    """Necrotic tumour core (NETC in the BraTS 2024 papers)."""
    ED = 2
    """Peritumoural oedema and infiltration (SNFH in the BraTS 2024 papers)."""
    ET = 3
    """Enhancing tumour; 4 in releases up to BraTS 2021."""


TUMOUR_LABELS: Final = (Label.NCR, Label.ED, Label.ET)

REGIONS: Final[Mapping[str, tuple[Label, ...]]] = {
    "WT": (Label.NCR, Label.ED, Label.ET),
    "TC": (Label.NCR, Label.ET),
    "ET": (Label.ET,),
}
"""Whole tumour, tumour core, enhancing tumour. The key order is the order of every region axis and network head."""

# The label of a voxel in WT, TC or ET that is in no region within it (`regions_class_order` of nnU-Net: 2, 1, 3).
_OUTERMOST: Final = (Label.ED, Label.NCR, Label.ET)


def region_mask(labels: NDArray[np.uint8], region: str) -> NDArray[np.bool_]:
    """Where a label map (any shape) shows `region`, one of :data:`REGIONS`."""
    inside: NDArray[np.bool_] = labels != Label.BACKGROUND
    if region == "WT":
        return inside
    first, *further = REGIONS[region]
    np.equal(labels, first, out=inside)
    for label in further:  # np.isin says the same, and takes many times as long
        inside |= labels == label
    return inside


def labels_from_regions(
    probabilities: NDArray[np.float32], thresholds: Sequence[float] = (0.5, 0.5, 0.5)
) -> NDArray[np.uint8]:
    """Labels (X, Y, Z) from region probabilities (3, X, Y, Z) in the order WT, TC, ET.

    Where P(WT) exceeds its threshold the label is ED, then NCR where P(TC) does, then ET where P(ET) does; strictly
    greater, each in place of the one before (nnU-Net's `convert_probabilities_to_segmentation`).
    """
    labels = np.zeros(probabilities.shape[1:], np.uint8)
    for probability, threshold, label in zip(probabilities, thresholds, _OUTERMOST, strict=True):
        labels[probability > threshold] = label
    return labels


def most_probable_labels(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The most probable label (X, Y, Z) by region probabilities (3, X, Y, Z) of networks with label heads.

    Sums over labels go back to their parts exactly: background is 1 - WT, NCR is TC - ET, ED is WT - TC. Also of means
    over networks, since a mean of sums is the sum of means. Equal probabilities fall to the lower label, as in numpy.
    """
    whole, core, enhancing = probabilities
    labels = np.zeros(whole.shape, np.uint8)
    highest = 1 - whole
    for label, probability in ((Label.NCR, core - enhancing), (Label.ED, whole - core), (Label.ET, enhancing)):
        labels[probability > highest] = label
        np.maximum(highest, probability, out=highest)
    return labels


def regions_from_label_probabilities(softmax: NDArray[np.float32]) -> NDArray[np.float32]:
    """Region probabilities (3, ...) from a label head's softmax (4, ...) over background, NCR, ED, ET."""
    _, necrosis, oedema, enhancing = softmax
    return np.stack([necrosis + oedema + enhancing, necrosis + enhancing, enhancing])
