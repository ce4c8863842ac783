"""The record of a run, written, read and explained."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from inference.bundle.tables import Thresholds
from inference.cli import main
from inference.errors import UsageError
from inference.refine.postprocess import RefinementRecord, Removed
from inference.report.explain import explain
from inference.report.record import (
    BundleIdentity,
    CaseRecord,
    Record,
    RunRecord,
    plain,
    read_record,
    render_record,
    volumes_ml,
)

RUN = RunRecord(
    command=("infer",),
    bundle=BundleIdentity("tiny", "1", "ab"),
    profile="fast",
    engine="torch",
    device="cpu",
    threads=2,
    on_error="skip",
    versions={"python": "3.11"},
    started="2025-01-01T00:00:00+00:00",
    start_seconds=1.0,
)
REFINEMENT = RefinementRecord(
    cluster=3,
    distances=(1.5, 2.25),
    no_subtype=None,
    thresholds=Thresholds({"NCR": 25.0, "ED": 0, "ET": 50}, 0.05),
    thresholds_of="subtype 3",
    removed={"NCR": Removed(2, 31.0), "ED": Removed(0, 0.0)},
    et_wt_ratio=0.01,
    et_relabelled=True,
)


@dataclass(frozen=True)
class Odd:
    values: np.ndarray
    where: Path
    ratio: float
    names: dict[int, np.float32]


def test_anything_a_step_records_becomes_json() -> None:
    odd = Odd(np.arange(2), Path("/x"), float("nan"), {1: np.float32(0.5)})
    assert plain(odd) == {"values": [0, 1], "where": "/x", "ratio": None, "names": {"1": 0.5}}
    assert plain((None, True, {"a": np.bool_(1)})) == [None, True, {"a": True}]


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(render_record(RUN, [CaseRecord("Ä-1", "ok", refinement=REFINEMENT)]))
    assert read_record(path) == Record(RUN, (CaseRecord("Ä-1", "ok", refinement=REFINEMENT),))


def test_an_unprintable_name_does_not_lose_the_record() -> None:
    assert json.loads(render_record(RUN, [CaseRecord("bad\udcff", "failed", error="x")]))["cases"][0]["error"] == "x"


@pytest.mark.parametrize(
    "damage",
    [
        ((), "", "not valid JSON"),
        ((), [], r"the whole file: found \[\], expected an object"),
        (("run",), 1, "run: found 1, expected an object"),
        (("run", "schema"), 9, "run.schema: found 9, expected 1"),
        (("run", "bundle", "sha256"), None, r"run.bundle.sha256: found nothing, expected a text"),
        (("run", "exit_status"), "bad", 'run.exit_status: found "bad", expected a whole number'),
        (("run", "profil"), "fast", r"run.profil: found an unknown key.*did you mean profile\?"),
        (("cases",), {}, "cases: found {}, expected a list"),
        (("cases", 0), "A", r'cases\[0\]: found "A", expected an object'),
        (("cases", 0, "status"), "good", r'cases\[0\].status: found "good", expected one of .*repaired'),
        (("cases", 0, "volumes_ml", "WT"), "much", r'cases\[0\].volumes_ml.WT: found "much", expected a number'),
        (("cases", 0, "refinement"), [], r"cases\[0\].refinement: found \[\], expected an object"),
        (("cases", 0, "refinement", "distances"), ["near"], r'distances\[0\]: found "near", expected a number'),
        (("cases", 0, "refinement", "distances"), [], r"refinement.distances: found \[\], expected one or more"),
        (("cases", 0, "refinement", "no_subtype"), None, "no_subtype: found nothing, expected a text"),
        (("cases", 0, "refinement", "removed", "NCR"), 3, r"removed.NCR: found 3, expected an object"),
        (("cases", 0, "refinement", "thresholds", "et_wt_ratio"), None, "et_wt_ratio: found nothing, expected a"),
    ],
)
@pytest.mark.parametrize("verb", ["explain", "merge"])
def test_a_record_that_was_damaged_by_hand_is_one_clear_line(tmp_path: Path, capsys, verb, damage):
    place, value, complaint = damage
    whole = CaseRecord("A", "ok", volumes_ml={"WT": 1.0}, refinement=REFINEMENT)
    content = inner = json.loads(render_record(RUN, [whole]))
    for key in place[:-1]:
        inner = inner[key]
    if not place:
        content = value
    elif value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content) if content != "" else "{")
    words = ["--output", str(tmp_path / "merged.json")] if verb == "merge" else []
    assert main([verb, str(path), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert re.search(complaint, line)


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing.json: cannot be read"):
        read_record(tmp_path / "nothing.json")


def test_volumes_are_of_regions_in_millilitres() -> None:
    labels = np.array([0, 1, 2, 2, 3, 3, 3], np.uint8).reshape(1, 1, 7)
    assert volumes_ml(labels, (10, 10, 10)) == {"WT": 6.0, "TC": 4.0, "ET": 3.0}
    assert volumes_ml(labels, (1, 1, 2.5)) == {"WT": 0.015, "TC": 0.01, "ET": 0.0075}


def record_of(*cases: CaseRecord) -> Record:
    return Record(RUN, cases)


def test_a_subtype_and_its_thresholds_are_explained() -> None:
    text = explain(record_of(CaseRecord("A", "ok", refinement=REFINEMENT)), "A")
    assert "subtype: 3, whose centroid is nearest (distance 1.5; 2.25 to the next)" in text
    assert "thresholds of subtype 3" in text
    assert "removed if smaller than: NCR 25 mm³, ED 0 mm³, ET 50 mm³" in text
    assert "removed of NCR: 2 components, 31 mm³" in text
    assert "probability" not in text, "a record from before it held region thresholds"
    assert "removed of ED" not in text
    assert "ET/WT: 0.01, below 0.05, so ET became NCR" in text


def test_region_thresholds_one_component_and_a_rule_that_is_off_are_explained() -> None:
    run = replace(RUN, region_thresholds={"WT": 0.5, "TC": 0.4, "ET": 0.7})
    removed = {"NCR": Removed(1, 3.0)}
    off = replace(REFINEMENT, thresholds=Thresholds({"NCR": 25.0}, 0.0), removed=removed, et_relabelled=False)
    text = explain(Record(run, (CaseRecord("A", "ok", refinement=off),)), "A")
    assert "a voxel belongs to a region where its probability is above: WT 0.5, TC 0.4, ET 0.7" in text
    assert "removed of NCR: 1 component, 3 mm³" in text
    assert "ET/WT: 0.01; there is no threshold for it, so ET stayed" in text


def test_lesions_in_doubt_are_written_read_and_explained(tmp_path: Path) -> None:
    doubtful = {"WT": Removed(1, 17842.0), "TC": Removed(2, 90.0), "ET": Removed(0, 0.0)}
    case = CaseRecord("A", "ok", refinement=REFINEMENT, doubtful=doubtful)
    path = tmp_path / "record.json"
    path.write_bytes(render_record(replace(RUN, confidence=0.9), [case]))
    text = explain(read_record(path), "A")
    assert "a lesion stays with at least 0.9 of the largest lesion's mean probability" in text
    assert "left out of WT, since the networks doubt them: 1 lesion, 17842 mm³" in text
    assert "left out of TC, since the networks doubt them: 2 lesions, 90 mm³" in text
    assert "left out of ET" not in text
    assert "mean probability" not in explain(record_of(case), "A"), "a record from before it held the share"


def test_no_subtype_and_a_failure_are_explained() -> None:
    lonely = replace(REFINEMENT, cluster=None, no_subtype="too small", et_wt_ratio=None, et_relabelled=False)
    cases = record_of(CaseRecord("A", "ok", refinement=lonely), CaseRecord("B", "failed", error="missing t1c"))
    assert "subtype: none, since too small" in explain(cases, None)
    assert "ET/WT: no tumour was left" in explain(cases, "A")
    assert "missing t1c" in explain(cases, "B")
    assert "A" not in explain(cases, "B").split("\n")[2]
    with pytest.raises(UsageError, match="case 'C' is not in the record, which has A, B"):
        explain(cases, "C")
