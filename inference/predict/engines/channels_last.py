"""Networks rearranged for CUDA: the same mathematics with fewer passes over activations, which lie channels-last.

What bounds these networks on a GPU is the traffic of activations. So whatever is a matrix product is given to torch as
one; depthwise convolutions add up what the norm behind them needs while they write; a norm is folded into the matrix
that follows it, sample by sample, or else applied together with the activation; and biases that a norm takes away again
are left out.

Activations are (batch, Z, Y, X, channels) and contiguous. Every step may overwrite what only it reads.
"""

from __future__ import annotations

from math import prod
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.predict.engines.channels_last_kernels import depthwise, depthwise_transposed, normalise_, sums_of
from inference.predict.networks.mednext import Block, DownBlock, MedNeXt, UpBlock
from inference.predict.networks.sizes import LEVELS

# Convolutions run on tensor cores where their input has a multiple of so many channels.
_ALIGNED: Final = 8


class _UnknownLayerError(Exception):
    """A network holds something that is not known channels last."""


def channels_last(network: nn.Module, precision: torch.dtype = torch.float16) -> nn.Module | None:
    """A network that computes the same logits with less traffic, or None where none is known.

    Known are MedNeXt and PlainConvUNet without deep supervision, with an even number of channels. The result takes
    (batch, in_channels, Z, Y, X) of any floating type and returns logits (batch, out_channels, Z, Y, X) of the given
    precision, whatever autocast says. On CUDA only half precision is fast. It keeps nothing of the network but its
    numbers, as buffers: matrices and filters in the given precision, what belongs to norms in float32.
    """
    try:
        if type(network) is MedNeXt:
            return ChannelsLastMedNeXt(network, precision)
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        if type(network) is PlainConvUNet:
            return ChannelsLastUNet(network, precision)
    except (_UnknownLayerError, AssertionError, AttributeError, LookupError, ValueError):
        # The others where another version of the library has put its modules together otherwise. The network then runs
        # as it is, which is slower and just as right.
        pass
    return None


class _Pointwise(nn.Module):
    """A matrix product per voxel: (batch, Z, Y, X, in_channels) to (batch, Z, Y, X, out_channels)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, precision: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(precision).contiguous())
        self.register_buffer("bias", bias.to(precision))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return torch.addmm(self.bias, x.flatten(0, 3), self.weight.T).view(*x.shape[:4], -1)


class _AnyBlock(nn.Module):
    """The common part of a MedNeXt's blocks."""

    filters: Tensor
    scale: Tensor
    expansion: Tensor
    expansion_bias: Tensor

    def __init__(self, block: Block, precision: torch.dtype) -> None:
        super().__init__()
        expansion, bias = _matrix(block.conv2)
        compression, compression_bias = _matrix(block.conv3)
        if isinstance(block, UpBlock):
            # The shortcut's bias is all that it gives between the voxels that it has a value for: added here, once.
            compression_bias = compression_bias + _matrix(block.res_conv)[1]
        shift = block.norm.bias.detach()
        self.epsilon = block.norm.eps
        self.register_buffer("filters", _filters(block.conv1).to(precision))
        self.register_buffer("scale", block.norm.weight.detach())
        self.register_buffer("expansion", expansion.to(precision))
        # The depthwise convolution's own bias is left out: the norm behind it takes any constant away.
        self.register_buffer("expansion_bias", bias + expansion @ shift)
        self.compression = _Pointwise(compression, compression_bias, precision)

    def _changed(self, y: Tensor, sums: Tensor) -> Tensor:
        """Norm, expansion, GELU and compression of the depthwise convolution `y`, whose `sums` are known."""
        mean, factor = _standardising(sums, _voxels(y), self.scale, self.epsilon)
        # Norm and expansion in one: matrices (batch, hidden, channels) and biases (batch, hidden).
        matrices = (self.expansion * factor[:, None]).to(self.expansion.dtype)
        # Of the matrices as they were rounded, so that the mean goes away entirely.
        biases = (self.expansion_bias - (matrices * mean[:, None]).sum(2)).to(self.expansion.dtype)
        hidden = y.new_empty((*y.shape[:4], matrices.shape[1]))
        for sample, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
            torch.addmm(bias, y[sample].flatten(0, 2), matrix.T, out=hidden[sample].flatten(0, 2))
        # By its name in the dispatcher: torch.nn.functional has no GELU that works in place.
        changed: Tensor = self.compression(torch.ops.aten.gelu_(hidden))
        return changed


class _Block(_AnyBlock):
    """A block that keeps the size. Overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, Z, Y, X, channels) to the same."""
        return x.add_(self._changed(*depthwise(x, self.filters)))


