"""Choices of thresholds, what each makes of probabilities and of the label map from them, and what it is worth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from inference.bundle.tables import Thresholds, ThresholdTables
from inference.labels import TUMOUR_LABELS, labels_from_regions
from inference.refine.components import connected_components
from inference.refine.postprocess import relabel_by_ratio, remove_components, remove_doubtful
from training.data.stratify import SPACING
from training.evaluation.lesionwise import score_case
from training.evaluation.scores import Version
from training.tune.out_of_fold import OutOfFold, mean_dice
from training.workers import Workers

NEUTRAL = Thresholds({label.name: 0.0 for label in TUMOUR_LABELS}, 0.0)
"""Leaves every label map alone."""


@dataclass(frozen=True)
class Choice:
    """All thresholds that a label map goes through."""

    regions: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of WT, TC, ET."""
    thresholds: Thresholds = NEUTRAL
    """Of refinement."""
    subtypes: Mapping[int, Thresholds] = field(default_factory=dict)
    """Of refinement, for the subtypes that have their own."""
    confidence: float = 0.0
    """In a lesion of any region."""

    def of(self, cluster: int | None) -> Thresholds:
        """The thresholds of refinement for a tumour of this subtype, or of none."""
        return self.thresholds if cluster is None else self.subtypes.get(cluster, self.thresholds)


def tables_of(choice: Choice, clusters: int) -> ThresholdTables:
    """A choice as a bundle's tables for so many subtypes."""
    return ThresholdTables(
        regions=choice.regions,
        overall=choice.thresholds,
        subtypes={cluster: choice.of(cluster) for cluster in range(clusters)},
        use="subtypes" if choice.subtypes else "global",
        confidence=choice.confidence,
    )


def choice_of(tables: ThresholdTables) -> Choice:
    """The choice that a bundle's tables make."""
    own = tables.subtypes if tables.use == "subtypes" else {}
    return Choice(tables.regions, tables.overall, own, tables.confidence)


@dataclass(frozen=True)
class UnrefinedLabels:
    """A label map without lesions in doubt, and what is needed to foresee the effect of the other thresholds on it."""

    labels: NDArray[np.uint8]
    """(X, Y, Z)."""
    volumes: Mapping[str, NDArray[np.float64]]
    """Volumes of the components of each label, mm³, in ascending order."""

    def effect(self, thresholds: Thresholds) -> tuple[int | bool, ...]:
        """Effect of `thresholds` here: components removed per label, and whether ET is relabelled."""
        left = {}
        removed = []
        for label, volumes in self.volumes.items():
            # Those that are smaller, not as small: refinement compares strictly.
            count = int(np.searchsorted(volumes, thresholds.smallest_component_mm3[label]))
            removed.append(count)
            left[label] = float(volumes[count:].sum())
        # As refinement does, the whole tumour is measured after small components are gone.
        whole = sum(left.values())
        return (*removed, whole > 0 and 0 < left["ET"] / whole < thresholds.et_wt_ratio)


def trusted_labels(probabilities: NDArray[np.float32], choice: Choice) -> NDArray[np.uint8]:
    """Labels (X, Y, Z) from region probabilities (3, X, Y, Z), without lesions in doubt."""
    labels = labels_from_regions(probabilities, choice.regions)
    return remove_doubtful(labels, probabilities, SPACING, choice.confidence)[0]


def unrefined_labels(labels: NDArray[np.uint8]) -> UnrefinedLabels:
    """Labels (X, Y, Z) and their components."""
    components = connected_components(labels)
    sizes = np.bincount(components.ravel()) * float(np.prod(SPACING))
    # A component is of one label, so that any of its voxels says which.
    label_of = np.zeros(sizes.shape, np.uint8)
    label_of[components] = labels
    volumes = {label.name: np.sort(sizes[label_of == label]) for label in TUMOUR_LABELS}
    return UnrefinedLabels(labels, volumes)


