from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from inference.errors import UsageError
from training.evaluation.editions import score
from training.evaluation.systems import UNITS, differences, load_systems, rank_tests, smaller_is_better


def write(folder, name, dices, *, version=2024, distances=None, region="WT", **further):
    """Scores of cases c0, c1, … as `evaluate` writes them."""
    distances = [10.0] * len(dices) if distances is None else distances
    cases = {
        f"c{at}": {region: {"lesionwise_dice": dice, "lesionwise_hd95": distance}}
        for at, (dice, distance) in enumerate(zip(dices, distances, strict=True))
    }
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": version, "cases": cases, **further}))
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
    with pytest.raises(UsageError, match="other: c0: found no 'WT'"):
        load_systems([one, write(tmp_path, "other", [0.1], region="ET")])


CASE = {"WT": {"lesionwise_dice": 0.5, "lesionwise_hd95": 3.0}}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"not valid JSON"),
        ("[]", r"found a list|expected an object"),
        ("{}", r"version: found nothing, expected one of 2023, 2024, 2025, 2026"),
        ({"version": 2024}, r"cases: found nothing, expected an object"),
        ({"version": "x", "cases": {}}, r'version: found "x", expected one of 2023'),
        ({"version": 2024, "cases": {"c0": CASE | {"ET": {"dice": "good"}}}}, r'cases\.c0\.ET\.dice: found "good"'),
        ({"version": 2024, "cases": {"c0": CASE | {"ET": 0.5}}}, r"cases\.c0\.ET: found 0.5, expected an object"),
        ({"version": 2024, "cases": {"c0": CASE}, "fialed": {}}, r"fialed: found an unknown key.*did you mean failed"),
        ({"version": 2024, "cases": {"c0": {"WT": {"dice": float("nan")}}}}, r"found the number NaN, expected finite"),
    ],
)
def test_files_that_hold_no_scores_are_named_with_the_key(tmp_path, content, complaint):
    path = tmp_path / "odd.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError, match=rf"odd\.json: .*({complaint})"):
        load_systems([write(tmp_path, "one", [0.1]), path])


@pytest.mark.parametrize(("version", "distance"), [(2023, 374.0), (2024, 374.0), (2026, np.inf)])
@pytest.mark.parametrize("kind", ["missing", "damaged", "failed"])
def test_a_case_that_a_system_lost_counts_as_the_worst_for_it_alone(tmp_path, kind, version, distance):
    lost = ["c2"] if kind == "missing" else {"c2": "a broken gzip stream"}
    one = write(tmp_path, "a", [0.1, 0.2, 0.3], version=version)
    systems = load_systems([one, write(tmp_path, "b", [0.5, 0.6], version=version, **{kind: lost})])
    assert (systems.cases, systems.dropped) == (("c0", "c1", "c2"), {"a": (), "b": ()})
    assert systems.worst == {"a": (), "b": ("c2",)}
    assert systems.values[1, 2, 0].tolist() == [0, distance]
    assert systems.ranks()[:, 2, 0].tolist() == [[1, 1], [2, 2]]


def test_of_counts_the_worst_is_that_of_the_others(tmp_path):
    cases = {"c0": {"WT": {"lesionwise_dice": 0.5, "fn": 1, "fp": 2, "tp": 3}}}
    (tmp_path / "a.json").write_text(json.dumps({"version": 2024, "cases": cases | {"c1": cases["c0"]}}))
    (tmp_path / "b.json").write_text(json.dumps({"version": 2024, "cases": cases, "missing": ["c1"]}))
    systems = load_systems([tmp_path / "a.json", tmp_path / "b.json"], ["fn", "fp", "tp"])
    assert systems.values[1, 1, 0].tolist() == [1, 2, 0]


