"""Voxels that no scanner meant, mended; and scans that are unlike those that the networks were trained on."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.intake.notes import Notes
from inference.labels import SEQUENCES

# Most voxels of a sequence that count as isolated, in number and as a part of the brain. One public case has a single
# voxel of 32767, which z-scoring would give most of the contrast.
_MOST_SATURATED: Final = 64
_SATURATED_SHARE: Final = 1e-4
# A value is far outside the rest where its distance from the median is this many times that of the next one; in 52
# sequences of public cases the widest natural gap is 1.15.
_GAP: Final = 1.5
# Part of the volume that has to be one value, which all corners have too, for that value to be background.
_BACKGROUND_SHARE: Final = 0.2
# Voxel edges in mm that the networks were trained on.
_SPACING_EXPECTED: Final = (0.9, 1.1)
# Volume in ml of a stripped brain; public cases have 1200 to 1650.
_BRAIN_EXPECTED: Final = (600.0, 2200.0)
# Least part of a skull-stripped volume that is background.
_ZEROS_EXPECTED: Final = 0.2
# Largest value that is accepted: the squares of an image full of larger ones have no sum in float32.
_LARGEST_VALUE: Final = 1e15
# Least difference between two values of a brain: z-scoring takes deviations below 1e-8 for 1e-8, and would leave
# nothing of it.
_SMALLEST_RANGE: Final = 1e-7
# Least number of different values in a sample of a scan's brain voxels: label maps and masks have fewer.
_FEWEST_VALUES: Final = 16
# Voxels of a sequence that are enough for its median and for counting values.
_SAMPLE: Final = 2**16


def mend_voxels(sequence: NDArray[np.float32], notes: Notes) -> None:
    """Mend one sequence (three axes in any order) in place; CaseError where nothing is left to segment.

    Non-finite voxels become 0; a constant background other than 0 becomes 0; isolated voxels far outside the rest get
    the median of their neighbours. `notes` says what was done. What is left has to have values that can be z-scored.
    """
    finite = np.isfinite(sequence)
    if not finite.all():
        count = int(sequence.size - np.count_nonzero(finite))
        sequence[~finite] = 0
        notes.repairs.append(f"{_voxels(count)} not finite, set to 0")
    _zero_background(sequence, notes)
    brain = sequence[sequence != 0]
    if brain.size == 0:
        found = "all voxels 0" if finite.all() else "no finite voxel but 0"
        raise notes.refusal("empty", found=found, expected="a brain")
    if brain.min() == brain.max():
        raise notes.refusal("no contrast", found=f"no value but {brain[0]:g} and 0", expected="a brain")
    if _mend_saturated(sequence, brain, notes):
        brain = sequence[sequence != 0]
    _check_values(brain, notes)


def _voxels(count: int) -> str:
    return "1 voxel" if count == 1 else f"{count} voxels"


def _zero_background(sequence: NDArray[np.float32], notes: Notes) -> None:
    """Set a constant background to 0: networks and brain masks take 0 as outside."""
    value = sequence[0, 0, 0]
    if value == 0 or not (sequence[np.ix_((0, -1), (0, -1), (0, -1))] == value).all():
        return
    background = sequence == value
    if _BACKGROUND_SHARE * sequence.size <= np.count_nonzero(background) < sequence.size:
        sequence[background] = 0
        notes.repairs.append(f"background was {value:g} throughout, set to 0")


def _mend_saturated(sequence: NDArray[np.float32], brain: NDArray[np.float32], notes: Notes) -> bool:
    """Mend isolated voxels far above or below the rest of the brain, which holds the nonzero voxels in any order.

    That order is changed. Returns whether there were such voxels.
    """
    centre = _median(brain[:: max(1, brain.size // _SAMPLE)])
    most = max(1, min(_MOST_SATURATED, int(brain.size * _SATURATED_SHARE)))
    brain.partition((most, brain.size - most - 1))  # in place: the brain of an unstripped head is as large as the scan
    mended = 0
    for sign, word in ((1, "above"), (-1, "below")):
        ends = np.sort(brain[-most - 1 :] if sign > 0 else brain[: most + 1])[::sign]
        distances = sign * (ends.astype(np.float64) - centre)
        gaps = np.flatnonzero((distances[:-1] > 0) & (distances[1:] > _GAP * distances[:-1]))
        if gaps.size == 0:
            continue
        limit = ends[gaps[0]]
        outside = (sequence > limit if sign > 0 else sequence < limit) & (sequence != 0)
        count = sum(_mend_voxel(sequence, place, sign, limit) for place in np.argwhere(outside))
        mended += count
        if count:
            notes.repairs.append(
                f"{_voxels(count)} far {word} the rest (up to {ends[-1]:g}), set to the median of the neighbours"
            )
    return mended > 0


def _mend_voxel(sequence: NDArray[np.float32], place: NDArray[np.int64], sign: int, limit: np.float32) -> bool:
    """Give one voxel the median of its neighbours within the limit, unless they are so few that it is not alone.

    Background, which is 0, is within any limit.
    """
    around = sequence[tuple(slice(max(0, i - 1), i + 2) for i in place)]
    others = around[(sign * around <= sign * limit) | (around == 0)]
    if 2 * others.size < around.size:  # a vessel or calcification that is bright as a whole
        return False
    sequence[tuple(place)] = _median(others)
    return True


def _median(values: NDArray[np.float32]) -> float:
    """The median; halved on the way, since two values in the middle may have no sum in float32."""
    return 2 * float(np.median(values * np.float32(0.5), overwrite_input=True))


def _check_values(brain: NDArray[np.float32], notes: Notes) -> None:
    """Refuse nonzero voxels that z-scoring in float32 would turn into nothing."""
    low, high = float(brain.min()), float(brain.max())
    found = f"values from {low:g} to {high:g}"
    if max(-low, high) > _LARGEST_VALUE:
        raise notes.refusal("intensities", found=found, expected=f"at most {_LARGEST_VALUE:g}")
    if high - low < _SMALLEST_RANGE:
        expected = f"a brain whose values differ by {_SMALLEST_RANGE:g} or more"
        raise notes.refusal("no contrast", found=found, expected=expected)


def odd_anatomy(data: NDArray[np.float32], spacing: tuple[float, float, float]) -> list[str]:
    """Ways in which a scan (4, X, Y, Z) is unlike a skull-stripped brain in atlas space at 1 mm."""
    warnings = []
    low, high = _SPACING_EXPECTED
    if not all(low <= edge <= high for edge in spacing):
        sizes = " × ".join(f"{edge:.3g}" for edge in spacing)
        warnings.append(f"voxels of {sizes} mm: the scan is resampled for the networks, which expect about 1 mm")
    brain = (data != 0).any(axis=0)
    share = 1 - np.count_nonzero(brain) / brain.size
    volume = np.count_nonzero(brain) * float(np.prod(spacing)) / 1000
    if share < _ZEROS_EXPECTED:
        warnings.append(
            f"only {share:.0%} of the voxels are 0: the scan looks unstripped or is in native space; "
            "register it to the atlas and strip the skull first"
        )
    elif not _BRAIN_EXPECTED[0] <= volume <= _BRAIN_EXPECTED[1]:
        low, high = _BRAIN_EXPECTED
        warnings.append(f"brain of {volume:.0f} ml, where {low:.0f} to {high:.0f} are usual")
    return warnings + _odd_values(data)


def _odd_values(data: NDArray[np.float32]) -> list[str]:
    """Sequences that hold too few values for a scan, or are copies of one another."""
    warnings = []
    step = max(1, data[0].size // _SAMPLE)
    samples = [sequence.reshape(-1, order="A")[::step] for sequence in data]  # in memory's order: nothing is copied
    for name, sample in zip(SEQUENCES, samples, strict=True):
        values = np.unique(sample[sample != 0])
        if values.size < _FEWEST_VALUES:
            warnings.append(f"{name}: only {values.size} different values in a sample, unlike a scan")
    for (i, first), (j, second) in itertools.combinations(enumerate(samples), 2):
        # The samples first: images that differ do so there already.
        if np.array_equal(first, second) and np.array_equal(data[i], data[j]):
            warnings.append(f"{SEQUENCES[i]} and {SEQUENCES[j]} are the same image")
    return warnings
