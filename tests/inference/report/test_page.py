"""The page of a run: complete, well formed, escaped, and cut off from the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from inference.labels import Label
from inference.report.figures import CaseDrawing, draw_case
from inference.report.page import PAGE, PICTURE_SUFFIX, SLICES_SUFFIX, render_page, write_page
from inference.report.slices import stack_slices, write_slices

EVIL = '<script>alert("1")</script> & $title \'"'
VOID = {"meta", "link", "input", "img", "br", "hr"}


def record() -> dict[str, object]:
    """A run of three cases as its JSON has it: one plain, one repaired, one failed."""
    refinement = {
        "cluster": 2,
        "distances": [0.5, 0.75],
        "no_subtype": None,
        "thresholds": {"smallest_component_mm3": {"NCR": 0, "ED": 125.0, "ET": 75.0}, "et_wt_ratio": 0.05},
        "thresholds_of": "subtype 2",
        "removed": {
            "NCR": {"components": 0, "mm3": 0.0},
            "ED": {"components": 3, "mm3": 212.0},
            "ET": {"components": 1, "mm3": 20.0},
        },
        "et_wt_ratio": 0.031,
        "et_relabelled": True,
    }
    good = {
        "id": "Case-B",
        "status": "ok",
        "seconds": {"read": 1.5, "predict": 20.0},
        "volumes_ml": {"WT": 101.25, "TC": 30.5, "ET": 9.75},
        "refinement": refinement,
        "agreement": {"WT": 0.961, "TC": 0.912, "ET": 0.874},
    }
    repaired = {
        "id": "Case-A",
        "status": "repaired",
        "seconds": {"read": 1.0},
        "volumes_ml": {"WT": 20.0, "TC": 0.0, "ET": 0.0},
        "repairs": ["t1n: 3 voxels"],
        "warnings": ["t2w is odd"],
    }
    failed = {"id": "Case-C", "status": "failed", "error": "t2f cannot be read"}
    run = {
        "schema": 1,
        "command": ["infer", "-i", "in folder"],
        "bundle": {"name": "embedded", "version": "1.2.0", "sha256": "ab" * 32},
        "profile": "fast",
        "engine": "openvino",
        "device": "cpu",
        "threads": 2,
        "on_error": "skip",
        "versions": {"python": "3.11.9"},
        "started": "2025-01-02T03:04:05+00:00",
        "region_thresholds": {"WT": 0.5, "TC": 0.4, "ET": 0.7},
        "seconds": 123.4,
        "interrupted": None,
        "exit_status": 1,
    }
    return {"run": run, "cases": [good, repaired, failed]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report's folder with the pictures of one case."""
    folder = tmp_path_factory.mktemp("report")
    data = np.zeros((4, 40, 50, 30), np.float32)
    data[:, 5:35, 5:45, 3:27] = 300
    labels = np.zeros(data.shape[1:], np.uint8)
    labels[10:20, 10:20, 10:20] = Label.ET
    draw_case(CaseDrawing(data, labels, (1.0, 1.0, 1.0), "Case-B"), folder / f"Case-B{PICTURE_SUFFIX}")
    write_slices(stack_slices(data, labels, (1.0, 1.0, 1.0)), folder / f"Case-B{SLICES_SUFFIX}")
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
        return " ".join(text for tag, text in self.texts if tag not in {"script", "style"})


def rows_of(page: str) -> list[list[str]]:
    body = page[page.index("<tbody>") : page.index("</tbody>")].replace("\u00a0", " ")
    return [re.findall(r"<td[^>]*>(?:<a[^>]*>)?(.*?)(?:</a>)?</td>", row) for row in body.split("<tr>")[1:]]


def test_page_is_well_formed_with_unique_ids(folder):
    reader = Reader(render_page(record(), folder))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(f"case-{number}" in ids for number in range(3))


def test_links_lead_within_the_page(folder):
    reader = Reader(render_page(record(), folder))
    ids = {attributes.get("id") for _, attributes in reader.tags}
    targets = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)