def test_what_is_not_defined_is_the_best_and_in_no_mean(tmp_path):
    """Nothing to find: the first finds nothing, the second something."""
    one = write(tmp_path, "a", [None, 0.5, 0.6], distances=[None, 3, "inf"], version=2026)
    two = write(tmp_path, "b", [0.0, 0.7, 0.6], distances=["inf", 2, "inf"], version=2026)
    systems = load_systems([one, two])
    assert systems.ranks()[:, 0, 0].tolist() == [[1, 1], [2, 2]]
    assert systems.means()[:, 0].tolist() == [[pytest.approx(0.55), 3], [pytest.approx(1.3 / 3), 2]]
    dice, distance = differences(systems, resamples=100)
    assert (dice.mean, distance.mean) == (pytest.approx(0.1), -1)
    assert np.isnan(dice.per_case[0])
    assert np.isnan([distance.per_case[0], distance.per_case[2]]).all()


def test_before_2026_every_score_is_defined(tmp_path):
    paths = [write(tmp_path, "a", [0.5, None]), write(tmp_path, "b", [0.5, 0.5])]
    with pytest.raises(UsageError, match="a: c1: found null, expected numbers: in 2024"):
        load_systems(paths)


def test_cases_that_are_not_defined_leave_the_interval_as_it_is_without_them(tmp_path):
    generator = np.random.default_rng(5)
    first, second = (list(generator.uniform(0.2, 0.8, 20)) for _ in range(2))

    def compared(folder, undefined):
        pair = [("a", [*first, *undefined]), ("b", [*second, *undefined])]
        return differences(load_systems([write(tmp_path / folder, *system, version=2026) for system in pair]))[0]

    alone, among = compared("alone", []), compared("among", [None] * 13)
    assert (among.mean, among.low, among.high) == (alone.mean, alone.low, alone.high)


def test_ranking_by_means_is_not_that_by_cases(tmp_path):
    """One case that a system misses by far turns the means, not the cases."""
    paths = [write(tmp_path, "a", [0.9, 0.9, 0.0]), write(tmp_path, "b", [0.8, 0.8, 0.8])]
    systems = load_systems(paths, ["lesionwise_dice"])
    assert systems.ranking().tolist() == [pytest.approx(4 / 3), pytest.approx(5 / 3)]
    assert systems.mean_ranking().tolist() == [2, 1]


def test_2025_ranks_by_dice_alone(tmp_path):
    paths = [write(tmp_path, name, [0.1], version=2025) for name in "ab"]
    assert load_systems(paths).metrics == ("lesionwise_dice",)


@pytest.mark.parametrize("count", [8, 40])
def test_permutations_agree_with_scipy(tmp_path, count):
    """All swaps of few cases, a sample of those of many."""
    generator = np.random.default_rng(5)
    names = "abc"
    paths = [write(tmp_path, name, generator.uniform(0.3, 0.9, count).tolist()) for name in names]
    systems = load_systems(paths, ["lesionwise_dice"])
    ranks = systems.ranks().mean(axis=(2, 3))
    for test in rank_tests(systems):
        pair = ranks[names.index(test.system)], ranks[names.index(test.against)]
        expected = stats.permutation_test(
            pair, lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20000, rng=generator
        )
        assert test.difference == pytest.approx(expected.statistic)
        assert test.p_value == pytest.approx(expected.pvalue, abs=1e-9 if count == 8 else 0.02)


def test_permutations_tell_equal_from_better(tmp_path):
    dices = np.random.default_rng(1).uniform(0.2, 0.8, 30)
    made = {"a": dices, "b": dices, "c": dices + 0.05}
    tests = rank_tests(load_systems([write(tmp_path, name, values.tolist()) for name, values in made.items()]), seed=3)
    found = {(test.system, test.against): test for test in tests}
    assert found["b", "a"].p_value == 1
    assert found["c", "a"].p_value == pytest.approx(1 / 10001)
    assert found["c", "a"].difference < 0


def test_a_file_given_twice_is_no_second_system(tmp_path):
    with pytest.raises(UsageError, match="a file of its own"):
        load_systems([tmp_path / "a.json", tmp_path / "a.json"])


@pytest.mark.parametrize("edition", [2023, 2024, 2025, 2026])
def test_every_metric_that_is_written_has_a_unit(edition):
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 3
    assert set(score(labels, labels, (1, 1, 1), edition)["WT"].named()) <= set(UNITS)
