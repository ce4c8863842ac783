"""Checkpoints, tables and folds of a finished run in, a sealed bundle out: the graph's step `freeze`.

Networks from outside become bundles here, too, as folders or out of the ranked system's image; nothing of them is run.
"""
