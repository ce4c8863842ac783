from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from inference.errors import UsageError
from training.evaluation.systems import differences, load_systems, smaller_is_better


def write(folder, name, dices, *, version=2024, distances=None, region="WT"):
    """Scores of cases c0, c1, … as `evaluate` writes them."""
    distances = [10.0] * len(dices) if distances is None else distances
    cases = {
        f"c{at}": {region: {"lesionwise_dice": dice, "lesionwise_hd95": distance}}
        for at, (dice, distance) in enumerate(zip(dices, distances, strict=True))
    }
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": version, "cases": cases}))
    return path


def test_ranks_are_by_case_region_and_metric_with_ties_shared(tmp_path):
    paths = (
        write(tmp_path, "a", [0.9, 0.5], distances=[3, 3]),
        write(tmp_path, "b", [0.8, 0.5], distances=[1, 3]),
        write(tmp_path, "c", [0.7, 0.9], distances=[2, 9]),
    )
    systems = load_systems(paths)
    # Dice of c0, HD95 of c0, Dice of c1, HD95 of c1.
    assert systems.ranks()[:, :, 0, :].reshape(3, 4).tolist() == [[1, 3, 2.5, 1.5], [2, 1, 2.5, 1.5], [3, 2, 1, 3]]
    assert systems.ranking().tolist() == [2.0, 1.75, 2.25]
    assert systems.means()[:, 0, :].tolist() == [[0.7, 3], [0.65, 2], [0.8, 5.5]]


@pytest.mark.parametrize(
    ("metric", "smaller"),
    [("hd95", True), ("lesionwise_hd95", True), ("fp", True), ("fn", True), ("tp", False), ("nsd_0.5", False)],
)
def test_which_way_is_better(metric, smaller):
    assert smaller_is_better(metric) is smaller


def test_differences_are_paired_by_case(tmp_path):
    generator = np.random.default_rng(3)
    first = generator.uniform(0.2, 0.8, 30)
    second = first + generator.normal(0.05, 0.03, 30)
    paths = (write(tmp_path, "a", first.tolist()), write(tmp_path, "b", second.tolist()))
    found = {test.metric: test for test in differences(load_systems(paths))}
    test = found["lesionwise_dice"]
    assert (test.system, test.against, test.region) == ("b", "a", "WT")
    order = sorted(range(30), key=lambda at: f"c{at}")
    assert test.per_case == pytest.approx((second - first)[order])
    assert test.mean == pytest.approx(np.mean(second - first))
    assert test.p_value == pytest.approx(stats.wilcoxon(second, first).pvalue)
    expected = stats.bootstrap((second - first,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert (test.low, test.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.003)
    assert 0 < test.low < test.mean < test.high
    assert (found["lesionwise_hd95"].mean, found["lesionwise_hd95"].p_value) == (0, 1)


def test_every_pair_of_systems_is_tested(tmp_path):
    paths = [write(tmp_path, name, [0.1, 0.2, 0.3]) for name in "abc"]
    pairs = {(test.against, test.system) for test in differences(load_systems(paths))}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")}


def test_the_bootstrap_repeats_itself(tmp_path):
    paths = [write(tmp_path, "a", [0.1, 0.2, 0.9]), write(tmp_path, "b", [0.3, 0.2, 0.5])]
    systems = load_systems(paths)
    assert differences(systems, seed=1) == differences(systems, seed=1)
    assert differences(systems, resamples=50, seed=1) != differences(systems, resamples=50, seed=2)


def test_only_common_cases_are_compared_and_the_others_named(tmp_path):
    systems = load_systems([write(tmp_path, "a", [0.1, 0.2, 0.3]), write(tmp_path, "b", [0.5, 0.6])])
    assert systems.cases == ("c0", "c1")
    assert systems.dropped == {"a": ("c2",), "b": ()}
    assert systems.values[:, :, 0, 0].tolist() == [[0.1, 0.2], [0.5, 0.6]]


def test_files_of_one_name_are_told_apart(tmp_path):
    paths = [write(tmp_path / folder, "scores", [0.1]) for folder in ("x", "y")]
    assert load_systems(paths).names == tuple(map(str, paths))


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = write(tmp_path, "one", [0.1])
    with pytest.raises(UsageError, match="at least two"):
        load_systems([one])
    with pytest.raises(UsageError, match=r"different editions .*\[2023, 2024\]"):
        load_systems([one, write(tmp_path, "old", [0.1], version=2023)])
    with pytest.raises(UsageError, match="no metric 'iou'; there are lesionwise_dice, lesionwise_hd95"):
        load_systems([one, write(tmp_path, "two", [0.1])], ["iou"])
    with pytest.raises(UsageError, match="no case in common"):
        load_systems([one, write(tmp_path, "none", [])])
    with pytest.raises(UsageError, match="some case has no 'WT'"):
        load_systems([one, write(tmp_path, "other", [0.1], region="ET")])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 2024}', '{"version": "x", "cases": {}}'])
def test_files_that_hold_no_scores_are_named(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"odd\.json holds no scores"):
        load_systems([write(tmp_path, "one", [0.1]), path])


def test_a_file_given_twice_is_no_second_system(tmp_path):
    with pytest.raises(UsageError, match="a file of its own"):
        load_systems([tmp_path / "a.json", tmp_path / "a.json"])
