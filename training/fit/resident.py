"""Cases that stay in a device's memory, where patches of them are cut out and augmented as nnU-Net does.

nnU-Net augments in processes beside the training, which keeps a GPU waiting where networks are small or cores are few.
Here each patch is one affine sampling of a whole case, and what follows happens to all patches of a batch at once. What
is drawn follows nnU-Net's transforms (batchgeneratorsv2); the order too, except that mirroring is part of the sampling.
A blur reaches three voxels, where nnU-Net cuts it off at one to three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference.errors import UsageError
from inference.labels import REGIONS, Label

# A Gaussian of at most one voxel's standard deviation has 0.3 % of its weight further out than three voxels.
BLUR_RADIUS: Final = 3
# Voxels of tissue around a tumour that come along when it is mixed into another brain: its border stays a real one.
RIM: Final = 3


@dataclass(frozen=True)
class Chances:
    """How often each transform happens to a patch; nnU-Net's own by default."""

    rotation: float = 0.2
    scaling: float = 0.2
    noise: float = 0.1
    blur: float = 0.2
    brightness: float = 0.15
    contrast: float = 0.15
    low_resolution: float = 0.25
    inverted_gamma: float = 0.1
    gamma: float = 0.3
    mirroring: float = 0.5
    """Of each axis."""
    mixing: float = 0.0
    """Of another case's tumour in a patch's brain; nnU-Net does not have it."""


@dataclass(frozen=True)
class ResidentCase:
    """A preprocessed case on a device."""

    image: Tensor
    """Float32 (sequence, Z, Y, X)."""
    labels: Tensor
    """Int8 (Z, Y, X); -1 lies outside of the brain."""
    locations: Mapping[object, object]
    """nnU-Net's sample of voxels by region, to cut out patches with tumour."""


class ResidentLoader:
    """Endless batches of patches, in place of nnU-Net's loader and the processes that augment for it.

    Which cases, and where in them, is left to `loader`, nnU-Net's own, made for patches of the network's size. Batches
    hold `data` (patch, sequence, Z, Y, X), `target`, the regions (patch, region, Z, Y, X) as bool at each scale of deep
    supervision, and `keys`. Without `chances` nothing is augmented. `masked` sequences, one bool each, are 0 outside of
    the brain whatever was done to them. Raises UsageError where the device has no room for all cases.
    """

    def __init__(
        self,
        loader: nnUNetDataLoader,
        scales: Sequence[Sequence[float]],
        device: torch.device,
        chances: Chances | None = None,
        masked: Sequence[bool] = (),
    ) -> None:
        self._loader, self._scales, self._chances = loader, scales, chances
        self._masked = torch.tensor(masked, device=device)[:, None, None, None]
        self._cases: dict[str, ResidentCase] = {}
        # Now, before a training fills the rest of the memory.
        for key in loader.indices:
            image, labels, _, properties = loader._data.load_case(key)  # noqa: SLF001 (nnU-Net's own loader reads it)
            try:
                self._cases[key] = ResidentCase(
                    torch.from_numpy(np.array(image[:], np.float32)).to(device),
                    torch.from_numpy(labels[:][0].astype(np.int8)).to(device),
                    properties["class_locations"],
                )
            except torch.OutOfMemoryError as error:
                held = f"after {len(self._cases)} cases"
                raise UsageError(f"loading: resident: {device} has no room {held}; use loading: workers") from error

    def __iter__(self) -> ResidentLoader:
        return self

    def __next__(self) -> dict[str, object]:
        loader = self._loader
        keys = loader.get_indices()
        images, labels = [], []
        for number, key in enumerate(keys):
            case = self._cases[key]
            if self._chances is not None and _happens(self._chances.mixing):
                case = mix(case, self._cases[loader.get_indices()[0]])
            # The patch's place is nnU-Net's choice: every third one, say, is put around a voxel of tumour.
            corner, _ = loader.get_bbox(case.labels.shape, loader.get_do_oversample(number), case.locations)
            centre = np.array(corner) + (np.array(loader.final_patch_size) - 1) / 2
            matrix = np.eye(3) if self._chances is None else draw_matrix(self._chances)
            image, label = sample(case, centre, matrix, loader.final_patch_size)
            images.append(image)
            labels.append(label)
        batch, inside = torch.stack(images), torch.stack(labels)
        if self._chances is not None:
            batch = augment(batch, self._chances)
        if len(self._masked):
            batch = batch.masked_fill((inside < 0)[:, None] & self._masked, 0)
        return {"data": batch, "target": targets(inside, self._scales), "keys": keys}


