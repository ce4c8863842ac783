"""The interface of an engine, and the numbers that engines agree on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.bundle.store import Model
from inference.labels import SEQUENCES, regions_from_label_probabilities
from inference.predict.networks import (
    architecture_arguments,
    architecture_name,
    mednext_size,
    network_stride,
    shuffle_factor,
)
from inference.predict.preprocess import Preprocessed
from inference.predict.tiling import MIRRORINGS, Triple, next_multiple, windows
from inference.settings import Profile

# Sizes of a `fast` pass are multiples of this, so that scans of nearly the same size share what an engine prepares.
_COARSE: Final = 8

# Arrays of the widest layer at full resolution that an engine holds (measured with the embedded bundle: .7 OpenVINO in
# bfloat16, .8 torch).
_ACTIVATIONS: Final = 0.75
# Arrays as large as the input that a pass makes beside its activations: of the input, and of the logits twice.
_COPIES: Final = 3

Advance = Callable[[], None]
"""Called after every forward pass."""
Update = Callable[[NDArray[np.float32]], None]
"""Called with what each network says: probabilities (3, Z, Y, X) of WT, TC, ET in its axes, on the crop of the scan.
The array is the engine's own, and changes after the call."""


class Engine(Protocol):
    """Runs networks, for one caller at a time: others wait.

    An engine keeps the networks that it has loaded, so make one and use it for every case.
    """

    @property
    def name(self) -> str:
        """`torch` or `openvino`."""

    @property
    def device(self) -> str:
        """`cpu`, or `cuda:0` and so on."""

    @property
    def description(self) -> str:
        """Library, version, device and precision, for the record of a run."""

    def load(self, model: Model) -> None:
        """Load and check a model's networks, so that one that does not fit is refused before any case is read.

        Raises BundleError, and DeviceError when the device has no room for a network.
        """

    def mean_over_folds(
        self, model: Model, prepared: Preprocessed, profile: Profile, advance: Advance, update: Update | None = None
    ) -> NDArray[np.float32]:
        """Probabilities (3, Z, Y, X) of WT, TC, ET, in the network's axes on the crop: a model's mean over its folds.

        `paper` brings the logits of each fold to the scan's spacing before the sigmoid or softmax, as nnU-Net does;
        `fast` averages probabilities on the network's grid and brings the average to the scan's spacing once, and so
        do both for a model whose tiles are averaged as probabilities. With `update` the single networks are brought
        there as well, one by one.
        """


def heads_of(model: Model) -> int:
    """Outputs of a model's networks: three regions, or four labels with the background."""
    return 3 if model.heads == "regions" else 4


def region_probabilities(logits: NDArray[np.float32], heads: str) -> NDArray[np.float32]:
    """Probabilities (3, ...) of WT, TC, ET from the logits of region heads (3, ...) or label heads (4, ...)."""
    if heads == "regions":
        # The sigmoid as 0.5 (1 + tanh(x / 2)), which does not overflow. In place, because the arrays are large.
        probabilities: NDArray[np.float32] = np.float32(0.5) * logits
        np.tanh(probabilities, out=probabilities)
        probabilities += 1
        probabilities *= np.float32(0.5)
        return probabilities
    # The largest logit becomes 0, so that no power overflows.
    powers = np.exp(logits - logits.max(axis=0))
    return regions_from_label_probabilities(powers / powers.sum(axis=0))


def pass_shape(shape: Sequence[int], architecture: Mapping[str, object]) -> Triple:
    """Size (Z, Y, X) of the one pass of `fast` over an array of `shape`: the next multiple of stride and of 8."""
    # At least two strides along each axis: instance norm of a single voxel is nothing, which torch refuses, and where a
    # network's deepest level is one voxel thick, OpenVINO's convolutions in bfloat16 read memory that nobody wrote.
    stride = network_stride(architecture)
    least = [max(size, 2 * step) for size, step in zip(shape, stride, strict=True)]
    return next_multiple(least, [math.lcm(step, _COARSE) for step in stride])


def pass_bytes(voxels: float, architecture: Mapping[str, object], width: int) -> float:
    """Bytes that a pass over an array of so many voxels takes on a CPU beside the array.

    They are activations, of `width` bytes each, and copies of the array and of its logits.
    """
    activations = voxels / shuffle_factor(architecture) ** 3 * _channels(architecture) * width * _ACTIVATIONS
    return activations + voxels * 4 * len(SEQUENCES) * _COPIES


def mismatch(found: NDArray[np.float32], expected: NDArray[np.float32], most: float) -> str:
    """Reason not to trust logits where others, of the same shape, were expected; or nothing.

    `most` is how far they may be apart: the root mean square of the difference by the standard deviation of what was
    expected.
    """
    # Not of probabilities: trained networks are so sure that noise is no tumour that these agree whatever happens.
    difference = float(np.sqrt(np.square(found - expected).mean()) / expected.std())
    # Written so that an answer that is not a number is a mismatch too.
    return "" if difference < most else f"logits differ by {difference:.3f} of their standard deviation"


def forward_count(shape: Sequence[int], patch: Triple, profile: Profile) -> int:
    """Forward passes of one network over an array of spatial `shape` (Z, Y, X)."""
    if profile is Profile.FAST:
        return 1
    padded = [max(size, least) for size, least in zip(shape, patch, strict=True)]
    return len(windows(padded, patch)) * len(MIRRORINGS)


def _channels(architecture: Mapping[str, object]) -> int:
    """Channels of a network's widest layer at full resolution, by its architecture section of the plans."""
    if architecture_name(architecture) == "MedNeXt":
        size, _ = mednext_size(architecture)
        return size.channels * size.expansion[0]
    features = architecture_arguments(architecture).get("features_per_stage")
    return int(features[0]) if isinstance(features, list | tuple) and features else 0