def test_nothing_is_asked_of_the_network(folder):
    page = render_page(record(), folder)
    reader = Reader(page)
    for _, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"https?://|@import|url\(", page)
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_table_says_what_the_record_says(folder):
    good, repaired, failed = rows_of(render_page(record(), folder))
    assert good == [
        "Case-B",
        "ok",
        "101.2",
        "30.5",
        "9.8",
        "2",
        "subtype 2: ED ≥ 125 mm³, ET ≥ 75 mm³, ET/WT ≥ 0.05",
        "ED 3 (212 mm³), ET 1 (20 mm³)",
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


def test_numbers_sort_by_their_value_and_gaps_by_nothing(folder):
    page = render_page(record(), folder)
    keys = [re.findall(r'data-sort="([^"]*)"', row) for row in page[page.index("<tbody>") :].split("<tr>")[1:4]]
    assert keys[0][2] == "101.25"
    assert keys[0][7] == "232.0"
    assert keys[0][9] == "0.874"
    assert keys[2][2] == ""


def test_thresholds_that_do_nothing_say_so(folder):
    value = record()
    value["cases"][0]["refinement"]["thresholds"] = {
        "smallest_component_mm3": {"NCR": 0, "ED": 0, "ET": 0},
        "et_wt_ratio": 0,
    }
    assert rows_of(render_page(value, folder))[0][6] == "subtype 2: leave it alone"


def test_every_note_is_in_the_section_of_its_case(folder):
    page = render_page(record(), folder)
    section = page[page.index('id="case-1"') : page.index('id="case-2"')]
    assert "t1n: 3 voxels" in section
    assert "t2w is odd" in section
    assert "t2f cannot be read" in page[page.index('<section id="case-2"') :]


def test_provenance_is_there(folder):
    text = Reader(render_page(record(), folder)).text()
    parts = ("embedded 1.2.0", "ab" * 32, "fast", "openvino", "infer -i in folder", "python 3.11.9", "123.4")
    for part in (*parts, "TC above 0.4"):
        assert part in text


@pytest.mark.parametrize("where", ["id", "error", "warning", "bundle", "command", "thresholds"])
def test_whatever_the_record_holds_is_escaped(folder, where):
    value = record()
    case = value["cases"][0]
    match where:
        case "id":
            case["id"] = EVIL
        case "error":
            case["error"] = EVIL
        case "warning":
            case["warnings"] = [EVIL]
        case "bundle":
            value["run"]["bundle"]["name"] = EVIL
        case "command":
            value["run"]["command"] = [EVIL]
        case "thresholds":
            case["refinement"]["thresholds_of"] = EVIL
    page = render_page(value, folder)
    assert "<script>alert" not in page
    assert EVIL in Reader(page).text()


def test_case_names_cannot_reach_out_of_the_folder(tmp_path, folder):
    inner = tmp_path / "inner"
    inner.mkdir()
    shutil.copy(folder / f"Case-B{PICTURE_SUFFIX}", tmp_path / f"Case-B{PICTURE_SUFFIX}")
    value = record()
    value["cases"][0]["id"] = "../Case-B"
    assert 'src="data:' not in render_page(value, inner)


def test_pictures_are_embedded_where_they_are(folder, tmp_path):
    page = render_page(record(), folder)
    assert page.count('src="data:image/webp;base64,') == 1
    assert page.count('class="slices"') == 1
    assert page.count("No pictures of this case.") == 2
    assert render_page(record(), tmp_path).count("No pictures of this case.") == 3


@pytest.mark.parametrize("change", [{"status": "failed"}, {"status": "empty"}, {"warnings": ["no picture: disk full"]}])
def test_what_an_earlier_run_drew_is_not_shown_for_a_case_without_a_picture(folder, change):
    value = record()
    for case in value["cases"]:
        case.update(change)
    assert render_page(value, folder).count("No pictures of this case.") == 3


def test_viewer_can_be_reached_by_keyboard_and_is_named(folder):
    reader = Reader(render_page(record(), folder))
    viewer = next(a for _, a in reader.tags if a.get("class") == "viewer")
    assert viewer["tabindex"] == "0"
    assert viewer["role"] == "slider"
    assert "Case-B" in viewer["aria-label"]
    assert int(viewer["aria-valuemax"]) > 5


def test_damaged_pictures_are_left_out(tmp_path):
    (tmp_path / f"Case-B{PICTURE_SUFFIX}").write_bytes(b"not a picture")
    (tmp_path / f"Case-B{SLICES_SUFFIX}").write_bytes(b"not a stack")
    assert render_page(record(), tmp_path).count("No pictures of this case.") == 3


@pytest.mark.parametrize("value", [{}, {"run": {}, "cases": []}, {"run": None, "cases": [{}, None, 3]}])
def test_records_with_gaps_still_make_a_page(tmp_path, value):
    Reader(render_page(value, tmp_path))


def test_page_is_written_as_one_file(folder, tmp_path):
    path = write_page(record(), tmp_path)
    assert path == tmp_path / PAGE
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text("utf-8") == render_page(record(), tmp_path)


def test_headings_sort_the_table_in_a_browser(folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    check = """<script>{
const order = () => Array.from(document.querySelectorAll("#table tbody tr"), row => row.cells[0].textContent);
const click = column => document.querySelectorAll("#table th button")[column].click();
const seen = [];
for (const column of [0, 2, 2, 9]) { click(column); seen.push(order()); }
document.title = JSON.stringify(seen);
}</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(render_page(record(), folder).replace("</body>", check), "utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    title = shown[shown.index("<title>") + 7 : shown.index("</title>")]
    assert json.loads(unescape(title)) == [
        ["Case-A", "Case-B", "Case-C"],
        ["Case-A", "Case-B", "Case-C"],
        ["Case-B", "Case-A", "Case-C"],
        ["Case-B", "Case-A", "Case-C"],
    ]
