from __future__ import annotations

import csv

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from training.cli import main
from training.evaluation.compare import _panel
from training.evaluation.systems import differences, load_systems

from .test_systems import write


@pytest.fixture
def files(tmp_path):
    return [
        write(tmp_path, "alpha", [0.9, 0.7, 0.8, 0.6], distances=[3, 3, 4, 374]),
        write(tmp_path, "beta", [0.95, 0.75, 0.85, 0.65], distances=[2, 2, 3, 5]),
        write(tmp_path, "gamma", [0.2, 0.1, 0.3], distances=[30, 20, 30]),
    ]


def command(*arguments):
    return main(["compare", *(str(argument) for argument in arguments)])


def test_markdown_report(files, tmp_path):
    assert command(*files[:2], "--table", tmp_path / "out.md") == 0
    text = (tmp_path / "out.md").read_text()
    assert "# Comparison of 2 systems on 4 cases, BraTS 2024" in text
    assert text.index("| beta | 1.0000 |") < text.index("| alpha | 2.0000 |")
    assert "| beta - alpha | -1.0000 | 0.1250 |" in text, "sixteen ways to swap four cases, two as far apart"
    assert "| WT | lesionwise_dice | 0.7500 | 0.8000 |" in text
    assert "| beta - alpha | WT | lesionwise_dice | 0.0500 |" in text
    assert "### beta - alpha" in text
    assert "| c3 | 0.0500 | -369.0000 |" in text


def test_csv_holds_what_the_report_holds(files, tmp_path):
    assert command(*files, "--table", tmp_path / "out.csv", "--table", tmp_path / "out.md") == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    systems = load_systems(files)
    tests = differences(systems)

    def value(**wanted):
        (row,) = (row for row in rows if all(row[name] == text for name, text in wanted.items()))
        return float(row["value"])

    assert value(value_of="rank", system="beta") == 1
    assert value(value_of="mean", system="gamma", metric="lesionwise_dice") == pytest.approx(0.2)
    first = next(test for test in tests if test.metric == "lesionwise_hd95")
    where = {"system": "beta", "against": "alpha", "metric": "lesionwise_hd95"}
    assert value(value_of="p", **where) == first.p_value
    assert (value(value_of="low", **where), value(value_of="high", **where)) == (first.low, first.high)
    assert value(value_of="difference", case="", **where) == first.mean
    assert value(value_of="difference", case="c2", **where) == first.per_case[2] == -1


def test_cases_that_are_left_out_are_named(files, tmp_path, caplog):
    command(*files, "--table", tmp_path / "out.md")
    assert "alpha: 1 cases that not all systems have are left out: c3" in caplog.text
    assert "gamma" not in caplog.text


def test_what_counts_otherwise_is_told(tmp_path, caplog):
    one = write(tmp_path, "one", [None, 0.5, 0.4], distances=[None, "inf", 2], version=2026)
    two = write(tmp_path, "two", [0.3, 0.6], version=2026, damaged={"c2": "empty"})
    assert command(one, two, "--table", tmp_path / "out.md", "--plot", tmp_path / "out.png") == 0
    assert "one: 2 scores are not defined" in caplog.text
    assert "one: 1 scores are infinite" in caplog.text
    assert "two: 1 missing or damaged cases count as the worst: c2" in caplog.text


def test_help_lists_the_metrics_with_their_units(capsys):
    with pytest.raises(SystemExit):
        command("--help")
    shown = capsys.readouterr().out
    assert "lesionwise_hd95 (mm)" in " ".join(shown.split())
    assert "nsd_0.5" in shown


def test_axes_have_units(files):
    figure = Figure()
    _panel(panel := figure.subplots(), load_systems(files), 0, 1)
    assert (panel.get_title(), panel.get_ylabel()) == ("WT lesionwise_hd95", "mm")


def test_plot_shows_a_panel_for_each_metric_and_region(files, tmp_path):
    path = tmp_path / "figures" / "out.png"
    assert command(*files, "--plot", path, "--table", tmp_path / "out.md") == 0
    picture = image.imread(path)
    height, width = picture.shape[:2]
    assert height > width > 300
    for half in (picture[: height // 2], picture[height // 2 :]):
        # The red diamonds of the means.
        assert np.count_nonzero((half[..., 0] > 0.7) & (half[..., 1] < 0.3) & (half[..., 2] < 0.3)) > 100


def test_the_report_goes_to_the_standard_output_where_no_table_is_asked_for(files, capsys):
    assert command(*files, "--metrics", "lesionwise_hd95") == 0
    out = capsys.readouterr().out
    assert "## Ranking" in out
    assert "lesionwise_dice" not in out


@pytest.mark.parametrize(
    ("further", "complaint"),
    [
        (("--table", "a.txt"), "a table ends in"),
        (("--plot", "a.pdf"), r"the plot ends in .png"),
        (("--resamples", "0"), "at least one"),
        (("--metrics", "iou"), "no metric 'iou'"),
    ],
)
def test_what_cannot_be_carried_out_is_said(files, caplog, further, complaint):
    assert command(*files, *further) == 2
    assert complaint in caplog.text
