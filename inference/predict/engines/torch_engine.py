"""Networks on PyTorch: any CPU in float32, CUDA in half precision with sums in float32.

From the preprocessed array to the mean over folds everything stays on the device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.errors import BundleError, DeviceError, UsageError
from inference.labels import REGIONS, SEQUENCES
from inference.machine import available_threads
from inference.predict.engines import (
    Advance,
    Heed,
    NetworkSource,
    Profile,
    heads_of,
    pass_multiple,
)
from inference.predict.networks import build_network, load_weights
from inference.predict.preprocess import Box, Preprocessed, Triple, read_plan, to_crop_grid
from inference.predict.resampling import LINEAR, thick_axis
from inference.predict.tiling import MIRRORINGS, gaussian, next_multiple, padding, windows

_GPU_BATCH = len(MIRRORINGS)
_INSTEAD = "choose --engine openvino --device cpu, or another bundle"


def check_device(device: str) -> torch.device:
    """A device that torch can run networks on, by its name (`cpu`, `cuda`, `cuda:N`).

    Raises UsageError for another name, and DeviceError, saying what to do, for a GPU that is absent or too old or too
    new for this build of torch.
    """
    named = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if named is None:
        raise UsageError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {device}: torch finds no working GPU; choose --device cpu")
    index = int(named[1] or 0)
    if index >= torch.cuda.device_count():
        raise DeviceError(f"device {device}: there are only {torch.cuda.device_count()} GPUs, counted from 0")
    major, minor = torch.cuda.get_device_capability(index)
    built = [name.rpartition("_")[2] for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    # Code for 8.0 runs on 8.6 as well: a device needs code of its own major version that is not newer than itself.
    if not any(name[:-1] == str(major) and int(name[-1]) <= minor for name in built if name[-1].isdecimal()):
        found = f"compute capability {major}.{minor}"
        raise DeviceError(
            f"device {device}: {found}, but this torch is built for {', '.join(built)}; choose --device cpu"
        )
    return torch.device("cuda", index)


class TorchEngine:
    """Runs networks with PyTorch. Keeps the networks of the models that it has seen on its device."""

    name = "torch"

    def __init__(self, device: str = "cpu", *, threads: int | None = None) -> None:
        self._device = check_device(device)
        self._on_gpu = self._device.type == "cuda"
        if not self._on_gpu:
            torch.set_num_threads(threads or available_threads())
        self._batch = _GPU_BATCH if self._on_gpu else 1
        self._networks: dict[tuple[int, int], tuple[NetworkSource, nn.Module]] = {}

    @property
    def device(self) -> str:
        """`cpu`, or `cuda:0` and so on."""
        return str(self._device)

    @property
    def description(self) -> str:
        """Library, version, device and precision."""
        if not self._on_gpu:
            return f"torch {torch.__version__} cpu float32"
        return f"torch {torch.__version__} {self._device} ({torch.cuda.get_device_name(self._device)}) float16"

    def load(self, model: NetworkSource) -> None:
        """As :class:`inference.predict.engines.Engine` says."""
        read_plan(model.plans)
        if model.format == "openvino":
            raise BundleError(f"{model.name}: its networks are stored for OpenVINO, torch cannot run them: {_INSTEAD}")
        for fold in model.folds:
            try:
                self._network(model, fold)
            except BundleError as error:
                raise BundleError(f"{model.name}, fold {fold}: {error}") from error

    @torch.inference_mode()
    def mean_over_folds(
        self,
        model: NetworkSource,
        prepared: Preprocessed,
        profile: Profile,
        advance: Advance,
        heed: Heed | None = None,
    ) -> NDArray[np.float32]:
        """As :class:`inference.predict.engines.Engine` says."""
        array = torch.from_numpy(prepared.array).to(self._device)
        total: Tensor | None = None
        for fold in model.folds:
            network = self._network(model, fold)
            if profile is Profile.PAPER:
                logits = self._tiled(network, array, prepared.plan.patch, advance)
                found = region_probabilities(_resample(logits, prepared), model.heads)
            else:
                logits = self._whole(network, array, pass_multiple(model), advance)
                found = region_probabilities(logits, model.heads)
            if heed is not None:
                heed((found if profile is Profile.PAPER else _resample(found, prepared)).cpu().numpy())
            total = found if total is None else total.add_(found)
        assert total is not None, "a model has at least one fold"
        mean = total.div_(len(model.folds))
        mean = mean if profile is Profile.PAPER else _resample(mean, prepared)
        array_of_mean: NDArray[np.float32] = mean.cpu().numpy()
        return array_of_mean

    @torch.inference_mode()
    def logits(self, model: NetworkSource, fold: int, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (heads, Z, Y, X) of one fold for an array (4, Z, Y, X) whose sizes suit the network's stride."""
        batch = torch.from_numpy(array).to(self._device)[None]
        return self._forward(self._network(model, fold), batch)[0].cpu().numpy()

    def _network(self, model: NetworkSource, fold: int) -> nn.Module:
        # The model is kept beside its network, so that no other object can take over its id.
        key = (id(model), fold)
        if key not in self._networks:
            with torch.device("meta"):
                network = build_network(model.architecture, len(SEQUENCES), heads_of(model))
            load_weights(network, model.tensors(fold))
            self._networks[key] = model, network.eval().to(self._device)
        return self._networks[key][1]

    def _whole(self, network: nn.Module, array: Tensor, multiple: Triple, advance: Advance) -> Tensor:
        """Logits (heads, Z, Y, X) of one pass over an array (4, Z, Y, X), padded with zeros to a multiple."""
        padded, box = _pad(array, next_multiple(array.shape[1:], multiple))
        logits = self._forward(network, padded[None])[0]
        advance()
        return _inside(logits, box)

    def _tiled(self, network: nn.Module, array: Tensor, patch: Triple, advance: Advance) -> Tensor:
        """Logits (heads, Z, Y, X) of an array (4, Z, Y, X) by tiles and mirrorings."""
        array, box = _pad(array, patch)
        weights = torch.tensor(gaussian(patch), device=self._device)
        total: Tensor | None = None
        tiles = windows(array.shape[1:], patch)
        jobs = list(product(tiles, MIRRORINGS))
        while jobs:
            chunk, jobs = jobs[: self._batch], jobs[self._batch :]
            batch = torch.stack([_inside(array, tile).flip(axes) for tile, axes in chunk])
            for (tile, axes), logits in zip(chunk, self._forward(network, batch), strict=True):
                if total is None:
                    total = torch.zeros((len(logits), *array.shape[1:]), device=self._device)
                _inside(total, tile).add_(logits.flip(axes) * weights)
                advance()
        weight = torch.zeros(array.shape[1:], device=self._device)
        for tile in tiles:
            _inside(weight[None], tile)[0].add_(weights, alpha=len(MIRRORINGS))
        assert total is not None, "there is at least one tile"
        return _inside(total.div_(weight), box)

    def _forward(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Logits in float32 of (batch, 4, Z, Y, X), in halves for as long as memory does not suffice."""
        if not self._on_gpu:
            # The layout that CPU convolutions are fastest in; CUDA's instance norm is slower in it.
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
        try:
            with torch.autocast(self._device.type, torch.float16, enabled=self._on_gpu):
                logits: Tensor = network(batch)
            return logits.float()
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                size = "×".join(str(length) for length in batch.shape[2:])
                advice = "choose --profile paper, or --device cpu"
                raise DeviceError(
                    f"{self.device}: not enough memory for one pass over {size} voxels; {advice}"
                ) from error
        # Outside of the handler, where the traceback no longer holds what was computed so far.
        if self._on_gpu:
            torch.cuda.empty_cache()
        half = self._batch = len(batch) // 2
        return torch.cat([self._forward(network, batch[:half]), self._forward(network, batch[half:])])


def region_probabilities(logits: Tensor, heads: str) -> Tensor:
    """Probabilities (3, ...) of WT, TC, ET from the logits of region heads (3, ...) or label heads (4, ...)."""
    if heads == "regions":
        return logits.sigmoid()
    softmax = logits.softmax(0)
    return torch.stack([softmax[list(labels)].sum(0) for labels in REGIONS.values()])


def _resample(array: Tensor, prepared: Preprocessed) -> Tensor:
    """(C, Z, Y, X) from the network's grid to the crop at the scan's spacing, on the device where torch can do it."""
    plan, shape = prepared.plan, prepared.crop_shape
    if tuple(array.shape[1:]) == shape:
        return array
    resampling = plan.logits_resampling
    thick = thick_axis(plan.spacing, prepared.crop_spacing, resampling.force_separate_z)
    if resampling.name == LINEAR and thick is None:
        return functional.interpolate(array[None], shape, mode="trilinear")[0]
    return torch.from_numpy(to_crop_grid(array.cpu().numpy(), prepared)).to(array.device)


def _pad(array: Tensor, least: Sequence[int]) -> tuple[Tensor, Box]:
    """An array (C, Z, Y, X) with zeros around it, and where it lies in that."""
    pads = padding(array.shape[1:], least)
    (z, y, x) = ((before, before + size) for (before, _), size in zip(pads, array.shape[1:], strict=True))
    return functional.pad(array, [count for pair in reversed(pads) for count in pair]), (z, y, x)


def _inside(array: Tensor, box: Box) -> Tensor:
    """The part of an array (C, Z, Y, X) that lies in a box, as a view."""
    (z0, z1), (y0, y1), (x0, x1) = box
    return array[:, z0:z1, y0:y1, x0:x1]
