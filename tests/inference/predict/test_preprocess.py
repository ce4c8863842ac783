"""Preprocessing equals nnU-Net's own, and leads back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from inference.errors import BundleError
from inference.predict.preprocess import Preprocessed, preprocess, read_plan
from tests.inference.predict.conftest import LINEAR, SPLINES, make_plans, make_scan, unet_architecture

DATASET = {
    "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]},
    "regions_class_order": [2, 1, 3],
    "channel_names": {"0": "t1n", "1": "t1c", "2": "t2w", "3": "t2f"},
    "file_ending": ".nii.gz",
}
CASES = [
    pytest.param({"spacing": (1.0, 1.0, 1.0), "resampling": SPLINES}, (1.0, 1.0, 1.0), id="no resampling"),
    pytest.param({"spacing": (1.5, 1.5, 1.5)}, (1.0, 1.0, 1.0), id="linear, coarser"),
    pytest.param({"spacing": (0.8, 1.3, 1.0)}, (1.0, 1.0, 1.0), id="linear, finer and coarser"),
    pytest.param({"spacing": (2.0, 2.0, 2.0), "resampling": SPLINES}, (1.0, 1.0, 1.0), id="splines"),
    pytest.param({"spacing": (1.0, 1.0, 1.0), "resampling": SPLINES}, (0.9, 0.9, 5.0), id="splines, thick slices"),
    pytest.param({"spacing": (1.2, 1.0, 1.0), "resampling": SPLINES}, (4.0, 1.0, 1.0), id="splines, thick sagittal"),
    pytest.param({"masked": False, "spacing": (2.0, 2.0, 2.0)}, (1.0, 1.0, 1.0), id="statistics of the whole crop"),
    pytest.param({"transpose": (1, 2, 0), "spacing": (1.3, 1.0, 1.6)}, (1.0, 1.1, 1.2), id="transposed"),
]


def nnunet_preprocessed(plans: dict[str, object], data: np.ndarray, spacing: tuple[float, ...]) -> tuple:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    properties = {"spacing": list(spacing[::-1])}
    stored = data.transpose(0, 3, 2, 1)
    preprocessor = DefaultPreprocessor(verbose=False)
    array, _, properties = preprocessor.run_case_npy(stored, None, properties, manager, configuration, DATASET)
    return array, properties, manager, configuration


def on_the_scan(array: np.ndarray, prepared: Preprocessed) -> np.ndarray:
    """(C, Z, Y, X) of the network's grid as (C, X, Y, Z) of the whole scan."""
    return prepared.to_whole_scan(prepared.to_scan_axes(prepared.to_crop_grid(array)))


def thick(plans: dict[str, object]) -> dict[str, object]:
    """The same plans, with linear resampling that treats thick slices apart."""
    section = plans["configurations"]["3d_fullres"]
    for key in ("resampling_fn_data_kwargs", "resampling_fn_probabilities_kwargs"):
        section[key] = {**section[key], "force_separate_z": None}
    return plans


@pytest.mark.parametrize(("changes", "spacing"), CASES)
def test_equals_nnunet(changes: dict[str, object], spacing: tuple[float, float, float]) -> None:
    data = make_scan((44, 52, 36))
    plans = make_plans(unet_architecture(), **changes)
    expected, properties, *_ = nnunet_preprocessed(plans, data, spacing)
    found = preprocess(data, spacing, read_plan(plans))
    assert found.array.shape == expected.shape
    assert np.abs(found.array - expected).max() < 1e-5
    assert found.crop_shape == tuple(properties["shape_after_cropping_and_before_resampling"])
    assert data[:, 0, 0, 0].tolist() == [0, 0, 0, 0], "the scan itself must stay as it was"


def test_equals_nnunet_with_linear_thick_slices() -> None:
    data = make_scan((44, 52, 36))
    plans = thick(make_plans(unet_architecture()))
    expected, *_ = nnunet_preprocessed(plans, data, (0.9, 0.9, 5.0))
    found = preprocess(data, (0.9, 0.9, 5.0), read_plan(plans))
    assert found.array.shape == expected.shape
    assert np.abs(found.array - expected).max() < 1e-5


def test_brain_at_the_border_is_filled_like_nnunet() -> None:
    data = make_scan((30, 30, 30))[:, 6:20, :, 9:]
    data[:, 0:3, 10:20, 5:15] = 0
    plans = make_plans(unet_architecture())
    expected, *_ = nnunet_preprocessed(plans, data, (1.0, 1.0, 1.0))
    assert np.abs(preprocess(data, (1.0, 1.0, 1.0), read_plan(plans)).array - expected).max() < 1e-5


