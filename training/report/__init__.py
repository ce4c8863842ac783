"""The evidence of a finished run: rule `report` of the graph.

In: folds, checkpoints, out-of-fold predictions and what tuning chose. Out: one page, its tables as Markdown and JSON
(the paper's Tables 1 to 3), and the scores of every arm as `evaluate` writes them.
"""
