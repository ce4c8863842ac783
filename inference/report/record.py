"""The record of a run: one JSON that says what was done to every case, and by what."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError
from inference.labels import REGIONS, region_mask
from inference.refine.postprocess import RefinementRecord, Removed
from inference.schema import Text, read_json, to_json

# Bytes of a record that is read; one of 100 000 cases has some 100 MB.
_LARGEST: Final = 2**30

Status = Literal["ok", "repaired", "failed", "empty"]
"""Written; written after repairs to the scan; not written; an all-background file written in place of a failure."""


@dataclass(frozen=True)
class CaseRecord:
    """Account of one case."""

    id: Text
    status: Status
    """See :data:`Status`."""
    output: str | None = None
    """The file that was written."""
    resumed: bool = False
    """Whether the file was there already, made by the same bundle in the same way."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per step; steps of different cases overlap."""
    repairs: tuple[str, ...] = ()
    """Repairs of the scan."""
    warnings: tuple[str, ...] = ()
    """Warnings for the reader of the result."""
    volumes_ml: Mapping[str, float] | None = None
    """Millilitres of WT, TC and ET."""
    agreement: Mapping[str, float] | None = None
    """Per region the mean Dice of the single networks with the ensemble, before refinement; None where not compared."""
    refinement: RefinementRecord | None = None
    """Subtype, thresholds and what they removed."""
    error: str | None = None
    """Why it failed, in one line."""
    doubtful: Mapping[str, Removed] = field(default_factory=dict)
    """Lesions left out since the networks doubt them, per region; empty in records of before 0.5.0."""

    @property
    def written(self) -> bool:
        """Whether the output folder holds a file for this case."""
        return self.status != "failed"


@dataclass(frozen=True)
class BundleIdentity:
    """Which bundle it was."""

    name: str
    version: str
    sha256: str
    """SHA-256 of its manifest, which holds those of its files."""


@dataclass(frozen=True)
class RunRecord:
    """Account of a run, its cases apart."""

    schema: Literal[1] = field(default=1, kw_only=True)
    """Version of the record's layout."""
    command: tuple[str, ...]
    """The arguments, as given."""
    bundle: BundleIdentity
    """The bundle that predicted."""
    profile: str
    """`paper` or `fast`."""
    engine: str
    """`torch` or `openvino`."""
    device: str
    """Where the networks ran."""
    threads: int
    """Processor cores in use."""
    on_error: str
    """The policy for a failed case: skip, empty or stop."""
    versions: Mapping[str, str]
    """Versions of Python and of the libraries that results may depend on."""
    started: str
    """ISO 8601, UTC."""
    start_seconds: float
    """From the start of the program to the first case."""
    region_thresholds: Mapping[str, float] | None = None
    """Probability above which a voxel is WT, TC and ET, the bundle's."""
    confidence: float | None = None
    """The bundle's share of the largest lesion's mean probability below which a lesion of WT, TC or ET is left out."""
    seconds: float | None = None
    """From the start of the program to the last case; None while it runs."""
    interrupted: str | None = None
    """The cause that stopped the run before its last case, such as SIGTERM."""
    exit_status: int | None = None
    """Exit status of the program; None while it runs."""
    shards: tuple[RunRecord, ...] | None = None
    """The runs that this one was merged of; not in the file where it is None."""


@dataclass(frozen=True)
class Record:
    """The file: a run and its cases."""

    run: RunRecord
    cases: tuple[CaseRecord, ...]


def volumes_ml(labels: NDArray[np.uint8], spacing: Sequence[float]) -> dict[str, float]:
    """Millilitres of each region in a label map (X, Y, Z) of voxels with these edges in mm."""
    voxel = math.prod(spacing) / 1000
    return {region: round(int(np.count_nonzero(region_mask(labels, region))) * voxel, 4) for region in REGIONS}


def render_record(run: RunRecord, cases: Sequence[CaseRecord]) -> bytes:
    """The record as JSON, `{"run": {…}, "cases": […]}`."""
    return to_json({"run": _facts(run), "cases": [plain(case) for case in cases]})


def _facts(run: RunRecord) -> dict[str, object]:
    """A run as JSON, with `shards` where it was merged of some."""
    facts = {entry.name: plain(getattr(run, entry.name)) for entry in dataclasses.fields(run) if entry.name != "shards"}
    return facts if run.shards is None else {**facts, "shards": [_facts(shard) for shard in run.shards]}


def read_record(path: Path) -> Record:
    """The record in a file; UsageError where it is none, or was damaged."""
    return read_json(path, Record, UsageError, limit=_LARGEST)


def plain(value: object) -> object:
    """A value as JSON knows it: dataclasses as objects, arrays as lists, numbers that are not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    # JSON has no NaN and no infinity; a reader that takes them is an exception.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else str(value)
