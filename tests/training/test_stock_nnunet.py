"""A network that nnU-Net's own programs trained, imported, says what nnU-Net's own prediction says.

The programs are the stock ones, as real processes: `nnUNetv2_plan_and_preprocess`, `nnUNetv2_train` with
`nnUNetTrainer_1epoch`, `nnUNetv2_predict` of that one fold. Nothing in them is seeded, so every run compares another
network.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy.ndimage import gaussian_filter

from inference.bundle.store import load_bundle
from inference.cli import main as infer
from inference.labels import REGIONS, SEQUENCES, Label, region_mask
from training.evaluation.overlap import dice

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
PATCH = (48, 32, 16)
"""Size (X, Y, Z) of the training brains, which nnU-Net's planner takes for its patch: all multiples of 8, so that
neither prediction pads a brain of this size."""
TRAINED = 5
"""Scans to train with: the fewest that nnU-Net's own splits take."""
LARGE = (70, 45, 23)
"""Size of a brain that takes two patches along every axis."""
STORED = {"small": ("RAS", "LPS", "PIR"), "large": ("RAS", "LPS")}
"""How the scans to predict are stored; PIR has its axes in another order as well."""
MOST = 0.01
"""Largest difference of probabilities: nnU-Net adds logits up in half precision, and our files hold steps of 1/255."""
ENOUGH = 1000
"""Voxels that each region must have in what nnU-Net predicts: one that its half precision moves is then no 0.001."""


@dataclass(frozen=True)
class Habit:
    """How somebody keeps the scans that nnU-Net is trained on."""

    orientation: str
    """Axis codes of the files."""
    spacing: tuple[float, float, float]
    """Voxel size of the training scans along (X, Y, Z), mm."""
    channels: Mapping[str, str]
    """What the data set calls its channels, in its order, and the sequence that each is."""
    numbers: Mapping[Label, int]
    """How it numbers labels."""
    regions: Mapping[str, str]
    """What it calls its regions, in the order of the network's outputs, and the region that each is."""


HABITS = {
    "RAS": Habit(
        orientation="RAS",
        spacing=(1, 1, 1),
        channels={"T1": "t1n", "T1ce": "t1c", "T2": "t2w", "Flair": "t2f"},
        numbers={Label.ED: 1, Label.NCR: 2, Label.ET: 3},
        regions={"whole tumor": "WT", "tumor core": "TC", "enhancing tumor": "ET"},
    ),
    "LPS": Habit(
        orientation="LPS",
        spacing=(1, 1.25, 1),
        channels={"FLAIR": "t2f", "T1Gd": "t1c", "T1w": "t1n", "T2w": "t2w"},
        numbers={Label.NCR: 1, Label.ED: 2, Label.ET: 3},
        regions={"whole_tumor": "WT", "tumor_core": "TC", "enhancing_tumor": "ET"},
    ),
}
"""As nnU-Net's own conversion of BraTS data has it; and with BraTS's numbers and orientation, channels in another
order and voxels that are longest along Y, so that the plans transpose axes."""
PAINTED = (Label.ED, Label.NCR, Label.ET)
"""What is painted where WT, TC and ET are: `regions_class_order`, which leaves regions no other order."""