class _DownBlock(_AnyBlock):
    """A block that halves every spatial size. Leaves its input as it is."""

    def __init__(self, block: DownBlock, precision: torch.dtype) -> None:
        super().__init__(block, precision)
        self.shortcut = _Pointwise(*_matrix(block.res_conv), precision)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, Z, Y, X, in_channels) to (batch, Z/2, Y/2, X/2, out_channels)."""
        return self._changed(*depthwise(x, self.filters, stride=2)).add_(self.shortcut(x[:, ::2, ::2, ::2]))


class _UpBlock(_AnyBlock):
    """A block that doubles every spatial size and is added to a skip connection, which it overwrites."""

    def __init__(self, block: UpBlock, precision: torch.dtype) -> None:
        super().__init__(block, precision)
        weight, bias = _matrix(block.res_conv)
        self.shortcut = _Pointwise(weight, torch.zeros_like(bias), precision)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(batch, Z, Y, X, in_channels) and a skip (batch, 2Z, 2Y, 2X, out_channels) to the shape of the skip."""
        # One voxel later along each axis: the reference pads one of zeros in front.
        skip[:, 1:, 1:, 1:].add_(self._changed(*depthwise_transposed(x, self.filters)))
        skip[:, 1::2, 1::2, 1::2].add_(self.shortcut(x))
        return skip


class ChannelsLastMedNeXt(nn.Module):
    """Takes (batch, in_channels, Z, Y, X) and returns logits (batch, out_channels, Z, Y, X)."""

    def __init__(self, network: MedNeXt, precision: torch.dtype) -> None:
        super().__init__()

        def block(found: nn.Module) -> nn.Module:
            assert isinstance(found, Block), "MedNeXt has no other blocks"
            kinds: dict[type[Block], type[_AnyBlock]] = {Block: _Block, DownBlock: _DownBlock, UpBlock: _UpBlock}
            return kinds[type(found)](found, precision)

        def stage(name: str) -> nn.Module:
            return nn.Sequential(*map(block, network.get_submodule(name).children()))

        _require(not network.deep_supervision and network.stem.out_channels % 2 == 0)
        levels = range(LEVELS)
        self.stem = _Pointwise(*_matrix(network.stem), precision)
        self.encoder = nn.ModuleList(stage(f"enc_block_{level}") for level in levels)
        self.down = nn.ModuleList(block(network.get_submodule(f"down_{level}")) for level in levels)
        self.bottleneck = stage("bottleneck")
        self.up = nn.ModuleList(block(network.get_submodule(f"up_{level}")) for level in reversed(levels))
        self.decoder = nn.ModuleList(stage(f"dec_block_{level}") for level in reversed(levels))
        self.head = _Pointwise(*_matrix(network.get_submodule("out_0.conv_out")), precision)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        with torch.autocast(x.device.type, enabled=False):
            x = self.stem(_moved(x, x.shape[1], self.stem.weight.dtype))
            skips: list[Tensor] = []
            for stage, down in zip(self.encoder, self.down, strict=True):
                skips.append(stage(x))
                x = down(skips[-1])
            x = self.bottleneck(x)
            for up, stage in zip(self.up, self.decoder, strict=True):
                x = stage(up(x, skips.pop()))
            return _logits(self.head, x)


