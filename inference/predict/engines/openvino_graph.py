"""OpenVINO graphs straight from an architecture and its tensors, without torch: nothing to import, trace or convert.

Both networks are rebuilt operation by operation and tested equal to the modules of :mod:`inference.predict.networks`. A
graph takes (1, 4, Z, Y, X) of any spatial size that is a multiple of the network's stride, and returns logits
(1, heads, Z, Y, X).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

from inference.errors import BundleError
from inference.labels import SEQUENCES
from inference.predict.engines.openvino_layers import Layers
from inference.predict.networks import architecture_arguments, architecture_name, mednext_size, shuffle_factor
from inference.predict.networks.sizes import LEVELS
from inference.predict.tiling import Triple

# PyTorch's default in norms.
_EPSILON: Final = 1e-5
_ELEMENTARY: Final = ("Add", "Concat", "Constant", "Convert", "Multiply", "Pad", "Parameter", "Result", "Slice")
_LEARNT: Final = ("Convolution", "ConvolutionBackpropData", "Gelu", "GroupConvolution", "MVN", "PRelu")
OPERATIONS: Final = frozenset((*_ELEMENTARY, *_LEARNT, "DepthToSpace", "SpaceToDepth"))
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
    layers = Layers(tensors)
    scan = opset13.parameter([1, len(SEQUENCES), -1, -1, -1], np.float32)
    inputs, outputs = len(SEQUENCES) * factor**3, heads * factor**3
    x = scan if factor == 1 else opset13.space_to_depth(scan, "depth_first", factor)
    if name == "MedNeXt":
        logits = _mednext(layers, x, architecture, inputs, outputs)
    elif name == "PlainConvUNet":
        logits = _unet(layers, x, _unet_sizes(architecture_arguments(architecture)), inputs, outputs)
    else:
        raise UnsupportedGraphError(f"{name} has no OpenVINO graph here")
    layers.close()
    logits = logits if factor == 1 else opset13.depth_to_space(logits, "depth_first", factor)
    return openvino.Model([logits], [scan], name)


def _mednext(
    layers: Layers, scan: openvino.Node, architecture: Mapping[str, object], inputs: int, heads: int
) -> openvino.Node:
    size, kernel = mednext_size(architecture)
    widths = [size.channels * 2**level for level in range(LEVELS + 1)]

    def changed(x: openvino.Node, name: str, before: int, after: int, ratio: int) -> openvino.Node:
        inner = ratio * before
        x = layers.norm(x, f"{name}.norm", before, _EPSILON)
        # PyTorch's GELU is the exact one, by the error function.
        x = opset13.gelu(layers.convolution(x, f"{name}.conv2", (inner, before, 1, 1, 1)), "erf")
        return layers.convolution(x, f"{name}.conv3", (after, inner, 1, 1, 1))

    def stage(x: openvino.Node, name: str, width: int, index: int) -> openvino.Node:
        for block in range(size.blocks[index]):
            part = f"{name}.{block}"
            y = layers.depthwise(x, f"{part}.conv1", width, kernel, 1)
            x = opset13.add(x, changed(y, part, width, width, size.expansion[index]))
        return x

    def down(x: openvino.Node, level: int) -> openvino.Node:
        name, here, below = f"down_{level}", widths[level], widths[level + 1]
        y = layers.depthwise(x, f"{name}.conv1", here, kernel, 2)
        shortcut = layers.convolution(x, f"{name}.res_conv", (below, here, 1, 1, 1), (2, 2, 2))
        return opset13.add(changed(y, name, here, below, size.expansion[level + 1]), shortcut)

    def up(x: openvino.Node, level: int) -> openvino.Node:
        name, here, below = f"up_{level}", widths[level], widths[level + 1]
        y = layers.transposed_depthwise(x, f"{name}.conv1", below, kernel, thin=level == LEVELS - 1)
        y = changed(y, name, below, here, size.expansion[2 * LEVELS - level])
        shortcut = layers.spread(x, f"{name}.res_conv", below, here)
        # The shortcut's bias lies between its values, too. After it the reference pads one voxel of zeros in front of
        # each axis.
        y = layers.biased(y, f"{name}.res_conv", here)
        y = opset13.pad(y, np.array([0, 0, 1, 1, 1]), np.zeros(5, np.int64), "constant", np.float32(0))
        return opset13.add(y, shortcut)

    x = layers.convolution(scan, "stem", (widths[0], inputs, 1, 1, 1))
    skips = []
    for level in range(LEVELS):
        skips.append(stage(x, f"enc_block_{level}", widths[level], level))
        x = down(skips[-1], level)
    x = stage(x, "bottleneck", widths[LEVELS], LEVELS)
    for level in reversed(range(LEVELS)):
        x = opset13.add(skips[level], up(x, level))
        x = stage(x, f"dec_block_{level}", widths[level], 2 * LEVELS - level)
    return layers.biased(layers.pointwise_transposed(x, "out_0.conv_out", widths[0], heads), "out_0.conv_out", heads)


class _Norm(msgspec.Struct):
    eps: float = _EPSILON
    affine: bool = False


class _Nonlinearity(msgspec.Struct):
    # PyTorch's default of a leaky ReLU.
    negative_slope: float = 0.01


class _UNetSizes(msgspec.Struct):
    """The `arch_kwargs` of a PlainConvUNet that a graph is made of; lists are from full resolution downwards."""

    n_stages: int
    features_per_stage: tuple[int, ...]
    kernel_sizes: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    """By how much each stage shrinks the one before it."""
    n_conv_per_stage: tuple[int, ...]
    n_conv_per_stage_decoder: tuple[int, ...]
    """From the deepest stage upwards."""
    norm_op: str
    nonlin: str
    norm_op_kwargs: _Norm | None = None
    nonlin_kwargs: _Nonlinearity | None = None
    nonlin_first: bool = False
    conv_bias: bool = False


def _unet_sizes(arguments: Mapping[str, object]) -> _UNetSizes:
    """Raises UnsupportedGraphError for what nnU-Net's default planner does not write."""
    try:
        sizes = msgspec.convert(arguments, _UNetSizes)
    except msgspec.ValidationError as error:
        raise UnsupportedGraphError(f"PlainConvUNet with other arguments than nnU-Net plans: {error}") from error
    norm, nonlinearity = (name.rpartition(".")[2] for name in (sizes.norm_op, sizes.nonlin))
    if norm != "InstanceNorm3d" or nonlinearity not in ("LeakyReLU", "ReLU") or sizes.nonlin_first:
        raise UnsupportedGraphError(f"PlainConvUNet with {norm} and {nonlinearity} has no OpenVINO graph here")
    stages = (sizes.features_per_stage, sizes.kernel_sizes, sizes.strides, sizes.n_conv_per_stage)
    if {*map(len, stages), len(sizes.n_conv_per_stage_decoder) + 1} != {sizes.n_stages}:
        raise BundleError("architecture PlainConvUNet: its lists do not have one entry per stage")
    return sizes