@dataclass(frozen=True)
class Trained:
    """What nnU-Net's programs left behind, and what was made of it."""

    work: Path
    """Folder of everything."""
    habit: Habit
    """How the training scans were kept."""
    model: Path
    """nnU-Net's folder of the trained model."""
    bundle: Path
    """Imported with the orientation that the training scans are stored in."""
    scans: Path
    """Unseen cases as BraTS folders: `small`, which one patch holds, and `large`, each in every one of STORED."""

    def stock(self, case: str, mirrored: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Labels (X, Y, Z) and probabilities (3, X, Y, Z) of WT, TC, ET by `nnUNetv2_predict`, in canonical RAS."""
        folder = self.work / ("mirrored" if mirrored else "plain")
        image = nibabel.load(folder / f"{case}.nii.gz")
        given = np.asarray(nibabel.as_closest_canonical(image).dataobj)
        labels = np.zeros(given.shape, np.uint8)
        for label, number in self.habit.numbers.items():
            labels[given == number] = label
        with np.load(folder / f"{case}.npz") as file:
            stored = file["probabilities"].transpose(0, 3, 2, 1).astype(np.float32)
        order = [list(self.habit.regions.values()).index(region) for region in REGIONS]
        channels = [nibabel.Nifti1Image(stored[output], image.affine) for output in order]
        return labels, np.stack([canonical(channel) for channel in channels])


def canonical(image: nibabel.Nifti1Image) -> np.ndarray:
    return nibabel.as_closest_canonical(image).get_fdata(dtype=np.float32)


def draw(seed: int, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Data (4, X, Y, Z) and labels (X, Y, Z) of a lopsided brain that fills a box of `size`, with unequal margins."""
    random = np.random.default_rng(seed)
    u, v, w = np.meshgrid(*((np.arange(length) + 0.5) * 2 / length - 1 for length in size), indexing="ij")
    brain = (np.abs(u) ** 4 + np.abs(v) ** 4 + np.abs(w) ** 4 < 1.3) & ~((u > 0.4) & (v > 0.3) & (w > 0.2))
    x, y, z = np.array([-0.25, 0.3, -0.2]) + random.uniform(-0.1, 0.1, 3)
    whole = ((u - x) / 0.65) ** 2 + ((v - y) / 0.6) ** 2 + ((w - z) / 0.65) ** 2 < 1
    core = ((u - x - 0.1) / 0.5) ** 2 + ((v - y + 0.1) / 0.5) ** 2 + ((w - z) / 0.55) ** 2 < 1
    enhancing = core & (u + 0.5 * v - 0.7 * w > x + 0.5 * y - 0.7 * z - 0.15)
    labels = np.zeros(size, np.uint8)
    for mask, label in ((whole, Label.ED), (core, Label.NCR), (enhancing, Label.ET)):
        labels[mask & brain] = label
    means = {0: (500, 450, 400, 420), Label.ED: (470, 440, 620, 720), Label.NCR: (300, 300, 760, 560)}
    means[Label.ET] = (500, 900, 560, 640)
    table = np.array([means[label] for label in range(4)], np.float32)
    data = np.moveaxis(table[labels], -1, 0)
    slopes = np.array([(60, 30, -40), (-30, 50, 40), (40, -60, 30), (30, 40, 60)])
    data = data + np.einsum("ca,axyz->cxyz", slopes, np.stack([u, v, w]))
    data += 60 * gaussian_filter(random.normal(size=data.shape), (0, 1, 1, 1)) + 10 * random.normal(size=data.shape)
    margins = ((1, 4), (4, 1), (1, 4))
    return np.pad(np.where(brain, data, 0).astype(np.float32), ((0, 0), *margins)), np.pad(labels, margins)


def store(array: np.ndarray, spacing: tuple[float, ...], orientation: str, path: Path) -> None:
    """Write an array in canonical RAS as a file stored in `orientation`."""
    affine = np.diag((*spacing, 1.0))
    affine[:3, 3] = (-20, 15, 7)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine).as_reoriented(turn), path)


def store_channels(data: np.ndarray, spacing: tuple[float, ...], habit: Habit, stem: Path) -> None:
    for channel, sequence in enumerate(habit.channels.values()):
        path = stem.with_name(f"{stem.name}_{channel:04d}.nii.gz")
        store(data[SEQUENCES.index(sequence)], spacing, habit.orientation, path)


