"""From a scan to the array that a network sees, and from a network's grid back to the scan's.

The same steps as nnU-Net 2.8.1's `DefaultPreprocessor` (transpose, crop to nonzero, z-score, resample), without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.boxes import Box, bounding_box
from inference.errors import BundleError
from inference.predict.resampling import Resampling, read_resampling, resample
from inference.predict.tiling import Triple
from inference.schema import Positive, convert


@dataclass(frozen=True)
class Plan:
    """The part of a plan that prediction needs. Axes are the network's: (Z, Y, X) unless the plan transposes them."""

    spacing: tuple[float, float, float]
    """Voxel size in mm of the network's grid."""
    patch: Triple
    """Size of the patch that the network was trained on."""
    masked: tuple[bool, ...]
    """Per sequence: whether mean and deviation come from the brain alone, and the rest stays zero."""
    transpose: Triple
    """nnU-Net's `transpose_forward`: which of (Z, Y, X) each of the network's axes is."""
    data_resampling: Resampling
    """From the scan's grid to the network's."""
    logits_resampling: Resampling
    """For logits, back to the scan's grid."""

    @property
    def preprocessing(self) -> tuple[object, ...]:
        """Equal for plans that make the same array of a scan."""
        return self.spacing, self.masked, self.transpose, self.data_resampling


@dataclass(frozen=True)
class Preprocessed:
    """A scan as a network sees it, and the way back to the scan: to the crop's grid, to its axes, to the whole."""

    array: NDArray[np.float32]
    """(4, Z, Y, X) in the network's axes and on its grid."""
    box: Box
    """Place of the crop in (X, Y, Z) of the scan as it was turned to `orientation`."""
    scan_shape: tuple[int, ...]
    """(X, Y, Z) of the whole scan."""
    crop_shape: tuple[int, ...]
    """Size of the crop at the scan's own spacing, in the network's axes."""
    crop_spacing: tuple[float, ...]
    """The scan's spacing in mm, in the network's axes."""
    plan: Plan
    """The plan that it was made by."""
    orientation: str
    """Orientation of the array: `RAS`, as the scan, or `LPS`."""

    def to_crop_grid(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits or probabilities (C, Z, Y, X) on the network's grid, brought to the crop at the scan's spacing."""
        plan = self.plan
        return resample(array, self.crop_shape, plan.spacing, self.crop_spacing, plan.logits_resampling)

    def to_scan_axes(self, crop: NDArray[np.float32]) -> NDArray[np.float32]:
        """An array (C, Z, Y, X) of the crop in the network's axes as a view (C, X, Y, Z)."""
        back = np.argsort(_axis_order(self.plan))
        return crop.transpose(0, *(int(axis) + 1 for axis in back))

    def to_whole_scan(self, crop: NDArray[np.float32]) -> NDArray[np.float32]:
        """An array (C, X, Y, Z) of the crop as one of the whole scan in RAS, zero outside."""
        whole = np.zeros((crop.shape[0], *self.scan_shape), np.float32)
        _turned(whole, self.orientation)[:, *self.box] = crop
        return whole


_ZScore = Literal["ZScoreNormalization"]


class _PlanFile(msgspec.Struct):
    """A configuration of nnU-Net's plans, with their order of axes; other keys do not concern prediction."""

    normalization_schemes: tuple[_ZScore, _ZScore, _ZScore, _ZScore]
    use_mask_for_norm: tuple[bool, bool, bool, bool]
    spacing: tuple[float, float, float]
    patch_size: tuple[Positive, Positive, Positive]
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, object]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, object]
    transpose_forward: Triple


def read_plan(plans: Mapping[str, object]) -> Plan:
    """Read the part of nnU-Net's plans that prediction needs, from their configuration `3d_fullres`.

    Raises BundleError, naming the key, for what is absent or not supported: a normalisation other than z-score, a
    resampling function that is not nnU-Net's own, a configuration that is not 3-D.
    """
    section = {**plan_section(plans), "transpose_forward": plans.get("transpose_forward", (0, 1, 2))}
    found = convert(section, _PlanFile, BundleError, "plans")
    if sorted(found.transpose_forward) != [0, 1, 2]:
        raise BundleError(f"plans: transpose_forward: found {found.transpose_forward}, expected an order of 0, 1, 2")
    return Plan(
        spacing=found.spacing,
        patch=found.patch_size,
        masked=found.use_mask_for_norm,
        transpose=found.transpose_forward,
        data_resampling=read_resampling(found.resampling_fn_data, found.resampling_fn_data_kwargs),
        logits_resampling=read_resampling(found.resampling_fn_probabilities, found.resampling_fn_probabilities_kwargs),
    )


