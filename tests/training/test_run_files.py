"""The JSON files of a run, each damaged by hand: one line that names file, key, found and expected."""

from __future__ import annotations

import json
import shutil

import pytest

from inference.errors import GliomaError
from inference.schema import read_json
from training.data.datasets import read_cases, read_folds
from training.data.stratify import load_subtypes
from training.report.arms import make_plan
from training.tune.tuning import Scores, read_tuning

FOLD = ("by_fold", "0", "ratio", "global", "et_wt_ratio")

DAMAGES = {
    "a case without its patient": ("cases.json", (0, "patient"), None, r"\[0\]\.patient: found nothing, expected a"),
    "a misspelt key of a case": ("cases.json", (1, "in_fold"), True, r"in_fold: found an unknown key.* in_folds\?"),
    "a fold that is a text": ("folds.json", ("folds", "BraTS-SSA-00001-000"), "one", r"folds\.BraTS-SSA-00001-000: "),
    "a negative fold": ("folds.json", ("folds", "BraTS-SSA-00001-000"), -1, "found -1, expected a whole number"),
    "a point of three coordinates": (
        "folds.json",
        ("components", "BraTS-SSA-00001-000"),
        [1, 2, 3],
        "expected a list of 2",
    ),
    "a point of a case in no fold": ("folds.json", ("components", "nobody"), [1, 2], "components: found"),
    "a case that was not tuned on": (
        "tuning.json",
        ("subtypes", "of", "BraTS-SSA-00001-000"),
        None,
        "found nothing of case BraTS-SSA-00001-000: run the step `tune` again",
    ),
    "a fold that was not tuned": ("tuning.json", ("by_fold", "1"), None, "found nothing of fold 1: run the step"),
    "no word of what each fold chose": ("tuning.json", ("by_fold",), None, "by_fold: found nothing, expected"),
    "a threshold out of range": ("tuning.json", FOLD, 7, r"by_fold\.0\.ratio\.global\.et_wt_ratio: found 7, expected"),
    "a group without its gain": ("tuning.json", ("nested_gain", "ratio"), None, "nested_gain: found"),
    "a weight that is a text": ("tuning.json", ("weights", "nnunet"), "half", r'weights\.nnunet: found "half"'),
    "a weight of another model": ("tuning.json", ("weights", "unet"), 0.5, "expected weights of nnunet, mednext"),
    "weights that were never chosen": (
        "tuning.json",
        ("weight_choices", "score_share"),
        None,
        "by score_share, .*run the step `tune` again",
    ),
    "a score that is no number": ("scores.json", ("refined", "WT", "dice"), "good", r'refined\.WT\.dice: found "good"'),
    "no features": ("subtypes.json", ("features",), None, "features: found nothing, expected a list"),
    "half a file": ("tuning.json", (), None, "not valid JSON"),
}


def read_all(config, work):
    read_cases(work / "cases.json")
    read_folds(work / "folds.json")
    make_plan(config, work, read_tuning(config, work))
    read_json(work / "scores.json", Scores, GliomaError)
    load_subtypes(work / "subtypes.json")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_that_was_damaged_by_hand_is_one_clear_line(finished, tmp_path, damage):
    config, work = finished
    name, place, value, expected = damage
    for file in ("cases.json", "folds.json", "tuning.json", "scores.json", "subtypes.json", "subtypes.safetensors"):
        shutil.copy(work / file, tmp_path / file)
    text = (tmp_path / name).read_text()
    if place:
        content = inner = json.loads(text)
        for key in place[:-1]:
            inner = inner[key]
        if value is None:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        text = json.dumps(content)
    else:
        text = text[: len(text) // 2]
    (tmp_path / name).write_text(text)
    with pytest.raises(GliomaError, match=expected) as raised:
        read_all(config, tmp_path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_files_of_a_run_can_be_read(finished):
    config, work = finished
    assert len(read_cases(work / "cases.json")) == len(read_folds(work / "folds.json"))
    assert set(read_tuning(config, work).weights) == {"nnunet", "mednext"}
    assert "refined" in read_json(work / "scores.json", Scores, GliomaError)
    assert load_subtypes(work / "subtypes.json").clusters >= 1