def mix(case: ResidentCase, donor: ResidentCase) -> ResidentCase:
    """The case with the donor's tumour, and a rim of tissue around it, where it lies in the donor's brain.

    After CarveMix (Zhang et al., 2021). Cases are cut to the brain in one atlas, so the middles of the two arrays are
    laid upon each other. The piece is made as bright as the brain that takes it in: in each sequence, its rim gets the
    mean that the case has there. Half of the tumours change sides. What would lie outside of either brain is left out.
    """
    labels = donor.labels.flip(2) if (mirrored := _happens(0.5)) else donor.labels
    image = donor.image.flip(3) if mirrored else donor.image
    tumour = (labels > 0).float()[None, None]
    wide = functional.max_pool3d(tumour, 2 * RIM + 1, 1, RIM)[0, 0] > 0
    ours, theirs = [], []
    for mine, other in zip(case.labels.shape, labels.shape, strict=True):
        length = min(mine, other)
        ours.append(slice((mine - length) // 2, (mine - length) // 2 + length))
        theirs.append(slice((other - length) // 2, (other - length) // 2 + length))
    mixed, mixed_labels = case.image.clone(), case.labels.clone()
    # Views: what is written to them is written to the mixed case.
    target, target_labels = mixed[:, *ours], mixed_labels[*ours]
    piece, piece_labels = image[:, *theirs], labels[*theirs]
    inside = wide[*theirs] & (piece_labels >= 0) & (target_labels >= 0)
    rim = inside & (piece_labels == 0)
    if rim.any():  # without a rim nothing says how bright the piece should be
        shift = target[:, rim].mean(1) - piece[:, rim].mean(1)
        target[:, inside] = piece[:, inside] + shift[:, None]
        target_labels[inside] = piece_labels[inside]
    return ResidentCase(mixed, mixed_labels, case.locations)


def draw_matrix(chances: Chances) -> NDArray[np.float64]:
    """Draw the steps in the case along a patch's axes, (3, 3) in (Z, Y, X): rotated, scaled, mirrored or as they are.

    By up to 30° about each axis, and 0.7 to 1.4 times the size (`get_training_transforms` of nnU-Net's trainer, 2.8.1).
    """
    # numpy's global generator, which nnU-Net's loader draws from too: one seed serves both.
    matrix = np.eye(3)
    if _happens(chances.rotation):
        for axis, angle in enumerate(np.random.uniform(-np.pi / 6, np.pi / 6, 3)):  # noqa: NPY002
            turn = np.eye(3)
            first, second = (other for other in range(3) if other != axis)
            turn[first, first] = turn[second, second] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            matrix = turn @ matrix
    if _happens(chances.scaling):
        matrix *= np.random.uniform(0.7, 1.4)  # noqa: NPY002
    return matrix * [-1 if _happens(chances.mirroring) else 1 for _ in range(3)]


def sample(
    case: ResidentCase,
    centre: NDArray[np.float64],
    matrix: NDArray[np.float64],
    size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The patch of `size` voxels around `centre` (Z, Y, X; voxels of the case), its axes as `matrix` says.

    Returns the image (sequence, Z, Y, X), linear, zero outside of the case, and the label that weighs most there, -1
    outside of the case as well.
    """
    if np.array_equal(np.abs(matrix), np.eye(3)) and np.array_equal((centre - (np.array(size) - 1) / 2) % 1, [0, 0, 0]):
        return _cut_out(case, centre, matrix, size)
    lengths, sizes = np.array(case.labels.shape), np.array(size)
    # In torch's coordinates, from -1 to 1 over the outer edges of an array, the axes in the order X, Y, Z.
    steps = matrix * sizes / lengths[:, None]
    offset = (2 * centre + 1) / lengths - 1
    affine = torch.from_numpy(np.concatenate([steps[::-1, ::-1], offset[::-1, None]], 1).astype(np.float32))
    affine = affine[None].to(case.image.device)
    grid = functional.affine_grid(affine, [1, 1, *(int(length) for length in sizes)], align_corners=False)
    image = functional.grid_sample(case.image[None], grid, align_corners=False)[0]
    # Each label by itself, as a linear mean of label numbers is none: halfway between 1 and 3 is not 2.
    present = torch.stack([case.labels == label for label in sorted(Label)]).float()
    shares = functional.grid_sample(present[None], grid, align_corners=False)[0]
    # What is left is the share of voxels outside, which the order of labels puts first, as -1.
    shares = torch.cat([1 - shares.sum(0, keepdim=True), shares])
    return image, (shares.argmax(0) - 1).to(torch.int8)


def _cut_out(
    case: ResidentCase, centre: NDArray[np.float64], matrix: NDArray[np.float64], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Sample where voxels fall on voxels: a block, mirrored or not, many times faster."""
    corner = (centre - (np.array(size) - 1) / 2).astype(int)
    image, labels = case.image.new_zeros(len(case.image), *size), case.labels.new_full(tuple(size), -1)
    first, last = np.maximum(corner, 0), np.minimum(corner + size, case.labels.shape)
    source = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    target = tuple(slice(a, b) for a, b in zip(first - corner, last - corner, strict=True))
    if (last > first).all():
        image[:, *target], labels[target] = case.image[:, *source], case.labels[source]
    mirrored = [axis - 3 for axis in range(3) if matrix[axis, axis] < 0]
    return image.flip(mirrored), labels.flip(mirrored)


def targets(labels: Tensor, scales: Sequence[Sequence[float]]) -> list[Tensor]:
    """WT, TC, ET of labels (patch, Z, Y, X) as bool (patch, region, Z, Y, X), at each scale of deep supervision."""
    by_region = [torch.stack([labels == label for label in inside]).any(0) for inside in REGIONS.values()]
    regions = torch.stack(by_region, 1)
    result = []
    for scale in scales:
        size = [round(length * factor) for length, factor in zip(labels.shape[1:], scale, strict=True)]
        same = size == list(labels.shape[1:])
        # `nearest-exact`, since `nearest` takes the first voxel of each block and so shifts a region by half of one.
        result.append(regions if same else functional.interpolate(regions.float(), size, mode="nearest-exact").bool())
    return result


def augment(batch: Tensor, chances: Chances) -> Tensor:
    """Change the intensities of patches (patch, sequence, Z, Y, X) as nnU-Net does; shapes stay.

    All ranges are those of `get_training_transforms` of nnU-Net's trainer (2.8.1).
    """
    patches, sequences = batch.shape[:2]

    def chosen(chance: float, share: float = 1.0) -> Tensor:
        """To which sequences of which patches it happens, (patch, sequence)."""
        return (torch.rand(patches, 1) < chance) & (torch.rand(patches, sequences) < share)

    def apply(
        mask: Tensor, change: Callable[[Tensor, Tensor], Tensor], strength: Callable[[tuple[int, ...]], Tensor]
    ) -> None:
        """Change the chosen sequences, each by a strength of its own."""
        if mask.any():
            which = mask.nonzero(as_tuple=True)
            # The mask lies on the CPU, so that nothing here waits for the device.
            places = tuple(index.to(batch.device) for index in which)
            batch[places] = change(batch[places], strength((len(which[0]),)).to(batch.device))

    batch = batch.clone()
    deviations = 0.1 * torch.rand(patches) * (torch.rand(patches) < chances.noise)
    # Patch by patch: noise for a whole batch would double its memory.
    for patch in deviations.nonzero()[:, 0].tolist():
        batch[patch] = batch[patch] + deviations[patch].item() * torch.randn_like(batch[patch])
    apply(chosen(chances.blur, 0.5), blur, lambda n: 0.5 + 0.5 * torch.rand(*n, 3))
    apply(chosen(chances.brightness), lambda x, factor: x * _column(factor), lambda n: draw_factor(0.75, 1.25, n))
    apply(chosen(chances.contrast), contrast, lambda n: draw_factor(0.75, 1.25, n))
    mask = chosen(chances.low_resolution, 0.5)
    for patch, sequence in mask.nonzero().tolist():
        batch[patch, sequence] = coarsen(batch[patch, sequence], 0.5 + 0.5 * torch.rand(1).item())
    apply(chosen(chances.inverted_gamma), lambda x, g: -gamma(-x, g), lambda n: draw_factor(0.7, 1.5, n))
    apply(chosen(chances.gamma), gamma, lambda n: draw_factor(0.7, 1.5, n))
    return batch


def draw_factor(least: float, most: float, size: tuple[int, ...]) -> Tensor:
    """Factors that are as often below 1 as above it (batchgeneratorsv2's `BGContrast`)."""
    position = torch.rand(size)
    return torch.where(torch.rand(size) < 0.5, least + (1 - least) * position, 1 + (most - 1) * position)


def blur(images: Tensor, deviations: Tensor) -> Tensor:
    """Images (N, Z, Y, X) after Gaussians of `deviations` (N, axis) voxels, reflected at their ends."""
    count = len(images)
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    kernels = torch.exp(-0.5 * (offsets / deviations[..., None]) ** 2)
    kernels = kernels / kernels.sum(-1, keepdim=True)
    result = images[None]
    for axis in range(3):
        shape = [count, 1, 1, 1, 1]
        shape[2 + axis] = len(offsets)
        # torch counts paddings from the last axis.
        padding = [BLUR_RADIUS if index // 2 == 2 - axis else 0 for index in range(6)]
        padded = functional.pad(result, padding, mode="reflect")
        # A search for the fastest algorithm would begin anew with every number of images.
        with torch.backends.cudnn.flags(benchmark=False, allow_tf32=False):
            result = functional.conv3d(padded, kernels[:, axis].reshape(shape), groups=count)
    return result[0]


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Images (N, Z, Y, X) with their distance from the mean multiplied, within the range that they had."""
    axes = (1, 2, 3)
    mean = images.mean(axes, keepdim=True)
    changed = (images - mean) * _column(factors) + mean
    return torch.minimum(torch.maximum(changed, images.amin(axes, keepdim=True)), images.amax(axes, keepdim=True))


def coarsen(image: Tensor, scale: float) -> Tensor:
    """An image (Z, Y, X) as if it had been taken at `scale` times its resolution."""
    size = [round(length * scale) for length in image.shape]
    # Voxels are left out, not averaged, as nnU-Net's transform does.
    coarse = functional.interpolate(image[None, None], size, mode="nearest-exact")
    return functional.interpolate(coarse, list(image.shape), mode="trilinear")[0, 0]


def gamma(images: Tensor, exponents: Tensor) -> Tensor:
    """Images (N, Z, Y, X) with their range bent by a power, mean and standard deviation kept."""
    axes, least = (1, 2, 3), 1e-7  # a patch of one value has neither range nor deviation to divide by
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    bent = ((images - low) / (high - low).clamp(min=least)) ** _column(exponents) * (high - low) + low
    bent = (bent - bent.mean(axes, keepdim=True)) / bent.std(axes, keepdim=True).clamp(min=least)
    return bent * images.std(axes, keepdim=True) + images.mean(axes, keepdim=True)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _happens(chance: float) -> bool:
    return bool(np.random.uniform() < chance)  # noqa: NPY002
