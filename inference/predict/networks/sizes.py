"""Sizes of MedNeXt v1, without torch, so that a graph can be built where there is none."""

from __future__ import annotations

from dataclasses import dataclass

from inference.schema import Mismatch, Positive

LEVELS = 4
"""Down-sampling steps of every MedNeXt v1; so there are nine stages: four encoders, a bottleneck, four decoders."""


@dataclass(frozen=True)
class MedNeXtSize:
    """Width, depth and expansion of a MedNeXt."""

    channels: Positive
    """Channels after the stem; doubled at each of the four levels."""
    blocks: tuple[Positive, ...]
    """Residual blocks per stage: encoders 0-3, bottleneck, decoders from the deepest to the shallowest."""
    expansion: tuple[Positive, ...]
    """Expansion ratio of the inverted bottleneck per stage, in the same order."""

    def __post_init__(self) -> None:
        for key, stages in (("blocks", self.blocks), ("expansion", self.expansion)):
            if len(stages) != 2 * LEVELS + 1:
                raise Mismatch(key, stages, f"{2 * LEVELS + 1} stages")


VARIANTS = {
    "S": MedNeXtSize(32, (2,) * 9, (2,) * 9),
    "B": MedNeXtSize(32, (2,) * 9, (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "M": MedNeXtSize(32, (3, 4, 4, 4, 4, 4, 4, 4, 3), (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "L": MedNeXtSize(32, (3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3)),
}
"""The published sizes, by the letter that names them."""
