"""Labelled cases and phantoms in, one case → fold map out.

Folds are stratified by the subtypes of the tumours: the paper's step 1.
"""
