"""Choices and defaults that the command line, the Python interface and other programs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final, Literal, get_args

EngineChoice = Literal["auto", "torch", "openvino"]
"""`auto` is PyTorch on a GPU and what is fastest on a CPU."""
ENGINES: Final[tuple[EngineChoice, ...]] = get_args(EngineChoice)

ProfileChoice = Literal["auto", "paper", "fast"]
"""`auto` is `paper` on a GPU and `fast` on a CPU."""
PROFILES: Final[tuple[ProfileChoice, ...]] = get_args(ProfileChoice)

OnError = Literal["skip", "empty", "stop"]
"""A failed case is left out, gets an all-background file, or ends the run."""
ON_ERROR: Final[tuple[OnError, ...]] = get_args(OnError)

EMBEDDED: Final = Path(__file__).resolve().parents[1] / "weights" / "embedded"
"""The bundle that comes with the program."""


class Profile(StrEnum):
    """How much is computed."""

    PAPER = "paper"
    """Tiles of the training patch at half a patch's distance, Gaussian weights, all eight mirrorings."""
    FAST = "fast"
    """One pass over the brain's bounding box, no mirroring."""
