"""The method as it runs: one case from four files to a label map, and a folder of cases."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.bundle.store import Bundle, load_bundle
from inference.errors import CaseError, GliomaError
from inference.intake.cases import Case, CaseListing
from inference.intake.label_map import holds_fractions, read_labels, read_stamp, write_fractions, write_labels
from inference.intake.scan import Scan, any_geometry, read_scan
from inference.labels import REGIONS, labels_from_regions
from inference.predict.engines import Engine, choose_profile, open_engine
from inference.predict.ensemble import Progress, RegionProbabilities, predict
from inference.refine.postprocess import RefinementRecord, refine
from inference.refine.subtypes import SubtypeModel, subtype_model
from inference.report.record import CaseRecord, volumes_ml
from inference.settings import OnError, Profile

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")

EMPTY_TUMOUR: Final = "no tumour was found: look at the scan before you believe it"
_SIGNS_OF_NO_MEMORY: Final = (
    "allocate memory",
    "bad_alloc",
    "alloc_failed",
    "out of memory",
    "can't start new thread",
    "failed to map segment",
)
"""What libraries say, in errors of any type, where the system or the GPU gives them no memory; the last two are threads
and libraries that find no room."""
_EMPTY_STAMP: Final = "all background: the case failed"


@dataclass(frozen=True)
class System:
    """Everything that a case passes through, loaded once."""

    bundle: Bundle
    """What was loaded."""
    engine: Engine
    """What runs its networks."""
    profile: Profile
    """How much is computed."""
    subtypes: SubtypeModel | None
    """Its subtype model."""

    @property
    def stamp(self) -> str:
        """Bundle and profile in at most 79 characters, for the header of what they make."""
        return f"{self.bundle.digest[:16]} {self.profile.value} {self.bundle.manifest.name}"[:79]


def open_system(
    bundle: Path, *, profile: str = "auto", engine: str = "auto", device: str = "auto", threads: int | None = None
) -> System:
    """Verify a bundle and make its networks ready, every file and every tensor checked.

    Raises BundleError, or UsageError and DeviceError for an engine or device that cannot be had.
    """
    return prepare_system(load_bundle(bundle), profile=profile, engine=engine, device=device, threads=threads)


def prepare_system(bundle: Bundle, *, profile: str, engine: str, device: str, threads: int | None) -> System:
    """Make the networks of a verified bundle ready, as :func:`open_system` says."""
    subtypes = subtype_model(bundle.subtypes) if bundle.subtypes else None
    if engine == "auto" and device == "auto" and any(model.format == "openvino" for model in bundle.models):
        engine = "openvino"
    runner = open_engine(engine, device, threads=threads)
    for model in bundle.models:
        runner.load(model)
    return System(bundle, runner, choose_profile(profile, runner), subtypes)


class Stopwatch:
    """Seconds by name of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """So far."""

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count the seconds of the `with` block as `step`."""
        begin = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - begin, 3)


@dataclass(frozen=True)
class Destination:
    """Where results go."""

    labels: Path
    """Folder of the label maps, and of nothing else."""
    report: Path | None = None
    """Folder of the figures and slices of which the run's page is made."""
    probabilities: Path | None = None
    """Folder of the probability maps."""
    uncertainty: Path | None = None
    """Folder of the maps of disagreement between the networks."""

    def label_map(self, case: str) -> Path:
        """File of the label map of a case."""
        return self.labels / f"{case}.nii.gz"

    def maps(self, case: str) -> dict[str, Path]:
        """Files of the maps of a case that were asked for, by what they show: `probabilities`, `uncertainty`."""
        folders = {"probabilities": self.probabilities, "uncertainty": self.uncertainty}
        return {kind: folder / f"{case}_{kind}.nii.gz" for kind, folder in folders.items() if folder is not None}

    @property
    def compares(self) -> bool:
        """Whether somebody will look at how far the networks agree."""
        return self.report is not None or self.uncertainty is not None


