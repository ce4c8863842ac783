"""The walk of one case, and a system that is opened for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.case import System, describe, label_regions, open_system, predict_regions, segment
from inference.errors import BundleError
from inference.intake.cases import Case, digest_scans, find_cases
from inference.intake.scan import read_scan
from inference.predict.ensemble import RegionProbabilities
from inference.refine.postprocess import Removed


@pytest.fixture(scope="module")
def system(tiny_bundle: Path) -> System:
    return open_system(tiny_bundle, engine="torch", device="cpu", threads=1)


def test_the_walk_is_its_two_halves(phantom_folder: Path, system: System) -> None:
    scan = read_scan(find_cases(phantom_folder).cases[0])
    passes = []
    whole = segment(scan, system, progress=lambda done, total: passes.append((done, total)), compare=True)
    assert passes == [(done, 4) for done in range(1, 5)]
    halves = label_regions(scan, predict_regions(scan, system), system)
    np.testing.assert_array_equal(whole.labels, halves.labels)
    assert whole.labels.shape == scan.data.shape[1:]
    assert whole.refinement == halves.refinement
    assert halves.regions.agreement is None
    record = describe(scan, whole)
    assert record.status == "ok"
    assert record.agreement == whole.regions.agreement.overlap
    assert record.volumes_ml["WT"] == pytest.approx(np.count_nonzero(whole.labels) / 1000)


@pytest.mark.parametrize(("confidence", "left_out"), [(0.0, 0), (0.9, 1)])
def test_a_lesion_that_the_networks_doubt_is_left_out_and_recorded(
    phantom_folder: Path, system: System, confidence: float, left_out: int
) -> None:
    scan = read_scan(find_cases(phantom_folder).cases[0])
    probabilities = np.zeros((3, *scan.data.shape[1:]), np.float32)
    probabilities[0, 2:10, 2:10, 2:10], probabilities[0, 14:18, 14:18, 14:18] = 0.95, 0.7
    thresholds = replace(system.bundle.thresholds, confidence=confidence)
    asked = replace(system, bundle=replace(system.bundle, thresholds=thresholds))
    result = label_regions(scan, RegionProbabilities(probabilities), asked)
    assert np.count_nonzero(result.labels) == 512 + 64 * (1 - left_out)
    record = describe(scan, result)
    assert record.doubtful["WT"] == result.doubtful["WT"] == Removed(left_out, 64.0 * left_out)
    assert record.volumes_ml["WT"] == np.count_nonzero(result.labels) / 1000


def test_a_stamp_names_bundle_profile_and_scans(phantom_folder: Path, system: System, tmp_path: Path) -> None:
    case = find_cases(phantom_folder).cases[0]
    stamp = system.stamp(digest_scans(case))
    assert stamp == f"{system.bundle.digest[:16]} fast {digest_scans(case)} tiny"
    assert system.stamp("0" * 16, noted=True) == f"{system.bundle.digest[:16]} fast {'0' * 16}! tiny"
    copied = {name: Path(shutil.copy(path, tmp_path)) for name, path in case.paths.items()}
    assert digest_scans(Case("other", copied)) == digest_scans(case)
    swapped = copied | {"t1c": copied["t2f"], "t2f": copied["t1c"]}
    assert digest_scans(Case("other", swapped)) != digest_scans(case)


def test_sequences_are_told_apart(phantom_folder: Path, system: System) -> None:
    paths = find_cases(phantom_folder).cases[0].paths
    swapped = paths | {"t1c": paths["t2f"], "t2f": paths["t1c"]}
    right, wrong = (segment(read_scan(Case("P", files)), system).labels for files in (paths, swapped))
    assert (right != wrong).any()


def test_networks_that_do_not_fit_are_refused_before_any_case(tiny_bundle: Path, tmp_path: Path) -> None:
    from inference.bundle.store import Model, load_bundle
    from inference.bundle.writing import write_bundle
    from tests.inference.tiny import describe

    models = []
    for model in load_bundle(tiny_bundle).models:
        networks = {fold: model.tensors(fold) for fold in model.folds}
        models.append(Model(model.entry, model.plans, networks))
    spoilt = dict(models[1].networks[1])
    spoilt["stem.weight"] = spoilt["stem.weight"][:1]
    models[1] = replace(models[1], networks={**models[1].networks, 1: spoilt})
    bundle = write_bundle(tmp_path / "spoilt", describe(tuple(models)))
    with pytest.raises(BundleError, match=r"mednext, fold 1: .*stem\.weight"):
        open_system(bundle.path, engine="torch", device="cpu")
