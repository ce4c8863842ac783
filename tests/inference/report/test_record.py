"""The record of a run, written, read and explained."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from inference.errors import UsageError
from inference.report.explain import explain
from inference.report.record import BundleIdentity, CaseRecord, RunRecord, plain, read_record, render_record, volumes_ml

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
REFINEMENT = {
    "cluster": 3,
    "distances": [1.5, 2.25],
    "no_subtype": None,
    "thresholds": {"smallest_component_mm3": {"NCR": 25.0, "ED": 0, "ET": 50}, "et_wt_ratio": 0.05},
    "thresholds_of": "subtype 3",
    "removed": {"NCR": {"components": 2, "mm3": 31.0}, "ED": {"components": 0, "mm3": 0.0}},
    "et_wt_ratio": 0.01,
    "et_relabelled": True,
}


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
    record = read_record(path)
    assert record["run"]["bundle"] == {"name": "tiny", "version": "1", "sha256": "ab"}
    assert record["cases"][0]["id"] == "Ä-1"
    assert record["cases"][0]["refinement"] == REFINEMENT


def test_an_unprintable_name_does_not_lose_the_record() -> None:
    assert json.loads(render_record(RUN, [CaseRecord("bad\udcff", "failed", error="x")]))["cases"][0]["error"] == "x"


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a run's record"),
        (b'{"run": 1, "cases": []}', "not a run's record"),
        (b'{"run": {"schema": 9}, "cases": []}', "schema 9"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, raw: bytes, complaint: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=complaint):
        read_record(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_record(tmp_path / "nothing.json")


def test_volumes_are_of_regions_in_millilitres() -> None:
    labels = np.array([0, 1, 2, 2, 3, 3, 3], np.uint8).reshape(1, 1, 7)
    assert volumes_ml(labels, (10, 10, 10)) == {"WT": 6.0, "TC": 4.0, "ET": 3.0}
    assert volumes_ml(labels, (1, 1, 2.5)) == {"WT": 0.015, "TC": 0.01, "ET": 0.0075}


def record_of(*cases: CaseRecord) -> dict[str, object]:
    return json.loads(render_record(RUN, cases))


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
    thresholds = {"smallest_component_mm3": {"NCR": 25.0}, "et_wt_ratio": 0.0}
    off = {"thresholds": thresholds, "removed": {"NCR": {"components": 1, "mm3": 3.0}}, "et_relabelled": False}
    record = json.loads(render_record(run, [CaseRecord("A", "ok", refinement=REFINEMENT | off)]))
    text = explain(record, "A")
    assert "a voxel belongs to a region where its probability is above: WT 0.5, TC 0.4, ET 0.7" in text
    assert "removed of NCR: 1 component, 3 mm³" in text
    assert "ET/WT: 0.01; there is no threshold for it, so ET stayed" in text


def test_no_subtype_and_a_failure_are_explained() -> None:
    lonely = REFINEMENT | {"cluster": None, "no_subtype": "too small", "et_wt_ratio": None, "et_relabelled": False}
    cases = record_of(CaseRecord("A", "ok", refinement=lonely), CaseRecord("B", "failed", error="missing t1c"))
    assert "subtype: none, since too small" in explain(cases, None)
    assert "ET/WT: no tumour was left" in explain(cases, "A")
    assert "missing t1c" in explain(cases, "B")
    assert "A" not in explain(cases, "B").split("\n")[2]
    with pytest.raises(UsageError, match="case 'C' is not in the record, which has A, B"):
        explain(cases, "C")
