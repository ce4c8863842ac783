"""A bundle's card says what its manifest says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inference.bundle.card import leaves, model_card, score_table
from inference.bundle.manifest import read_manifest

REGION = {"dice": 0.714, "cases_with_region": 11.0, "lesionwise_dice_2023": 0.2, "lesionwise_dice_2024": 0.345}


def test_the_card_holds_every_statement_of_the_manifest(tiny_bundle: Path) -> None:
    manifest, digest = read_manifest(tiny_bundle)
    card = model_card(
        replace(manifest, scores={"out": {"a": {"WT": REGION}}, "how": "guessed", "gain": {"x": 0.25}}), digest
    )
    provenance = manifest.provenance
    for part in (manifest.intended_use, manifest.limits, manifest.licence, digest, provenance.code_revision):
        assert part in card
    for model in manifest.models:
        assert f"| {model.name} | {model.architecture} | 2 | regions | {model.weight:.4f} |" in card
    for data in provenance.data_sets:
        assert f"| {data.name} | {data.cases} | {data.use} |" in card
    assert "| out, a | 0.71 / 0.20 / 0.34 |  |  |" in card
    assert "docs/numbers.md says what they mean." in card
    assert "- how: guessed" in card
    assert "- gain: x 0.25" in card
    assert "- out" not in card


def test_scores_become_a_table_wherever_they_are() -> None:
    scores = {"out_of_fold": {"ensemble": {"original": {"WT": REGION, "TC": {"dice": 0.5, "cases_with_region": 7}}}}}
    assert list(score_table(scores)) == [
        "Whole-volume Dice, over the cases that have the region / lesion-wise, 2023 / lesion-wise, 2024:\n",
        "| system | WT (11 cases) | TC (7 cases) | ET |",
        "|---|---|---|---|",
        "| ensemble, original | 0.71 / 0.20 / 0.34 | 0.50 |  |",
    ]


def test_a_region_that_no_case_has_is_without_dice() -> None:
    absent = {"cases_with_region": 0.0, "lesionwise_dice_2023": 1.0, "lesionwise_dice_2024": 0.9}
    *_, line = score_table({"ensemble": {"original": {"WT": REGION, "ET": absent}}})
    assert line == "| ensemble, original | 0.71 / 0.20 / 0.34 |  | – / 1.00 / 0.90 |"


def test_scores_of_any_form_make_a_card(tiny_bundle: Path) -> None:
    manifest, digest = read_manifest(tiny_bundle)
    for scores in ({}, {"WT": None}, {"a": {"WT": 0.5}}, {"a": [1, 2]}, {"WT": {"dice": None}}):
        assert "No scores per region." in model_card(replace(manifest, scores=scores), digest)


def test_text_from_outside_is_no_markup(tiny_bundle: Path) -> None:
    manifest, digest = read_manifest(tiny_bundle)
    evil = "<img src=x> | cell\n# heading"
    scores = {evil: {"WT": REGION}, "how": evil}
    card = model_card(replace(manifest, intended_use=evil, scores=scores), digest)
    assert card.count("\\<img src=x>") == card.count("<img src=x>") == 3
    assert "| \\<img src=x> \\| cell # heading | 0.71" in card


def test_leaves_say_where_they_are() -> None:
    assert list(leaves({"a": {"b": 0.123456, "c": {"d": 1}}, "e": "f"})) == ["a: b 0.1235", "a c: d 1", "e: f"]
