"""Losses of region and of label heads: nnU-Net's Dice and cross-entropy, with a weight for each region or label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.labels import TUMOUR_LABELS, Label

# nnU-Net's smoothing (2.8.1): without it the Dice of a region that a patch does not have is 0 / 0.
_SMOOTH = 1e-5


def _soft_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """Dice of each region or label, (C,), from (B, C, Z, Y, X): of every patch by itself, then the mean of patches."""
    axes = (2, 3, 4)
    overlap = (probability * truth).sum(axes)
    dice = (2 * overlap + _SMOOTH) / torch.clip(probability.sum(axes) + truth.sum(axes) + _SMOOTH, 1e-8)
    return dice.mean(0)


class RegionLoss(nn.Module):
    """Soft Dice plus binary cross-entropy of region heads, each region with its weight.

    With equal weights this is nnU-Net's `DC_and_BCE_loss` for regions (smooth 1e-5, per sample). Both terms are means
    over regions with the given weights.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights, dtype=torch.float32) / sum(weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (B, 3, Z, Y, X) for target regions of the same shape."""
        # In float32 under autocast too: half precision loses small regions in sums over a whole patch.
        logits, target, weights = logits.float(), target.float(), self.weights.to(logits.device)
        entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((0, 2, 3, 4))
        return (weights * entropy).sum() - (weights * _soft_dice(torch.sigmoid(logits), target)).sum()


class LabelLoss(nn.Module):
    """Soft Dice plus cross-entropy of label heads, each label with its weight; the target are regions all the same.

    With equal weights this is nnU-Net's `DC_and_CE_loss` (smooth 1e-5, per sample, background without Dice). The
    weights are those of NCR, ED and ET, with a mean of 1, and the background's is 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights, dtype=torch.float32) * len(weights) / sum(weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (B, 4, Z, Y, X) for target regions (B, 3, Z, Y, X)."""
        logits, labels, weights = logits.float(), labels_of_regions(target), self.weights.to(logits.device)
        entropy = functional.cross_entropy(logits, labels, torch.cat([weights.new_ones(1), weights]))
        truth = torch.stack([labels == label for label in TUMOUR_LABELS], 1).float()
        loss: Tensor = entropy - (weights * _soft_dice(logits.softmax(1)[:, 1:], truth)).mean()
        return loss


def labels_of_regions(target: Tensor) -> Tensor:
    """Labels (B, Z, Y, X) of regions WT, TC, ET (B, 3, Z, Y, X), which contain each other."""
    whole, core, enhancing = (target[:, region] > 0 for region in range(3))
    # From the outermost region inwards: what lies further in has the last word.
    labels = whole * int(Label.ED)
    labels[core] = int(Label.NCR)
    labels[enhancing] = int(Label.ET)
    return labels


def inverse_frequency(voxels: Mapping[str, int]) -> list[float]:
    """Weights of regions or labels: inverse of their voxels in the training set, scaled to a mean of 1."""
    # A fold of few cases may have no enhancing voxel at all.
    inverse = [1 / max(count, 1) for count in voxels.values()]
    return [weight * len(inverse) / sum(inverse) for weight in inverse]
