"""Changing the grid of an array as nnU-Net 2.8.1 does, by the two functions that its plans name.

`resample_data_or_seg_to_shape` is scikit-image's spline `resize`; `resample_torch_fornnunet` is linear interpolation
(PyTorch's `interpolate` with `align_corners=False`), done here one axis after the other so that it needs no torch.
Both treat a thick-slice axis apart: interpolation in the slices, nearest neighbour across them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from inference.errors import BundleError

SPLINE: Final = "resample_data_or_seg_to_shape"
LINEAR: Final = "resample_torch_fornnunet"
# nnU-Net's `ANISO_THRESHOLD`: a ratio of the largest to the smallest spacing above this makes slices thick.
_THICK: Final = 3.0
# Arguments that a plan may give to each function, and the values that are supported: those that nnU-Net's planner can
# write for images. What else its functions take is refused, because a plan that is half followed gives wrong voxels.
_ACCEPTED: Final[Mapping[str, Mapping[str, tuple[object, ...]]]] = {
    SPLINE: {"is_seg": (False,), "order": (0, 1, 2, 3, 4, 5), "order_z": (0,), "force_separate_z": (None, True, False)},
    LINEAR: {
        "is_seg": (False,),
        "force_separate_z": (None, True, False),
        "memefficient_seg_resampling": (True, False),
        "mode": ("linear",),
        "aniso_axis_mode": ("nearest-exact",),
    },
}


@dataclass(frozen=True)
class Resampling:
    """One of nnU-Net's resampling functions with its arguments."""

    name: str
    """:data:`SPLINE` or :data:`LINEAR`."""
    order: int
    """Order of the splines; without a meaning for :data:`LINEAR`."""
    force_separate_z: bool | None
    """Whether the axis of the largest spacing is treated apart: always, never, or (None) where slices are thick."""


def read_resampling(name: str, arguments: Mapping[str, object]) -> Resampling:
    """The resampling that a plan names (`resampling_fn_data` and `resampling_fn_data_kwargs`, for one).

    Raises BundleError for a function, an argument or a value that is not supported.
    """
    accepted = _ACCEPTED.get(name)
    if accepted is None:
        raise BundleError(f"plans: resampling function {name!r} is not known: expected {' or '.join(_ACCEPTED)}")
    for key, value in arguments.items():
        if key not in accepted or value not in accepted[key]:
            raise BundleError(f"plans: argument {key}={value!r} of {name} is not supported")
    # What is absent is as the functions' own defaults have it.
    order = cast("int", arguments.get("order", 3))
    return Resampling(
        name, order, cast("bool | None", arguments.get("force_separate_z", None if name == LINEAR else False))
    )


def resample(
    array: NDArray[np.float32],
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Resampling,
) -> NDArray[np.float32]:
    """An array (C, A, B, C) on a grid of `shape` over the same extent; the array itself where the shape is its own.

    The spacings (mm, per spatial axis, before and after) only decide whether an axis is treated apart.
    """
    if tuple(array.shape[1:]) == tuple(shape):
        return array
    thick = thick_axis(spacing, new_spacing, resampling.force_separate_z)
    if resampling.name == LINEAR:
        return _resample_linearly(array, shape, thick)
    return _resample_by_splines(array, shape, thick, resampling.order)


def thick_axis(spacing: Sequence[float], new_spacing: Sequence[float], forced: bool | None) -> int | None:
    """The spatial axis that is treated apart, or None (nnU-Net's `determine_do_sep_z_and_axis`)."""
    if forced is False:
        return None
    for candidate in (spacing,) if forced else (spacing, new_spacing):
        if forced or max(candidate) / min(candidate) > _THICK:
            axes = [axis for axis, size in enumerate(candidate) if size == max(candidate)]
            return axes[0] if len(axes) == 1 else None
    return None


def _resample_linearly(array: NDArray[np.float32], shape: Sequence[int], thick: int | None) -> NDArray[np.float32]:
    # Shrinking axes first keeps the arrays in between small.
    for axis in sorted(range(3), key=lambda axis: shape[axis] / array.shape[axis + 1]):
        old, new = array.shape[axis + 1], shape[axis]
        if old == new:
            continue
        if axis == thick:
            # PyTorch's `nearest-exact`, in its precision.
            nearest = np.floor((np.arange(new, dtype=np.float32) + 0.5) * (np.float32(old) / np.float32(new)))
            array = np.take(array, np.minimum(nearest.astype(np.intp), old - 1), axis=axis + 1)
        else:
            array = _interpolated(array, axis + 1, new)
    return array


def _interpolated(array: NDArray[np.float32], axis: int, new: int) -> NDArray[np.float32]:
    """Linear interpolation along one axis to `new` voxels, constant beyond the centres of the outermost."""
    old = array.shape[axis]
    # Rounded to single precision where PyTorch rounds: the scale, and the fused multiply-add after it. Otherwise points
    # that fall on a voxel would now and then lie beside it.
    scale = np.float64(np.float32(old) / np.float32(new))
    points = np.maximum((scale * (np.arange(new) + 0.5) - 0.5).astype(np.float32), 0)
    before = np.minimum(points.astype(np.intp), old - 1)
    fraction = points - before.astype(np.float32)
    along = [1] * array.ndim
    along[axis] = new
    below: NDArray[np.float32] = np.take(array, before, axis=axis)
    above = np.take(array, np.minimum(before + 1, old - 1), axis=axis)
    # In place, for the arrays are large.
    above -= below
    above *= fraction.reshape(along)
    below += above
    return below


def _resample_by_splines(
    array: NDArray[np.float32], shape: Sequence[int], thick: int | None, order: int
) -> NDArray[np.float32]:
    from skimage.transform import resize

    def resized(image: NDArray[np.float64], to: Sequence[int]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = resize(image, to, order, mode="edge", anti_aliasing=False)
        return result

    images = array.astype(np.float64)
    if thick is None:
        return np.stack([resized(image, shape) for image in images]).astype(np.float32)
    in_slices = [size for axis, size in enumerate(shape) if axis != thick]
    slices = np.moveaxis(images, thick + 1, 1)
    planes = np.stack([np.stack([resized(plane, in_slices) for plane in image]) for image in slices])
    scale = slices.shape[1] / shape[thick]
    nearest = np.floor(np.clip(scale * (np.arange(shape[thick]) + 0.5) - 0.5, 0, slices.shape[1] - 1) + 0.5)
    across = np.take(planes, nearest.astype(np.intp), axis=1)
    return np.ascontiguousarray(np.moveaxis(across, 1, thick + 1), np.float32)
