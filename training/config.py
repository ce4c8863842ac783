"""A run's configuration: all that differs between the paper's run, the embedded bundle and a smoke test is data."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from msgspec import Meta

from inference.bundle.manifest import FAMILIES
from inference.errors import UsageError
from inference.schema import Amount, Count, Name, Positive, Share, Text, one_of

STAGES = ("pretraining", "finetuning")
"""The two stages of a run, in order; a run that starts from a bundle has only the second."""
SCRATCH = "scratch"
"""The training that fine-tuning is compared with: the same cases and schedule, from random weights."""
TRAININGS = (*STAGES, SCRATCH)
"""Kinds of training."""
Tree = dict[str, object]
"""Keys and values as YAML and JSON give them."""
AboveZero = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class SourceConfig:
    """A folder of labelled cases, or a number of phantoms."""

    name: Name
    """How provenance calls it."""
    folder: str = ""
    """Folder of cases with reference labels; relative paths start at the configuration file's folder."""
    phantoms: Count = 0
    """Instead of a folder: how many phantoms to make."""
    in_folds: bool | None = None
    """Whether its cases are dealt into folds, predicted by networks that have not seen them, and scored; else they
    train in every fold. If nothing is said, cases of a folder are and phantoms are not."""
    patients: Mapping[str, str] = field(default_factory=dict)
    """Case → patient, for cases whose names do not say that they show one patient."""
    size: tuple[Positive, Positive, Positive] = (240, 240, 155)
    """Shape of a phantom, voxels of 1 mm along X, Y, Z."""
    licence: str = ""
    """Terms that networks trained on it inherit."""
    doi: str = ""
    """Where it is published."""

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.phantoms):
            raise UsageError(f"source {self.name!r}: give either a folder or a number of phantoms")

    @property
    def scored(self) -> bool:
        """Whether its cases are dealt into folds."""
        # Scores on phantoms say nothing of patients, so that they are asked for by word only.
        return bool(self.folder) if self.in_folds is None else self.in_folds


@dataclass(frozen=True)
class DatasetConfig:
    """Cases of one stage."""

    sources: tuple[str, ...]
    """Names of the sources."""
    shares: Mapping[str, float] | None = None
    """Source → share of the patches that are cut from its cases; if nothing is said, every case is as likely."""

    def __post_init__(self) -> None:
        # All or none: a source without a share would never be seen, which a shorter list says better.
        if self.shares and (set(self.shares) != set(self.sources) or min(self.shares.values()) <= 0):
            raise UsageError(f"shares {dict(self.shares)}: expected a number above 0 for each of {list(self.sources)}")


@dataclass(frozen=True)
class OptimiserConfig:
    """How the weights move."""

    # All defaults of a training are nnU-Net's, which the paper keeps.
    name: typing.Literal["sgd", "adamw"] = "sgd"
    """`sgd` (Nesterov) or `adamw`."""
    learning_rate: AboveZero = 0.01
    """At the first epoch; falls as (1 - epoch / epochs)^0.9."""
    momentum: Share = 0.99
    """Of SGD."""
    weight_decay: Amount = 3e-5
    """L2 for SGD, decoupled for AdamW."""
    warmup_epochs: Count = 0
    """Epochs over which the learning rate rises linearly before it falls."""


