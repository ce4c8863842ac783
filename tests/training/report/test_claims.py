"""Claims whose answers must follow from the intervals."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.systems import Systems, differences
from training.report.arms import METRICS, claims

ARMS = {
    "nnunet-scratch": "nnU-Net from scratch",
    "nnunet": "nnU-Net alone",
    "mednext": "MedNeXt alone",
    "ensemble": "weighted ensemble",
    "ratio": "+ relabelling",
}
BASE = np.linspace(0.5, 0.8, 11)
NOISE = np.array([0.1, -0.1] * 5 + [0.01])


def without(*places):
    """The arms but for those in these places."""
    return {name: title for place, (name, title) in enumerate(ARMS.items()) if place not in places}


def said(scores, arms=ARMS):
    """Claims on scores (arms, cases), by the titles of the two arms."""
    scores = np.array(scores, float)
    values = np.broadcast_to(scores[:, :, None, None], (*scores.shape, 4, len(METRICS)))
    cases = tuple(f"case{index}" for index in range(scores.shape[1]))
    systems = Systems(2024, tuple(arms.values()), cases, ("WT", "TC", "ET", "mean"), METRICS, values, {})
    found = claims(arms, differences(systems))
    return {(claim.difference.system, claim.difference.against): claim for claim in found}


@pytest.fixture
def found():
    return said([BASE - 0.2, BASE, BASE + NOISE, BASE + 0.05, BASE + 0.05])


def test_every_arm_is_asked_about(found):
    assert list(found) == [
        ("nnU-Net alone", "nnU-Net from scratch"),
        ("weighted ensemble", "nnU-Net alone"),
        ("weighted ensemble", "MedNeXt alone"),
        ("+ relabelling", "weighted ensemble"),
        ("+ relabelling", "nnU-Net from scratch"),
    ]


@pytest.mark.parametrize(
    ("pair", "answer"),
    [
        (("nnU-Net alone", "nnU-Net from scratch"), "supported"),
        (("weighted ensemble", "MedNeXt alone"), "not decided"),
        (("+ relabelling", "weighted ensemble"), "not decided"),
    ],
)
def test_an_interval_without_zero_decides(found, pair, answer):
    assert found[pair].answer == answer


def test_a_claim_that_fails_is_contradicted():
    found = said([BASE, BASE - 0.1, BASE, BASE, BASE])
    claim = found["nnU-Net alone", "nnU-Net from scratch"]
    assert (claim.answer, claim.difference.mean) == ("contradicted", pytest.approx(-0.1))


def test_without_scratch_nothing_is_asked_of_it():
    assert {against for _, against in said([BASE] * 4, without(0))} == {
        "nnU-Net alone",
        "MedNeXt alone",
        "weighted ensemble",
    }


def test_a_single_model_is_no_ensemble():
    assert [system for system, _ in said([BASE] * 3, without(0, 2))] == ["+ relabelling"]
