"""Fixtures that training shares with inference."""

from tests.inference.conftest import phantom_folder, tiny_bundle

__all__ = ["phantom_folder", "tiny_bundle"]