def plan_section(plans: Mapping[str, object], configuration: str = "3d_fullres") -> Mapping[str, object]:
    """A configuration of nnU-Net's plans, with what it inherits.

    Raises BundleError when it is not there or inherits from itself.
    """
    configurations = plans.get("configurations")
    chain: list[Mapping[str, object]] = []
    name: object = configuration
    while name is not None:
        section = configurations.get(name) if isinstance(configurations, Mapping) else None
        if not isinstance(section, Mapping) or section in chain:
            raise BundleError(f"plans: configuration {name!r} is absent, or inherits from itself")
        chain.append(section)
        name = section.get("inherits_from")
    merged: dict[str, object] = {}
    for section in reversed(chain):
        merged.update(section)
    return merged


def preprocess(
    data: NDArray[np.float32], spacing: Sequence[float], plan: Plan, orientation: str = "RAS"
) -> Preprocessed:
    """Make what a network of `plan` sees of a scan (4, X, Y, Z) in canonical RAS with voxels of `spacing` (x, y, z) mm.

    Turned to `orientation` (`RAS` or `LPS`), cropped to the box of voxels that are not zero in some sequence, z-scored
    per sequence, resampled to the plan's spacing where it differs. The scan is left as it is.
    """
    return preprocess_for_all(data, spacing, [plan], orientation)[0]


def preprocess_for_all(
    data: NDArray[np.float32], spacing: Sequence[float], plans: Sequence[Plan], orientation: str = "RAS"
) -> list[Preprocessed]:
    """Preprocess a scan by several plans, as :func:`preprocess` does; steps that they share are done once."""
    turned = _turned(data, orientation)
    crops: dict[tuple[object, ...], tuple[NDArray[np.float32], Box]] = {}
    made: dict[tuple[object, ...], Preprocessed] = {}
    for plan in plans:
        cropped = plan.masked, plan.transpose
        if cropped not in crops:
            crops[cropped] = _scored_crop(turned, plan)
        if plan.preprocessing not in made:
            crop, box = crops[cropped]
            order = _axis_order(plan)
            crop_spacing = tuple(float(spacing[axis]) for axis in order)
            sizes = zip(crop_spacing, plan.spacing, crop.shape[1:], strict=True)
            # At least 1, where nnU-Net would come to an array without a voxel.
            shape = [max(1, round(old / new * size)) for old, new, size in sizes]
            made[plan.preprocessing] = Preprocessed(
                array=resample(crop, shape, crop_spacing, plan.spacing, plan.data_resampling),
                box=tuple(box[axis] for axis in np.argsort(order)),
                scan_shape=data.shape[1:],
                crop_shape=crop.shape[1:],
                crop_spacing=crop_spacing,
                plan=plan,
                orientation=orientation,
            )
    return [replace(made[plan.preprocessing], plan=plan) for plan in plans]


def _turned(array: NDArray[np.float32], orientation: str) -> NDArray[np.float32]:
    """A view of an array (C, X, Y, Z) in RAS as `orientation` has it, or the other way: LPS has X and Y reversed."""
    return array if orientation == "RAS" else array[:, ::-1, ::-1]


def _scored_crop(data: NDArray[np.float32], plan: Plan) -> tuple[NDArray[np.float32], Box]:
    """The crop (4, Z, Y, X) in the network's axes with its sequences z-scored, and its box in those axes."""
    turned = data.transpose(0, *(axis + 1 for axis in _axis_order(plan)))
    # Background is exactly 0, and voxels of the brain can be negative.
    mask = (turned != 0).any(axis=0)
    # A scan of nothing but zeros is not cropped.
    box = bounding_box(mask) if mask.any() else tuple(slice(0, size) for size in mask.shape)
    brain = _without_holes(mask[box])
    images = [
        _z_score(image, brain if masked else None) for image, masked in zip(turned[:, *box], plan.masked, strict=True)
    ]
    return np.stack(images), box


def _axis_order(plan: Plan) -> Triple:
    """The axis of (X, Y, Z) that each of the network's axes is."""
    first, second, third = plan.transpose
    return 2 - first, 2 - second, 2 - third


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask with its holes filled: background that no path over faces joins to the border of the array."""
    from scipy import ndimage

    # The same as `scipy.ndimage.binary_fill_holes`, in a fraction of its time. Background at the border of a mask's
    # bounding box is joined to the outside, so filling the crop is the same as cropping the filled mask.
    parts, count = ndimage.label(~mask)
    outside = np.zeros(count + 1, bool)
    for axis in range(mask.ndim):
        for side in (0, -1):
            outside[np.take(parts, side, axis=axis)] = True
    outside[0] = False
    filled: NDArray[np.bool_] = ~outside[parts]
    return filled


def _z_score(image: NDArray[np.float32], brain: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """One sequence with mean 0 and deviation 1, in the brain alone where one is given."""
    scored = image.astype(np.float32, order="C")
    inside = ... if brain is None else brain
    values = scored[inside]
    if values.size:
        # nnU-Net's `ZScoreNormalization` bounds the deviation by the same 1e-8.
        scored[inside] = (values - values.mean()) / max(values.std(), 1e-8)
    return scored
