"""Cross-validation folds: equal shares of every subtype, no patient in two folds, and the check that nothing leaks.

One case → fold map serves pretraining and fine-tuning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

import msgspec
import numpy as np

from inference.errors import GliomaError, UsageError
from inference.schema import Count, Mismatch, Text


class FoldMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`folds.json`: which case is in which fold, and what the folds were dealt by."""

    folds: dict[Text, Count]
    """Case → fold, of every case that is ever held out."""
    clusters: dict[Text, Count] = {}
    """Case → subtype of its reference tumour."""
    patients: dict[Text, Text] = {}
    """Case → patient."""
    silhouettes: dict[int, float] = {}
    """Mean silhouette by number of subtypes that was tried."""
    components: dict[Text, tuple[float, float]] = {}
    """Case → first two principal components of its reference tumour's features."""
    always_trained: list[Text] = []
    """Cases that every fold learnt from."""

    def __post_init__(self) -> None:
        for key, cases, known in (
            ("clusters", self.clusters, set(self.folds)),
            ("components", self.components, set(self.clusters)),
        ):
            if unknown := sorted(set(cases) - known):
                raise Mismatch(key, unknown[0], "the cases of folds, or some of them")


class LeakError(GliomaError):
    """A patient is on both sides of a split, or a split does not follow the case → fold map."""


class Split(TypedDict):
    """One fold as nnU-Net's `splits_final.json` lists it."""

    train: list[str]
    """Items that the fold's networks learn from."""
    val: list[str]
    """Items that they never see."""


def stratified_folds(
    clusters: Mapping[str, int], patients: Mapping[str, str], folds: int = 5, seed: int = 0
) -> dict[str, int]:
    """Case → fold, each fold with an equal share of every cluster and every patient in one fold.

    Patients with several cases are placed first (most cases first), then the others cluster by cluster, always where
    the patient's clusters are rarest so far and, among those, where the fold is smallest. Where every patient has one
    case, no two folds differ by more than one case, neither within a cluster nor in all.

    `clusters` gives the subtype of every case and `patients` its patient. Raises :class:`UsageError` where a case has
    no patient or there are fewer patients than folds.
    """
    cases_of: dict[str, list[str]] = defaultdict(list)
    for case in sorted(clusters):
        if case not in patients:
            raise UsageError(f"folds: the patient of case {case} is not known")
        cases_of[patients[case]].append(case)
    if folds < 2 or len(cases_of) < folds:
        raise UsageError(f"folds: {len(cases_of)} patients cannot be dealt into {folds} folds")

    # Patients are sorted before they are shuffled, so that the order of the cases decides nothing.
    random = np.random.default_rng(seed)
    kinds = {cluster: index for index, cluster in enumerate(sorted(set(clusters.values())))}
    size = np.bincount([kinds[cluster] for cluster in clusters.values()])
    shuffled = random.permutation(sorted(cases_of)).tolist()
    several = sorted((p for p in shuffled if len(cases_of[p]) > 1), key=lambda p: -len(cases_of[p]))
    single = sorted((p for p in shuffled if len(cases_of[p]) == 1), key=lambda p: clusters[cases_of[p][0]])

    # Large groups first, while there is room to balance them; then cluster by cluster, so that each shares out.
    counts = np.zeros((folds, len(kinds)), int)
    fold_of: dict[str, int] = {}
    for patient in several + single:
        share = np.bincount([kinds[clusters[case]] for case in cases_of[patient]], minlength=len(kinds))
        crowding = counts @ (share / size)
        # Sums of shares differ in their last bits by the order of adding: rounded, equals are equal.
        fold = int(np.lexsort((random.permutation(folds), counts.sum(axis=1), crowding.round(12)))[0])
        counts[fold] += share
        fold_of.update(dict.fromkeys(cases_of[patient], fold))
    return {case: fold_of[case] for case in clusters}


def splits_of(folds: Mapping[str, int], cases: Collection[str]) -> list[Split]:
    """Splits of a stage's `cases`, fold by fold, in nnU-Net's form.

    Cases that are no keys of `folds` train in every fold: phantoms, and sources that are never scored.
    """
    return [
        Split(
            train=sorted(case for case in cases if folds.get(case) != fold),
            val=sorted(case for case in cases if folds.get(case) == fold),
        )
        for fold in range(max(folds.values()) + 1)
    ]


def check_no_leak(
    folds: Mapping[str, int], patients: Mapping[str, str], cases: Collection[str], splits: Sequence[Split]
) -> None:
    """Raise :class:`LeakError` unless the splits of a stage's `cases` follow the one case → fold map.

    Called with the same `folds` for each stage; `patients` gives the patient of every case, those in no fold included.
    Checked are: every patient of `folds` is in one fold; every case of the splits is known; the cases held out in split
    i are exactly those of fold i; nothing that is learnt from in split i comes from a patient of fold i.
    """
    fold_of: dict[str, int] = {}
    for case, fold in folds.items():
        if case not in patients:
            raise LeakError(f"folds: the patient of case {case} is not known")
        if fold_of.setdefault(patients[case], fold) != fold:
            raise LeakError(f"folds: patient {patients[case]} is in folds {fold_of[patients[case]]} and {fold}")
    if len(splits) != max(folds.values()) + 1:
        raise LeakError(f"folds: {len(splits)} splits for {max(folds.values()) + 1} folds")
    for fold, split in enumerate(splits):
        if unknown := sorted({*split["train"], *split["val"]} - set(patients)):
            raise LeakError(f"folds: split {fold} has {unknown[0]}, which is no known case")
        # All cases of the fold, not only those of this stage: fine-tuning starts from the pretraining of the same fold.
        held_out = {patients[case]: case for case, own in folds.items() if own == fold}
        for case in split["train"]:
            if patients[case] in held_out:
                raise LeakError(
                    f"folds: split {fold} learns from {case}, whose patient it holds out ({held_out[patients[case]]})"
                )
        expected = {case for case in cases if folds.get(case) == fold}
        if wrong := expected.symmetric_difference(split["val"]):
            raise LeakError(f"folds: split {fold} does not hold out exactly the cases of fold {fold}: {sorted(wrong)}")