def segment_case(
    case: Case, system: System, into: Destination, progress: Progress | None = None
) -> Generator[None, None, CaseRecord]:
    """The walk of one case, from its four files to `<ID>.nii.gz` and its record.

    Each `yield` is a place where another thread may walk on, so that reading and refining overlap with the prediction
    of other cases. `progress` hears of every forward pass, done and in all. Raises CaseError for what is wrong with the
    case, FolderError where the result cannot be written.
    """
    clock = Stopwatch()
    with clock("read"):
        scan = read_scan(case)
    yield
    with clock("predict"):
        compare_at = system.bundle.region_thresholds if into.compares else None
        regions = predict(
            scan.data,
            scan.spacing,
            system.bundle,
            system.engine,
            system.profile,
            progress=progress,
            compare_at=compare_at,
        )
    yield
    with clock("refine"):
        painted = labels_from_regions(regions.array, system.bundle.region_thresholds)
        labels, refinement = refine(painted, scan.spacing, scan.data, system.subtypes, system.bundle.thresholds)
    record = _describe(scan, labels, refinement, into.label_map(case.id))
    if regions.agreement:
        record = replace(record, agreement=regions.agreement.overlap)
    with clock("write"):
        write_labels(labels, scan.geometry, into.label_map(case.id), stamp=system.stamp)
        record = _write_maps(scan, regions, record, into, system.stamp)
    with clock("draw"):
        record = _draw(scan, labels, record, into.report)
    return replace(record, seconds=clock.seconds)


def _write_maps(
    scan: Scan, regions: RegionProbabilities, record: CaseRecord, into: Destination, stamp: str
) -> CaseRecord:
    """Write the maps that were asked for, (X, Y, Z, 3) in the order WT, TC, ET; one that cannot be is a warning.

    `probabilities`: the ensemble's, before refinement. `uncertainty`: twice the standard deviation over networks of
    the probability, weighted by their shares: 0 where all say the same, 1 where half are sure of it and half sure of
    the opposite. Neither takes part in what the label map becomes.
    """
    for kind, path in into.maps(scan.case).items():
        if kind == "probabilities":
            shown = regions.array
        else:
            assert regions.agreement is not None, "it is asked for together with the map"
            shown = 2 * regions.agreement.spread
        try:
            write_fractions(np.moveaxis(shown, 0, -1), scan.geometry, path, stamp=stamp)
        except (GliomaError, OSError, MemoryError) as error:
            warning = f"no map of {kind}: {reason(error, scan.case)}"
            record = replace(record, warnings=(*record.warnings, warning))
    return record