def test_real_scan_equals_nnunet(shared_folder) -> None:
    nibabel = pytest.importorskip("nibabel")
    folder = next(path for path in sorted((shared_folder / "data" / "africa").iterdir()) if path.is_dir())
    names = ("t1n", "t1c", "t2w", "t2f")
    paths = [next(folder.glob(f"*-{name}.nii.gz")) for name in names]
    data = np.stack([np.asarray(nibabel.load(path).dataobj, np.float32) for path in paths])
    plans = make_plans(unet_architecture(), spacing=(1.5, 1.5, 1.5))
    expected, *_ = nnunet_preprocessed(plans, data, (1.0, 1.0, 1.0))
    assert np.abs(preprocess(data, (1.0, 1.0, 1.0), read_plan(plans)).array - expected).max() < 1e-5


@pytest.mark.parametrize(("changes", "spacing"), CASES)
def test_the_way_back_equals_nnunet(changes: dict[str, object], spacing: tuple[float, float, float]) -> None:
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    data = make_scan((44, 52, 36))
    plans = make_plans(unet_architecture(), **changes)
    array, properties, manager, configuration = nnunet_preprocessed(plans, data, spacing)
    logits = np.random.default_rng(1).normal(size=(3, *array.shape[1:])).astype(np.float32)
    labels = manager.get_label_manager(DATASET)
    _, expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, manager, configuration, labels, properties, return_probabilities=True, num_threads_torch=1
    )
    prepared = preprocess(data, spacing, read_plan(plans))
    found = on_the_scan(logits, prepared)
    inside = on_the_scan(np.ones_like(logits), prepared) > 0
    probabilities = np.where(inside, 1 / (1 + np.exp(-found)), 0)
    assert found.shape == (3, 44, 52, 36)
    assert np.abs(probabilities.transpose(0, 3, 2, 1) - expected).max() < 1e-5


def test_a_voxel_comes_back_to_its_place() -> None:
    data = make_scan((20, 24, 28))
    prepared = preprocess(data, (1.0, 1.0, 1.0), read_plan(make_plans(unet_architecture())))
    marked = np.where(data[:1] == data[0].max(), 1, 0).astype(np.float32)
    in_network = prepared.array[:1] == prepared.array[0].max()
    assert np.array_equal(on_the_scan(in_network.astype(np.float32), prepared), marked)


def test_canonical_axes_undo_a_transposed_plan() -> None:
    data = make_scan((20, 24, 28))
    plan = read_plan(make_plans(unet_architecture(), transpose=(2, 0, 1), masked=False))
    prepared = preprocess(data, (1.0, 1.0, 1.0), plan)
    crop = data[:, *prepared.box]
    back = prepared.to_scan_axes(prepared.array)
    assert np.corrcoef(back[2].ravel(), crop[2].ravel())[0, 1] > 0.99


def test_an_empty_scan_gives_zeros() -> None:
    prepared: Preprocessed = preprocess(
        np.zeros((4, 8, 9, 10), np.float32), (1.0, 1.0, 1.0), read_plan(make_plans(unet_architecture()))
    )
    assert prepared.array.shape == (4, 10, 9, 8)
    assert not prepared.array.any()


def test_plans_that_differ_in_the_patch_alone_share_their_preprocessing() -> None:
    plan = read_plan(make_plans(unet_architecture()))
    assert dataclasses.replace(plan, patch=(16, 16, 16)).preprocessing == plan.preprocessing
    assert dataclasses.replace(plan, spacing=(2.0, 2.0, 2.0)).preprocessing != plan.preprocessing


def test_a_configuration_inherits() -> None:
    plans = make_plans(unet_architecture())
    plans["configurations"]["coarser"] = plans["configurations"].pop("3d_fullres")
    plans["configurations"]["3d_fullres"] = {"inherits_from": "coarser", "spacing": [0.5, 0.5, 0.5]}
    assert read_plan(plans).spacing == (0.5, 0.5, 0.5)
    assert read_plan(plans).patch == (32, 32, 32)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalization_schemes", ["CTNormalization"] * 4),
        ("use_mask_for_norm", [True, True, True]),
        ("use_mask_for_norm", [1, 1, 1, 1]),
        ("spacing", [1.0, 1.0]),
        ("patch_size", "large"),
        ("resampling_fn_data", "os.system"),
        ("resampling_fn_data_kwargs", None),
        ("resampling_fn_data_kwargs", {"is_seg": True}),
        ("resampling_fn_probabilities_kwargs", {"mode": "bicubic"}),
        ("resampling_fn_probabilities", None),
        ("inherits_from", "3d_fullres"),
    ],
)
def test_plans_that_are_not_understood_are_refused(key: str, value: object) -> None:
    plans = make_plans(unet_architecture(), resampling=LINEAR)
    plans["configurations"]["3d_fullres"][key] = value
    with pytest.raises(BundleError, match="plans"):
        read_plan(plans)


def test_an_absent_configuration_is_refused() -> None:
    plans = make_plans(unet_architecture())
    plans["configurations"]["3d_lowres"] = plans["configurations"].pop("3d_fullres")
    with pytest.raises(BundleError, match="3d_fullres"):
        read_plan(plans)
