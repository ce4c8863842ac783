"""The ensemble equals nnU-Net's predictor fold by fold, and averages as it says."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from inference.bundle.store import Model
from inference.errors import DeviceError
from inference.labels import most_probable_labels
from inference.predict.engines.base import pass_shape
from inference.predict.engines.openvino_engine import OpenVinoEngine
from inference.predict.engines.torch_engine import TorchEngine
from inference.predict.ensemble import predict
from inference.predict.preprocess import preprocess, read_plan
from inference.settings import Profile
from tests.inference.predict.conftest import (
    SPLINES,
    changed,
    fake_model,
    make_plans,
    make_scan,
    mednext_architecture,
    unet_architecture,
)

MILLIMETRE = (1.0, 1.0, 1.0)
SMALL, LARGE = (26, 24, 30), (44, 40, 52)
"""Scans that are smaller and larger than the patch of 32³ along every axis, once cropped."""
REGION_DATASET = {
    "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]},
    "regions_class_order": [2, 1, 3],
    "channel_names": {"0": "t1n", "1": "t1c", "2": "t2w", "3": "t2f"},
    "file_ending": ".nii.gz",
}
LABEL_DATASET = {**REGION_DATASET, "labels": {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 3}}


def nnunet_probabilities(model: Model, fold: int, data: np.ndarray, half: bool = False) -> np.ndarray:
    """(3 or 4, X, Y, Z) from nnU-Net's own predictor, accumulating in float32 unless `half`."""
    import torch
    from nnunetv2.inference import predict_from_raw_data
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from inference.predict.networks import build_network, load_weights

    network = build_network(model.architecture, 4, 3 if model.heads == "regions" else 4)
    load_weights(network, model.tensors(fold))
    manager = PlansManager(dict(model.plans))
    configuration = manager.get_configuration("3d_fullres")
    dataset = REGION_DATASET if model.heads == "regions" else LABEL_DATASET
    properties: dict[str, object] = {"spacing": [1.0, 1.0, 1.0]}
    array, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        data.transpose(0, 3, 2, 1), None, properties, manager, configuration, dataset
    )
    predictor = predict_from_raw_data.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network, manager, configuration, [network.state_dict()], dataset, "nnUNetTrainer", (0, 1, 2)
    )
    with pytest.MonkeyPatch.context() as patch:
        if not half:

            def exact(*arguments: object, **keywords: object) -> torch.Tensor:
                return compute_gaussian(*arguments, **{**keywords, "dtype": torch.float32})

            patch.setattr(predict_from_raw_data, "compute_gaussian", exact)
            patch.setattr(torch, "half", torch.float32)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array))
    assert logits.dtype == (torch.float16 if half else torch.float32)
    _, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.float(),
        manager,
        configuration,
        manager.get_label_manager(dataset),
        properties,
        return_probabilities=True,
        num_threads_torch=1,
    )
    return probabilities.transpose(0, 3, 2, 1)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["smaller than the patch", "larger than the patch"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        pytest.param(unet_architecture(), {}, id="U-Net, 1 mm"),
        pytest.param(mednext_architecture(), {}, id="MedNeXt, 1 mm"),
        pytest.param(unet_architecture(), {"spacing": (1.5, 1.5, 1.5), "patch": (16, 16, 16)}, id="U-Net, 1.5 mm"),
        pytest.param(mednext_architecture(), {"spacing": (0.8, 1.0, 1.2), "patch": (32, 16, 32)}, id="MedNeXt, oblong"),
        pytest.param(
            unet_architecture(), {"spacing": (1.25, 1.25, 1.25), "resampling": SPLINES}, id="U-Net, 1.25 mm, splines"
        ),
    ],
)
def test_paper_equals_nnunets_predictor_fold_by_fold(
    shape: tuple[int, int, int], architecture: dict[str, object], changes: dict[str, object], make_model: Callable
) -> None:
    model = make_model(make_plans(architecture, **changes), folds=2)
    data = make_scan(shape, margin=2)
    engine = TorchEngine("cpu")
    # Many tiles take long, and tell as much of one fold as of two.
    for fold in model.folds if shape == SMALL else model.folds[1:]:
        alone = model.of_folds(fold)
        found = predict(data, MILLIMETRE, [alone], engine, Profile.PAPER).array
        expected = nnunet_probabilities(model, fold, data)
        assert expected[expected > 0].std() > 0.05, "the comparison must not be of constants"
        assert np.abs(found - expected).max() < 1e-4


