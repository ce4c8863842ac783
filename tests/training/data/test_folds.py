from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import UsageError
from training.data.folds import LeakError, check_no_leak, splits_of, stratified_folds


def one_case_each(sizes: list[int]) -> tuple[dict[str, int], dict[str, str]]:
    clusters = {f"case{cluster}_{i}": cluster for cluster, size in enumerate(sizes) for i in range(size)}
    return clusters, {case: f"patient of {case}" for case in clusters}


@given(st.lists(st.integers(1, 13), min_size=1, max_size=8), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_fold_gets_an_equal_share_of_every_cluster(sizes: list[int], folds: int, seed: int) -> None:
    clusters, patients = one_case_each(sizes)
    if len(clusters) < folds:
        return
    fold_of = stratified_folds(clusters, patients, folds, seed)
    assert fold_of.keys() == clusters.keys()
    for cluster, size in enumerate(sizes):
        shares = Counter(fold_of[case] for case in clusters if clusters[case] == cluster)
        assert {shares[fold] for fold in range(folds)} <= {size // folds, -(-size // folds)}
    totals = Counter(fold_of.values())
    assert max(totals[fold] for fold in range(folds)) - min(totals[fold] for fold in range(folds)) <= 1


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), min_size=1, max_size=60), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_patients_are_never_split_and_no_fold_is_empty(cases: list[tuple[int, int]], seed: int) -> None:
    clusters = {f"case{i}": cluster for i, (_, cluster) in enumerate(cases)}
    patients = {f"case{i}": f"patient{patient}" for i, (patient, _) in enumerate(cases)}
    if len(set(patients.values())) < 5:
        return
    fold_of = stratified_folds(clusters, patients, 5, seed)
    assert len({(patients[case], fold) for case, fold in fold_of.items()}) == len(set(patients.values()))
    assert set(fold_of.values()) == set(range(5))
    check_no_leak(fold_of, patients, {case: case for case in fold_of}, splits_of(fold_of, {c: c for c in fold_of}))


def test_follow_up_scans_do_not_spoil_the_shares() -> None:
    clusters, patients = one_case_each([10, 15])
    clusters |= {"case0_0_later": 0, "case1_0_later": 1}
    patients |= {"case0_0_later": patients["case0_0"], "case1_0_later": patients["case1_0"]}
    fold_of = stratified_folds(clusters, patients)
    for cluster, most in ((0, 3), (1, 4)):
        shares = Counter(fold_of[case] for case in clusters if clusters[case] == cluster)
        assert min(shares.values()) >= most - 1
        assert max(shares.values()) <= most


def test_same_seed_same_folds_whatever_the_order_of_the_cases() -> None:
    clusters, patients = one_case_each([7, 9, 4])
    first = stratified_folds(clusters, patients, seed=3)
    assert stratified_folds(dict(reversed(clusters.items())), patients, seed=3) == first
    assert stratified_folds(clusters, patients, seed=4) != first


def test_what_cannot_be_dealt_is_refused() -> None:
    clusters, patients = one_case_each([4])
    with pytest.raises(UsageError, match="4 patients cannot be dealt into 5 folds"):
        stratified_folds(clusters, patients)
    with pytest.raises(UsageError, match="patient of case case0_3 is not known"):
        stratified_folds(clusters, {case: p for case, p in patients.items() if case != "case0_3"}, 2)


# A stage's cases: those of the folds, and some of no fold that always train.
FOLDS = {f"case{i}": i % 5 for i in range(15)}
ALWAYS = ("phantom0", "adult1")
CASES = (*FOLDS, *ALWAYS)
PATIENTS = {case: f"patient{i % 10}" for i, case in enumerate(FOLDS)} | {case: case for case in ALWAYS}


def test_splits_follow_the_map() -> None:
    splits = splits_of(FOLDS, CASES)
    check_no_leak(FOLDS, PATIENTS, CASES, splits)
    assert splits[2]["val"] == ["case12", "case2", "case7"]
    assert set(splits[2]["train"]) == set(CASES) - set(splits[2]["val"])


def test_a_case_on_the_wrong_side_is_found() -> None:
    splits = splits_of(FOLDS, CASES)
    splits[1]["train"].append("case6")
    with pytest.raises(LeakError, match="split 1 learns from case6, whose patient it holds out"):
        check_no_leak(FOLDS, PATIENTS, CASES, splits)


def test_a_patient_in_two_folds_is_found() -> None:
    with pytest.raises(LeakError, match=r"patient0 is in folds 0 and 1"):
        check_no_leak(FOLDS, PATIENTS | {"case1": "patient0"}, CASES, splits_of(FOLDS, CASES))


def test_a_held_out_patient_among_those_who_always_train_is_found() -> None:
    with pytest.raises(LeakError, match=r"split 3 learns from adult1, whose patient it holds out \(case"):
        check_no_leak(FOLDS, PATIENTS | {"adult1": "patient3"}, CASES, splits_of(FOLDS, CASES))


def test_an_unknown_case_is_found() -> None:
    with pytest.raises(LeakError, match="split 0 has stranger"):
        check_no_leak(FOLDS, PATIENTS, CASES, splits_of(FOLDS, (*CASES, "stranger")))


def test_a_case_that_is_held_out_elsewhere_is_found() -> None:
    splits = splits_of(FOLDS, CASES)
    splits[0]["val"] = splits[0]["val"][1:]
    with pytest.raises(LeakError, match="does not hold out exactly"):
        check_no_leak(FOLDS, PATIENTS, CASES, splits)


def test_a_missing_split_is_found() -> None:
    with pytest.raises(LeakError, match="4 splits for 5 folds"):
        check_no_leak(FOLDS, PATIENTS, CASES, splits_of(FOLDS, CASES)[:4])
