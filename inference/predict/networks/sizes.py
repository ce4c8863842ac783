"""Sizes of MedNeXt v1, without torch, so that a graph can be built where there is none."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = 4
"""Down-sampling steps of every MedNeXt v1; so there are nine stages: four encoders, a bottleneck, four decoders."""


@dataclass(frozen=True)
class MedNeXtSize:
    """Width, depth and expansion of a MedNeXt."""

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
