"""The page of a run: a table of its cases, a picture and a viewer for each, and how it was made.

`index.html` is made from the run's record and from what lies beside it: `<ID>.png` from :mod:`inference.report.figures`
and `<ID>.case.js` from :mod:`inference.report.volumes`, which the page loads when a case is opened. A case without them
is listed all the same. The page asks for nothing outside of its folder; its content security policy forbids it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from inference.files import write_whole
from inference.labels import REGIONS
from inference.refine.postprocess import RefinementRecord
from inference.report.record import CaseRecord, RunRecord, plain
from inference.report.views import EDGE_MARKS, LABEL_COLOURS, LABEL_NAMES, SEQUENCE_NAMES
from inference.schema import to_json
from inference.templates import render

PAGE: Final = "index.html"
"""The page's name in the report's folder."""
PICTURE_SUFFIX: Final = ".png"
"""`<ID>` and this: a case's figure."""
VIEWER_SUFFIX: Final = ".case.js"
"""`<ID>` and this: a case's data for the viewer."""

_NOTHING: Final = "–"
_SHARED: Final = ("Subtype", "Thresholds", "Removed")
"""Columns that are said once, above the table, where they say the same of all cases."""


@dataclass(frozen=True)
class _Cell:
    """One cell of the table."""

    text: str
    key: str = ""
    """The value that it sorts by; the text where empty."""
    style: str = ""
    """Its class."""


def write_page(run: RunRecord, cases: Sequence[CaseRecord], folder: Path) -> Path:
    """Write the page of a run to `folder/index.html`; FolderError where that fails."""
    path = folder / PAGE
    # An ID may hold bytes that are no UTF-8, as file names may.
    write_whole(path, render_page(run, cases, folder).encode("utf-8", "replace"))
    return path


def render_page(run: RunRecord, cases: Sequence[CaseRecord], folder: Path) -> str:
    """The HTML of a run, with the pictures that `folder` holds."""
    rows = [dict(_cells(case)) for case in cases]
    shared, hidden = _shared(rows)
    return render(
        "inference.report/page.html.jinja",
        run=run,
        shared=shared,
        headings=[heading for heading, _ in _cells(CaseRecord("", "ok")) if heading not in hidden],
        rows=[[cell for heading, cell in row.items() if heading not in hidden] for row in rows],
        cases=[_shown(case, folder) for case in cases],
        sequences=SEQUENCE_NAMES,
        planes=EDGE_MARKS,
        labels=[(int(label), label.name, LABEL_NAMES[label], colour) for label, colour in LABEL_COLOURS.items()][::-1],
    )


def _cells(case: CaseRecord) -> Iterator[tuple[str, _Cell]]:
    """Heading and cell of every column."""
    refinement, volumes, agreement = case.refinement, case.volumes_ml or {}, case.agreement or {}
    yield "Case", _Cell(case.id, style="id")
    yield "Status", _Cell(case.status + (" (earlier run)" if case.resumed else ""), style=case.status)
    for region in REGIONS:
        yield region, _number(volumes.get(region), 1)
    yield "Subtype", _number(refinement.cluster if refinement else None, 0)
    yield "Thresholds", _Cell(_thresholds(refinement) if refinement else _NOTHING)
    yield "Removed", _removed(case) if refinement else _Cell(_NOTHING)
    ratio = _number(refinement.et_wt_ratio if refinement else None, 2)
    relabelled = refinement is not None and refinement.et_relabelled
    yield "ET/WT", _Cell(f"{ratio.text}, became NCR", ratio.key) if relabelled else ratio
    overlap = ", ".join(_unbroken(f"{region} {value:.2f}") for region, value in agreement.items())
    yield "Agreement", _Cell(overlap or _NOTHING, str(min(agreement.values(), default="")), "line")
    notes = ([f"failed: {case.error}"] if case.error else []) + _notes(case)
    count = f" (+ {len(notes) - 1})" if len(notes) > 1 else ""
    yield "Notes", _Cell(notes[0] + count if notes else _NOTHING, str(len(notes)), "warn" if notes else "")
    yield "Seconds", _number(sum(case.seconds.values()) if case.seconds else None, 1)


def _shared(rows: Sequence[Mapping[str, _Cell]]) -> tuple[dict[str, str], set[str]]:
    """Entries that are the same for all cases, by column; and the columns that the table need not have."""
    # Columns that are empty, or the same for all cases, push what differs off a small screen.
    shared: dict[str, str] = {}
    hidden: set[str] = set()
    for heading in (*_SHARED, "ET/WT", "Agreement"):
        found = {row[heading].text for row in rows} - {_NOTHING}
        if not found or (heading in _SHARED and len(found) == 1):
            hidden.add(heading)
            shared.update((heading, text) for text in found)
    return shared, hidden


def _number(value: float | None, digits: int) -> _Cell:
    if value is None:
        return _Cell(_NOTHING, style="number")
    return _Cell(f"{value:.{digits}f}", key=str(value), style="number")


def _thresholds(refinement: RefinementRecord) -> str:
    """Thresholds for components and for ET/WT, and whose they are."""
    thresholds = refinement.thresholds
    sizes = thresholds.smallest_component_mm3.items()
    rules = [_unbroken(f"{label} ≥ {size:.4g} mm³") for label, size in sizes if size]
    rules += [_unbroken(f"ET/WT ≥ {thresholds.et_wt_ratio:.4g}")] if thresholds.et_wt_ratio else []
    return f"{refinement.thresholds_of}: {', '.join(rules) or 'leave it alone'}"


def _removed(case: CaseRecord) -> _Cell:
    """Lesions that were left out as doubtful, by region, and components that were removed as too small, by label."""
    removed = [(f"{region} in doubt", what) for region, what in case.doubtful.items()]
    removed += [(label, what) for label, what in case.refinement.removed.items()] if case.refinement else []
    parts = [_unbroken(f"{name} {what.components} ({what.mm3:.6g} mm³)") for name, what in removed if what.components]
    return _Cell(", ".join(parts) or "nothing", key=str(sum(what.mm3 for _, what in removed)))


def _notes(case: CaseRecord) -> list[str]:
    return [f"warning: {note}" for note in case.warnings] + [f"repaired: {note}" for note in case.repairs]


def _unbroken(text: str) -> str:
    """A text that is not broken between two lines."""
    return text.replace(" ", "\u00a0")


def _shown(case: CaseRecord, folder: Path) -> dict[str, object]:
    """One case as the template takes it; the addresses `picture` and `script` are empty where there are none."""
    # A record must not name files elsewhere; and what an earlier run drew is not this result.
    drawn = case.status in ("ok", "repaired") and not any(note.startswith("no picture: ") for note in case.warnings)
    drawn = drawn and Path(case.id).name == case.id
    names = {"picture": f"{case.id}{PICTURE_SUFFIX}", "script": f"{case.id}{VIEWER_SUFFIX}"}
    places = {what: quote(name, safe="") if drawn and (folder / name).is_file() else "" for what, name in names.items()}
    record = to_json(plain(case)).decode()
    return {
        "id": case.id,
        "status": case.status,
        "error": case.error,
        "notes": _notes(case),
        "record": record,
        **places,
    }
