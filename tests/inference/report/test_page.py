"""The page of a run: complete, well formed, escaped, and cut off from the network."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from inference.bundle.tables import Thresholds
from inference.labels import Label
from inference.refine.postprocess import RefinementRecord, Removed
from inference.report.figures import CaseDrawing, draw_case
from inference.report.page import PAGE, PICTURE_SUFFIX, VIEWER_SUFFIX, render_page, write_page
from inference.report.record import BundleIdentity, CaseRecord, RunRecord
from inference.report.volumes import viewer_script

EVIL = '<script>alert("1")</script> & $title \'"'
VOID = {"meta", "link", "input", "img", "br", "hr"}


def record() -> tuple[RunRecord, list[CaseRecord]]:
    """A run of three cases: one plain, one repaired, one failed."""
    refinement = RefinementRecord(
        cluster=2,
        distances=(0.5, 0.75),
        no_subtype=None,
        thresholds=Thresholds({"NCR": 0, "ED": 125.0, "ET": 75.0}, 0.05),
        thresholds_of="subtype 2",
        removed={"NCR": Removed(0, 0.0), "ED": Removed(3, 212.0), "ET": Removed(1, 20.0)},
        et_wt_ratio=0.031,
        et_relabelled=True,
    )
    good = CaseRecord(
        "Case-B",
        "ok",
        seconds={"read": 1.5, "predict": 20.0},
        volumes_ml={"WT": 101.25, "TC": 30.5, "ET": 9.75},
        refinement=refinement,
        agreement={"WT": 0.961, "TC": 0.912, "ET": 0.874},
    )
    repaired = CaseRecord(
        "Case-A",
        "repaired",
        seconds={"read": 1.0},
        volumes_ml={"WT": 20.0, "TC": 0.0, "ET": 0.0},
        repairs=("t1n: 3 voxels",),
        warnings=("t2w is odd",),
        refinement=replace(refinement, thresholds_of="all cases", et_relabelled=False),
    )
    failed = CaseRecord("Case-C", "failed", error="t2f cannot be read")
    run = RunRecord(
        command=("infer", "-i", "in folder"),
        bundle=BundleIdentity("embedded", "1.2.0", "ab" * 32),
        profile="fast",
        engine="openvino",
        device="cpu",
        threads=2,
        on_error="skip",
        versions={"python": "3.11.9"},
        started="2025-01-02T03:04:05+00:00",
        start_seconds=1.0,
        region_thresholds={"WT": 0.5, "TC": 0.4, "ET": 0.7},
        seconds=123.4,
        exit_status=1,
    )
    return run, [good, repaired, failed]


def page_of(folder: Path, **changes: object) -> str:
    """The page with the first case changed."""
    run, (good, *others) = record()
    return render_page(run, [replace(good, **changes), *others], folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report's folder with the pictures of one case."""
    folder = tmp_path_factory.mktemp("report")
    data = np.zeros((4, 40, 50, 30), np.float32)
    data[:, 5:35, 5:45, 3:27] = 300
    labels = np.zeros(data.shape[1:], np.uint8)
    labels[10:20, 10:20, 10:20] = Label.ET
    picture = draw_case(CaseDrawing(data, labels, (1.0, 1.0, 1.0), "Case-B"))
    (folder / f"Case-B{PICTURE_SUFFIX}").write_bytes(picture)
    (folder / f"Case-B{VIEWER_SUFFIX}").write_bytes(viewer_script("Case-B", data, labels, (1.0, 1.0, 1.0)))
    return folder