@dataclass(frozen=True)
class StageConfig:
    """How long and how one stage of one model trains."""

    epochs: Count = 200
    """Passes of `iterations` steps."""
    iterations: Positive = 250
    """Optimiser steps an epoch."""
    validation_iterations: Count = 50
    """Validation batches an epoch; they steer nothing, they draw the curve."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """How the weights move."""
    trainable: Annotated[str, one_of(("all", "decoder"))] = "all"
    """`all` weights, or those of the `decoder` alone."""


@dataclass(frozen=True)
class ModelConfig:
    """One of the ensemble's models."""

    name: Name
    """Folder of the model in the bundle: nnunet or mednext."""
    architecture: Annotated[str, one_of(FAMILIES)]
    """PlainConvUNet or MedNeXt."""
    size: Mapping[str, object]
    """Values that replace nnU-Net's own choice in the plans' `arch_kwargs`: features, stages, variant, kernel."""
    spacing: tuple[AboveZero, AboveZero, AboveZero] | None = None
    """Grid of the network in mm (Z, Y, X); none leaves the planner's median."""
    patch: tuple[Positive, Positive, Positive] = (128, 128, 128)
    """Training patch in voxels (Z, Y, X)."""
    shuffle: Positive = 1
    """Side of the blocks of voxels that are channels to the network's body (pixel shuffle); 2 labels a grid of 1 mm
    with a body at 2 mm."""
    batch: Positive = 2
    """Patches a step."""
    resampling: Annotated[str, one_of(("default", "linear"))] = "default"
    """`default` (nnU-Net's cubic splines) or `linear` (its torch resampling; far cheaper on a CPU)."""
    heads: typing.Literal["regions", "labels"] = "regions"
    """Its outputs: sigmoids of WT, TC and ET, or a softmax over background, NCR, ED and ET."""
    loss_weights: Annotated[str, one_of(("uniform", "inverse_frequency"))] = "uniform"
    """`uniform`, or `inverse_frequency` of the regions, or labels, in the training set, normalised to a mean of 1."""
    precision: Annotated[str, one_of(("float32", "bfloat16"))] = "float32"
    """Of a CPU's training step: float32, or bfloat16 (autocast) where the processor has it; a GPU always uses half
    precision autocast."""
    channels_last: bool = False
    """Memory format of a CPU's training step; a GPU's is contiguous."""
    augmentation: typing.Literal["default", "strong"] = "default"
    """`default` (nnU-Net's) or `strong`."""
    mixing: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """How often a patch's brain gets the tumour of another training case as well; wants `loading: resident`."""
    loading: typing.Literal["workers", "resident"] = "workers"
    """`workers`: nnU-Net's processes cut out and augment patches. `resident`: all cases stay in the memory of the GPU,
    or of the CPU, which does both itself; for small networks, and for cases that fit."""
    pretraining: StageConfig = StageConfig()
    """First stage."""
    finetuning: StageConfig = StageConfig()
    """Second stage, from the first one's weights of the same fold. No epochs leave those weights as they are."""
    scratch: StageConfig | None = None
    """The training from random weights that fine-tuning is compared with; as fine-tuning where it is not given."""

    def __post_init__(self) -> None:
        # nnU-Net's processes see one case at a time, and mixing takes two.
        if self.mixing and self.loading != "resident":
            raise UsageError(f"{self.name}: mixing {self.mixing} needs loading: resident, found {self.loading}")


@dataclass(frozen=True)
class SubtypeConfig:
    """How tumours are described and clustered."""

    extraction: Annotated[str, one_of(("paper", "brain"))] = "paper"
    """Preset of the radiomic features: paper or brain."""
    scaling: Annotated[str, one_of(("l2", "standard"))] = "l2"
    """`l2` (per sample, the paper's) or `standard`."""
    variance: Annotated[float, Meta(gt=0, le=1)] = 0.99
    """Share of variance that the principal components keep."""
    clusters: tuple[Annotated[int, Meta(ge=2)], ...] = (2, 3, 4, 5, 6, 7, 8)
    """Numbers of clusters tried; the largest silhouette wins."""


@dataclass(frozen=True)
class TuningConfig:
    """Choices that out-of-fold predictions decide."""

    # The edition whose program also scored 2025.
    metric: typing.Literal[2023, 2024] = 2024
    """Version of the official lesion-wise score that is maximised."""
    profile: typing.Literal["fast", "paper"] = "fast"
    """Profile of the out-of-fold predictions: fast or paper."""
    weights: typing.Literal["score_share", "rank", "search", "paper"] = "score_share"
    """Ensemble weights: `score_share` of the models, share of their points by `rank`, a grid `search` for the best
    ensemble, or `paper` for the published 17/36 and 19/36."""
    groups: tuple[typing.Literal["regions", "confidence", "components", "ratio", "subtypes"], ...] = (
        "regions",
        "confidence",
        "components",
        "ratio",
        "subtypes",
    )
    """Thresholds that are searched: of regions, of the networks' confidence in a lesion, smallest components, ET/WT
    ratio, and own ones of subtypes. The others leave predictions alone (regions at 0.5)."""


@dataclass(frozen=True)
class BundleConfig:
    """Words of the frozen bundle about itself."""

    name: Name
    """Its name, and that of its folder."""
    version: Name
    """Its version."""
    intended_use: Text
    """Its intended use."""
    limits: Text
    """Uses that it is not made for."""
    licence: Text
    """Terms of the weights, apart from the code's."""
    half_precision: bool = True
    """Store weights as float16."""


