"""MedNeXt v1 (Roy et al., MICCAI 2023), composed from MONAI's blocks exactly as the reference composes its own.

MONAI ships a network called MedNeXt too, but it gives the down-sampling blocks other expansion ratios, so reference
checkpoints do not load into it. Its *blocks* are the reference's; only the composition below is ours, with the
reference's state-dict names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from torch import Tensor, nn

LEVELS = 4
"""Down-sampling steps of every MedNeXt v1; so there are nine stages: four encoders, a bottleneck, four decoders."""


@dataclass(frozen=True)
class MedNeXtSize:
    """What distinguishes one MedNeXt from another."""

    channels: int
    """Channels after the stem; doubled at each of the four levels."""
    blocks: tuple[int, ...]
    """Residual blocks per stage: encoders 0-3, bottleneck, decoders from the deepest to the shallowest."""
    expansion: tuple[int, ...]
    """Expansion ratio of the inverted bottleneck per stage, in the same order."""

    def __post_init__(self) -> None:
        stages = 2 * LEVELS + 1
        if len(self.blocks) != stages or len(self.expansion) != stages:
            raise ValueError(
                f"a MedNeXt has {stages} stages, got {len(self.blocks)} blocks and {len(self.expansion)} expansions"
            )


VARIANTS = {
    "S": MedNeXtSize(32, (2,) * 9, (2,) * 9),
    "B": MedNeXtSize(32, (2,) * 9, (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "M": MedNeXtSize(32, (3, 4, 4, 4, 4, 4, 4, 4, 3), (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "L": MedNeXtSize(32, (3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3)),
}
"""The published sizes, by the letter that names them."""


class MedNeXt(nn.Module):
    """The reference's network and state-dict names.

    Takes (batch, in_channels, Z, Y, X) with every spatial size a multiple of 16 and returns logits
    (batch, out_channels, Z, Y, X); with deep supervision a list of five, from full resolution to a sixteenth.
    """

    def __init__(
        self,
        size: MedNeXtSize,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        widths = [size.channels * 2**level for level in range(LEVELS + 1)]
        encoder, bottleneck, decoder = size.expansion[:LEVELS], size.expansion[LEVELS], size.expansion[LEVELS + 1 :]
        self.deep_supervision = deep_supervision

        def stage(width: int, expansion: int, blocks: int) -> nn.Sequential:
            block = partial(MedNeXtBlock, width, width, expansion, kernel_size, use_residual_connection=True)
            return nn.Sequential(*(block() for _ in range(blocks)))

        self.stem = nn.Conv3d(in_channels, widths[0], kernel_size=1)
        for level in range(LEVELS):
            setattr(self, f"enc_block_{level}", stage(widths[level], encoder[level], size.blocks[level]))
            after = (*encoder[1:], bottleneck)[level]
            down = MedNeXtDownBlock(widths[level], widths[level + 1], after, kernel_size, use_residual_connection=True)
            setattr(self, f"down_{level}", down)
        self.bottleneck = stage(widths[LEVELS], bottleneck, size.blocks[LEVELS])
        for step, level in enumerate(reversed(range(LEVELS))):
            up = MedNeXtUpBlock(
                widths[level + 1], widths[level], decoder[step], kernel_size, use_residual_connection=True
            )
            setattr(self, f"up_{level}", up)
            setattr(self, f"dec_block_{level}", stage(widths[level], decoder[step], size.blocks[LEVELS + 1 + step]))
        for scale in range(LEVELS + 1 if deep_supervision else 1):
            setattr(self, f"out_{scale}", MedNeXtOutBlock(widths[scale], out_channels, "3d"))

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


def mednext(
    variant: str | MedNeXtSize,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    deep_supervision: bool = False,
) -> MedNeXt:
    """A MedNeXt v1 of a published size ("S", "B", "M", "L") or of any :class:`MedNeXtSize`.

    Raises ValueError for an unknown variant or a kernel size other than 3 or 5.
    """
    if isinstance(variant, str) and variant not in VARIANTS:
        raise ValueError(f"unknown MedNeXt variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    if kernel_size not in (3, 5):
        raise ValueError(f"MedNeXt kernel size {kernel_size}: expected 3 or 5")
    size = VARIANTS[variant] if isinstance(variant, str) else variant
    return MedNeXt(size, in_channels, out_channels, kernel_size=kernel_size, deep_supervision=deep_supervision)
