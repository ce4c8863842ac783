"""One static HTML page per run: a table of the cases, a picture and a slice viewer for each, and how it was made.

The page is one file that asks the network for nothing (its content security policy forbids it). It is made from the
run's record and from what lies in the report's folder: `<ID>.png` from :mod:`inference.report.figures` and
`<ID>.slices.json` from :mod:`inference.report.slices`; a case without them is listed all the same.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from inference.files import write_whole
from inference.labels import REGIONS, TUMOUR_LABELS
from inference.report.slices import SliceStack, read_slices
from inference.report.views import LABEL_COLOURS, LABEL_NAMES

PAGE: Final = "index.html"
"""The page's name in the report's folder."""
PICTURE_SUFFIX: Final = ".png"
"""`<ID>` and this: a case's figure."""
SLICES_SUFFIX: Final = ".slices.json"
"""`<ID>` and this: a case's stack of slices."""

_NOTHING: Final = "–"
_CANVAS_SCALE: Final = 3
"""Pixels of the viewer's canvas per pixel of the stack."""
_PICTURE_QUALITY: Final = 82
_PICTURE_WIDTH: Final = 1400


@dataclass(frozen=True)
class _Cell:
    """One cell of the table, not yet escaped."""

    text: str
    """What it says."""
    key: str = ""
    """What it sorts by; the text where empty and not a number."""
    style: str = ""
    """Its class."""


def write_page(record: Mapping[str, object], folder: Path) -> Path:
    """Write the page of a run's record (as JSON has it) to `folder/index.html`; FolderError where that fails."""
    path = folder / PAGE
    write_whole(path, render_page(record, folder).encode("utf-8", "replace"))
    return path


def render_page(record: Mapping[str, object], folder: Path) -> str:
    """The HTML of a run's record, with the pictures that `folder` holds."""
    run = _mapping(record.get("run"))
    cases = [_mapping(case) for case in _sequence(record.get("cases"))]
    assets = files("inference.report") / "assets"
    style, script, page = (assets.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    bundle = _mapping(run.get("bundle"))
    columns = [heading for heading, _ in _cells({})]
    return Template(page).substitute(
        title=f"Gliomas, segmented with the bundle {_html(bundle.get('name', 'without a name'))}",
        summary=_html(_summary(run, cases)),
        style=style,
        script=script,
        headings="".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in columns),
        rows="\n".join(_row(case, f"case-{number}") for number, case in enumerate(cases)),
        sections="\n".join(_section(case, f"case-{number}", folder) for number, case in enumerate(cases)),
        provenance="".join(f"<dt>{_html(name)}</dt><dd>{_html(value)}</dd>" for name, value in _provenance(run)),
    )


def _summary(run: Mapping[str, object], cases: Sequence[Mapping[str, object]]) -> str:
    counts = {status: sum(case.get("status") == status for case in cases) for status in ("repaired", "empty", "failed")}
    parts = [
        f"{len(cases)} case{'s' * (len(cases) != 1)}",
        *(f"{count} {name}" for name, count in counts.items() if count),
    ]
    if run.get("started"):
        parts.append(f"started {str(run['started']).replace('T', ' ').replace('+00:00', ' UTC')}")
    if run.get("interrupted"):
        parts.append(f"ended early by {run['interrupted']}")
    return ", ".join(parts) + "."


# --- table ----------------------------------------------------------------------------------------------------------


def _cells(case: Mapping[str, object]) -> Iterator[tuple[str, _Cell]]:
    """Heading and cell of every column."""
    refinement = _mapping(case.get("refinement"))
    volumes = _mapping(case.get("volumes_ml"))
    status = str(case.get("status", ""))
    yield "Case", _Cell(str(case.get("id", "")))
    yield "Status", _Cell(status + (" (earlier run)" if case.get("resumed") else ""), style=status)
    for region in REGIONS:
        yield region, _number(volumes.get(region), 1)
    yield "Subtype", _number(refinement.get("cluster"), 0)
    yield "Thresholds", _Cell(_thresholds(refinement))
    yield "Removed", _removed(refinement)
    yield "ET/WT", _ratio(refinement)
    yield "Agreement", _agreement(case)
    yield "Notes", _Cell(_notes_count(case), key=str(len(_notes(case))), style="warn" if _notes(case) else "")
    seconds = [value for value in _mapping(case.get("seconds")).values() if isinstance(value, int | float)]
    yield "Seconds", _number(sum(seconds) if seconds else None, 1)