def walk_to_end(walk: Generator[None, None, CaseRecord]) -> CaseRecord:
    """The record at the end of :func:`segment_case`, walked without a pause."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            record: CaseRecord = end.value
            return record


def _describe(scan: Scan, labels: NDArray[np.uint8], refinement: RefinementRecord, path: Path) -> CaseRecord:
    return CaseRecord(
        id=scan.case,
        status="repaired" if scan.repairs else "ok",
        output=str(path),
        repairs=scan.repairs,
        warnings=(*scan.warnings, *([] if labels.any() else [EMPTY_TUMOUR])),
        volumes_ml=volumes_ml(labels, scan.spacing),
        refinement=refinement,
    )


def _draw(scan: Scan, labels: NDArray[np.uint8], record: CaseRecord, report: Path | None) -> CaseRecord:
    """Draw a case if that is wanted; a result without its picture is still a result, with a warning."""
    if report is None:
        return record
    try:
        from inference.report.figures import CaseDrawing, draw_case
        from inference.report.page import PICTURE_SUFFIX, SLICES_SUFFIX
        from inference.report.slices import stack_slices, write_slices

        drawing = CaseDrawing(scan.data, labels, scan.spacing, scan.case, record.warnings)
        draw_case(drawing, report / f"{scan.case}{PICTURE_SUFFIX}")
        write_slices(stack_slices(scan.data, labels, scan.spacing), report / f"{scan.case}{SLICES_SUFFIX}")
    except Exception as error:
        log.debug("%s: no picture", scan.case, exc_info=True)
        return replace(record, warnings=(*record.warnings, f"no picture: {reason(error, scan.case)}"))
    return record


@dataclass(frozen=True)
class FolderSettings:
    """How a folder of cases is worked through."""

    into: Destination
    """Where the results go."""
    on_error: OnError
    """What to do about a failed case."""
    resume: bool = False
    """Whether to leave out cases whose result is there."""
    shard: tuple[int, int] = (1, 1)
    """(I, N): only every N-th case, from the I-th, counted from 1."""


@dataclass(frozen=True)
class FolderOutcome:
    """What became of a folder."""

    cases: tuple[CaseRecord, ...]
    """Every case of the shard once, those that were not attempted included."""
    interrupted: str | None
    """What ended the run before its last case: a signal, or a failed case; None where nothing did."""


def segment_folder(
    listing: CaseListing,
    system: System,
    settings: FolderSettings,
    tell: Callable[[CaseRecord], None],
    progress: Progress | None = None,
) -> FolderOutcome:
    """Segment the cases of a listing, each for itself: what goes wrong with one is its record, and the others go on.

    `tell` hears of each case when it is over. While one case is predicted in this thread, the next is read in another
    and the last is refined and written in a third. A KeyboardInterrupt, whose text says what it was, drops the case in
    prediction; the one that is being written is finished.
    """
    journeys = shard_of(_journeys(listing, system, settings, progress), settings.shard)
    settled: dict[_Journey, CaseRecord] = {}
    interrupted = None

    def settle(journey: _Journey, record: CaseRecord) -> None:
        settled[journey] = record
        tell(record)
        if settings.on_error == "stop" and record.status == "failed":
            raise _Stopped(f"the failure of {journey.id}")

    try:
        _walk(journeys, settle)
    except KeyboardInterrupt as signal:
        interrupted = str(signal) or "SIGINT"
    except _Stopped as failure:
        interrupted = str(failure)
    for journey in journeys:
        if journey not in settled:
            settled[journey] = journey.record or CaseRecord(journey.id, "failed", error=f"dropped after {interrupted}")
    return FolderOutcome(tuple(settled.values()), interrupted)


def shard_of(items: Sequence[_Item], shard: tuple[int, int]) -> list[_Item]:
    """Every N-th item, from the I-th, of a shard (I, N) that counts from 1."""
    first, step = shard
    return list(items[first - 1 :: step])


class _Stopped(Exception):  # noqa: N818 (not an error: the run ends as it was asked to)
    """A case failed and the run is to end with it."""


def _walk(journeys: Sequence[_Journey], settle: Callable[[_Journey, CaseRecord], None]) -> None:
    """Walk all journeys to their ends, at most three at a time: one reading, one predicting, one refining."""
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "finish") as finisher:
        reading = [reader.submit(journey.leg) for journey in journeys[:1]]
        finishing: list[Future[tuple[_Journey, CaseRecord]]] = []

        def finish() -> None:
            while finishing:
                settle(*finishing.pop().result())

        try:
            for index, journey in enumerate(journeys):
                reading.pop().result()
                reading += [reader.submit(following.leg) for following in journeys[index + 1 : index + 2]]
                journey.leg()
                finish()
                finishing.append(finisher.submit(journey.end))
                if journey.record:
                    finish()
        finally:
            finish()


class _Journey:
    """One case on its way, walked leg by leg, never by two threads at once; what goes wrong ends it with a record."""

    def __init__(
        self, case: str, walk: Generator[None, None, CaseRecord], rescue: Callable[[CaseRecord], CaseRecord]
    ) -> None:
        self.id = case
        """ID of the case."""
        self.record: CaseRecord | None = None
        """What became of it, once that is known."""
        self._walk = walk
        self._rescue = rescue

    def leg(self) -> None:
        """Walk to the next place where the thread may change; nothing where the journey is over."""
        if self.record is not None:
            return
        try:
            next(self._walk)
        except StopIteration as end:
            self.record = end.value
        except Exception as error:
            log.debug("%s failed", self.id, exc_info=True)
            self.record = self._rescue(CaseRecord(self.id, "failed", error=reason(error, self.id)))

    def end(self) -> tuple[_Journey, CaseRecord]:
        """Walk the rest of the way."""
        while self.record is None:
            self.leg()
        return self, self.record


def reason(error: Exception, case: str) -> str:
    """Why a case failed, in one line that does not repeat its ID."""
    text = " ".join(str(error).split())
    if isinstance(error, GliomaError):
        return text.removeprefix(f"{case}: ")
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _SIGNS_OF_NO_MEMORY):
        if "cuda" in text.lower() or "cublas" in text.lower():
            return "out of GPU memory: close what else uses it, or choose --device cpu"
        return "out of memory: close other programs, or use a machine with more"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"unexpected {type(error).__name__}: {text[:300]}"


def _journeys(
    listing: CaseListing, system: System, settings: FolderSettings, progress: Progress | None
) -> list[_Journey]:
    """One journey for each case of the listing, by ID; those that cannot be attempted fail on their first leg."""

    def journey(case: Case, walk: Generator[None, None, CaseRecord], *, replaceable: bool = True) -> _Journey:
        def rescue(failed: CaseRecord) -> CaseRecord:
            if settings.on_error != "empty" or not replaceable:
                return failed
            if settings.resume and _has_result(case, system, settings.into):
                return replace(failed, error=f"{failed.error}; the label map of an earlier run is kept")
            return _write_empty(failed, case.paths, settings.into)

        return _Journey(case.id, walk, rescue)

    walk = _resumed if settings.resume else segment_case
    whole = {case.id for case in listing.cases}
    journeys = [journey(case, walk(case, system, settings.into, progress)) for case in listing.cases]
    for problem in listing.problems:
        found = Case(problem.case, listing.found.get(problem.case, {}))
        # A problem may carry the ID of a case that is whole, whose result must stay.
        journeys.append(journey(found, _hopeless(problem), replaceable=problem.case not in whole))
    return sorted(journeys, key=lambda journey: journey.id)


def _has_result(case: Case, system: System, into: Destination) -> bool:
    """Whether a result of an earlier run is there, or may be: where it cannot be looked at, it must not be replaced."""
    path = into.label_map(case.id)
    try:
        return read_result(path, case, system.stamp) is not None
    except (OSError, MemoryError):
        return path.exists()


def _hopeless(problem: CaseError) -> Generator[None, None, CaseRecord]:
    """The walk of a case that cannot be attempted."""
    raise problem
    yield


def _resumed(
    case: Case, system: System, into: Destination, progress: Progress | None
) -> Generator[None, None, CaseRecord]:
    """The walk of a case that is not predicted again where its result is there; a picture that is missing is drawn."""
    path = into.label_map(case.id)
    labels = read_result(path, case, system.stamp)
    geometry = any_geometry(case.paths)
    maps = into.maps(case.id).values()
    if labels is None or not all(holds_fractions(map_, geometry, len(REGIONS), stamp=system.stamp) for map_ in maps):
        return (yield from segment_case(case, system, into, progress))
    volumes = volumes_ml(labels, geometry.spacing)
    warnings = () if labels.any() else (EMPTY_TUMOUR,)
    record = CaseRecord(case.id, "ok", str(path), resumed=True, volumes_ml=volumes, warnings=warnings)
    if into.report is None or _is_drawn(case.id, path, into.report):
        return record
    yield
    yield
    return _drawn_late(case, labels, record, into.report)


def _drawn_late(case: Case, labels: NDArray[np.uint8], record: CaseRecord, report: Path) -> CaseRecord:
    """Draw a case whose label map is there; whatever its scan has come to, that result stands."""
    clock = Stopwatch()
    try:
        with clock("read"):
            scan = read_scan(case)
    except (CaseError, OSError, MemoryError) as error:
        return replace(record, warnings=(*record.warnings, f"no picture: {reason(error, case.id)}"))
    with clock("draw"):
        record = _draw(scan, labels, record, report)
    return replace(record, seconds=clock.seconds)


def _is_drawn(case: str, labels: Path, report: Path) -> bool:
    """Whether a report has the pictures of a case, made no earlier than its label map."""
    from inference.report.page import PICTURE_SUFFIX, SLICES_SUFFIX

    try:
        made = min((report / f"{case}{suffix}").stat().st_mtime for suffix in (PICTURE_SUFFIX, SLICES_SUFFIX))
    except OSError:
        return False
    return made >= labels.stat().st_mtime


def read_result(path: Path, case: Case, stamp: str) -> NDArray[np.uint8] | None:
    """The labels (X, Y, Z; canonical RAS) in a result of an earlier run; None where there is none to rely on.

    It counts if it reads back whole, lies where the case's t1n lies, and carries the stamp of this bundle and profile.
    """
    try:
        if not path.is_file() or read_stamp(path) != stamp:
            return None
        labels, found = read_labels(path)
    except CaseError:
        return None
    return labels if found.same_as(any_geometry(case.paths)) else None


def _write_empty(failed: CaseRecord, paths: Mapping[str, Path], into: Destination) -> CaseRecord:
    """Write an all-background file for a failed case, in the geometry of the first of its scans that has one."""
    path = into.label_map(failed.id)
    try:
        geometry = any_geometry(paths)
        write_labels(np.zeros(geometry.canonical_shape, np.uint8), geometry, path, stamp=_EMPTY_STAMP)
    except (GliomaError, OSError, MemoryError) as error:
        return replace(failed, error=f"{failed.error}; and no empty file either: {reason(error, failed.id)}")
    warning = "THE FILE IS EMPTY BECAUSE THE CASE FAILED, not because there is no tumour"
    return replace(failed, status="empty", output=str(path), warnings=(warning,))
