"""OpenVINO graphs straight from an architecture and its tensors, without torch: nothing to import, trace or convert.

Both networks are rebuilt operation by operation and tested equal to the modules of :mod:`inference.predict.networks`. A
graph takes (1, 4, Z, Y, X) of any spatial size that is a multiple of the network's stride, and returns logits
(1, heads, Z, Y, X).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

from inference.errors import BundleError
from inference.labels import SEQUENCES
from inference.predict.networks import architecture_arguments, architecture_name, mednext_size, shuffle_factor

_SPATIAL: Final = (2, 3, 4)
_EPSILON: Final = 1e-5
"""PyTorch's default in group norm, which is what MedNeXt uses."""
_LEAK: Final = 0.01
"""PyTorch's default slope of a leaky ReLU."""

_ELEMENTARY: Final = (
    "Add",
    "Concat",
    "Constant",
    "Convert",
    "Multiply",
    "Pad",
    "Parameter",
    "Result",
    "Slice",
    "SpaceToDepth",
)
_LEARNT: Final = ("Convolution", "ConvolutionBackpropData", "DepthToSpace", "Gelu", "GroupConvolution", "MVN", "PRelu")
OPERATIONS: Final = frozenset((*_ELEMENTARY, *_LEARNT))
"""Operations of all graphs, by OpenVINO's names: a stored graph that has another is refused."""


class UnsupportedGraphError(Exception):
    """An architecture that is allowed, but that cannot be built here; PyTorch can."""


def build_graph(
    architecture: Mapping[str, object], heads: int, tensors: Mapping[str, NDArray[np.float32]]
) -> openvino.Model:
    """The graph of a plan's architecture section with the weights of one network.

    Raises BundleError for an unknown architecture and for tensors that are missing, unexpected, misshapen or not
    finite, and UnsupportedGraphError for a residual encoder, or a layer that nnU-Net's default planner does not plan.
    """
    name, factor = architecture_name(architecture), shuffle_factor(architecture)
    layers = _Layers(tensors)
    scan = opset13.parameter([1, len(SEQUENCES), -1, -1, -1], np.float32)
    inputs, outputs = len(SEQUENCES) * factor**3, heads * factor**3
    x = scan if factor == 1 else opset13.space_to_depth(scan, "depth_first", factor)
    if name == "MedNeXt":
        logits = _mednext(layers, x, architecture, inputs, outputs)
    elif name == "PlainConvUNet":
        logits = _unet(layers, x, architecture_arguments(architecture), inputs, outputs)
    else:
        raise UnsupportedGraphError(f"{name} has no OpenVINO graph here")
    layers.close()
    logits = logits if factor == 1 else opset13.depth_to_space(logits, "depth_first", factor)
    return openvino.Model([logits], [scan], name)