def refined(labels: NDArray[np.uint8], thresholds: Thresholds) -> NDArray[np.uint8]:
    """A label map (X, Y, Z) without lesions in doubt after the other steps of refinement."""
    cleaned, _ = remove_components(labels, SPACING, thresholds.smallest_component_mm3)
    return relabel_by_ratio(cleaned, thresholds.et_wt_ratio)[0]


_Trial = tuple[NDArray[np.uint8], NDArray[np.uint8], Thresholds]
"""Reference, label map before refinement, and the thresholds to score it under."""


def _try(trial: _Trial, version: Version) -> float:
    reference, labels, thresholds = trial
    return mean_dice(score_case(reference, refined(labels, thresholds), SPACING, version, metrics="dice"))


@dataclass
class Scorer:
    """Scores of choices on ensembled predictions; what it has scored it knows.

    Thousands of choices have the same effect on a label map, so that what was scored is remembered by its effect.
    """

    cases: Sequence[OutOfFold]
    """The cases that are scored."""
    ensembles: Sequence[NDArray[np.float32]]
    """Weighted probabilities (3, X, Y, Z) of each case."""
    version: Version
    """Of the official score."""
    clusters: Sequence[int | None] = ()
    """Subtype of each case's predicted tumour; empty as long as there are none."""
    workers: Workers = field(default_factory=Workers)
    """The processes that score."""
    _digests: dict[tuple[object, ...], bytes] = field(default_factory=dict)
    _unrefined: dict[tuple[int, bytes], UnrefinedLabels] = field(default_factory=dict)
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    @property
    def scored(self) -> int:
        """How many label maps were scored so far."""
        return len(self._known)

    def cluster(self, index: int) -> int | None:
        """Subtype of one case's predicted tumour."""
        return self.clusters[index] if self.clusters else None

    def _digest(self, index: int, choice: Choice) -> bytes:
        """Digest of one case's label map before smallest components: most choices of confidence make the same map."""
        key = (index, choice.regions, choice.confidence)
        if key not in self._digests:
            labels = trusted_labels(self.ensembles[index], choice)
            digest = self._digests[key] = hashlib.sha256(labels.data).digest()
            if (index, digest) not in self._unrefined:
                self._unrefined[index, digest] = unrefined_labels(labels)
        return self._digests[key]

    def _unrefined_of(self, index: int, choice: Choice) -> UnrefinedLabels:
        return self._unrefined[index, self._digest(index, choice)]

    def labels(self, index: int, choice: Choice) -> NDArray[np.uint8]:
        """The label map (X, Y, Z) of one case under `choice`, by the steps of inference."""
        return refined(self._unrefined_of(index, choice).labels, choice.of(self.cluster(index)))

    def _key(self, index: int, choice: Choice) -> tuple[object, ...]:
        thresholds = choice.of(self.cluster(index))
        return (index, self._digest(index, choice), self._unrefined_of(index, choice).effect(thresholds))

    def prepare(self, indices: Iterable[int], choices: Sequence[Choice]) -> None:
        """Score all of these choices on all of these cases, the workers sharing what is not known yet."""
        trials: dict[tuple[object, ...], _Trial] = {}
        for index, choice in product(indices, choices):
            key = self._key(index, choice)
            if key not in self._known and key not in trials:
                labels, thresholds = self._unrefined_of(index, choice).labels, choice.of(self.cluster(index))
                trials[key] = (self.cases[index].reference, labels, thresholds)
        # Two a trip: fewer trips between processes, and none of them waits long for the last one.
        scores = self.workers.map(partial(_try, version=self.version), list(trials.values()), chunk=2)
        self._known.update(zip(trials, scores, strict=True))

    def score(self, index: int, choice: Choice) -> float:
        """Lesion-wise Dice of one case under `choice`, mean over regions."""
        key = self._key(index, choice)
        if key not in self._known:
            self.prepare([index], [choice])
        return self._known[key]

    def mean(self, indices: Sequence[int], choice: Choice) -> float:
        """Mean score over some cases."""
        return float(np.mean([self.score(index, choice) for index in indices]))
