"""Layers of OpenVINO graphs, whose weights are taken by name from a network's tensors and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

from inference.errors import BundleError

_SPATIAL: Final = (2, 3, 4)
# Stride, pads before and after, dilation of a convolution of one voxel.
_SAME: Final = ([1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1])


class Layers:
    """Layers whose weights are taken from tensors by name, each in the shape that the architecture gives it."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()

    def take(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A tensor of a given shape. Raises BundleError where it is not there or not so."""
        if name not in self._tensors:
            raise BundleError(f"tensors do not fit the network: missing {name}")
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise BundleError(f"tensor {name}: found shape {tensor.shape}, expected {shape}")
        if not np.isfinite(tensor).all():
            raise BundleError(f"tensor {name}: found values that are not finite")
        self._taken.add(name)
        return tensor

    def close(self) -> None:
        """Refuse, with a BundleError, tensors that no layer has taken."""
        left = sorted(set(self._tensors) - self._taken)
        if left:
            raise BundleError(f"tensors do not fit the network: unexpected {', '.join(left[:4])}")

    def convolution(
        self, x: openvino.Node, name: str, shape: Sequence[int], stride: Sequence[int] = (1, 1, 1), *, bias: bool = True
    ) -> openvino.Node:
        """A convolution with weights of `shape` (out, in, Z, Y, X), padded so that stride 1 keeps the size."""
        weights = self.take(f"{name}.weight", *shape)
        pads = [size // 2 for size in shape[2:]]
        y = opset13.convolution(x, _constant(weights), list(stride), pads, pads, [1, 1, 1])
        return self.biased(y, name, shape[0]) if bias else y

    def pointwise_transposed(self, x: openvino.Node, name: str, channels: int, outputs: int) -> openvino.Node:
        """A transposed convolution of one voxel and stride 1, without its bias."""
        weights = self.take(f"{name}.weight", channels, outputs, 1, 1, 1).swapaxes(0, 1)
        return opset13.convolution(x, _constant(weights), *_SAME)

    def spread(self, x: openvino.Node, name: str, channels: int, outputs: int) -> openvino.Node:
        """A transposed convolution of one voxel and stride 2, one voxel later along each axis and without its bias."""
        y = self.pointwise_transposed(x, name, channels, outputs)
        # Its results lie at odd positions among zeros, so they are interleaved with seven zeros.
        last_of_eight = np.zeros((outputs, 8, 1, 1, 1, 1), np.float32)
        last_of_eight[:, 7] = 1
        return opset13.depth_to_space(opset13.group_convolution(y, _constant(last_of_eight), *_SAME), "depth_first", 2)

    def depthwise(self, x: openvino.Node, name: str, channels: int, kernel: int, stride: int) -> openvino.Node:
        """A convolution of each channel by itself, without its bias, which the norm after it takes away."""
        weights = self.take(f"{name}.weight", channels, 1, kernel, kernel, kernel)
        pads = [kernel // 2] * 3
        y = opset13.group_convolution(x, _constant(weights[:, None]), [stride] * 3, pads, pads, [1, 1, 1])
        self.drop_bias(name, channels)
        return y

    def transposed_depthwise(
        self, x: openvino.Node, name: str, channels: int, kernel: int, *, thin: bool
    ) -> openvino.Node:
        """A transposed convolution of stride 2 of each channel by itself: n voxels become 2n - 1. Without its bias.

        `thin` is whether the input can be one voxel thick.
        """
        # Written as eight ordinary convolutions, one per parity of the output's position, whose results are
        # interleaved: the same sums, and about twice as fast as the library's transposed one.
        weights = self.take(f"{name}.weight", channels, 1, kernel, kernel, kernel)
        select, before = phases(kernel)
        taps = np.einsum("cijk,api,bqj,drk->cabdpqr", weights[:, 0], select, select, select)
        after = select.shape[1] - 1 - before
        grouped = taps.reshape(channels, 8, 1, *select.shape[1:2] * 3)

        def convolved(filters: NDArray[np.float32]) -> openvino.Node:
            return opset13.group_convolution(x, _constant(filters), [1] * 3, [before] * 3, [after] * 3, [1, 1, 1])

        # The eight are one operation with eight outputs a channel. In bfloat16 that reads memory which nobody wrote
        # where its output is one voxel thick along Z (seen in OpenVINO 2026.4 with AVX-512 and AMX): there they stay
        # apart.
        if thin:
            apart = opset13.concat([convolved(grouped[:, phase : phase + 1]) for phase in range(8)], 1)
            whole = opset13.depth_to_space(apart, "blocks_first", 2)
        else:
            whole = opset13.depth_to_space(convolved(grouped), "depth_first", 2)
        ones = np.ones(3, np.int64)
        self.drop_bias(name, channels)
        return opset13.slice(whole, 0 * ones, -ones, ones, np.array(_SPATIAL))

    def upsampled(self, x: openvino.Node, name: str, shape: Sequence[int]) -> openvino.Node:
        """A transposed convolution with weights of `shape` (in, out, Z, Y, X) whose stride is its kernel."""
        weights = _constant(self.take(f"{name}.weight", *shape))
        return opset13.convolution_backprop_data(x, weights, list(shape[2:]), None, [0] * 3, [0] * 3, [1] * 3)

    def biased(self, x: openvino.Node, name: str, channels: int) -> openvino.Node:
        """`x` plus a bias per channel."""
        return opset13.add(x, _per_channel(self.take(f"{name}.bias", channels)))

    def drop_bias(self, name: str, channels: int) -> None:
        """Check a bias that is not used, because instance norm follows, which takes any constant away."""
        # Leaving it out is exact, and better: OpenVINO sums in single precision, which a large mean harms.
        self.take(f"{name}.bias", channels)

    def norm(self, x: openvino.Node, name: str, channels: int, epsilon: float, *, affine: bool = True) -> openvino.Node:
        """Instance norm, which is group norm with one channel per group."""
        y = opset13.mvn(x, np.array(_SPATIAL), True, epsilon, "inside_sqrt")
        if not affine:
            return y
        scale, shift = (_per_channel(self.take(f"{name}.{part}", channels)) for part in ("weight", "bias"))
        return opset13.add(opset13.multiply(y, scale), shift)


def _constant(array: NDArray[np.float32]) -> openvino.Node:
    return opset13.constant(np.ascontiguousarray(array, np.float32))


def _per_channel(vector: NDArray[np.float32]) -> openvino.Node:
    return _constant(vector.reshape(1, -1, 1, 1, 1))


def phases(kernel: int) -> tuple[NDArray[np.float32], int]:
    """Two ordinary convolutions for a transposed one of stride 2 and padding kernel // 2, along one axis.

    Output o = 2i - p + k takes input i times weight k. So output 2m + r takes input m + (r + p - k) / 2 where that is
    whole. Returns a table (parity r, tap, k) of ones, and how many taps lie before m.
    """
    pad = kernel // 2
    places = [(r, (r + pad - k) // 2, k) for r in (0, 1) for k in range(kernel) if (r + pad - k) % 2 == 0]
    first = min(tap for _, tap, _ in places)
    count = max(tap for _, tap, _ in places) - first + 1
    table = np.zeros((2, count, kernel), np.float32)
    for parity, tap, k in places:
        table[parity, tap - first, k] = 1
    return table, -first