class _ConvNorm(nn.Module):
    """Convolution, instance norm and leaky ReLU: (batch, Z, Y, X, in_channels) to (batch, Z', Y', X', out_channels)."""

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, layers: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        conv, norm, activation = layers.children()
        if type(conv) is not nn.Conv3d or type(norm) is not nn.InstanceNorm3d or type(activation) is not nn.LeakyReLU:
            raise _UnknownLayerError
        _require(conv.groups == 1 and conv.dilation == (1, 1, 1) and conv.padding_mode == "zeros")
        _require(not isinstance(conv.padding, str) and conv.out_channels % 2 == 0)
        _require(norm.affine and not norm.track_running_stats)
        self.stride, self.padding = conv.stride, conv.padding
        self.epsilon, self.slope = norm.eps, float(activation.negative_slope)
        # Without a bias, which the norm takes away.
        self.register_buffer("weight", _as_filters(conv.weight.detach().to(precision)))
        self.register_buffer("scale", norm.weight.detach())
        self.register_buffer("shift", norm.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = functional.conv3d(x.permute(0, 4, 1, 2, 3), self.weight, None, self.stride, self.padding)
        y = y.permute(0, 2, 3, 4, 1).contiguous()
        mean, factor = _standardising(sums_of(y), _voxels(y), self.scale, self.epsilon)
        return normalise_(y, factor, self.shift - mean * factor, self.slope)


class _Upsampling(nn.Module):
    """A transposed convolution whose stride is its kernel, and the skip connection behind it along the channels."""

    def __init__(self, conv: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        assert isinstance(conv, nn.ConvTranspose3d), "as UNetDecoder builds it"
        _require(conv.stride == conv.kernel_size and conv.padding == conv.output_padding == (0, 0, 0))
        _require(conv.groups == 1 and conv.dilation == (1, 1, 1))
        self.stride, self.out_channels = conv.stride, conv.out_channels
        weight = conv.weight.detach()
        bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        matrix = weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
        self.voxels = _Pointwise(matrix, bias.repeat(prod(conv.stride)), precision)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        batch, *sizes, _ = x.shape
        joined = skip.new_empty((*skip.shape[:4], self.out_channels + skip.shape[4]))
        # Each voxel becomes a block of its own, and the blocks lie where the convolution would have written them.
        blocks = joined.view(batch, *(part for pair in zip(sizes, self.stride, strict=True) for part in pair), -1)
        found = self.voxels(x).view(batch, *sizes, *self.stride, self.out_channels)
        blocks[..., : self.out_channels] = found.permute(0, 1, 4, 2, 5, 3, 6, 7)
        joined[..., self.out_channels :] = skip
        return joined


class ChannelsLastUNet(nn.Module):
    """Takes (batch, in_channels, Z, Y, X) and returns logits (batch, out_channels, Z, Y, X)."""

    def __init__(self, network: nn.Module, precision: torch.dtype) -> None:
        super().__init__()

        def stack(name: str) -> nn.Sequential:
            convs = network.get_submodule(name).children()
            return nn.Sequential(*(_ConvNorm(conv.get_submodule("all_modules"), precision) for conv in convs))

        decoder = network.get_submodule("decoder")
        steps = range(len(list(decoder.get_submodule("transpconvs").children())))
        _require(not decoder.deep_supervision)
        self.encoder = nn.ModuleList(stack(f"encoder.stages.{level}.0.convs") for level in range(len(steps) + 1))
        self.up = nn.ModuleList(_Upsampling(decoder.get_submodule(f"transpconvs.{step}"), precision) for step in steps)
        self.decoder = nn.ModuleList(stack(f"decoder.stages.{step}.convs") for step in steps)
        self.head = _Pointwise(*_matrix(decoder.get_submodule(f"seg_layers.{steps[-1]}")), precision)
        first = self.get_submodule("encoder.0.0")
        assert isinstance(first, _ConvNorm), "as built above"
        # The scan has four channels: with zeros beside them the first convolution runs on tensor cores, too.
        first.weight = _as_filters(functional.pad(first.weight, [0] * 7 + [-first.weight.shape[1] % _ALIGNED]))
        self.channels = first.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        with torch.autocast(x.device.type, enabled=False):
            x = _moved(x, self.channels, self.head.weight.dtype)
            skips: list[Tensor] = []
            for stage in self.encoder:
                x = stage(x)
                skips.append(x)
            skips.pop()
            for up, stage in zip(self.up, self.decoder, strict=True):
                x = stage(up(x, skips.pop()))
            return _logits(self.head, x)


def _require(known: bool) -> None:
    if not known:
        raise _UnknownLayerError


def _standardising(sums: Tensor, voxels: int, scale: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean and factor of a norm, (batch, channels) each, from sums (batch, 2, channels)."""
    mean, square = (sums / voxels).unbind(1)
    # Rounding can make the variance of a constant channel negative.
    return mean, (square - mean * mean).clamp_(min=0).add_(epsilon).rsqrt_().mul_(scale)


def _voxels(x: Tensor) -> int:
    return prod(x.shape[1:4])


def _moved(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """(batch, C, Z, Y, X) as (batch, Z, Y, X, channels), with zeros for the channels beyond C."""
    y = x.new_zeros((len(x), *x.shape[2:], channels), dtype=dtype)
    y[..., : x.shape[1]] = x.permute(0, 2, 3, 4, 1)
    return y


def _logits(head: _Pointwise, x: Tensor) -> Tensor:
    """(batch, Z, Y, X, channels) to (batch, heads, Z, Y, X): the product that has the voxels last already."""
    weights = head.weight.expand(len(x), -1, -1)
    logits = torch.baddbmm(head.bias[:, None], weights, x.flatten(1, 3).mT)
    return logits.view(*logits.shape[:2], *x.shape[1:4])


def _matrix(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Matrix (out_channels, in_channels) and bias (out_channels) of a convolution of one voxel, transposed or not."""
    assert isinstance(conv, (nn.Conv3d, nn.ConvTranspose3d)), "pointwise convolutions are asked for"
    weight = conv.weight.detach().flatten(1)
    weight = weight if isinstance(conv, nn.Conv3d) else weight.T
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()


def _filters(conv: nn.Module) -> Tensor:
    """(k, k, k, channels) of a depthwise convolution, transposed or not."""
    assert isinstance(conv, (nn.Conv3d, nn.ConvTranspose3d)), "depthwise convolutions are asked for"
    return conv.weight.detach()[:, 0].permute(1, 2, 3, 0).contiguous()


def _as_filters(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last_3d)
