from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.scoring import FULL_SIZE, Pair, deviation, measured, plain_scores, stored_pairs, two_tumours
from training.evaluation.lesionwise import score_case

GOLDEN = Path(__file__).parents[1] / "golden"
SPACING = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def scene():
    return two_tumours()


def test_the_scene_has_two_tumours_of_every_label_at_full_size(scene):
    assert scene.reference.shape == scene.prediction.shape == FULL_SIZE
    for score in score_case(scene.reference, scene.prediction, SPACING, 2023, metrics="dice").values():
        assert (score.tp, score.fp, score.fn) == (2, 0, 0)
        assert 0.7 < score.lesionwise_dice < 0.95
    assert 150_000 < np.count_nonzero(scene.reference) < 400_000


@pytest.mark.parametrize(("metrics", "seconds"), [("all", 0.8), ("dice", 0.3)])
@pytest.mark.parametrize("version", [2023, 2024])
def test_a_full_size_case_is_scored_within_its_budget(scene, version, metrics, seconds):
    """Of processor time, the least of three, so that a busy machine does not fail it."""

    def score():
        return score_case(scene.reference, scene.prediction, SPACING, version, metrics=metrics)

    _, _, processor = measured(score, 3)
    assert processor < seconds


@pytest.mark.parametrize("version", [2023, 2024])
def test_a_full_size_case_needs_less_than_a_gigabyte(scene, version):
    tracemalloc.start()
    score_case(scene.reference, scene.prediction, SPACING, version)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e9


@pytest.mark.parametrize("version", [2023, 2024])
@pytest.mark.parametrize("name", ["02_empty_gt", "06_tiny", "07_mixed", "08_near"])
def test_the_plain_way_gives_what_the_official_program_printed(name, version):
    """So that the benchmark compares with the right thing."""
    pairs = np.load(GOLDEN / "lesionwise_synthetic.npz")
    official = json.loads((GOLDEN / f"lesionwise_synthetic_{version}.json").read_text())
    plain = plain_scores(Pair(name, pairs[f"{name}_gt"], pairs[f"{name}_pred"]), version)
    for region, values in official[name].items():
        found = (plain[region].lesionwise_dice, plain[region].lesionwise_hd95)
        assert found == pytest.approx((values["LesionWise_Score_Dice"], values["LesionWise_Score_HD95"]), abs=1e-6)


def test_padding_to_full_size_changes_specificity_only():
    pair = next(pair for pair in stored_pairs(GOLDEN / "lesionwise_synthetic.npz") if pair.name == "07_mixed")
    assert pair.reference.shape == FULL_SIZE
    scores = score_case(pair.reference, pair.prediction, SPACING, 2024)
    official = json.loads((GOLDEN / "lesionwise_synthetic_2024.json").read_text())["07_mixed"]
    assert deviation(scores, official) < 1e-6
    official["ET"]["Legacy_HD95"] += 1
    assert deviation(scores, official) == pytest.approx(1)
    assert abs(scores["WT"].specificity - official["WT"]["Specificity"]) > 1e-3


@pytest.mark.parametrize("version", [2023, 2024])
def test_african_pairs_at_full_size(version, shared_folder):
    official = json.loads((shared_folder / "golden" / f"lesionwise_africa_{version}.json").read_text())
    for pair in stored_pairs(shared_folder / "golden" / "lesionwise_africa.npz"):
        assert pair.reference.shape == FULL_SIZE
        scores = score_case(pair.reference, pair.prediction, SPACING, version)
        assert deviation(scores, official[pair.name]) < 1e-6


def test_the_command_prints_a_table(capsys):
    assert main(["scoring", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("| two tumours | 2024 |") == 2
    assert "Peak memory" in out
