"""The figure of a case: readable, the right way round, and for any case."""

from __future__ import annotations

import io
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from inference.intake.cases import find_cases
from inference.intake.label_map import read_labels
from inference.intake.scan import read_scan
from inference.labels import Label
from inference.report.figures import CaseDrawing, draw_case
from inference.report.figures import _figure as figure_of
from training.data.phantoms import Phantom, write_phantom

PNG = b"\x89PNG\r\n\x1a\n"


def drawing(side: str = "right", spacing=(2.0, 2.0, 2.0)) -> CaseDrawing:
    """An egg of a brain with a tumour in front on one side."""
    shape = (70, 86, 60)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, length) for length in shape], indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.8
    data = np.where(brain, 100 + 40 * np.sin(9 * x) * np.cos(8 * y), 0).astype(np.float32)
    centre = (0.4 if side == "right" else -0.4, 0.35, 0.1)
    away = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    labels = np.select([away < 0.01, away < 0.03, away < 0.07], [Label.NCR, Label.ET, Label.ED], 0).astype(np.uint8)
    return CaseDrawing(np.stack([data] * 4), labels, spacing, "case-1")


def panels_of(case: CaseDrawing) -> list[np.ndarray]:
    """The pictures within the figure, each (rows, columns, 3), by rows of the figure."""
    sheet = np.asarray(Image.open(io.BytesIO(draw_case(case, dpi=70))).convert("RGB")).astype(int)
    rows, columns = sheet.shape[:2]
    panels = []
    for axes in figure_of(case).axes:
        box = axes.get_position(original=True)
        top, left = round((1 - box.y1) * rows), round(box.x0 * columns)
        panels.append(sheet[top : top + int(box.height * rows), left : left + int(box.width * columns)])
    return panels


def texts(case: CaseDrawing) -> str:
    figure = figure_of(case)
    return "\n".join(text.get_text() for part in (figure, *figure.axes) for text in part.texts)


def yellow(picture: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red > 150) & (green > 130) & (blue < 0.6 * red)


@pytest.mark.parametrize(("side", "at_the_left"), [("right", True), ("left", False)])
def test_a_tumour_on_the_right_is_drawn_at_the_left_beside_the_r(side, at_the_left):
    case = drawing(side)
    panel = panels_of(case)[1]
    where = np.argwhere(yellow(panel))
    assert len(where) > 20
    assert bool(where[:, 1].mean() < panel.shape[1] / 2) is at_the_left
    assert where[:, 0].mean() < panel.shape[0] / 2, "the front is on top"
    marks = {text.get_text(): text.get_position()[0] for text in figure_of(case).axes[1].texts}
    assert marks["R"] < 0.1
    assert marks["L"] > 0.9


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_sides_are_right_from_the_file_to_the_figure_in_thick_slices(tmp_path, orientation):
    shown = drawing("right", (2.0, 2.0, 5.0))
    phantom = Phantom(shown.data[:, :, :, ::2], shown.labels[:, :, ::2], (2.0, 2.0, 5.0))
    folder = write_phantom(tmp_path, "P-1", phantom, orientation, with_labels=True)
    scan = read_scan(find_cases(tmp_path).cases[0])
    labels, _ = read_labels(folder / "P-1-seg.nii.gz")
    # The world, not this program's reader, says what is right: nibabel's x grows towards it.
    image = nib.load(folder / "P-1-seg.nii.gz")
    tumour = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0))
    assert tumour[:, 0].mean() > 5
    panel = panels_of(CaseDrawing(scan.data, labels, scan.spacing, "P-1"))[1]
    assert np.argwhere(yellow(panel))[:, 1].mean() < 0.45 * panel.shape[1]


@pytest.fixture(scope="module")
def panels() -> list[np.ndarray]:
    return panels_of(drawing())


def test_regions_are_drawn_in_every_second_picture_only(panels):
    for number, panel in enumerate(panels):
        assert bool(yellow(panel).sum() > 20) is (number % 2 == 1)


