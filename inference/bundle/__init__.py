"""Frozen artefacts: what a bundle says about itself, and its verified contents."""