class _Layers:
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
        self,
        x: openvino.Node,
        name: str,
        shape: Sequence[int],
        stride: Sequence[int] = (1, 1, 1),
        *,
        bias: bool = True,
    ) -> openvino.Node:
        """A convolution with weights of `shape` (out, in, Z, Y, X), padded so that stride 1 keeps the size."""
        weights = self.take(f"{name}.weight", *shape)
        pads = [size // 2 for size in shape[2:]]
        y = opset13.convolution(x, _constant(weights), list(stride), pads, pads, [1, 1, 1])
        return self.biased(y, name, shape[0]) if bias else y

    def depthwise(self, x: openvino.Node, name: str, channels: int, kernel: int, stride: int) -> openvino.Node:
        """A convolution of each channel by itself, with the bias that the norm after it takes away left out."""
        weights = self.take(f"{name}.weight", channels, 1, kernel, kernel, kernel)
        pads = [kernel // 2] * 3
        y = opset13.group_convolution(x, _constant(weights[:, None]), [stride] * 3, pads, pads, [1, 1, 1])
        self.drop_bias(name, channels)
        return y

    def transposed_depthwise(
        self, x: openvino.Node, name: str, channels: int, kernel: int, *, thin: bool
    ) -> openvino.Node:
        """A transposed convolution of stride 2 of each channel by itself: n voxels become 2n - 1.

        Written as eight ordinary convolutions, one per parity of the output's position, whose results are interleaved:
        the same sums, and about twice as fast as the library's transposed one. Without its bias, too.

        The eight are one operation with eight outputs a channel. In bfloat16 that reads memory which nobody wrote where
        its output is one voxel thick along Z (seen in OpenVINO 2026.4 with AVX-512 and AMX), so they stay apart where
        the input can be so `thin`.
        """
        weights = self.take(f"{name}.weight", channels, 1, kernel, kernel, kernel)
        select, before = _phases(kernel)
        taps = np.einsum("cijk,api,bqj,drk->cabdpqr", weights[:, 0], select, select, select)
        after = select.shape[1] - 1 - before
        grouped = taps.reshape(channels, 8, 1, *select.shape[1:2] * 3)

        def convolved(filters: NDArray[np.float32]) -> openvino.Node:
            return opset13.group_convolution(x, _constant(filters), [1] * 3, [before] * 3, [after] * 3, [1, 1, 1])

        if thin:
            phases = opset13.concat([convolved(grouped[:, phase : phase + 1]) for phase in range(8)], 1)
            whole = opset13.depth_to_space(phases, "blocks_first", 2)
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
        """Check a bias that is not used, because instance norm follows, which takes any constant away.

        Leaving it out is exact, and better: OpenVINO sums in single precision, which a large mean harms.
        """
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


def _phases(kernel: int) -> tuple[NDArray[np.float32], int]:
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


def _mednext(
    layers: _Layers, scan: openvino.Node, architecture: Mapping[str, object], inputs: int, heads: int
) -> openvino.Node:
    size, kernel = mednext_size(architecture)
    levels = len(size.blocks) // 2
    widths = [size.channels * 2**level for level in range(levels + 1)]

    def changed(x: openvino.Node, name: str, widths: tuple[int, int], ratio: int) -> openvino.Node:
        before, after = widths
        inner = ratio * before
        x = layers.norm(x, f"{name}.norm", before, _EPSILON)
        x = opset13.gelu(layers.convolution(x, f"{name}.conv2", (inner, before, 1, 1, 1)), "erf")
        return layers.convolution(x, f"{name}.conv3", (after, inner, 1, 1, 1))

    def stage(x: openvino.Node, name: str, width: int, index: int) -> openvino.Node:
        for block in range(size.blocks[index]):
            part = f"{name}.{block}"
            y = layers.depthwise(x, f"{part}.conv1", width, kernel, 1)
            x = opset13.add(x, changed(y, part, (width, width), size.expansion[index]))
        return x

    def down(x: openvino.Node, level: int) -> openvino.Node:
        name, here, below = f"down_{level}", widths[level], widths[level + 1]
        y = layers.depthwise(x, f"{name}.conv1", here, kernel, 2)
        shortcut = layers.convolution(x, f"{name}.res_conv", (below, here, 1, 1, 1), (2, 2, 2))
        return opset13.add(changed(y, name, (here, below), size.expansion[level + 1]), shortcut)

    def up(x: openvino.Node, level: int) -> openvino.Node:
        name, here, below = f"up_{level}", widths[level], widths[level + 1]
        y = layers.transposed_depthwise(x, f"{name}.conv1", below, kernel, thin=level == levels - 1)
        y = changed(y, name, (below, here), size.expansion[2 * levels - level])
        return _joined(y, _shortcut(layers, x, f"{name}.res_conv", below, here), layers, f"{name}.res_conv", here)

    x = layers.convolution(scan, "stem", (widths[0], inputs, 1, 1, 1))
    skips = []
    for level in range(levels):
        skips.append(stage(x, f"enc_block_{level}", widths[level], level))
        x = down(skips[-1], level)
    x = stage(x, "bottleneck", widths[levels], levels)
    for level in reversed(range(levels)):
        x = opset13.add(skips[level], up(x, level))
        x = stage(x, f"dec_block_{level}", widths[level], 2 * levels - level)
    weights = layers.take("out_0.conv_out.weight", widths[0], heads, 1, 1, 1).swapaxes(0, 1)
    logits = opset13.convolution(x, _constant(weights), [1] * 3, [0] * 3, [0] * 3, [1] * 3)
    return layers.biased(logits, "out_0.conv_out", heads)


def _shortcut(layers: _Layers, x: openvino.Node, name: str, below: int, here: int) -> openvino.Node:
    """A pointwise transposed convolution of stride 2, one voxel later along each axis and without its bias.

    Its results lie at odd positions among zeros: a pointwise convolution, then interleaving with seven zeros.
    """
    weights = layers.take(f"{name}.weight", below, here, 1, 1, 1).swapaxes(0, 1)
    results = opset13.convolution(x, _constant(weights), [1] * 3, [0] * 3, [0] * 3, [1] * 3)
    last_of_eight = np.zeros((here, 8, 1, 1, 1, 1), np.float32)
    last_of_eight[:, 7] = 1
    spread = opset13.group_convolution(results, _constant(last_of_eight), [1] * 3, [0] * 3, [0] * 3, [1] * 3)
    return opset13.depth_to_space(spread, "depth_first", 2)


def _joined(y: openvino.Node, shortcut: openvino.Node, layers: _Layers, name: str, here: int) -> openvino.Node:
    """Sum of a block and its shortcut, with the reference's row of zeros in front of each axis."""
    y = layers.biased(y, name, here)
    front, nothing = np.array([0, 0, 1, 1, 1]), np.zeros(5, np.int64)
    return opset13.add(opset13.pad(y, front, nothing, "constant", np.float32(0)), shortcut)


@dataclass(frozen=True)
class _UNetSizes:
    """The arguments of a PlainConvUNet, per stage from full resolution downwards."""

    features: tuple[int, ...]
    """Channels."""
    kernels: tuple[tuple[int, ...], ...]
    """Kernel sizes (Z, Y, X)."""
    strides: tuple[tuple[int, ...], ...]
    """By how much each stage shrinks the one before it."""
    encoder: tuple[int, ...]
    """Convolutions of the encoder's stages."""
    decoder: tuple[int, ...]
    """Convolutions of the decoder's stages, from the deepest upwards."""
    bias: bool
    """Whether convolutions have a bias."""
    epsilon: float
    """Of instance norm."""
    affine: bool
    """Whether instance norm scales and shifts."""
    slope: float
    """Of the leaky ReLU, 0 for a ReLU."""


def _unet_sizes(arguments: Mapping[str, object]) -> _UNetSizes:
    """Raises UnsupportedGraphError for what nnU-Net's default planner does not write."""
    norm, nonlinearity = (str(arguments.get(key)).rpartition(".")[2] for key in ("norm_op", "nonlin"))
    known = norm == "InstanceNorm3d" and nonlinearity in ("LeakyReLU", "ReLU")
    if not known or arguments.get("nonlin_first", False):
        raise UnsupportedGraphError(f"PlainConvUNet with {norm} and {nonlinearity} has no OpenVINO graph here")
    norm_options, slopes = (_options(arguments.get(key)) for key in ("norm_op_kwargs", "nonlin_kwargs"))
    try:
        kernels, strides = (_triples(arguments[key]) for key in ("kernel_sizes", "strides"))
        features, encoder, decoder = (
            _counts(arguments[key]) for key in ("features_per_stage", "n_conv_per_stage", "n_conv_per_stage_decoder")
        )
    except (KeyError, TypeError) as error:
        raise UnsupportedGraphError(f"PlainConvUNet whose sizes are not given stage by stage: {error}") from error
    lengths = {len(features), len(kernels), len(strides), len(encoder), len(decoder) + 1}
    if lengths != {arguments.get("n_stages")}:
        raise BundleError("architecture PlainConvUNet: its lists do not have one entry per stage")
    return _UNetSizes(
        features=features,
        kernels=kernels,
        strides=strides,
        encoder=encoder,
        decoder=decoder,
        bias=bool(arguments.get("conv_bias", False)),
        epsilon=norm_options.get("eps", _EPSILON),
        affine=bool(norm_options.get("affine", False)),
        slope=slopes.get("negative_slope", _LEAK) if nonlinearity == "LeakyReLU" else 0.0,
    )


def _options(value: object) -> dict[str, float]:
    return {key: float(number) for key, number in value.items()} if isinstance(value, Mapping) else {}


def _counts(value: object) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)) and all(type(count) is int for count in value):
        return tuple(value)
    raise TypeError(f"found {value!r}, expected a list of whole numbers")


