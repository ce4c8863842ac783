"""The report of a fabricated run: its numbers, its page, and what it says of a run that is under way."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from inference.bundle.tables import StoredThresholds
from inference.errors import UsageError
from inference.labels import REGIONS, labels_from_regions
from inference.schema import convert
from tests.training.fabricated import SCRATCH
from training.data.datasets import load_labels, read_cases, read_folds
from training.evaluation.lesionwise import score_case
from training.evaluation.systems import load_systems
from training.fit.predict import prediction_path
from training.report.arms import make_plan
from training.report.report import write_report
from training.report.sections import HARDEST
from training.tune.choices import choice_of, refined, trusted_labels
from training.tune.thresholds import LEAST_GAIN
from training.tune.tuning import read_tuning

ARMS = [SCRATCH, "nnunet", "mednext", "ensemble", "regions", "confidence", "components", "ratio", "subtypes"]


def plan_of(config, work):
    return make_plan(config, work, read_tuning(config, work))


@pytest.fixture(scope="session")
def page(finished):
    return (finished[1] / "report" / "index.html").read_text("utf-8")


@pytest.fixture(scope="session")
def report(finished):
    return json.loads((finished[1] / "report" / "report.json").read_text("utf-8"))


def tables(report, section):
    return {table["caption"]: table for table in report["tables"][section]}


def test_all_arms_are_there_in_the_papers_order(finished):
    assert list(plan_of(*finished).arms) == ARMS


@pytest.mark.parametrize("version", [2023, 2024])
def test_scores_are_in_files_that_compare_reads(finished, version):
    folder = finished[1] / "report" / "scores" / str(version)
    systems = load_systems([folder / f"{arm}.json" for arm in ARMS])
    assert systems.version == version
    assert len(systems.cases) == 6


def test_a_models_scores_are_the_official_ones_of_its_whole_prediction(finished):
    config, work = finished
    entry = read_cases(work / "cases.json")[2]
    with np.load(prediction_path(work, "mednext", entry.id)) as stored:
        labels = labels_from_regions(stored["probabilities"].astype(np.float32))
    official = score_case(load_labels(entry, config), labels, (1, 1, 1), 2024)
    written = json.loads((work / "report" / "scores" / "2024" / "mednext.json").read_text())["cases"][entry.id]
    for region in REGIONS:
        for metric in ("lesionwise_dice", "lesionwise_hd95", "dice"):
            assert written[region][metric] == pytest.approx(official[region].named()[metric])


def test_the_refined_arm_uses_what_the_other_folds_chose(finished):
    config, work = finished
    tuning = json.loads((work / "tuning.json").read_text())
    plan = plan_of(config, work)
    clusters = len({cluster for cluster in tuning["subtypes"]["of"].values() if cluster is not None})
    for entry in read_cases(work / "cases.json"):
        fold = read_folds(work / "folds.json")[entry.id]
        weights = tuning["weight_choices"]["score_share"]["by_fold"][str(fold)]
        mixed = 0
        for model, weight in weights.items():
            with np.load(prediction_path(work, model, entry.id)) as stored:
                mixed = mixed + np.float32(weight) * stored["probabilities"].astype(np.float32)
        thresholds = convert(tuning["by_fold"][str(fold)]["ratio"], StoredThresholds, UsageError, "tuning.json")
        choice = choice_of(thresholds.tables("tuning.json", clusters))
        labels = refined(trusted_labels(mixed, choice), choice.thresholds)
        official = score_case(load_labels(entry, config), labels, (1, 1, 1), 2024)
        written = json.loads((work / "report" / "scores" / "2024" / "ratio.json").read_text())["cases"]
        for region in REGIONS:
            assert written[entry.id][region]["lesionwise_dice"] == pytest.approx(official[region].lesionwise_dice)
    assert set(plan.clusters.values()) <= {None, *range(clusters)}


def test_table_3_holds_the_means_of_the_scores(finished, report):
    scores = json.loads((finished[1] / "report" / "scores" / "2024" / "nnunet.json").read_text())
    table = tables(report, "arms")["Table 3: lesion-wise, edition 2024"]
    row = next(row for row in table["rows"] if row[0] == "nnU-Net alone")
    cell = row[table["header"].index("TC Dice")]
    mean, deviation = scores["mean"]["TC"]["lesionwise_dice"], scores["std"]["TC"]["lesionwise_dice"]
    assert cell == f"{mean:.3f} ± {deviation:.3f}"
    assert len(table["rows"]) == len(ARMS)


def test_claims_are_on_the_page_as_the_numbers_have_them(report, page):
    assert len(report["claims"]) == 5
    for claim in report["claims"]:
        found = claim["difference"]
        expected = "supported" if found["low"] > 0 else "contradicted" if found["high"] < 0 else "not decided"
        assert claim["answer"] == expected
        assert found["mean"] == pytest.approx(np.mean(found["per_case"]))
        assert f"{claim['text']}: {expected} by 6 cases" in page
        assert f"({found['mean']:+.3f}, 95 % interval {found['low']:+.3f} to {found['high']:+.3f}," in page


def test_the_fabricated_scratch_network_is_found_to_be_worse(report):
    first = report["claims"][0]
    assert first["difference"]["against"] == "nnU-Net from scratch"
    assert first["difference"]["mean"] > 0


def test_rejected_thresholds_are_named(finished, report):
    tuning = json.loads((finished[1] / "tuning.json").read_text())
    rows = tables(report, "refinement")["What the search on all cases found, and what was kept"]["rows"]
    assert len(rows) == len(tuning["nested_gain"])
    for row, gain in zip(rows, tuning["nested_gain"].values(), strict=True):
        assert (row[3] == "kept") == (gain > LEAST_GAIN)


def test_the_papers_weights_stand_beside_ours(report):
    rows = {row[0]: row for row in tables(report, "weights")["Weights by every way"]["rows"]}
    assert rows["paper"][1:3] == ["0.4722", "0.5278"]
    assert rows["score_share"][-1] == "rules"
    assert set(rows) == {"score_share", "rank", "search", "paper"}


def test_provenance_names_sources_licences_and_revision(page, report):
    row = tables(report, "provenance")["Data"]["rows"][0]
    assert row == ["scans", "6", "6", "scans", "pretraining, finetuning", "CC0 in name only", "10.0000/none"]
    for text in ("abc1234", "torch", "nnunetv2"):
        assert text in page


def test_every_training_has_its_curve(report):
    found = {(curve["stage"], curve["model"], curve["fold"]) for curve in report["trainings"]}
    assert len(found) == 2 * 2 * 3


class Reader(HTMLParser):
    """Tags that are open, addresses, and elements by name."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.anchors, self.elements = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        self.anchors.add(attributes.get("id"))
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="session")
def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_is_well_formed_and_needs_nothing_else(read):
    assert read.open == []
    for link in read.links:
        assert link.startswith("data:") or link[1:] in read.anchors, link[:80]


