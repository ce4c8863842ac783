from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inference.labels import SEQUENCES
from inference.refine.components import largest_component
from inference.refine.radiomics import (
    FEATURE_NAMES,
    PRESETS,
    Bins,
    ExtractionSettings,
    NoFeatures,
    extract_features,
)

SPACING = (1.0, 1.0, 1.0)


def synthetic(
    shape: tuple[int, int, int] = (48, 56, 40), seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A textured ball in a box of zeros, and an irregular tumour in it with a small second component."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.8
    texture = np.stack([gaussian_filter(random.normal(size=shape), 1.5) for _ in SEQUENCES])
    data = np.where(brain, 300 + 900 * texture + 200 * grid[[0, 1, 2, 0]], 0).astype(np.float32)
    bumps = gaussian_filter(random.normal(size=shape), 2) * 2
    tumour = ((grid - 0.2) ** 2).sum(axis=0) < 0.12 + 0.3 * bumps
    tumour &= brain
    tumour[4:6, 26:28, 18:20] = True
    return data, tumour


def reference(
    data: NDArray[np.float32], mask: NDArray[np.bool_], spacing: tuple[float, float, float], **settings: object
) -> NDArray[np.float64]:
    """What pyradiomics' own extractor finds on the full images."""
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    logging.getLogger("radiomics").setLevel(logging.CRITICAL)

    def image(array: NDArray[np.generic]) -> SimpleITK.Image:
        converted = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
        converted.SetSpacing(spacing)
        return converted

    extractor = RadiomicsFeatureExtractor(additionalInfo=False, **settings)
    mask_image = image(mask.astype(np.uint8))
    values: list[float] = []
    for index, sequence in enumerate(data):
        found = {name: float(value) for name, value in extractor.execute(image(sequence), mask_image).items()}
        values += [value for name, value in found.items() if index == 0 or "_shape_" not in name]
        names = [name for name in found if index == 0 or "_shape_" not in name]
        expected = [f"original_{name}" for name in FEATURE_NAMES[:14]] * (index == 0)
        expected += [
            name.replace(SEQUENCES[index], "original") for name in FEATURE_NAMES if name.startswith(SEQUENCES[index])
        ]
        assert names == expected
    return np.array(values)


def standardised_over(brain: NDArray[np.bool_], data: NDArray[np.float32]) -> NDArray[np.float64]:
    """Full images less their mean and over their standard deviation in the brain, both in single precision."""
    inside = [sequence[brain].astype(np.float64) for sequence in data]
    return np.stack(
        [
            (sequence - np.float64(np.float32(values.mean()))) * (1 / np.float64(np.float32(values.std(ddof=1))))
            for sequence, values in zip(data.astype(np.float64), inside, strict=True)
        ]
    )


def described(*args: object, **kwargs: object) -> NDArray[np.float64]:
    features = extract_features(*args, **kwargs)  # type: ignore[arg-type]
    assert not isinstance(features, NoFeatures), features
    return features


def largest_relative_difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1e-9)))


def test_there_are_386_in_the_order_of_the_paper() -> None:
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 386
    assert [name.split("_")[0] for name in FEATURE_NAMES] == (
        ["shape"] * 14 + ["t1n"] * 93 + ["t1c"] * 93 + ["t2w"] * 93 + ["t2f"] * 93
    )
    kinds = [name.split("_")[1] for name in FEATURE_NAMES[14 : 14 + 93]]
    counts = {"firstorder": 18, "glcm": 24, "glrlm": 16, "glszm": 16, "gldm": 14, "ngtdm": 5}
    assert {kind: kinds.count(kind) for kind in kinds} == counts


@pytest.mark.parametrize("spacing", [SPACING, (1.0, 0.5, 2.5)])
def test_paper_preset_equals_pyradiomics_on_the_full_image(spacing: tuple[float, float, float]) -> None:
    data, tumour = synthetic()
    data[1] *= 60  # many grey levels also in bins of 25 standard deviations
    data[1, 0, 0, 0] = 1e5
    expected = reference(data, largest_component(tumour), spacing, normalize=True)
    found = described(data, tumour, spacing, PRESETS["paper"])
    assert largest_relative_difference(found, expected) < 1e-6