def test_label_heads_equal_nnunets_predictor(make_model: Callable) -> None:
    model = make_model(make_plans(mednext_architecture(), spacing=(1.5, 1.5, 1.5)), heads="labels", folds=1)
    data = make_scan(LARGE, margin=2)
    found = predict(data, MILLIMETRE, [model], TorchEngine("cpu"), Profile.PAPER).array
    _, necrosis, oedema, enhancing = nnunet_probabilities(model, 0, data)
    expected = np.stack([necrosis + oedema + enhancing, necrosis + enhancing, enhancing])
    assert np.abs(found - expected).max() < 1e-4


def nnunet_v1_softmax(model: Model, data: np.ndarray, *, tiled: bool) -> np.ndarray:
    """(4, X, Y, Z) as nnU-Net v1 sums up: the softmax of each mirroring, then tiles, then folds, all as probabilities.

    `predict_3D` of nnU-Net 1.7 (`_internal_predict_3D_3Dconv_tiled`), at the scan's own spacing; one pass unless tiled.
    """
    import torch
    from scipy.ndimage import gaussian_filter

    from inference.predict.networks import build_network, load_weights

    x, y, z = (slice(axis.min(), axis.max() + 1) for axis in np.nonzero((data != 0).any(axis=0)))
    prepared = preprocess(data, MILLIMETRE, read_plan(model.plans)).array
    sizes = prepared.shape[1:]
    patch = read_plan(model.plans).patch if tiled else pass_shape(sizes, model.architecture)
    missing = [max(0, length - size) for length, size in zip(patch, sizes, strict=True)]
    padded = np.pad(prepared, [(0, 0), *((count // 2, count - count // 2) for count in missing)])
    peak = np.zeros(patch)
    peak[tuple(length // 2 for length in patch)] = 1
    weights = gaussian_filter(peak, [length / 8 for length in patch], mode="constant")
    weights = weights / weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    steps = [np.round(np.linspace(0, s - p, int(np.ceil((s - p) / (p / 2))) + 1)).astype(int)
             for s, p in zip(padded.shape[1:], patch, strict=True)]  # fmt: skip
    folds = []
    for fold in model.folds:
        network = build_network(model.architecture, 4, 4).eval()
        load_weights(network, model.tensors(fold))
        sums, counts = np.zeros((4, *padded.shape[1:])), np.zeros(padded.shape[1:])
        for corner in itertools.product(*steps):
            tile = tuple(slice(start, start + length) for start, length in zip(corner, patch, strict=True))
            for axes in [()] if not tiled else [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]:
                piece = np.flip(padded[:, *tile], axes).copy()
                with torch.no_grad():
                    softmax = network(torch.from_numpy(piece)[None])[0].softmax(0).numpy()
                sums[:, *tile] += np.flip(softmax, axes) * weights
                counts[tile] += weights
        folds.append(sums / counts)
    before = [count // 2 for count in missing]
    inside = tuple(slice(start, start + size) for start, size in zip(before, sizes, strict=True))
    whole = np.zeros((4, *data.shape[1:]))
    whole[0] = 1
    whole[:, x, y, z] = np.mean(folds, axis=0)[:, *inside].transpose(0, 3, 2, 1)
    return whole


@pytest.mark.parametrize("architecture", [unet_architecture(), mednext_architecture()], ids=["U-Net", "MedNeXt"])
@pytest.mark.parametrize("profile", list(Profile))
def test_probabilities_are_averaged_as_in_nnunet_v1(
    architecture: dict[str, object], profile: Profile, make_model: Callable
) -> None:
    model = make_model(make_plans(architecture), heads="labels", averaging="probabilities")
    data = make_scan((40, 36, 44), margin=2)
    softmax = nnunet_v1_softmax(model, data, tiled=profile is Profile.PAPER)
    _, necrosis, oedema, enhancing = softmax
    expected = np.stack([necrosis + oedema + enhancing, necrosis + enhancing, enhancing])
    otherwise = predict(data, MILLIMETRE, [changed(model, averaging="logits")], TorchEngine("cpu"), profile).array
    for engine in (TorchEngine("cpu"), OpenVinoEngine(precision="f32")):
        found = predict(data, MILLIMETRE, [model], engine, profile).array
        assert np.abs(found - expected).max() < 1e-3
        assert np.abs(found - expected).mean() < 1e-5
        # Where rounding cannot decide, the most probable label is the same.
        first, second = np.sort(softmax, axis=0)[:-3:-1]
        sure = first - second > 2e-3
        np.testing.assert_array_equal(most_probable_labels(found)[sure], softmax.argmax(axis=0)[sure])
    differ = np.abs(otherwise - expected).max()
    assert differ > 1e-3 if profile is Profile.PAPER else differ < 1e-4, "tiles and mirrorings tell them apart"


class Fixed:
    """An engine whose networks answer with one number per fold and region."""

    name, device, description = "fixed", "cpu", "for tests"

    def __init__(self, answers: dict[str, list[float]]) -> None:
        self.answers = answers
        self.arrays: list[int] = []

    def mean_over_folds(self, model, prepared, _profile, advance, update=None) -> np.ndarray:
        self.arrays.append(id(prepared.array))
        for _ in model.folds:
            advance()
        values = np.array(self.answers[model.name], np.float32)
        ones = np.ones((3, *prepared.crop_shape), np.float32)
        for value in values if update else ():
            update(ones * value)
        return ones * values.mean()


def fixed_model(name: str, weight: float, folds: int = 2, **plan: object) -> Model:
    return fake_model(name, make_plans(unet_architecture(), **plan), {fold: {} for fold in range(folds)}, weight=weight)


def test_models_are_weighted_and_outside_is_zero() -> None:
    data = make_scan((20, 24, 28))
    bundle = [fixed_model("a", 3.0), fixed_model("b", 1.0)]
    engine = Fixed({"a": [0.1, 0.3], "b": [1.0, 0.6]})
    result = predict(data, MILLIMETRE, bundle, engine, Profile.FAST, compare_at=(0.5, 0.25, 0.7))
    inside = inside_of(data)
    assert result.array.shape == (3, 20, 24, 28)
    assert result.array.dtype == np.float32
    assert result.array[inside] == pytest.approx((3 * 0.2 + 1 * 0.8) / 4)
    assert not result.array[~inside].any()
    values, shares = np.array([0.1, 0.3, 1.0, 0.6]), np.array([3, 3, 1, 1]) / 8
    deviation = np.sqrt((shares * (values - 0.35) ** 2).sum())
    assert result.agreement is not None
    assert result.agreement.spread[inside] == pytest.approx(deviation, rel=1e-5)
    assert not result.agreement.spread[~inside].any()
    # The mean is 0.35: no WT, but both networks of b see one; TC, but for one network of a; no ET, but for one of b.
    assert result.agreement.overlap == pytest.approx({"WT": 6 / 8, "TC": 5 / 8, "ET": 7 / 8})


def test_probabilities_that_are_no_numbers_are_refused_by_model() -> None:
    bundle = [fixed_model("a", 1.0), fixed_model("b", 1.0)]
    with pytest.raises(DeviceError, match=r"^b: its networks gave probabilities that are not finite"):
        predict(make_scan(SMALL), MILLIMETRE, bundle, Fixed({"a": [0.5], "b": [0.5, np.nan]}), Profile.FAST)


def inside_of(data: np.ndarray) -> np.ndarray:
    prepared = preprocess(data, MILLIMETRE, read_plan(make_plans(unet_architecture())))
    crop = prepared.to_crop_grid(np.ones((3, *prepared.array.shape[1:]), np.float32))
    return prepared.to_whole_scan(prepared.to_scan_axes(crop)) > 0


def test_networks_are_not_compared_unless_asked_for() -> None:
    bundle = [fixed_model("a", 1.0)]
    assert predict(make_scan(SMALL), MILLIMETRE, bundle, Fixed({"a": [0.5]}), Profile.FAST).agreement is None


@pytest.mark.parametrize("profile", list(Profile))
def test_networks_that_say_the_same_agree_wherever_their_grid_lies(profile: Profile, make_model: Callable) -> None:
    changes = {"spacing": (1.5, 1.4, 1.6), "patch": (16, 16, 16), "transpose": (1, 0, 2)}
    model = make_model(make_plans(unet_architecture(), **changes), folds=1)
    twice = fake_model("twice", model.plans, dict.fromkeys((0, 1), model.networks[0]), weight=2.0)
    data = make_scan((20, 26, 24), margin=2)
    result = predict(data, MILLIMETRE, [model, twice], TorchEngine("cpu"), profile, compare_at=(0.5,) * 3)
    assert result.array.std() > 0.05
    assert result.agreement is not None
    # Squares are rounded, and a root makes much of little.
    assert result.agreement.spread.max() < 2e-3
    assert result.agreement.overlap == pytest.approx({"WT": 1, "TC": 1, "ET": 1}, abs=1e-3)


def test_plans_that_prepare_alike_share_one_array() -> None:
    models = (
        fixed_model("a", 1.0),
        fixed_model("b", 1.0, patch=(16, 16, 16)),
        fixed_model("c", 1.0, spacing=(2.0, 2.0, 2.0)),
    )
    engine = Fixed({"a": [0.5], "b": [0.5], "c": [0.5]})
    predict(make_scan(SMALL), MILLIMETRE, models, engine, Profile.FAST)
    first, second, third = engine.arrays
    assert first == second != third


@pytest.mark.parametrize(("profile", "expected"), [(Profile.FAST, 2), (Profile.PAPER, 2 * 8 * 8)])
def test_progress_counts_every_forward(profile: Profile, expected: int, make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture(), patch=(16, 16, 16)), folds=2)
    data = np.pad(np.ones((4, 20, 22, 24), np.float32), [(0, 0), (3, 3), (3, 3), (3, 3)])
    seen: list[tuple[int, int]] = []
    predict(
        data,
        MILLIMETRE,
        [model],
        TorchEngine("cpu"),
        profile,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, expected) for done in range(1, expected + 1)]


def test_permuted_sequences_change_the_answer(make_model: Callable) -> None:
    bundle = [make_model(make_plans(unet_architecture()))]
    data = make_scan(SMALL)
    engine = TorchEngine("cpu")
    found = predict(data, MILLIMETRE, bundle, engine, Profile.FAST).array
    swapped = predict(data[[1, 0, 2, 3]], MILLIMETRE, bundle, engine, Profile.FAST).array
    assert np.abs(found - swapped).max() > 0.05


def test_a_bundle_trained_on_lps_arrays_sees_them(make_model: Callable) -> None:
    """The same scan, stored the way that the networks were trained on: equal to predicting that array and turning."""
    model = make_model(make_plans(unet_architecture()), folds=1)
    data = make_scan((44, 52, 36))
    data[:, :20] *= 3
    engine = TorchEngine("cpu")
    turned = np.ascontiguousarray(data[:, ::-1, ::-1])
    at = (0.5, 0.5, 0.5)
    inside = predict(turned, MILLIMETRE, [model], engine, Profile.FAST, compare_at=at)
    found = predict(data, MILLIMETRE, [model], engine, Profile.FAST, orientation="LPS", compare_at=at)
    np.testing.assert_array_equal(found.array, inside.array[:, ::-1, ::-1])
    np.testing.assert_array_equal(found.agreement.spread, inside.agreement.spread[:, ::-1, ::-1])
    other = predict(data, MILLIMETRE, [model], engine, Profile.FAST)
    assert np.abs(found.array - other.array).max() > 0.01
