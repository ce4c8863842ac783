"""Data for the viewer: the right voxels, in the right order, small."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from inference.labels import REGIONS, SEQUENCES, Label
from inference.report import volumes
from inference.report.volumes import CLASS_STEP, viewer_script

SPACING = (1.0, 1.0, 1.0)


def case(shape=(60, 70, 50)) -> tuple[np.ndarray, np.ndarray]:
    """A block of a brain, brighter along x; a tumour, most of it in slice 31."""
    data = np.zeros((4, *shape), np.float32)
    data[:, 10:50, 10:60, 5:45] = np.linspace(100, 900, 40)[None, :, None, None]
    labels = np.zeros(shape, np.uint8)
    labels[40:48, 50:58, 25:36] = Label.ED
    labels[42:46, 52:56, 31] = Label.ET
    labels[38:48, 50:58, 31][labels[38:48, 50:58, 31] == 0] = Label.ED
    return data, labels


def content_of(script: bytes) -> tuple[str, dict]:
    text = script.decode("ascii")
    call, end = "openCase(", ");\n"
    assert text.startswith(call)
    assert text.endswith(end)
    name, content = json.loads(f"[{text[len(call) : -len(end)]}]")
    return name, content


def volume_of(sheet: str, content: dict) -> np.ndarray:
    """A sheet as the viewer reads it: (X, Y, Z)."""
    x, y, z = content["shape"]
    columns = content["columns"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.partition(",")[2]))))
    tall, wide = picture.shape[0] // -(-z // columns), picture.shape[1] // columns
    corners = [(tall * (at // columns), wide * (at % columns)) for at in range(z)]
    return np.stack([picture[row : row + y, column : column + x].T for row, column in corners], axis=2)


def test_labels_come_back_voxel_by_voxel():
    data, labels = case()
    _, content = content_of(viewer_script("a", data, labels, SPACING))
    found = volume_of(content["classes"], content)
    box = tuple(slice(at, at + n) for at, n in zip(content["corner"], content["shape"], strict=True))
    brain = (data[0] != 0)[box] | (labels[box] > 0)
    assert not brain.all()
    assert np.array_equal(found, np.where(brain, labels[box] + 1, 0) * CLASS_STEP)


def test_sequences_come_back_nearly_and_the_background_stays_dark():
    data, labels = case()
    for index in range(4):
        data[index] *= index + 1
    _, content = content_of(viewer_script("a", data, labels, SPACING))
    assert tuple(content["sequences"]) == SEQUENCES
    box = tuple(slice(at, at + n) for at, n in zip(content["corner"], content["shape"], strict=True))
    for index, sequence in enumerate(content["sequences"].values()):
        low, high = sequence["range"]
        levels = volume_of(sequence["sheet"], content).astype(float)
        expected = data[index][box]
        values = low + (levels - 1) / 254 * (high - low)
        assert np.abs(values - expected)[expected > 0].mean() < 0.02 * high
        assert levels[expected == 0].mean() < 4
        assert low <= sequence["window"][0] < sequence["window"][1] <= high


def test_the_viewer_begins_where_most_tumour_is():
    data, labels = case()
    _, content = content_of(viewer_script("a", data, labels, SPACING))
    assert content["start"][2] + content["corner"][2] == 31
    assert 38 <= content["start"][0] + content["corner"][0] < 48


def test_maps_are_there_where_they_were_asked_for():
    data, labels = case()
    maps = np.zeros((3, *labels.shape), np.float32)
    maps[1, 20:40, 20:40, 20:40] = 0.5
    _, content = content_of(viewer_script("a", data, labels, SPACING, {"probabilities": maps}))
    assert list(content["maps"]) == ["probabilities"]
    assert list(content["maps"]["probabilities"]) == list(REGIONS)
    found = volume_of(content["maps"]["probabilities"]["TC"], content)
    corner = content["corner"]
    assert found[30 - corner[0], 30 - corner[1], 30 - corner[2]] == 125, "of 250"
    assert volume_of(content["maps"]["probabilities"]["ET"], content).max() == 0
    assert content_of(viewer_script("a", data, labels, SPACING))[1]["maps"] == {}


@pytest.mark.parametrize(
    ("spacing", "step"), [((1.0, 1.0, 1.0), [1, 1, 1]), ((0.5, 0.5, 6.0), [2, 2, 1]), ((0.25, 1.2, 0.9), [4, 1, 1])]
)
def test_fine_voxels_are_taken_together_and_thick_slices_kept(spacing, step):
    data, labels = case()
    _, content = content_of(viewer_script("a", data, labels, spacing))
    assert content["step"] == step
    assert content["spacing"] == pytest.approx([size * n for size, n in zip(spacing, step, strict=True)])


def test_blocks_are_means_also_at_the_end():
    data, labels = case((51, 70, 50))
    _, content = content_of(viewer_script("a", data, labels, (0.5, 1.0, 1.0)))
    grey = volume_of(content["sequences"]["t1c"]["sheet"], content).astype(int)
    assert content["shape"][0] == -(-(51 - content["corner"][0]) // 2)
    brain = grey[2:20, 30, 20]
    assert (np.diff(brain) > 0).all()


def test_a_script_is_never_large(monkeypatch):
    data = np.random.default_rng(0).uniform(1, 900, (4, 90, 90, 90)).astype(np.float32)
    labels = np.zeros(data.shape[1:], np.uint8)
    fine = len(viewer_script("a", data, labels, SPACING))
    monkeypatch.setattr(volumes, "_LARGEST", fine // 2)
    assert len(viewer_script("a", data, labels, SPACING)) <= fine // 2


def test_scans_that_are_too_large_are_thinned(monkeypatch):
    data, labels = case()
    monkeypatch.setattr(volumes, "_MOST_VOXELS", 20_000)
    _, content = content_of(viewer_script("a", data, labels, SPACING))
    assert np.prod(content["shape"]) <= 20_000


def test_names_are_quoted():
    name, _ = content_of(viewer_script('</script>"\u2028', *case(), SPACING))
    assert name == '</script>"\u2028'


def test_empty_scan():
    data, labels = case()
    _, content = content_of(viewer_script("a", np.zeros_like(data), np.zeros_like(labels), SPACING))
    assert content["shape"] == list(labels.shape)
    assert not volume_of(content["sequences"]["t1c"]["sheet"], content).any()
