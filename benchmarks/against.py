"""nnU-Net's own predictor, as it comes, against ours: the same weights and tiles, in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from inference.bundle.store import Model
from inference.errors import UsageError
from inference.intake.cases import Case
from inference.intake.scan import read_scan
from inference.labels import REGIONS, SEQUENCES
from inference.pipeline import System
from inference.predict.engines import Engine, forward_count, heads_of
from inference.predict.engines.torch_engine import region_probabilities
from inference.predict.networks import build_network, load_weights
from inference.predict.preprocess import Preprocessed, preprocess, read_plan
from inference.predict.tiling import MIRRORINGS, windows
from inference.settings import Profile

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

_DATASET: Final[Mapping[str, Mapping[str, object]]] = {
    "regions": {
        "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]},
        "regions_class_order": [2, 1, 3],
    },
    "labels": {"labels": {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 3}},
}
"""What nnU-Net's `dataset.json` says of the outputs of each kind of head."""


@dataclass(frozen=True)
class Comparison:
    """One network on the tiles of one case, all eight mirrorings, by ours and by nnU-Net's predictor."""

    model: str
    engine: str
    tiles: int
    """Tiles of the training patch that were predicted, of `tiles_of_case` in the whole case."""
    tiles_of_case: int
    forwards: int
    """Tiles by mirrorings."""
    ours_seconds: float
    nnunet_seconds: float
    ours_processor_seconds: float
    """Of all threads; says more than wall time where other programs run beside."""
    nnunet_processor_seconds: float
    ours_peak_gpu_gb: float | None
    """Most memory of the GPU on top of what lay there before, in 10⁹ bytes; None where no GPU was used."""
    nnunet_peak_gpu_gb: float | None
    ours_per_forward: float
    nnunet_per_forward: float
    ratio: float
    """Seconds of nnU-Net's by ours."""
    processor_ratio: float
    """The same of processor seconds."""
    dice: Mapping[str, float]
    """Between both, per region, at a probability of one half."""
    largest_difference: float
    """In probability; nnU-Net sums in half precision."""
    ours_case_extrapolated: float
    """Seconds a forward, by the forwards that all networks of this model need for the whole case."""
    nnunet_case_extrapolated: float


def compare_all(
    system: System, case: Case, threads: int, model: str | None, tiles: int | None, *, mirrored: bool = True
) -> tuple[dict[str, object], list[str]]:
    """Compare the first network of each model, or of one, on a case: as JSON, and in lines for people."""
    models = [one for one in system.bundle.models if model is None or one.name == model]
    if not models:
        raise UsageError(f"--model {model}: the bundle has {', '.join(one.name for one in system.bundle.models)}")
    scan = read_scan(case)
    found = [
        compare(
            one,
            preprocess(scan.data, scan.spacing, read_plan(one.plans)),
            system.engine,
            threads,
            tiles,
            mirrored=mirrored,
        )
        for one in models
    ]
    lines = [line for one in found for line in _lines(one)]
    ours, theirs = (sum(getattr(one, f"{who}_case_extrapolated") for one in found) for who in ("ours", "nnunet"))
    lines.append(f"paper, a whole case, extrapolated: ours {ours:.1f} s, nnU-Net's {theirs:.1f} s")
    return {"case": case.id, "threads": threads, "models": [asdict(one) for one in found]}, lines


def compare(
    model: Model, prepared: Preprocessed, engine: Engine, threads: int, tiles: int | None, *, mirrored: bool = True
) -> Comparison:
    """Compare a model's first network on a preprocessed case, or on `tiles` (1, 2, 4, 8) tiles in its middle.

    Not `mirrored`, it is one forward over one tile, and ours has been there once before: a graph prepares itself for a
    size at its first use. On a GPU both have been there once before, with their networks and kernels.
    """
    plan, device = prepared.plan, torch.device(engine.device)
    whole = [max(size, least) for size, least in zip(prepared.array.shape[1:], plan.patch, strict=True)]
    tiles_of_case = len(windows(whole, plan.patch))
    piece = _piece(prepared, tiles if mirrored else 1)
    alone = replace(model, folds=model.folds[:1])
    profile = Profile.PAPER if mirrored else Profile.FAST
    if device.type == "cuda" or not mirrored:
        engine.mean_over_folds(alone, piece, profile, lambda: None)
    with _Meter(device) as ours_took:
        ours = engine.mean_over_folds(alone, piece, profile, lambda: None)
    theirs, nnunet_took = _nnunet(model, piece.array, device, threads, mirrored=mirrored)
    forwards = forward_count(piece.array.shape[1:], plan.patch, profile)
    ours_seconds, nnunet_seconds = ours_took.wall, nnunet_took.wall
    of_case = tiles_of_case * len(MIRRORINGS) * len(model.folds)
    return Comparison(
        model=model.name,
        engine=engine.description,
        tiles=forwards // len(MIRRORINGS) if mirrored else 1,
        tiles_of_case=tiles_of_case,
        forwards=forwards,
        ours_seconds=round(ours_seconds, 3),
        nnunet_seconds=round(nnunet_seconds, 3),
        ours_processor_seconds=round(ours_took.processor, 2),
        nnunet_processor_seconds=round(nnunet_took.processor, 2),
        ours_peak_gpu_gb=ours_took.gpu,
        nnunet_peak_gpu_gb=nnunet_took.gpu,
        ours_per_forward=round(ours_seconds / forwards, 5),
        nnunet_per_forward=round(nnunet_seconds / forwards, 5),
        ratio=round(nnunet_seconds / ours_seconds, 2),
        processor_ratio=round(nnunet_took.processor / ours_took.processor, 2),
        dice=_dice(ours > 0.5, theirs > 0.5),
        largest_difference=round(float(np.abs(ours - theirs).max()), 4),
        ours_case_extrapolated=round(ours_seconds / forwards * of_case, 1),
        nnunet_case_extrapolated=round(nnunet_seconds / forwards * of_case, 1),
    )