class Reader(HTMLParser):
    """Collects the page's structure; raises where a tag is not closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closed out of turn"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in {"script", "style"}).split())


def rows_of(page: str) -> list[list[str]]:
    body = page[page.index("<tbody>") : page.index("</tbody>")].replace("\u00a0", " ")
    return [re.findall(r"<td[^>]*>(?:<a[^>]*>)?(.*?)(?:</a>)?</td>", row) for row in body.split("<tr>")[1:]]


def test_page_is_well_formed_with_unique_ids(folder):
    reader = Reader(render_page(*record(), folder))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(f"case-{number}" in ids for number in range(3))


def test_links_lead_within_the_page(folder):
    reader = Reader(render_page(*record(), folder))
    ids = {attributes.get("id") for _, attributes in reader.tags}
    targets = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)


def test_nothing_is_asked_of_the_network(folder):
    page = render_page(*record(), folder)
    reader = Reader(page)
    beside = {"#", f"Case-B{PICTURE_SUFFIX}", f"Case-B{VIEWER_SUFFIX}"}
    for _, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data", "data-script"):
            address = str(attributes.get(name) or "#")
            assert address in beside or address.startswith(("#", "data:"))
    assert not re.search(r"https?://|@import|url\(", page)
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_table_says_what_the_record_says(folder):
    good, repaired, failed = rows_of(render_page(*record(), folder))
    assert good == [
        "Case-B",
        "ok",
        "101.2",
        "30.5",
        "9.8",
        "subtype 2: ED ≥ 125 mm³, ET ≥ 75 mm³, ET/WT ≥ 0.05",
        "0.03, became NCR",
        "WT 0.96, TC 0.91, ET 0.87",
        "–",
        "21.5",
    ]
    assert repaired[:5] == ["Case-A", "repaired", "20.0", "0.0", "0.0"]
    assert repaired[-2:] == ["warning: t2w is odd (+ 1)", "1.0"]
    assert failed[:2] == ["Case-C", "failed"]
    assert failed[-2] == "failed: t2f cannot be read"
    assert set(failed[2:-2]) == {"–"}


def test_what_is_the_same_for_all_cases_is_said_once(folder):
    page = render_page(*record(), folder)
    head = page[: page.index("<table")].replace("\u00a0", " ")
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", head) == [
        ("Subtype", "2"),
        ("Removed", "ED 3 (212 mm³), ET 1 (20 mm³)"),
    ]
    headings = re.findall(r"<button type=\"button\">(.*?)</button></th>", page)
    assert headings == [
        *("Case", "Status", *(f"{region} <small>mL</small>" for region in ("WT", "TC", "ET"))),
        *("Thresholds", "ET/WT", "Agreement", "Notes", "Seconds"),
    ]


def test_lesions_in_doubt_stand_in_their_cases_row(folder):
    run, (good, *others) = record()
    good = replace(good, doubtful={"WT": Removed(1, 17842.0), "TC": Removed(0, 0.0)})
    page = render_page(replace(run, confidence=0.9), [good, *others], folder).replace("\u00a0", " ")
    assert "<td>WT in doubt 1 (17842 mm³), ED 3 (212 mm³), ET 1 (20 mm³)</td>" in re.sub(r"<td [^>]*>", "<td>", page)
    assert "<dt>Lesions in doubt</dt><dd>left out below 0.9 of the largest" in page


def test_columns_of_which_no_case_says_anything_are_left_out(folder):
    assert ">Agreement</button>" not in page_of(folder, agreement=None)


def test_numbers_sort_by_their_value_and_gaps_by_nothing(folder):
    page = render_page(*record(), folder)
    keys = [re.findall(r'data-sort="([^"]*)"', row) for row in page[page.index("<tbody>") :].split("<tr>")[1:4]]
    assert keys[0][2] == "101.25"
    assert keys[0][7] == "0.874"
    assert keys[2][2] == ""


def test_thresholds_that_do_nothing_say_so(folder):
    run, (good, *others) = record()
    nothing = replace(good.refinement, thresholds=Thresholds({"NCR": 0, "ED": 0, "ET": 0}, 0))
    page = render_page(run, [replace(good, refinement=nothing), *others], folder)
    assert "subtype 2: leave it alone" in rows_of(page)[0]


def test_the_volumes_stand_beside_the_picture(folder):
    page = render_page(*record(), folder)
    assert re.findall(r'<p class="volumes">(.*?)</p>', page) == [
        "WT 101.2 mL · TC 30.5 mL · ET 9.8 mL",
        "WT 20.0 mL · TC 0.0 mL · ET 0.0 mL",
    ]


def test_every_note_is_in_the_section_of_its_case(folder):
    page = render_page(*record(), folder)
    section = page[page.index('id="case-1"') : page.index('id="case-2"')]
    assert "t1n: 3 voxels" in section
    assert "t2w is odd" in section


def test_the_error_of_a_failed_case_stands_where_its_picture_would(folder):
    page = render_page(*record(), folder)
    section = page[page.index('id="case-2"') :]
    assert '<p class="failure">No result: t2f cannot be read</p>' in section[: section.index("</section>")]
    assert "No pictures" not in section[: section.index("</section>")]


def test_provenance_is_there(folder):
    text = Reader(render_page(*record(), folder)).text()
    parts = ("embedded 1.2.0", "ab" * 32, "fast", "openvino", "infer -i in folder", "python 3.11.9", "123.4")
    for part in (*parts, "TC above 0.4"):
        assert part in text


@pytest.mark.parametrize("where", ["id", "error", "warning", "bundle", "command", "thresholds"])
def test_whatever_the_record_holds_is_escaped(folder, where):
    run, (good, *others) = record()
    match where:
        case "id":
            good = replace(good, id=EVIL)
        case "error":
            good = replace(good, error=EVIL)
        case "warning":
            good = replace(good, warnings=(EVIL,))
        case "bundle":
            run = replace(run, bundle=replace(run.bundle, name=EVIL))
        case "command":
            run = replace(run, command=(EVIL,))
        case "thresholds":
            good = replace(good, refinement=replace(good.refinement, thresholds_of=EVIL))
    page = render_page(run, [good, *others], folder)
    assert "<script>alert" not in page
    assert EVIL in Reader(page).text()


def test_names_of_files_are_quoted(folder):
    name = "50%# a?b"
    shutil.copy(folder / f"Case-B{VIEWER_SUFFIX}", folder / f"{name}{VIEWER_SUFFIX}")
    assert 'data-script="50%25%23%20a%3Fb.case.js"' in page_of(folder, id=name)


def test_case_names_cannot_reach_out_of_the_folder(tmp_path, folder):
    inner = tmp_path / "inner"
    inner.mkdir()
    for suffix in (PICTURE_SUFFIX, VIEWER_SUFFIX):
        shutil.copy(folder / f"Case-B{suffix}", tmp_path / f"Case-B{suffix}")
    page = page_of(inner, id="../Case-B")
    assert "<img" not in page
    assert "data-script=" not in page


def test_pictures_are_linked_where_they_are(folder, tmp_path):
    page = render_page(*record(), folder)
    assert page.count('src="Case-B.png"') == page.count('data-script="Case-B.case.js"') == 1
    assert page.count("No pictures of this case.") == 1
    assert render_page(*record(), tmp_path).count("No pictures of this case.") == 2


@pytest.mark.parametrize(
    "change", [{"status": "failed"}, {"status": "empty"}, {"warnings": ("no picture: disk full",)}]
)
def test_what_an_earlier_run_drew_is_not_shown_for_a_case_without_a_picture(folder, change):
    page = page_of(folder, **change)
    assert "<img" not in page
    assert "data-script=" not in page


def test_a_run_without_cases_makes_a_page(tmp_path):
    Reader(render_page(record()[0], [], tmp_path))


def test_page_is_written_as_one_file(folder, tmp_path):
    path = write_page(*record(), tmp_path)
    assert path == tmp_path / PAGE
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text("utf-8") == render_page(*record(), tmp_path)