def _unet(layers: Layers, scan: openvino.Node, sizes: _UNetSizes, inputs: int, heads: int) -> openvino.Node:
    norm, nonlinearity = sizes.norm_op_kwargs or _Norm(), sizes.nonlin_kwargs or _Nonlinearity()
    # A ReLU is a leaky one of slope 0.
    slope = nonlinearity.negative_slope if sizes.nonlin.endswith("LeakyReLU") else 0.0

    def stage(
        x: openvino.Node, name: str, level: int, before: int, count: int, *, stride: Sequence[int] = (1, 1, 1)
    ) -> openvino.Node:
        """`count` times convolution, norm and nonlinearity; the first has `before` channels and the stride."""
        width = sizes.features_per_stage[level]
        for index in range(count):
            part, shape = f"{name}.{index}", (width, before, *sizes.kernel_sizes[level])
            x = layers.convolution(x, f"{part}.conv", shape, stride, bias=False)
            if sizes.conv_bias:
                layers.drop_bias(f"{part}.conv", width)
            x = layers.norm(x, f"{part}.norm", width, norm.eps, affine=norm.affine)
            x = opset13.prelu(x, opset13.constant(np.array([slope], np.float32)))
            before, stride = width, (1, 1, 1)
        return x

    x, skips, channels = scan, [], inputs
    for level, width in enumerate(sizes.features_per_stage):
        count, stride = sizes.n_conv_per_stage[level], sizes.strides[level]
        x = stage(x, f"encoder.stages.{level}.0.convs", level, channels, count, stride=stride)
        skips.append(x)
        channels = width
    last = sizes.n_stages - 2
    for step, count in enumerate(sizes.n_conv_per_stage_decoder):
        level = last - step
        width, name = sizes.features_per_stage[level], f"decoder.transpconvs.{step}"
        x = layers.upsampled(x, name, (sizes.features_per_stage[level + 1], width, *sizes.strides[level + 1]))
        x = layers.biased(x, name, width) if sizes.conv_bias else x
        x = opset13.concat([x, skips[level]], 1)
        x = stage(x, f"decoder.stages.{step}.convs", level, 2 * width, count)
        if step < last:
            # Heads of deep supervision are among the network's weights, but no part of its answer.
            layers.take(f"decoder.seg_layers.{step}.weight", heads, width, 1, 1, 1)
            layers.take(f"decoder.seg_layers.{step}.bias", heads)
    return layers.convolution(x, f"decoder.seg_layers.{last}", (heads, sizes.features_per_stage[0], 1, 1, 1))
