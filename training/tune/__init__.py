"""Out-of-fold predictions in, ensemble weights and post-processing thresholds out (the paper's steps 4 and 5)."""
