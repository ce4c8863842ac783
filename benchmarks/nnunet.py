"""nnU-Net's own predictor, as it comes, against ours: the same weights and tiles, in one process.

Compared is the first network of each model on the first case, with all eight mirrorings. What is said of a whole case
is extrapolated from seconds per forward pass, and called so.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Meter, add_system_arguments, cases_in, open_limited, report
from inference.bundle.store import Model
from inference.errors import ExitStatus, UsageError
from inference.intake.scan import read_scan
from inference.labels import REGIONS, SEQUENCES
from inference.predict.engines.base import Engine, forward_count, heads_of, region_probabilities
from inference.predict.networks import build_network, load_weights
from inference.predict.preprocess import Preprocessed, preprocess, read_plan
from inference.predict.tiling import MIRRORINGS, windows
from inference.settings import Profile
from training.evaluation.overlap import dice

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

# nnU-Net's `dataset.json` on the outputs of each kind of head; region heads are WT, TC, ET in this order.
_DATASET: Final[Mapping[str, Mapping[str, object]]] = {
    "regions": {
        "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]},
        "regions_class_order": [2, 1, 3],
    },
    "labels": {"labels": {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 3}},
}


def compare(
    model: Model, prepared: Preprocessed, engine: Engine, threads: int, tiles: int | None, *, mirrored: bool = True
) -> dict[str, object]:
    """Compare a model's first network on a preprocessed case, or on `tiles` (1, 2, 4, 8) tiles in its middle.

    Not `mirrored`, it is one forward over one tile.
    """
    patch, shape = prepared.plan.patch, prepared.array.shape[1:]
    tiles_of_case = len(windows([max(size, least) for size, least in zip(shape, patch, strict=True)], patch))
    piece = _piece(prepared, tiles if mirrored else 1)
    profile = Profile.PAPER if mirrored else Profile.FAST
    forwards = forward_count(piece.array.shape[1:], patch, profile)
    forwards_of_case = tiles_of_case * len(MIRRORINGS) * len(model.folds)

    def cost(took: Meter) -> dict[str, float | None]:
        return {
            "seconds": round(took.wall, 3),
            "processor_seconds": round(took.processor, 2),
            "peak_gpu_gb": took.gpu,
            "per_forward": round(took.wall / forwards, 5),
            "case_extrapolated": round(took.wall / forwards * forwards_of_case, 1),
        }

    alone = model.of_folds(*model.folds[:1])
    # A graph prepares itself for a size at its first use, which among many forwards is little and in one is much. On a
    # GPU both predictors have run once before, with their networks and kernels.
    if engine.device != "cpu" or not mirrored:
        engine.mean_over_folds(alone, piece, profile, lambda: None)
    with Meter(engine.device) as ours_took:
        ours = engine.mean_over_folds(alone, piece, profile, lambda: None)
    theirs, nnunet_took = _nnunet(model, piece.array, engine.device, threads, mirrored=mirrored)
    masks = zip(REGIONS, ours > 0.5, theirs > 0.5, strict=True)
    return {
        "model": model.name,
        "engine": engine.description,
        "tiles": forwards // len(MIRRORINGS) if mirrored else 1,
        "tiles_of_case": tiles_of_case,
        "forwards": forwards,
        "ours": cost(ours_took),
        "nnunet": cost(nnunet_took),
        "ratio": round(nnunet_took.wall / ours_took.wall, 2),
        "processor_ratio": round(nnunet_took.processor / ours_took.processor, 2),
        "dice": {region: round(dice(one, other), 5) for region, one, other in masks},
        "largest_difference": round(float(np.abs(ours - theirs).max()), 4),
    }


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
    return replace(prepared, array=array, crop_shape=array.shape[1:], crop_spacing=prepared.plan.spacing)


def _nnunet(
    model: Model, array: NDArray[np.float32], device: str, threads: int, *, mirrored: bool
) -> tuple[NDArray[np.float32], Meter]:
    """Region probabilities (3, Z, Y, X) of the model's first network by nnU-Net's predictor, and what it took."""
    import torch

    torch.set_num_threads(threads)
    # The predictor switches cuDNN's search on for the whole process.
    searches = torch.backends.cudnn.benchmark
    try:
        predictor = _predictor(model, device, mirrored=mirrored)
        if device != "cpu":
            predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array))
        with Meter(device) as took:
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array))
    finally:
        torch.backends.cudnn.benchmark = searches
    return region_probabilities(logits.float().cpu().numpy(), model.heads), took


def _predictor(model: Model, device: str, *, mirrored: bool) -> nnUNetPredictor:
    """nnU-Net's predictor as it comes, with the model's first network; on a GPU everything lies there."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    # In memory, as `initialize_from_trained_model_folder` does from files.
    network = build_network(model.architecture, len(SEQUENCES), heads_of(model))
    load_weights(network, model.tensors(model.folds[0]))
    manager = PlansManager(dict(model.plans))
    predictor = nnUNetPredictor(
        device=torch.device(device),
        use_mirroring=mirrored,
        perform_everything_on_device=device != "cpu",
        allow_tqdm=False,
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `nnunet`."""
    add_system_arguments(parser)
    parser.add_argument("--tiles", type=int, choices=(1, 2, 4, 8), help="on so many tiles only (default: all)")
    parser.add_argument("--one-forward", action="store_true", help="one tile without mirroring: one forward each")
    parser.add_argument("--model", metavar="NAME", help="this model's first network only (default: of all)")


def run(arguments: argparse.Namespace) -> int:
    """Compare the first network of each model, or of one, on the first case."""
    case = cases_in(arguments.input).cases[0]
    system = open_limited(arguments)
    models = [one for one in system.bundle.models if arguments.model in (None, one.name)]
    if not models:
        known = ", ".join(one.name for one in system.bundle.models)
        raise UsageError(f"--model {arguments.model}: the bundle has {known}")
    scan, threads, mirrored = read_scan(case), arguments.threads, not arguments.one_forward
    found = []
    for model in models:
        prepared = preprocess(scan.data, scan.spacing, read_plan(model.plans))
        found.append(compare(model, prepared, system.engine, threads, arguments.tiles, mirrored=mirrored))
    report({"case": case.id, "threads": threads, "models": found}, arguments.json)
    return ExitStatus.OK