def test_pictures_are_embedded_and_described(read):
    images = [attributes for tag, attributes in read.elements if tag == "img"]
    # Arms, clusters, silhouettes, trainings, hardest cases.
    assert len(images) == 1 + 2 + 2 * 2 * 3 + HARDEST
    assert all(image["alt"] for image in images)
    for image in images:
        head, _, data = image["src"].partition(";base64,")
        assert head in {"data:image/svg+xml", "data:image/webp"}
        content = base64.b64decode(data, validate=True)
        assert content[:4] == b"RIFF" if head.endswith("webp") else b"</svg>" in content


def test_what_scrolls_can_be_reached_by_keyboard(read):
    scrolling = [attributes for tag, attributes in read.elements if "scroll" in attributes.get("class", "").split()]
    assert scrolling
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in scrolling)


def test_no_script_runs(read, page):
    assert not [tag for tag, _ in read.elements if tag == "script"]
    assert "default-src 'none'" in page


def test_tables_are_in_markdown_too(finished, report):
    text = (finished[1] / "report" / "tables.md").read_text("utf-8")
    captions = [table["caption"] for section in report["tables"].values() for table in section]
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == captions


def copied(work, target, *names):
    for name in names:
        path = work / name
        if path.is_dir():
            shutil.copytree(path, target / name)
        else:
            shutil.copy(path, target / name)
    return target


STRATA = ("cases.json", "folds.json", "fold_subtypes.json", "fold_subtypes.safetensors")


def test_a_run_under_way_shows_what_there_is(finished, tmp_path):
    config, work = finished
    under_way = copied(work, tmp_path, *STRATA)
    page = write_report(config, under_way, jobs=1).read_text("utf-8")
    assert "still to come" in page
    assert "No training has written a checkpoint" in page
    assert 'id="folds"' in page
    assert 'id="arms"' not in page


def test_folds_without_components_have_no_picture_of_them(finished, tmp_path):
    config, work = finished
    older = copied(work, tmp_path, *STRATA)
    content = json.loads((older / "folds.json").read_text())
    del content["components"]
    (older / "folds.json").write_text(json.dumps(content))
    page = write_report(config, older, jobs=1).read_text("utf-8")
    assert "Mean silhouette" in page
    assert "principal components" not in page


def test_tuning_that_does_not_tell_its_folds_is_refused(finished, tmp_path):
    config, work = finished
    older = copied(work, tmp_path, *STRATA, "tuning.json")
    content = json.loads((older / "tuning.json").read_text())
    del content["by_fold"]
    (older / "tuning.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="by_fold: found nothing, expected"):
        write_report(config, older, jobs=1)


def tuned_groups(work, target, groups):
    """A run whose tuning knows these groups alone."""
    some = copied(work, target, *STRATA, "tuning.json", "subtypes.json", "subtypes.safetensors", "out_of_fold")
    tuning = json.loads((some / "tuning.json").read_text())

    def left(values):
        return {name: value for name, value in values.items() if name.split()[0] in groups}

    tuning |= {key: left(tuning[key]) for key in ("found", "nested_gain", "honest_gain")}
    tuning["by_fold"] = {fold: left(values) for fold, values in tuning["by_fold"].items()}
    (some / "tuning.json").write_text(json.dumps(tuning))
    return some


@pytest.mark.parametrize("groups", [("components", "ratio", "subtypes"), ("ratio",), ("subtypes",), ()])
def test_the_arms_are_the_groups_that_were_tuned(finished, tmp_path, groups):
    config, work = finished
    some = tuned_groups(work, tmp_path, groups)
    arms = list(plan_of(config, some).arms)
    assert arms == [SCRATCH, "nnunet", "mednext", "ensemble", *groups]


def test_a_run_that_tunes_nothing_has_a_report(finished, tmp_path):
    config, work = finished
    page = write_report(config, tuned_groups(work, tmp_path, ()), jobs=1).read_text("utf-8")
    assert "weighted ensemble" in page
    assert "All of refinement" not in page
    assert "The ensemble gains over nnU-Net alone" in page


def test_a_comparison_model_that_is_not_complete_is_left_out(finished, tmp_path, caplog):
    config, work = finished
    names = (*STRATA, "tuning.json", "subtypes.json", "subtypes.safetensors", "out_of_fold")
    partial = copied(work, tmp_path, *names)
    next((partial / "out_of_fold" / SCRATCH).iterdir()).unlink()
    assert SCRATCH not in list(plan_of(config, partial).arms)
    assert "5 of 6 cases" in caplog.text
