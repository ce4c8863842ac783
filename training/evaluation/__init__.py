"""Lesion-wise scores after the official BraTS definitions, their tables, and the comparison of systems."""
