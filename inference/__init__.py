"""Gliomas segmented in four-sequence brain MRI: `Segmenter` here, `python -m inference` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.segmenter import Segmentation, Segmenter

__all__ = ["Segmentation", "Segmenter"]


def __getattr__(name: str) -> object:
    """Import the public names when they are asked for, so that the command line answers at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from inference import segmenter

    return getattr(segmenter, name)
