"""MedNeXt v1 (Roy et al., MICCAI 2023), equal to the reference implementation and with its state-dict names.

Its blocks are the reference's: a depthwise convolution, group norm with one channel per group, and two pointwise
convolutions with a GELU between them. MONAI ships a network of the same name, but it gives the down-sampling blocks
other expansion ratios, so reference checkpoints do not load into it.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from inference.predict.networks.sizes import LEVELS, MedNeXtSize


class ChannelNorm(nn.GroupNorm):
    """Group norm with one channel per group; on CUDA as instance norm, which is the same mathematics."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """The input (batch, channels, Z, Y, X) with mean 0 and deviation 1 per channel, scaled and shifted."""
        # Autocast takes group norm to float32 on CUDA, between convolutions that give and take half precision: the
        # traffic of a network that is bound by it grows by 45 %. Instance norm stays in half, and sums in float32.
        return self.as_instance_norm(input) if input.is_cuda else super().forward(input)

    def as_instance_norm(self, x: Tensor) -> Tensor:
        """The same by another of torch's functions."""
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class Block(nn.Module):
    """Depthwise convolution, norm, expansion, GELU, compression; added to its input where it keeps the size.

    Takes (batch, in_channels, Z, Y, X) and returns (batch, out_channels, Z, Y, X).
    """

    kind: type[nn.Conv3d] | type[nn.ConvTranspose3d] = nn.Conv3d
    """Of the depthwise convolution and of the shortcut."""
    stride = 1

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel_size: int) -> None:
        super().__init__()
        pad, stride = kernel_size // 2, self.stride
        self.conv1 = self.kind(in_channels, in_channels, kernel_size, stride, pad, groups=in_channels)
        self.norm = ChannelNorm(in_channels)
        self.conv2 = nn.Conv3d(in_channels, expansion * in_channels, 1)
        self.act = nn.GELU()
        self.conv3 = nn.Conv3d(expansion * in_channels, out_channels, 1)
        if stride > 1:
            self.res_conv = self.kind(in_channels, out_channels, 1, stride)

    def _changed(self, x: Tensor) -> Tensor:
        changed: Tensor = self.conv3(self.act(self.conv2(self.norm(self.conv1(x)))))
        return changed

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for (batch, in_channels, Z, Y, X)."""
        return x + self._changed(x)


class DownBlock(Block):
    """A block that halves every spatial size, with a strided pointwise convolution as its shortcut."""

    stride = 2

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, Z, Y, X) to (batch, out_channels, Z/2, Y/2, X/2)."""
        shortcut: Tensor = self.res_conv(x)
        return self._changed(x) + shortcut


class UpBlock(Block):
    """A block that doubles every spatial size, with a strided transposed convolution as its shortcut."""

    kind = nn.ConvTranspose3d
    stride = 2

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, Z, Y, X) to (batch, out_channels, 2Z, 2Y, 2X)."""
        # Transposed convolutions of stride 2 give 2n - 1 voxels: the reference pads one of zeros in front of each axis.
        return functional.pad(self._changed(x) + self.res_conv(x), (1, 0, 1, 0, 1, 0))


class Head(nn.Module):
    """Logits from features, by a pointwise convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # Transposed, as the reference stores it: its weight has the channels that come in first.
        self.conv_out = nn.ConvTranspose3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, Z, Y, X) to (batch, out_channels, Z, Y, X)."""
        logits: Tensor = self.conv_out(x)
        return logits


class MedNeXt(nn.Module):
    """The reference's network and state-dict names.

    Takes (batch, in_channels, Z, Y, X) with every spatial size a multiple of 16 and returns logits
    (batch, out_channels, Z, Y, X); with deep supervision a list of five, from full resolution to a sixteenth.
    """

    def __init__(
        self, size: MedNeXtSize, kernel_size: int, in_channels: int, out_channels: int, deep_supervision: bool = False
    ) -> None:
        super().__init__()
        widths = [size.channels * 2**level for level in range(LEVELS + 1)]
        encoder, bottleneck, decoder = size.expansion[:LEVELS], size.expansion[LEVELS], size.expansion[LEVELS + 1 :]
        self.deep_supervision = deep_supervision

        def stage(width: int, expansion: int, blocks: int) -> nn.Sequential:
            block = partial(Block, width, width, expansion, kernel_size)
            return nn.Sequential(*(block() for _ in range(blocks)))

        self.stem = nn.Conv3d(in_channels, widths[0], kernel_size=1)
        for level in range(LEVELS):
            setattr(self, f"enc_block_{level}", stage(widths[level], encoder[level], size.blocks[level]))
            # The reference's down-blocks expand by the ratio of the stage below them, up-blocks by that of their own.
            after = (*encoder[1:], bottleneck)[level]
            setattr(self, f"down_{level}", DownBlock(widths[level], widths[level + 1], after, kernel_size))
        self.bottleneck = stage(widths[LEVELS], bottleneck, size.blocks[LEVELS])
        for step, level in enumerate(reversed(range(LEVELS))):
            width, ratio = widths[level], decoder[step]
            setattr(self, f"up_{level}", UpBlock(widths[level + 1], width, ratio, kernel_size))
            setattr(self, f"dec_block_{level}", stage(width, ratio, size.blocks[LEVELS + 1 + step]))
        for scale in range(LEVELS + 1 if deep_supervision else 1):
            setattr(self, f"out_{scale}", Head(widths[scale], out_channels))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of an input (batch, in_channels, Z, Y, X), as the class describes."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for level in range(LEVELS):
            skips.append(self.get_submodule(f"enc_block_{level}")(x))
            x = self.get_submodule(f"down_{level}")(skips[-1])
        x = self.bottleneck(x)
        deep: list[Tensor] = []
        for level in reversed(range(LEVELS)):
            if self.deep_supervision:
                deep.insert(0, self.get_submodule(f"out_{level + 1}")(x))
            x = skips[level] + self.get_submodule(f"up_{level}")(x)
            x = self.get_submodule(f"dec_block_{level}")(x)
        logits: Tensor = self.get_submodule("out_0")(x)
        return [logits, *deep] if self.deep_supervision else logits
