"""Sentences that must follow from their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.systems import Systems
from training.report.arms import METRICS, Arm
from training.report.verdicts import questions, verdicts

ARMS = (
    Arm("nnunet-scratch", "nnU-Net from scratch", "nnU-Net from scratch"),
    Arm("nnunet", "nnU-Net alone", "fine-tuned nnU-Net"),
    Arm("mednext", "MedNeXt alone", "fine-tuned MedNeXt"),
    Arm("ensemble", "weighted ensemble", "the weighted ensemble"),
    Arm("ratio", "+ relabelling", "the refined ensemble"),
)


def said(scores):
    """Verdicts on scores (arms, cases), by the names of the two arms."""
    scores = np.array(scores, float)
    values = np.broadcast_to(scores[:, :, None, None], (*scores.shape, 4, len(METRICS)))
    cases = tuple(f"case{index}" for index in range(scores.shape[1]))
    systems = Systems(2024, tuple(arm.title for arm in ARMS), cases, ("WT", "TC", "ET", "mean"), METRICS, values, {})
    found = verdicts(systems, ARMS)
    return {(v.question.system.name, v.question.against.name): v for v in found}


@pytest.fixture
def found():
    base = np.linspace(0.5, 0.8, 11)
    noise = np.array([0.1, -0.1] * 5 + [0.01])
    return said([base - 0.2, base, base + noise, base + 0.05, base + 0.05])


def test_every_arm_is_asked_about(found):
    assert list(found) == [
        ("nnunet", "nnunet-scratch"),
        ("ensemble", "nnunet"),
        ("ensemble", "mednext"),
        ("ratio", "ensemble"),
        ("ratio", "nnunet-scratch"),
    ]


def test_a_difference_that_is_there_is_said(found):
    verdict = found["nnunet", "nnunet-scratch"]
    assert verdict.shown
    assert verdict.sentence.startswith("Fine-tuned nnU-Net scores higher than nnU-Net from scratch by 0.200")
    assert "the interval excludes zero" in verdict.sentence
    assert "higher in 11 of 11 cases, lower in 0" in verdict.sentence


def test_one_that_is_not_shown_is_not_claimed(found):
    verdict = found["ensemble", "mednext"]
    assert not verdict.shown
    assert verdict.sentence.startswith("No difference is shown")
    assert "includes zero" in verdict.sentence


def test_equal_arms_are_called_equal(found):
    sentence = found["ratio", "ensemble"].sentence
    assert sentence == "The refined ensemble and the weighted ensemble score the same in all 11 cases."


def test_the_worse_is_called_worse():
    base = np.linspace(0.5, 0.8, 11)
    found = said([base, base - 0.1, base, base, base])
    assert found["nnunet", "nnunet-scratch"].shown
    assert (
        "Fine-tuned nnU-Net scores lower than nnU-Net from scratch by 0.100"
        in found["nnunet", "nnunet-scratch"].sentence
    )


def test_without_scratch_nothing_is_asked_of_it():
    asked = questions(ARMS[1:])
    assert {question.against.name for question in asked} == {"nnunet", "mednext", "ensemble"}


def test_a_single_model_is_no_ensemble():
    assert [question.system.name for question in questions((ARMS[1], *ARMS[3:]))] == ["ratio"]