def _piece(prepared: Preprocessed, tiles: int | None) -> Preprocessed:
    """The middle of a case as a case of its own, on the network's grid: no resampling takes part in the comparison."""
    array, patch = prepared.array, prepared.plan.patch
    if tiles is not None:
        # Along as many axes as it takes, a patch and a half: that is two tiles.
        doubled = tiles.bit_length() - 1
        sizes = [length * 3 // 2 if axis < doubled else length for axis, length in enumerate(patch)]
        starts = [max(0, (size - wanted) // 2) for size, wanted in zip(array.shape[1:], sizes, strict=True)]
        z, y, x = (slice(start, start + wanted) for start, wanted in zip(starts, sizes, strict=True))
        array = np.ascontiguousarray(array[:, z, y, x])
    depth, height, width = array.shape[1:]
    return replace(prepared, array=array, crop_shape=(depth, height, width), crop_spacing=prepared.plan.spacing)


def _nnunet(
    model: Model, array: NDArray[np.float32], device: torch.device, threads: int, *, mirrored: bool
) -> tuple[NDArray[np.float32], _Meter]:
    """Region probabilities (3, Z, Y, X) of the model's first network by nnU-Net's predictor, and what it took."""
    torch.set_num_threads(threads)
    # The predictor switches cuDNN's search on for the whole process.
    searches = torch.backends.cudnn.benchmark
    try:
        predictor = _predictor(model, device, mirrored=mirrored)
        if device.type == "cuda":
            predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array))
        with _Meter(device) as took:
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array))
    finally:
        torch.backends.cudnn.benchmark = searches
    return region_probabilities(logits.float().cpu(), model.heads).numpy(), took


def _predictor(model: Model, device: torch.device, *, mirrored: bool) -> nnUNetPredictor:
    """nnU-Net's predictor as it comes, with the model's first network; on a GPU everything lies there."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    network = build_network(model.architecture, len(SEQUENCES), heads_of(model))
    load_weights(network, model.tensors(model.folds[0]))
    manager = PlansManager(dict(model.plans))
    predictor = nnUNetPredictor(
        device=device, use_mirroring=mirrored, perform_everything_on_device=device.type == "cuda", allow_tqdm=False
    )
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()],
        {**_DATASET[model.heads], "channel_names": dict(enumerate(SEQUENCES)), "file_ending": ".nii.gz"},
        "nnUNetTrainer",
        (0, 1, 2),
    )
    return predictor


class _Meter:
    """Wall and processor seconds of a `with` block, and the GPU's memory at most on top of what lay there before."""

    wall = processor = 0.0
    gpu: float | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"

    def __enter__(self) -> _Meter:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._held = torch.cuda.memory_allocated(self._device)
        self._begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        self.wall, self.processor = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        if self._on_gpu:
            self.gpu = round((torch.cuda.max_memory_allocated(self._device) - self._held) / 1e9, 3)


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, float]:
    """Per region, of masks (3, Z, Y, X); 1 where both are empty."""
    both = [int((one & other).sum()) for one, other in zip(first, second, strict=True)]
    sizes = [int(one.sum() + other.sum()) for one, other in zip(first, second, strict=True)]
    return {
        region: round(2 * common / size, 5) if size else 1.0
        for region, common, size in zip(REGIONS, both, sizes, strict=True)
    }


def _lines(found: Comparison) -> list[str]:
    dice = ", ".join(f"{region} {value:.4f}" for region, value in found.dice.items())
    processor = f"ours {found.ours_processor_seconds}, nnU-Net's {found.nnunet_processor_seconds}"
    case = f"ours {found.ours_case_extrapolated} s, nnU-Net's {found.nnunet_case_extrapolated} s"
    memory = f"ours {found.ours_peak_gpu_gb} GB, nnU-Net's {found.nnunet_peak_gpu_gb} GB"
    return [
        f"{found.model}, {found.engine}: {found.tiles} of {found.tiles_of_case} tiles, {found.forwards} forwards",
        f"  a forward: ours {found.ours_per_forward} s, nnU-Net's {found.nnunet_per_forward} s: {found.ratio} times",
        f"  processor seconds: {processor}: {found.processor_ratio} times",
        *([f"  memory of the GPU: {memory}"] if found.ours_peak_gpu_gb is not None else []),
        f"  agreement: Dice {dice}; largest difference in probability {found.largest_difference}",
        f"  all its networks on the whole case, extrapolated: {case}",
    ]