def _row(case: Mapping[str, object], anchor: str) -> str:
    cells = []
    for heading, cell in _cells(case):
        text = escape(cell.text)
        if heading == "Case":
            text = f'<a href="#{anchor}">{text}</a>'
        key = cell.key or ("" if cell.text == _NOTHING else cell.text)
        cells.append(f'<td class="{escape(cell.style)}" data-sort="{escape(key)}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _number(value: object, digits: int) -> _Cell:
    if not isinstance(value, int | float):
        return _Cell(_NOTHING, style="number")
    return _Cell(f"{value:.{digits}f}", key=str(value), style="number")


def _thresholds(refinement: Mapping[str, object]) -> str:
    """What was asked of components and of ET/WT, and whose thresholds these are."""
    thresholds = _mapping(refinement.get("thresholds"))
    if not thresholds:
        return _NOTHING
    smallest = _mapping(thresholds.get("smallest_component_mm3"))
    sizes = [_unbroken(f"{label} ≥ {_short(size)} mm³") for label, size in smallest.items() if size]
    ratio = thresholds.get("et_wt_ratio")
    rules = sizes + ([_unbroken(f"ET/WT ≥ {_short(ratio)}")] if ratio else [])
    return f"{refinement.get('thresholds_of', '')}: {', '.join(rules) or 'leave it alone'}".lstrip(": ")


def _removed(refinement: Mapping[str, object]) -> _Cell:
    """Components that refinement removed, by label."""
    if "removed" not in refinement:
        return _Cell(_NOTHING)
    parts, total = [], 0.0
    removed = _mapping(refinement["removed"])
    for name in (label.name for label in TUMOUR_LABELS):
        what = _mapping(removed.get(name))
        volume = what.get("mm3")
        if what.get("components") and isinstance(volume, int | float):
            parts.append(_unbroken(f"{name} {what['components']} ({_short(volume)} mm³)"))
            total += volume
    return _Cell(", ".join(parts) or "nothing", key=str(total))


def _ratio(refinement: Mapping[str, object]) -> _Cell:
    cell = _number(refinement.get("et_wt_ratio"), 2)
    return _Cell(f"{cell.text}, became NCR", cell.key) if refinement.get("et_relabelled") else cell


def _agreement(case: Mapping[str, object]) -> _Cell:
    """Agreement of the networks per region; sorted by the least."""
    found = {
        region: value for region, value in _mapping(case.get("agreement")).items() if isinstance(value, int | float)
    }
    if not found:
        return _Cell(_NOTHING)
    text = ", ".join(_unbroken(f"{region} {value:.2f}") for region, value in found.items())
    return _Cell(text, key=str(min(found.values())))


def _notes(case: Mapping[str, object]) -> list[str]:
    """Error, warnings and repairs."""
    error = [f"failed: {case['error']}"] if case.get("error") else []
    warnings = [f"warning: {note}" for note in _sequence(case.get("warnings"))]
    return error + warnings + [f"repaired: {note}" for note in _sequence(case.get("repairs"))]


def _notes_count(case: Mapping[str, object]) -> str:
    notes = _notes(case)
    return notes[0] + (f" (+ {len(notes) - 1})" if len(notes) > 1 else "") if notes else _NOTHING


# --- one case -------------------------------------------------------------------------------------------------------


def _section(case: Mapping[str, object], anchor: str, folder: Path) -> str:
    """Notes, viewer, picture and record of a case."""
    name = _html(case.get("id", ""))
    notes = "".join(f"<li>{_html(note)}</li>" for note in _notes(case))
    parts = [
        f'<section id="{anchor}">',
        f'<h2>{name} <a href="#cases" aria-label="back to the table">↑</a></h2>',
        f'<ul class="notes warn">{notes}</ul>' if notes else "",
        *_pictures(case, folder),
        f"<details><summary>Record</summary><pre>{_html(_json(case))}</pre></details>",
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _pictures(record: Mapping[str, object], folder: Path) -> Iterator[str]:
    case = str(record.get("id", ""))
    # A record may come from anywhere, and must not name files elsewhere; what an earlier run drew is not this result.
    if Path(case).name != case or record.get("status") in ("failed", "empty") or _is_not_drawn(record):
        case = ""
    stack = read_slices(folder / f"{case}{SLICES_SUFFIX}")
    if stack is not None:
        yield _viewer(case, stack)
    picture = _embedded(folder / f"{case}{PICTURE_SUFFIX}")
    if picture:
        title = _html(f"{case}: slices with most of each region, without and with the regions")
        image = f'<img class="picture" loading="lazy" decoding="async" alt="{title}" src="{picture}">'
        # On a phone the picture keeps a width at which its words can be read, and scrolls within its frame.
        frame = f'<div class="scroll" tabindex="0" role="region" aria-label="Picture of {_html(case)}">{image}</div>'
        yield f"<details open><summary>Picture</summary>{frame}</details>"
    if stack is None and not picture:
        yield '<p class="hint">No pictures of this case.</p>'


def _is_not_drawn(record: Mapping[str, object]) -> bool:
    return any(str(note).startswith("no picture: ") for note in _sequence(record.get("warnings")))


def _viewer(case: str, stack: SliceStack) -> str:
    """The slice viewer; its data is inert until the script draws it."""
    name, count = _html(case), len(stack.positions)
    width, height = (_CANVAS_SCALE * length for length in stack.tile)
    keys = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{label.name} {LABEL_NAMES[label]}</span>'
        for label, colour in reversed(list(LABEL_COLOURS.items()))
    )
    panes = "".join(
        f'<figure><canvas data-sequence="{sequence}" width="{width}" height="{height}" aria-hidden="true"></canvas>'
        f'<span class="mark right">R</span><span class="mark left">L</span><figcaption>{caption}</figcaption></figure>'
        for sequence, caption in (("t1c", "T1 with contrast"), ("t2f", "T2-FLAIR"))
    )
    return f"""<div class="slices">
<div class="viewer" tabindex="0" role="slider" aria-orientation="vertical" aria-label="Slices of {name}"
 aria-valuemin="1" aria-valuemax="{count}" aria-valuenow="1">
<div class="panes">{panes}</div></div>
<div class="controls"><input type="range" min="0" max="{count - 1}" aria-label="Slice of {name}"><output></output>
<label><input type="checkbox" checked> regions</label>{keys}</div>
<p class="hint">Wheel or arrow keys: next slice. Page up, page down: five. Home, End: lowest, highest. R: regions.</p>
<script type="application/json">{stack.as_json()}</script>
</div>"""


def _embedded(path: Path) -> str:
    """A picture file as a data URI, made small; empty where there is none that can be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError):
        return ""
    picture.thumbnail((_PICTURE_WIDTH, 10 * _PICTURE_WIDTH))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_PICTURE_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


# --- provenance and small parts -------------------------------------------------------------------------------------


def _provenance(run: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What the run's record says of the run, in words."""
    bundle = _mapping(run.get("bundle"))
    yield "Bundle", f"{bundle.get('name')} {bundle.get('version')}"
    yield "SHA-256 of its manifest", str(bundle.get("sha256"))
    for key in ("profile", "engine", "device", "threads", "on_error", "started", "interrupted", "exit_status"):
        if run.get(key) is not None:
            yield key.replace("_", " ").capitalize(), str(run[key])
    cuts = _mapping(run.get("region_thresholds"))
    if cuts:
        yield "Region thresholds", ", ".join(f"{region} above {_short(value)}" for region, value in cuts.items())
    if isinstance(run.get("seconds"), int | float):
        yield "Seconds", f"{run['seconds']:.1f}"
    yield "Command", " ".join(map(str, _sequence(run.get("command")))) or "no arguments"
    yield "Versions", ", ".join(f"{name} {version}" for name, version in _mapping(run.get("versions")).items())


def _html(value: object) -> str:
    return escape(str(value))


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _unbroken(text: str) -> str:
    """A text that is not broken between two lines."""
    return text.replace(" ", "\u00a0")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "?"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
