"""The editions of the official scores: which definition and which oddities are whose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from training.evaluation.lesionwise import score_case, score_missing
from training.evaluation.matched import MatchedScore, score_matched, score_matched_missing
from training.evaluation.scores import Labels, RegionScore
from training.evaluation.surfaces import Spacing

Edition = Literal[2023, 2024, 2025, 2026]

CaseScores = Mapping[str, RegionScore] | Mapping[str, MatchedScore]
"""Scores of one case by region."""

# What the program of 2024 and 2025 computes on lesion numbers where masks are meant: of no use to a reader.
ODDITIES: Final = ("sensitivity", "specificity", "hd95")


def score(
    reference: Labels, prediction: Labels, spacing: Spacing, edition: Edition, *, package_faults: bool = False
) -> CaseScores:
    """Scores of one case by region.

    Label maps are (X, Y, Z) of 0 to 3 as stored, spacing is along X, Y, Z in mm. Africa 2025 was scored by the program
    of 2024. `package_faults` is for 2026 alone, see :func:`training.evaluation.matched.score_matched`.
    """
    if edition == 2026:
        return score_matched(reference, prediction, spacing, package_faults=package_faults)
    return score_case(reference, prediction, spacing, 2023 if edition == 2023 else 2024)


def worst(reference: Labels, spacing: Spacing, edition: Edition) -> CaseScores:
    """The scores by region of a case whose prediction is missing or damaged."""
    if edition == 2026:
        return score_matched_missing(reference, spacing)
    return score_missing(reference, spacing, 2023 if edition == 2023 else 2024)


def shown(metric: str, edition: Edition) -> bool:
    """Whether a metric belongs into a table for readers; every one is in the JSON and the CSV."""
    return edition in (2023, 2026) or metric not in ODDITIES