def test_fine_bins_of_the_whole_image_equal_pyradiomics_on_the_full_image() -> None:
    data, tumour = synthetic(seed=1)
    settings = ExtractionSettings("image", Bins(width=0.1), smallest_tumour_voxels=50)
    expected = reference(data, largest_component(tumour), SPACING, normalize=True, binWidth=0.1)
    assert largest_relative_difference(described(data, tumour, SPACING, settings), expected) < 1e-6


def test_brain_preset_equals_pyradiomics_on_images_standardised_over_the_brain() -> None:
    data, tumour = synthetic(seed=2)
    data[2, 20:24, 20:24, 20:24] = 0  # brain, since the other sequences are not 0 there
    brain = (data != 0).any(axis=0)
    expected = reference(standardised_over(brain, data), largest_component(tumour), SPACING, binCount=32)
    assert largest_relative_difference(described(data, tumour, SPACING, PRESETS["brain"]), expected) < 1e-6


@pytest.mark.parametrize("preset", ["paper", "brain"])
def test_on_a_real_scan_the_values_equal_those_of_the_full_image(shared_folder: Path, preset: str) -> None:
    folder = shared_folder / "data" / "glioma" / "BraTS2021_01480"
    names = ("t1", "t1ce", "t2", "flair", "seg")
    volumes = [nibabel.load(folder / f"{folder.name}_{name}.nii.gz").get_fdata(dtype=np.float32) for name in names]
    data, tumour = np.stack(volumes[:4]), volumes[4] > 0
    brain = (data != 0).any(axis=0)
    if preset == "paper":
        expected = reference(data, largest_component(tumour), SPACING, normalize=True)
    else:
        expected = reference(standardised_over(brain, data), largest_component(tumour), SPACING, binCount=32)
    assert largest_relative_difference(described(data, tumour, SPACING, PRESETS[preset]), expected) < 1e-6


def test_only_the_largest_component_counts() -> None:
    data, tumour = synthetic()
    assert not np.array_equal(largest_component(tumour), tumour)
    for preset in PRESETS.values():
        alone = described(data, largest_component(tumour), SPACING, preset)
        np.testing.assert_array_equal(described(data, tumour, SPACING, preset), alone)


def test_permuted_sequences_change_the_features() -> None:
    data, tumour = synthetic()
    swapped = described(data[[1, 0, 2, 3]], tumour, SPACING, PRESETS["brain"])
    features = described(data, tumour, SPACING, PRESETS["brain"])
    np.testing.assert_array_equal(swapped[14 : 14 + 93], features[14 + 93 : 14 + 186])
    assert not np.allclose(swapped, features)


def test_a_sequence_that_is_constant_still_has_features() -> None:
    data, tumour = synthetic()
    data[3] = 7
    assert np.isfinite(described(data, tumour, SPACING, PRESETS["brain"])).all()


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0, 0, 0), "the whole tumour is empty"),
        ((3, 4, 4), "the largest component has 48 voxels, fewer than 50"),
        ((12, 12, 1), "the largest component is one voxel thick"),
        ((60, 1, 1), "the largest component is one voxel thick"),
    ],
)
def test_empty_tiny_and_thin_tumours_have_no_features_for_a_stated_reason(
    box: tuple[int, int, int], reason: str
) -> None:
    tumour = np.zeros((64, 20, 20), bool)
    tumour[tuple(slice(2, 2 + side) for side in box)] = True
    data = np.random.default_rng(0).normal(size=(4, *tumour.shape)).astype(np.float32)
    assert extract_features(data, tumour, SPACING, PRESETS["paper"]) == NoFeatures(reason)


def test_undefined_features_are_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference.refine import texture

    monkeypatch.setattr(texture, "_maximal_correlation", lambda *_: np.array([np.nan]))
    data, tumour = synthetic()
    features = extract_features(data, tumour, SPACING, PRESETS["brain"])
    assert features == NoFeatures("4 features are undefined, t1n_glcm_MCC first")