def _triples(value: object) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, (list, tuple)):
        return tuple(_counts(stage) for stage in value)
    raise TypeError(f"found {value!r}, expected a list")


def _unet(
    layers: _Layers, scan: openvino.Node, arguments: Mapping[str, object], inputs: int, heads: int
) -> openvino.Node:
    sizes = _unet_sizes(arguments)
    x, skips, channels = scan, [], inputs
    for level, width in enumerate(sizes.features):
        name = f"encoder.stages.{level}.0.convs"
        count, stride = sizes.encoder[level], sizes.strides[level]
        x = _stacked(layers, x, name, sizes, level=level, channels=channels, count=count, stride=stride)
        skips.append(x)
        channels = width
    last = len(sizes.decoder) - 1
    for step, count in enumerate(sizes.decoder):
        level = last - step
        width, name = sizes.features[level], f"decoder.transpconvs.{step}"
        x = layers.upsampled(x, name, (sizes.features[level + 1], width, *sizes.strides[level + 1]))
        x = layers.biased(x, name, width) if sizes.bias else x
        x = opset13.concat([x, skips[level]], 1)
        name = f"decoder.stages.{step}.convs"
        x = _stacked(layers, x, name, sizes, level=level, channels=2 * width, count=count, stride=(1, 1, 1))
        if step < last:
            # Heads of deep supervision are among the network's weights, but no part of its answer.
            layers.take(f"decoder.seg_layers.{step}.weight", heads, width, 1, 1, 1)
            layers.take(f"decoder.seg_layers.{step}.bias", heads)
    return layers.convolution(x, f"decoder.seg_layers.{last}", (heads, sizes.features[0], 1, 1, 1))


def _stacked(
    layers: _Layers,
    x: openvino.Node,
    name: str,
    sizes: _UNetSizes,
    *,
    level: int,
    channels: int,
    count: int,
    stride: Sequence[int],
) -> openvino.Node:
    """`count` times convolution, instance norm and leaky ReLU; the first has `channels` inputs and the stride."""
    width = sizes.features[level]
    for index in range(count):
        part, before = f"{name}.{index}", channels if index == 0 else width
        shape, steps = (width, before, *sizes.kernels[level]), stride if index == 0 else (1, 1, 1)
        x = layers.convolution(x, f"{part}.conv", shape, steps, bias=False)
        if sizes.bias:
            layers.drop_bias(f"{part}.conv", width)
        x = layers.norm(x, f"{part}.norm", width, sizes.epsilon, affine=sizes.affine)
        x = opset13.prelu(x, opset13.constant(np.array([sizes.slope], np.float32)))
    return x
