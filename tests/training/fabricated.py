"""A run's folder as the graph leaves it before its report, made from small phantoms without training anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from scipy import ndimage

from inference.labels import REGIONS, SEQUENCES, region_mask
from training.config import DatasetConfig, RunConfig, SourceConfig
from training.config_file import load_config
from training.data.datasets import list_cases, load_labels, write_json
from training.data.phantoms import make_phantom
from training.data.stratify import stratify
from training.fit.predict import prediction_path
from training.tune.tune import tune

SMOKE = Path(__file__).resolve().parents[2] / "training" / "configs" / "smoke.yaml"
SCRATCH = "nnunet-scratch"
FOLDS = 3


def configuration(work: Path) -> RunConfig:
    """The smoke run on the cases of `work/scans`, in three folds."""
    source = SourceConfig("scans", folder=str(work / "scans"), licence="CC0 in name only", doi="10.0000/none")
    stage = DatasetConfig(("scans",))
    return replace(load_config(SMOKE), sources=(source,), pretraining=stage, finetuning=stage, folds=FOLDS)


def write_scan(case: str, seed: int, folder: Path) -> None:
    """A small phantom as a BraTS folder."""
    phantom = make_phantom(seed, (64, 64, 48))
    (folder / case).mkdir(parents=True)
    images = dict(zip(SEQUENCES, phantom.data, strict=True)) | {"seg": phantom.labels}
    for name, image in images.items():
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / case / f"{case}-{name}.nii.gz")


def fabricate(work: Path, cases: int = 6, *, scratch: bool = True) -> RunConfig:
    """Write scans, `cases.json`, `folds.json`, checkpoints with curves, predictions, and what tuning makes of them."""
    for number in range(cases):
        write_scan(f"BraTS-SSA-{number:05d}-000", number, work / "scans")
    config = configuration(work)
    entries = list_cases(config)
    write_json(entries, work / "cases.json")
    stratify(config, work)
    for stage in ("Dataset001_pretraining", "Dataset002_finetuning"):
        for name in ("NnUNetRegionTrainer__nnunet__3d_fullres", "MedNeXtRegionTrainer__mednext__3d_fullres"):
            for fold in range(config.folds):
                folder = work / "nnunet" / "trainings" / stage / name / f"fold_{fold}"
                write_checkpoint(folder, epochs=8, seed=fold)
                Image.new("RGB", (30, 54), "white").save(folder / "progress.png")
    models = ["nnunet", "mednext", *([SCRATCH] if scratch else [])]
    for number, entry in enumerate(entries):
        labels = load_labels(entry, config)
        for place, model in enumerate(models):
            random = np.random.default_rng(100 * number + 10 * place)
            path = prediction_path(work, model, entry.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            seen = imagine(labels, random, blur=3.0 if model == SCRATCH else 1.0)
            np.savez_compressed(path, probabilities=seen.astype(np.float16))
    tune(config, work, jobs=1)
    return config


def imagine(labels, random, blur):
    """Region probabilities (3, X, Y, Z) of a network that sees these labels blurred, and a speck beside them."""
    regions = [region_mask(labels, region).astype(np.float32) for region in REGIONS]
    seen = np.stack([ndimage.gaussian_filter(region, blur) for region in regions])
    corner = random.integers(4, 20, size=3)
    seen[0, *(slice(start, start + 5) for start in corner)] = 0.6
    return seen


def write_checkpoint(folder: Path, epochs: int, seed: int, name: str = "checkpoint_final.pth") -> None:
    """A checkpoint with nnU-Net's log, numbers in the types that nnU-Net writes."""
    import torch

    random = np.random.default_rng(seed)
    falling = [np.float32(value) for value in 0.6 - 0.1 * np.arange(epochs) + 0.05 * random.normal(size=epochs)]
    log = {
        "train_losses": falling,
        "val_losses": [np.float64(value) + 0.05 for value in falling],
        "mean_fg_dice": [np.float32(0.1 * epoch) for epoch in range(epochs)],
        "ema_fg_dice": [np.float32(0.09 * epoch) for epoch in range(epochs)],
        "dice_per_class_or_region": [[np.float32(0.5), np.float32("nan"), np.float32(0.2)]] * epochs,
        "lrs": [0.01 * (1 - epoch / epochs) ** 0.9 for epoch in range(epochs)],
        "epoch_start_timestamps": [1000.0 + 30 * epoch for epoch in range(epochs)],
        "epoch_end_timestamps": [1028.0 + 30 * epoch for epoch in range(epochs)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": {"a": torch.zeros(3)}, "logging": log, "current_epoch": epochs}, folder / name)