def write_dataset(habit: Habit, folder: Path) -> None:
    """A raw data set of nnU-Net's, with regions."""
    for seed in range(TRAINED):
        data, labels = draw(seed, PATCH)
        numbers = np.zeros_like(labels)
        for label, number in habit.numbers.items():
            numbers[labels == label] = number
        store_channels(data, habit.spacing, habit, folder / "imagesTr" / f"scan_{seed}")
        store(numbers, habit.spacing, habit.orientation, folder / "labelsTr" / f"scan_{seed}.nii.gz")
    regions = {name: sorted(habit.numbers[label] for label in REGIONS[ours]) for name, ours in habit.regions.items()}
    description = {
        "channel_names": {str(number): name for number, name in enumerate(habit.channels)},
        "labels": {"background": 0, **regions},
        "regions_class_order": [habit.numbers[label] for label in PAINTED],
        "numTraining": TRAINED,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def write_unseen(habit: Habit, stock: Path, ours: Path) -> None:
    """The cases to predict: for nnU-Net as it was trained, for us in every orientation."""
    for name, seed, size, spacing in (("small", 100, PATCH, habit.spacing), ("large", 101, LARGE, (1, 1, 1))):
        data, _ = draw(seed, size)
        store_channels(data, spacing, habit, stock / name)
        for orientation in STORED[name]:
            case = f"{name}-{orientation}"
            for sequence, volume in zip(SEQUENCES, data, strict=True):
                store(volume, spacing, orientation, ours / case / f"{case}-{sequence}.nii.gz")


def call(work: Path, program: str, *words: object) -> None:
    """Run one of the programs that are installed beside this Python, with nnU-Net's folders in `work`."""
    places = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    # They take a thread per core whatever the environment says, and on cores that others use as well these threads wait
    # for each other: an epoch of a minute took over 20. So they are told of one core.
    one_core = work / "one_core" / "sitecustomize.py"
    one_core.parent.mkdir(exist_ok=True)
    one_core.write_text("import os\n\nos.cpu_count = lambda: 1\n")
    few = {
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "PYTHONPATH": str(one_core.parent),
        "OMP_NUM_THREADS": "1",
    }
    file = Path(sys.executable).with_name(program)
    output = work / f"{program}.log"
    with output.open("ab") as stream:
        done = subprocess.run(
            [file, *map(str, words)], env=os.environ | places | few, stdout=stream, stderr=stream, check=False
        )
    assert done.returncode == 0, output.read_text(errors="replace")[-3000:]


def import_checkpoints(model: Path, orientation: str, target: Path) -> Path:
    words = ["--nnunet", model, "--orientation", orientation, "--output", target]
    subprocess.run([sys.executable, "-m", "training", "import-checkpoints", *words], cwd=ROOT, check=True)
    return target


@pytest.fixture(scope="module", params=list(HABITS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    habit, work = HABITS[request.param], tmp_path_factory.mktemp(request.param)
    write_dataset(habit, work / "raw" / "Dataset137_Tumours")
    write_unseen(habit, work / "unseen", work / "scans")
    call(work, "nnUNetv2_plan_and_preprocess", "-d", 137, "-c", "3d_fullres", "-npfp", 1, "-np", 1)
    training = ("-tr", "nnUNetTrainer_1epoch", "-device", "cpu")
    call(work, "nnUNetv2_train", 137, "3d_fullres", 0, *training)
    words = ["-i", work / "unseen", "-d", 137, "-c", "3d_fullres", "-f", 0, *training, "-npp", 1, "-nps", 1]
    words += ["--save_probabilities"]
    call(work, "nnUNetv2_predict", *words, "-o", work / "mirrored")
    call(work, "nnUNetv2_predict", *words, "-o", work / "plain", "--disable_tta")
    model = work / "results" / "Dataset137_Tumours" / "nnUNetTrainer_1epoch__nnUNetPlans__3d_fullres"
    bundle = import_checkpoints(model, habit.orientation, work / "bundle")
    return Trained(work, habit, model, bundle, work / "scans")


def predict(trained: Trained, bundle: Path, engine: str, profile: str, into: Path) -> None:
    words = ["infer", "-i", trained.scans, "-o", into / "labels", "--probabilities", into / "probabilities"]
    words += ["--bundle", bundle, "--engine", engine, "--profile", profile, "--device", "cpu", "--threads", 1]
    assert infer([str(word) for word in words]) == 0


def ours(into: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (X, Y, Z) and probabilities (3, X, Y, Z) as our pipeline wrote them, in canonical RAS."""
    labels = canonical(nibabel.load(into / "labels" / f"{case}.nii.gz")).astype(np.uint8)
    probabilities = canonical(nibabel.load(into / "probabilities" / f"{case}_probabilities.nii.gz"))
    return labels, np.moveaxis(probabilities, -1, 0)


def check_says_something(labels: np.ndarray) -> None:
    """Every region is there, none is everything, and each would look otherwise if it were flipped along any axis."""
    for region in REGIONS:
        mask = region_mask(labels, region)
        assert ENOUGH < np.count_nonzero(mask) < mask.size / 2, region
        for axis in range(3):
            assert dice(mask, np.flip(mask, axis)) < 0.9, (region, axis)


def check_same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Dice of at least 0.999 in every region, and probabilities that differ by at most MOST."""
    scores = {region: dice(region_mask(found[0], region), region_mask(expected[0], region)) for region in REGIONS}
    difference = float(np.abs(found[1] - expected[1]).max())
    log.info("Dice %s, probabilities differ by at most %.4f", scores, difference)
    assert min(scores.values()) >= 0.999, scores
    assert difference <= MOST


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_profile_paper_says_what_nnunet_predicts(trained: Trained, engine: str, tmp_path: Path) -> None:
    """However a scan is stored, its answer lies where nnU-Net's lies for the scan stored as the training's were."""
    predict(trained, trained.bundle, engine, "paper", tmp_path)
    for case, orientations in STORED.items():
        expected = trained.stock(case)
        check_says_something(expected[0])
        for orientation in orientations:
            check_same(ours(tmp_path, f"{case}-{orientation}"), expected)
            image = nibabel.load(tmp_path / "labels" / f"{case}-{orientation}.nii.gz")
            scan = nibabel.load(trained.scans / f"{case}-{orientation}" / f"{case}-{orientation}-t1n.nii.gz")
            assert nibabel.aff2axcodes(image.affine) == tuple(orientation)
            np.testing.assert_array_equal(image.affine, scan.affine)


def test_the_orientation_that_an_import_states_matters(trained: Trained, tmp_path: Path) -> None:
    """Eight mirrorings hide which way a network sees a scan, so here there are none, and one patch holds the scan."""
    expected = trained.stock("small", mirrored=False)
    other = "LPS" if trained.habit.orientation == "RAS" else "RAS"
    wrong = import_checkpoints(trained.model, other, tmp_path / "bundle")
    predict(trained, trained.bundle, "torch", "fast", tmp_path / "right")
    predict(trained, wrong, "torch", "fast", tmp_path / "wrong")
    for orientation in STORED["small"]:
        right = ours(tmp_path / "right", f"small-{orientation}")
        check_same(right, expected)
        _, turned = ours(tmp_path / "wrong", f"small-{orientation}")
        assert np.abs(turned - expected[1]).max() > 5 * MOST


def test_the_bundle_says_where_its_network_comes_from(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    (model,) = bundle.models
    assert (model.plans["transpose_forward"] == [0, 1, 2]) == (trained.habit.orientation == "RAS")
    assert (bundle.manifest.orientation, model.heads, model.folds) == (trained.habit.orientation, "regions", (0,))
    origin = bundle.manifest.provenance.config["imported"]["nnunet"]
    assert origin["trainer"] == "nnUNetTrainer_1epoch"
    assert origin["checkpoints"][0]["epochs"] == 1