@dataclass(frozen=True)
class JobConfig:
    """Needs of one training from a machine or a cluster."""

    # Never two: the ten trainings of an ensemble fill GPUs without sharing a network among them.
    gpus: Annotated[int, Meta(ge=0, le=1)] = 0
    """GPUs of a training or a prediction: 0 or 1."""
    threads: Positive = 1
    """Cores; on a GPU they augment."""
    memory_gb: Positive = 4
    """Main memory."""
    hours: Positive = 24
    """Longest time; a training that is stopped then goes on from its last checkpoint when it is tried again."""


@dataclass(frozen=True)
class ComparisonConfig:
    """Trainings beside the ensemble, for the tables only."""

    scratch: tuple[str, ...] = ()
    """Models that are also trained on the second stage's cases from random weights."""
    scratch_shares: Mapping[str, float] | None = None
    """Source → share of their patches, none for sources that are not named; as in fine-tuning where it is not given."""
    pretrained: tuple[str, ...] = ()
    """Models whose networks are also scored as they are before fine-tuning."""


Named = TypeVar("Named", SourceConfig, ModelConfig)


@dataclass(frozen=True)
class RunConfig:
    """All of a run."""

    bundle: BundleConfig
    """The bundle that comes out."""
    sources: tuple[SourceConfig, ...]
    """Where cases come from."""
    finetuning: DatasetConfig
    """Cases of the second stage."""
    models: tuple[ModelConfig, ...]
    """The ensemble."""
    pretraining: DatasetConfig | None = None
    """Cases of the first stage; none where an ancestor takes its place."""
    ancestor: str = ""
    """Folder of a bundle whose networks fine-tuning starts from and whose plans hold; a relative path starts at the
    configuration file's folder. Grid, patch, resampling and sizes of the models are then the ancestor's."""
    comparison: ComparisonConfig = ComparisonConfig()
    """Trainings for comparison."""
    job: JobConfig = JobConfig()
    """Resources that one training needs."""
    subtypes: SubtypeConfig = SubtypeConfig()
    """Stratification and refinement."""
    tuning: TuningConfig = TuningConfig()
    """Choices that out-of-fold predictions decide."""
    folds: Annotated[int, Meta(ge=2)] = 5
    """Cross-validation folds; one network each."""
    # numpy's global generator, which nnU-Net draws from, takes 32 bits.
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 2024
    """Of everything random outside the trainer's augmentation."""

    def __post_init__(self) -> None:
        # Asked for once here, so that a name of none is found while the file is read.
        for name in (*self.comparison.scratch, *self.comparison.pretrained):
            self.model(name)
        for name in self.comparison.scratch_shares or ():
            self.source(name)

    def predicted(self, model: str) -> tuple[str, ...]:
        """Kinds of training of `model` whose networks predict out of fold."""
        before = ("pretraining",) if model in self.comparison.pretrained else ()
        return (*before, *(stage for stage in self.trainings(model) if stage != "pretraining"))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order."""
        return STAGES[1:] if self.ancestor else STAGES

    def source(self, name: str) -> SourceConfig:
        """The source called `name`; UsageError where there is none."""
        return _called(name, self.sources, "configuration names the source")

    def dataset(self, stage: str) -> DatasetConfig:
        """Cases that `stage` trains on; UsageError for a stage that this run does not have."""
        if stage != "pretraining":
            return self.finetuning
        if self.pretraining is None:
            raise UsageError("the run has no pretraining: it starts from a bundle")
        return self.pretraining

    def is_shared(self, stage: str) -> bool:
        """Whether one training of `stage` serves all folds, since none of its cases is in a fold."""
        return not any(self.source(name).scored for name in self.dataset(stage).sources)

    def start_fold(self, fold: int) -> int:
        """Fold of the pretraining that fine-tuning of `fold` starts from: its own, or the one that all share."""
        return 0 if self.is_shared("pretraining") else fold

    def trainings(self, model: str) -> tuple[str, ...]:
        """Kinds of training that `model` goes through."""
        return (*self.stages, SCRATCH) if model in self.comparison.scratch else self.stages

    def model(self, name: str) -> ModelConfig:
        """The model called `name`; UsageError where there is none."""
        return _called(name, self.models, "no model")


def _called(name: str, those: Sequence[Named], complaint: str) -> Named:
    for one in those:
        if one.name == name:
            return one
    raise UsageError(f"{complaint} {name!r}; expected one of {', '.join(one.name for one in those)}")
