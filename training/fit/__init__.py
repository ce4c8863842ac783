"""A data set and folds in, trained networks and their out-of-fold predictions out (the paper's steps 2 and 3)."""
