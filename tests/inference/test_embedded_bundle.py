"""The bundle that ships: within its limits, honest about itself, and the same by every way of running it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from inference.bundle.store import load_bundle
from inference.intake.cases import find_cases
from inference.intake.scan import read_scan
from inference.labels import REGIONS, labels_from_regions, region_mask
from inference.predict.engines import open_engine
from inference.predict.ensemble import predict
from inference.settings import Profile
from training.evaluation import overlap


@pytest.fixture(scope="module")
def bundle(embedded_bundle):
    return load_bundle(embedded_bundle)


@pytest.fixture(scope="module")
def scan(shared_folder):
    return read_scan(find_cases(shared_folder / "data" / "africa").cases[1])


def test_ten_small_networks(bundle):
    assert [(model.name, model.folds) for model in bundle.models] == [
        ("nnunet", (0, 1, 2, 3, 4)),
        ("mednext", (0, 1, 2, 3, 4)),
    ]
    for model in bundle.models:
        assert sum(math.prod(array.shape) for array in model.tensors(0).values()) <= 2_000_000


def test_it_is_small(embedded_bundle):
    assert sum(path.stat().st_size for path in embedded_bundle.rglob("*") if path.is_file()) <= 40_000_000


def test_it_says_what_it_is_not(bundle):
    assert "Not a medical device" in bundle.manifest.limits
    assert "ranked" in bundle.manifest.limits
    assert "Research use only" in bundle.manifest.licence


def test_no_patient_is_in_two_folds(embedded_bundle):
    frozen = json.loads((embedded_bundle / "folds.json").read_text())
    fold_of = {}
    for case, fold in frozen["folds"].items():
        assert fold_of.setdefault(frozen["patients"][case], fold) == fold
    assert set(frozen["folds"].values()) == {0, 1, 2, 3, 4}


def test_scores_and_their_method_are_in_the_manifest(bundle):
    scores = bundle.manifest.scores["out_of_fold"]
    for system in ("nnunet", "mednext", "ensemble", "refined"):
        assert set(scores[system]) == set(REGIONS)


def test_half_precision_changes_next_to_nothing(bundle):
    agreement = bundle.manifest.scores["half_precision"]
    assert agreement["largest_difference"] < 0.01
    assert all(agreement[f"dice_{region}"] > 0.999 for region in REGIONS)


def dice(first, second):
    masks = [[region_mask(labels_from_regions(array), region) for array in (first, second)] for region in REGIONS]
    return {region: overlap.dice(a, b) for region, (a, b) in zip(REGIONS, masks, strict=True)}


def test_engines_agree_on_a_real_scan(bundle, scan, record_property):
    found, expected = (
        predict(scan.data, scan.spacing, bundle.models, open_engine(engine, "cpu"), Profile.FAST).array
        for engine in ("openvino", "torch")
    )
    agreement = dice(found, expected)
    record_property("dice", agreement)
    assert min(agreement.values()) >= 0.995, agreement


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnunet", "mednext"])
def test_paper_is_nnunets_prediction_of_a_real_scan(name, bundle, scan, record_property):
    from tests.inference.predict.test_ensemble import nnunet_probabilities

    model = next(model for model in bundle.models if model.name == name).of_folds(0)
    alone = predict(scan.data, scan.spacing, [model], open_engine("torch", "cpu"), Profile.PAPER).array
    assert np.abs(alone - nnunet_probabilities(model, 0, scan.data)).max() < 1e-4
    stock = nnunet_probabilities(model, 0, scan.data, half=True)
    agreement = dice(alone, stock)
    record_property("stock", {"largest_difference": float(np.abs(alone - stock).max()), **agreement})
    assert min(agreement.values()) >= 0.999, agreement
