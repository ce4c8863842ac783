"""Checkpoints, tables and folds in, a sealed bundle out; foreign checkpoints become bundles here too."""