def test_anatomy_shows_through_the_regions(panels):
    plain, washed = panels[:2]
    height, width = (min(plain.shape[axis], washed.shape[axis]) for axis in (0, 1))
    plain, washed = (panel[:height, :width].mean(axis=-1) for panel in (plain, washed))
    inside = np.abs(plain - washed) > 4
    assert inside.sum() > 100
    assert np.corrcoef(plain[inside], washed[inside])[0, 1] > 0.3


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 3.0), (1.0, 1.0, 5.0), (2.0, 1.0, 1.0)])
def test_voxels_are_not_stretched(spacing):
    figure = figure_of(drawing(spacing=spacing))
    width, height = figure.get_size_inches()
    scales = []
    for axes in figure.axes:
        box = axes.get_position(original=True)
        across = abs(np.diff(axes.get_xlim())[0]) / (box.width * width)
        up = abs(np.diff(axes.get_ylim())[0]) / (box.height * height)
        scales.append(max(across, up))
        assert axes.get_aspect() == 1
    assert max(scales) == pytest.approx(min(scales), rel=1e-6), "one scale for all pictures"


def test_scale_bar_is_as_long_as_it_says():
    case = drawing()
    bars = [line for axes in figure_of(case).axes for line in axes.lines]
    assert bars
    for line in bars:
        assert abs(np.diff(line.get_xdata())[0]) == 50
    assert "50 mm" in texts(case)


def test_volumes_warnings_and_scores_are_written():
    case = drawing()
    whole = np.count_nonzero(case.labels) * 8 / 1000
    text = texts(replace(case, warnings=("t2w was mended",), scores="Dice WT 0.91"))
    assert f"WT {whole:.1f} mL" in text
    assert "Warning: t2w was mended" in text
    assert "Dice WT 0.91" in text
    assert "No tumour" not in text


def test_long_warnings_are_wrapped_and_make_room():
    short, long = figure_of(drawing()), figure_of(replace(drawing(), warnings=("so many words " * 30,)))
    assert long.get_size_inches()[1] > short.get_size_inches()[1] + 0.3
    right = max(text.get_window_extent().x1 for text in long.texts)
    assert right <= long.bbox.x1


def test_empty_segmentation_is_drawn_and_said():
    case = drawing()
    empty = replace(case, labels=np.zeros_like(case.labels))
    assert draw_case(empty).startswith(PNG)
    assert "No tumour was segmented." in texts(empty)


def test_scan_of_nothing_is_drawn():
    empty = CaseDrawing(np.zeros((4, 9, 8, 7), np.float32), np.zeros((9, 8, 7), np.uint8), (1.0, 1.0, 1.0), "nothing")
    assert draw_case(empty).startswith(PNG)


def test_tumour_at_the_edge_of_the_array():
    case = drawing()
    labels = np.zeros_like(case.labels)
    labels[0, 0, 0] = Label.ET
    assert draw_case(replace(case, labels=labels)).startswith(PNG)


def test_title_with_signs_of_mathematics_is_drawn_as_it_is():
    assert draw_case(replace(drawing(), title="a$b_c$ \\frac{", warnings=("$x^$",))).startswith(PNG)


def test_reference_changes_the_segmented_pictures_only(panels):
    case = drawing()
    compared = replace(case, reference=case.labels)
    for number, (before, after) in enumerate(zip(panels, panels_of(compared), strict=True)):
        assert bool((before != after).any()) is (number % 2 == 1)
    assert "reference" in texts(compared)


def test_with_a_reference_the_slice_with_most_errors_comes_first():
    case = drawing()
    missed = np.zeros_like(case.labels)
    missed[35, 30:40, 50] = Label.ET
    both = np.maximum(case.labels, missed)
    assert "axial 51\nmost errors" in texts(replace(case, reference=both))
    assert "axial 51\nmost errors" in texts(replace(case, labels=np.zeros_like(missed), reference=missed))
    assert "most errors" not in texts(replace(case, reference=case.labels))


def test_shapes_that_do_not_fit_are_refused():
    case = drawing()
    with pytest.raises(ValueError, match="not of one shape"):
        draw_case(replace(case, labels=case.labels[1:]))
    with pytest.raises(ValueError, match="not of one shape"):
        draw_case(replace(case, reference=case.labels[1:]))


def test_drawing_leaves_no_global_state():
    import subprocess
    import sys

    code = (
        "import sys; import numpy as np; from inference.report.figures import CaseDrawing, draw_case;"
        "assert 'matplotlib' not in sys.modules;"
        "draw_case(CaseDrawing(np.ones((4, 9, 8, 7), np.float32), np.ones((9, 8, 7), np.uint8), (1., 1., 1.), 'x'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
