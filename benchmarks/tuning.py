"""Time of `python -m training tune` on predictions of BraTS size: `python -m benchmarks.tuning --work DIR --cases 60`.

The cases are phantoms of 240 × 240 × 155 voxels, each made into many by what two made-up models see of it: blurred
regions with wavy borders, and spurious specks that a threshold may remove. A folder that is there is used again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.labels import REGIONS, SEQUENCES, region_mask
from training.config import BundleConfig, DatasetConfig, ModelConfig, RunConfig, SourceConfig, TuningConfig
from training.data.datasets import CaseEntry, copy_name
from training.data.phantoms import make_phantom
from training.fit.predict import prediction_path
from training.tune.thresholds import tune
from training.workers import open_workers

_LOG = logging.getLogger(__name__)

SHAPE: Final = (240, 240, 155)
"""Of a BraTS volume, voxels of 1 mm."""
PHANTOMS: Final = 6
"""Different scans; cases share them."""
MODELS: Final = ("nnunet", "mednext")
FOLDS: Final = 5


def configuration(work: Path) -> RunConfig:
    """A run of the two models on the cases of `work/cases`."""
    stage = DatasetConfig(("made",))
    return RunConfig(
        bundle=BundleConfig("benchmark", "0", "", "", ""),
        sources=(SourceConfig("made", folder=str(work / "cases")),),
        pretraining=stage,
        finetuning=stage,
        models=tuple(ModelConfig(name, "", {}) for name in MODELS),
        tuning=TuningConfig(weights="search"),
        folds=FOLDS,
    )


def make_scan(number: int, work: Path) -> None:
    """Write one phantom as the scan that several cases link to."""
    phantom = make_phantom(number, SHAPE)
    folder = work / "scans" / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    images = dict(zip(SEQUENCES, phantom.data, strict=True)) | {"seg": phantom.labels}
    for name, image in images.items():
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")


def make_case(number: int, work: Path) -> CaseEntry:
    """Link one case to its scan and write what the models see in it."""
    case, scan = f"made-{number:05d}-000", (work / "scans" / str(number % PHANTOMS)).resolve()
    folder = work / "cases" / case
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*SEQUENCES, "seg"):
        (folder / f"{case}-{name}.nii.gz").symlink_to(scan / f"{name}.nii.gz")
    labels = np.asarray(nibabel.load(scan / "seg.nii.gz").dataobj)
    brain = np.asarray(nibabel.load(scan / "t1n.nii.gz").dataobj) != 0
    for place, model in enumerate(MODELS):
        path = prediction_path(work, model, copy_name(case, "original"))
        path.parent.mkdir(parents=True, exist_ok=True)
        seen = imagine(labels, brain, np.random.default_rng(2 * number + place))
        np.savez_compressed(path, probabilities=seen.astype(np.float16))
    return CaseEntry(case, "made", case, str(folder / f"{case}-seg.nii.gz"))


def imagine(labels: NDArray[np.uint8], brain: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float32]:
    """Region probabilities (3, X, Y, Z) of a model that sees these labels (X, Y, Z) badly."""
    regions = np.stack([region_mask(labels, region) for region in REGIONS]).astype(np.float32)
    waves = ndimage.zoom(random.normal(size=(15, 15, 10)), np.array(SHAPE) / (15, 15, 10), order=1)
    seen = np.stack([ndimage.gaussian_filter(region, 2) for region in regions])
    seen *= 1 + 0.5 * waves.astype(np.float32)
    inside = np.argwhere(brain)
    for centre in inside[random.integers(len(inside), size=12)]:
        radius = int(random.integers(1, 6))
        box = tuple(slice(max(at - radius, 0), at + radius + 1) for at in centre)
        depth = int(random.integers(1, 4))
        seen[:depth, *box] = np.maximum(seen[:depth, *box], random.uniform(0.3, 0.9))
    clipped: NDArray[np.float32] = np.where(seen > 0.02, np.clip(seen, 0, 1), 0)
    return clipped


def make_work(work: Path, cases: int) -> None:
    """Write everything that tuning reads."""
    with open_workers() as workers:
        list(workers.map(partial(make_scan, work=work), range(PHANTOMS)))
        entries = []
        for entry in workers.map(partial(make_case, work=work), range(cases)):
            entries.append(entry)
            _LOG.info("made %d of %d cases", len(entries), cases)
    folds = {entry.id: index % FOLDS for index, entry in enumerate(entries)}
    (work / "cases.json").write_text(json.dumps([asdict(entry) for entry in entries]), encoding="utf-8")
    (work / "folds.json").write_text(json.dumps({"folds": folds}), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Make the cases where there are none, tune, and log how long that took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the made-up run")
    parser.add_argument("--cases", type=int, default=60, help="how many (default: 60)")
    parser.add_argument("--jobs", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument("--make-only", action="store_true", help="do not tune yet")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if not (options.work / "cases.json").is_file():
        make_work(options.work, options.cases)
    if not options.make_only:
        started = time.perf_counter()
        tune(configuration(options.work), options.work, jobs=options.jobs)
        _LOG.info("tuned on %d cases in %.0f s", options.cases, time.perf_counter() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
