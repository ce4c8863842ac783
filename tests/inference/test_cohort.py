"""Folders of cases: overlap, isolation, resuming, interruption."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference import case as walk
from inference import cohort, results
from inference.case import EMPTY_TUMOUR, System, open_system
from inference.cohort import Outcome, segment_folder, shard_of
from inference.errors import BundleError
from inference.intake.cases import Case, find_cases
from inference.intake.label_map import read_stamp
from inference.report.record import CaseRecord
from inference.results import CohortSettings
from training.data.phantoms import make_phantom, write_phantom

IDS = ["P-00001-000", "P-00002-000", "P-00003-000"]


@pytest.fixture(scope="module")
def system(tiny_bundle: Path) -> System:
    return open_system(tiny_bundle, engine="torch", device="cpu", threads=1)


@pytest.fixture
def cases(phantom_folder: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms that a test may spoil."""
    return Path(shutil.copytree(phantom_folder, tmp_path / "cases"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def run(cases: Path, output: Path, system: System, **settings: object) -> tuple[Outcome, list[CaseRecord]]:
    told: list[CaseRecord] = []
    chosen = CohortSettings(output, **settings)  # type: ignore[arg-type]
    return segment_folder(find_cases(cases), system, chosen, told.append), told


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def canonical(path: Path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def test_every_case_becomes_one_label_map_where_its_t1n_lies(cases: Path, output: Path, system: System) -> None:
    outcome, told = run(cases, output, system)
    assert [case.id for case in outcome.cases] == IDS == [case.id for case in told]
    assert outcome.interrupted is None
    assert names(output) == [f"{case}.nii.gz" for case in IDS]
    for case in outcome.cases:
        assert case.status == "ok", case.error
        image, t1n = (nib.load(path) for path in (case.output, cases / case.id / f"{case.id}-t1n.nii.gz"))
        assert image.shape == t1n.shape
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, t1n.affine)
        for form in ("qform", "sform"):
            assert image.header[f"{form}_code"] == t1n.header[f"{form}_code"]
        labels = np.asarray(image.dataobj)
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        assert case.volumes_ml is not None
        assert case.volumes_ml["WT"] == pytest.approx(np.count_nonzero(labels) / 1000)
        assert set(case.seconds) == {"read", "predict", "refine", "write", "draw"}
        assert read_stamp(Path(str(case.output))).startswith(system.made_by)


def test_the_orientation_on_disk_does_not_change_the_result(output: Path, tmp_path: Path, system: System) -> None:
    phantom = make_phantom(5, (32, 36, 40))
    for orientation in ("RAS", "LPI", "ASR"):
        write_phantom(tmp_path / "cases", orientation, phantom, orientation)
    run(tmp_path / "cases", output, system)
    first, *others = (canonical(output / f"{orientation}.nii.gz") for orientation in ("RAS", "LPI", "ASR"))
    assert first.any()
    for other in others:
        np.testing.assert_array_equal(first, other)


def spoil(cases: Path) -> None:
    """The first case truncated, the second without its t1c."""
    truncate(cases / IDS[0] / f"{IDS[0]}-t2w.nii.gz")
    (cases / IDS[1] / f"{IDS[1]}-t1c.nii.gz").unlink()


def test_a_failed_case_is_named_and_the_others_go_on(cases: Path, output: Path, system: System) -> None:
    spoil(cases)
    outcome, _ = run(cases, output, system)
    assert [case.status for case in outcome.cases] == ["failed", "failed", "ok"]
    assert "t2w.nii.gz" in str(outcome.cases[0].error)
    assert "missing t1c" in str(outcome.cases[1].error)
    assert not str(outcome.cases[1].error).startswith(IDS[1])
    assert names(output) == [f"{IDS[2]}.nii.gz"]


def test_failed_cases_get_an_empty_file_where_that_is_wanted(cases: Path, output: Path, system: System) -> None:
    spoil(cases)
    outcome, _ = run(cases, output, system, on_error="empty")
    assert [case.status for case in outcome.cases] == ["empty", "empty", "ok"]
    assert "missing t1c" in str(outcome.cases[1].error)
    assert all(case.written for case in outcome.cases)
    for case in IDS[:2]:
        image, t1n = nib.load(output / f"{case}.nii.gz"), nib.load(cases / case / f"{case}-t1n.nii.gz")
        assert not np.asarray(image.dataobj).any()
        np.testing.assert_array_equal(image.affine, t1n.affine)
        assert image.shape == t1n.shape


def test_a_case_without_one_readable_header_gets_an_empty_file_too(cases: Path, output: Path, system: System) -> None:
    for path in (cases / IDS[0]).iterdir():
        path.write_bytes(b"nothing")
    outcome, _ = run(cases, output, system, on_error="empty")
    assert outcome.cases[0].status == "empty"
    assert nib.load(output / f"{IDS[0]}.nii.gz").shape == (240, 240, 155)


def test_the_first_failure_ends_the_run_where_that_is_wanted(cases: Path, output: Path, system: System) -> None:
    truncate(cases / IDS[1] / f"{IDS[1]}-t1n.nii.gz")
    outcome, told = run(cases, output, system, on_error="stop")
    assert [case.status for case in outcome.cases] == ["ok", "failed", "failed"]
    assert outcome.interrupted == f"the failure of {IDS[1]}"
    assert "dropped after" in str(outcome.cases[2].error)
    assert [case.id for case in told] == IDS[:2]
    assert names(output) == [f"{IDS[0]}.nii.gz"]


def raises(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    "failure",
    [
        ("predict", MemoryError(), "out of memory"),
        ("predict", BundleError("network does not fit"), "network does not fit"),
        ("write_labels", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out"), "/out: No space left on device"),
        ("refine", ValueError("no\nsuch thing"), "unexpected ValueError: no such thing"),
        ("read_scan", RecursionError("deep"), "unexpected RecursionError: deep"),
        ("predict", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: close"),
        ("predict", RuntimeError("Check failed: std::bad_alloc"), "out of memory: close"),
        ("refine", ImportError("libtorch_cuda.so: failed to map segment from shared object"), "out of memory: close"),
        ("refine", RuntimeError("Resource temporarily unavailable"), "too few processes are allowed"),
        ("read_scan", RuntimeError("can't start new thread"), "out of memory: close"),
        ("read_scan", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory: close"),
        ("predict", RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of GPU memory: close"),
        ("predict", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of GPU memory: close"),
    ],
)
def test_whatever_fails_is_the_cases_own_and_one_line(
    cases: Path, system: System, monkeypatch: pytest.MonkeyPatch, failure: tuple[str, Exception, str]
) -> None:
    step, error, complaint = failure
    monkeypatch.setattr(walk if step in ("predict", "refine") else cohort, step, raises(error))
    outcome, _ = run(cases, cases.parent, system)
    assert [case.status for case in outcome.cases] == ["failed"] * 3
    assert all(complaint in str(case.error) and "\n" not in str(case.error) for case in outcome.cases)


def test_an_empty_tumour_is_a_warning(
    cases: Path, output: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "labels_from_regions", lambda array, _: np.zeros(array.shape[1:], np.uint8))
    outcome, _ = run(cases, output, system)
    assert all(EMPTY_TUMOUR in case.warnings and case.status == "ok" for case in outcome.cases)


def test_resuming_leaves_good_results_alone_and_makes_the_others_again(
    cases: Path, output: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = run(cases, output, system)
    files = {path: path.read_bytes() for path in output.iterdir()}
    truncate(output / f"{IDS[1]}.nii.gz")
    again, _ = run(cases, output, system, resume=True)
    assert [case.resumed for case in again.cases] == [True, False, True]
    assert {path: path.read_bytes() for path in output.iterdir()} == files
    assert [case.volumes_ml for case in again.cases] == [case.volumes_ml for case in before.cases]
    monkeypatch.setattr(walk, "predict", raises(AssertionError("predicted again")))
    third, _ = run(cases, output, system, resume=True)
    assert all(case.resumed for case in third.cases)


def other_geometry(path: Path) -> None:
    image = nib.load(path)
    image.header.set_sform(np.diag([2.0, 1, 1, 1]), 1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def other_bundle(path: Path) -> None:
    image = nib.load(path)
    image.header["descrip"] = b"0123456789abcdef fast tiny"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def corrupt_inside(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-4] + bytes(4))


def cut_voxels(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-10]))


@pytest.mark.parametrize("damage", [other_geometry, other_bundle, corrupt_inside, cut_voxels, Path.unlink])
def test_resuming_trusts_only_whole_results_of_this_bundle(
    cases: Path, output: Path, system: System, damage: Callable[[Path], None]
) -> None:
    for case in IDS[1:]:
        shutil.rmtree(cases / case)
    run(cases, output, system)
    result = output / f"{IDS[0]}.nii.gz"
    good = result.read_bytes()
    damage(result)
    outcome, _ = run(cases, output, system, resume=True)
    assert not outcome.cases[0].resumed
    assert result.read_bytes() == good


def test_resuming_tries_failed_cases_again(cases: Path, output: Path, system: System) -> None:
    t1c = cases / IDS[0] / f"{IDS[0]}-t1c.nii.gz"
    whole = t1c.read_bytes()
    truncate(t1c)
    assert run(cases, output, system, on_error="empty")[0].cases[0].status == "empty"
    t1c.write_bytes(whole)
    outcome, _ = run(cases, output, system, on_error="empty", resume=True)
    assert [case.resumed for case in outcome.cases] == [False, True, True]
    assert canonical(output / f"{IDS[0]}.nii.gz").any()


def test_a_signal_drops_the_case_in_hand_and_finishes_the_one_before(
    cases: Path, output: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = walk.predict, []

    def interrupted(*given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt("SIGTERM")
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(walk, "predict", interrupted)
    outcome, told = run(cases, output, system, on_error="empty")
    assert outcome.interrupted == "SIGTERM"
    assert [case.status for case in outcome.cases] == ["ok", "failed", "failed"]
    assert [case.id for case in told] == IDS[:1]
    assert names(output) == [f"{IDS[0]}.nii.gz"]


def test_reading_and_refining_overlap_with_prediction_and_stay_one_ahead(
    cases: Path, output: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, predicting, refined = (dict.fromkeys(range(3)) for _ in range(3))
    for events in (read, predicting, refined):
        events.update({index: threading.Event() for index in events})
    homes = {"read_scan": cohort, "predict": walk, "refine": walk}
    real = {name: getattr(home, name) for name, home in homes.items()}
    counts = dict.fromkeys(real, 0)
    read_by_then = []

    def reading(case: Case) -> object:
        scan = real["read_scan"](case)
        read[IDS.index(case.id)].set()
        return scan

    def predict(*given: object, **named: object) -> object:
        index = counts["predict"]
        counts["predict"] += 1
        predicting[index].set()
        # The next case is read, and the last is refined, while this one is predicted: else these would wait for ever.
        assert index == 2 or read[index + 1].wait(60)
        assert index == 0 or refined[index - 1].wait(60)
        read_by_then.append(sum(event.is_set() for event in read.values()))
        return real["predict"](*given, **named)

    def refine(*given: object, **named: object) -> object:
        index = counts["refine"]
        counts["refine"] += 1
        assert index == 2 or predicting[index + 1].wait(60)
        result = real["refine"](*given, **named)
        refined[index].set()
        return result

    for name, fake in (("read_scan", reading), ("predict", predict), ("refine", refine)):
        monkeypatch.setattr(homes[name], name, fake)
    outcome, _ = run(cases, output, system)
    assert [case.error for case in outcome.cases] == [None] * 3
    assert read_by_then == [2, 3, 3]


def test_no_thread_is_left_behind(cases: Path, output: Path, system: System) -> None:
    run(cases, output, system)
    before = threading.active_count()
    run(cases, output, system)
    assert threading.active_count() == before


def test_shards_share_out_every_case_once() -> None:
    items = list(range(11))
    for parts in (1, 2, 3, 11, 20):
        shards = [shard_of(items, (part, parts)) for part in range(1, parts + 1)]
        assert sorted(item for shard in shards for item in shard) == items


def test_a_shard_takes_its_cases_and_no_others(cases: Path, output: Path, system: System) -> None:
    (cases / IDS[1] / f"{IDS[1]}-t1c.nii.gz").unlink()
    outcome, _ = run(cases, output, system, shard=(2, 3))
    assert [(case.id, case.status) for case in outcome.cases] == [(IDS[1], "failed")]
    assert not list(output.iterdir())


def test_pictures_go_to_the_report_and_nowhere_else(cases: Path, output: Path, tmp_path: Path, system: System) -> None:
    report = tmp_path / "report"
    report.mkdir()
    outcome, _ = run(cases, output, system, report=report, shard=(1, 3))
    assert not outcome.cases[0].warnings[1:]
    assert names(report) == [f"{IDS[0]}.case.js", f"{IDS[0]}.png"]
    assert [path.name for path in output.iterdir()] == [f"{IDS[0]}.nii.gz"]


def test_a_picture_that_cannot_be_written_is_a_warning(
    cases: Path, output: Path, tmp_path: Path, system: System
) -> None:
    record = run(cases, output, system, report=tmp_path / "nowhere", shard=(1, 3))[0].cases[0]
    assert record.status == "ok"
    assert any("no picture" in warning for warning in record.warnings)


@pytest.mark.parametrize(
    "error", [ValueError("singular"), ImportError("no matplotlib"), MemoryError(), OSError(28, "full")]
)
def test_whatever_fails_in_drawing_costs_no_result(
    cases: Path, output: Path, system: System, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from inference.report import figures

    monkeypatch.setattr(figures, "draw_case", raises(error))
    outcome, _ = run(cases, output, system, report=cases.parent, on_error="empty", shard=(1, 3))
    (case,) = outcome.cases
    assert case.status == "ok"
    assert any("no picture" in warning for warning in case.warnings)
    assert canonical(output / f"{IDS[0]}.nii.gz").any()


def test_maps_are_written_where_the_t1n_lies_and_say_what_the_ensemble_says(
    cases: Path, output: Path, tmp_path: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    said = {}
    real = walk.predict

    def predict(*given: object, **named: object) -> object:
        said["regions"] = real(*given, **named)  # type: ignore[arg-type]
        return said["regions"]

    monkeypatch.setattr(walk, "predict", predict)
    case = find_cases(cases).cases[1]
    record = run(cases, output, system, probabilities=maps, uncertainty=maps, shard=(2, 3))[0].cases[0]
    assert names(maps) == [f"{IDS[1]}_probabilities.nii.gz", f"{IDS[1]}_uncertainty.nii.gz"]
    assert names(output) == [f"{IDS[1]}.nii.gz"]
    regions = said["regions"]
    expected = {"probabilities": regions.array, "uncertainty": 2 * regions.agreement.spread}
    t1n = nib.load(case.paths["t1n"])
    for kind, values in expected.items():
        image = nib.load(maps / f"{IDS[1]}_{kind}.nii.gz")
        assert image.get_data_dtype() == np.uint8
        assert image.shape == (*t1n.shape, 3)
        np.testing.assert_array_equal(image.affine, t1n.affine)
        found = nib.as_closest_canonical(image).get_fdata()
        assert values.std() > 0.01
        np.testing.assert_allclose(np.moveaxis(found, -1, 0), values, atol=0.5 / 255 + 1e-6)
    assert record.agreement == regions.agreement.overlap
    assert set(record.agreement) == {"WT", "TC", "ET"}


def test_networks_are_compared_for_a_report_but_not_for_a_label_map(
    cases: Path, output: Path, tmp_path: Path, system: System
) -> None:
    assert run(cases, output, system, shard=(1, 3))[0].cases[0].agreement is None
    assert run(cases, output, system, shard=(1, 3), probabilities=output)[0].cases[0].agreement is None
    assert run(cases, output, system, shard=(1, 3), report=tmp_path)[0].cases[0].agreement is not None


def test_resuming_makes_maps_that_are_missing_or_damaged(
    cases: Path, output: Path, tmp_path: Path, system: System
) -> None:
    maps = {"probabilities": tmp_path, "uncertainty": tmp_path}
    run(cases, output, system)
    assert not any(case.resumed for case in run(cases, output, system, **maps, resume=True)[0].cases)
    assert all(case.resumed for case in run(cases, output, system, **maps, resume=True)[0].cases)
    damaged = tmp_path / f"{IDS[1]}_uncertainty.nii.gz"
    truncate(damaged)
    outcome, _ = run(cases, output, system, **maps, resume=True)
    assert [case.resumed for case in outcome.cases] == [True, False, True]
    assert nib.load(damaged).get_fdata().any()


def test_a_failed_case_has_no_maps(cases: Path, output: Path, tmp_path: Path, system: System) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    truncate(cases / IDS[1] / f"{IDS[1]}-t1c.nii.gz")
    outcome, _ = run(cases, output, system, probabilities=maps, on_error="empty")
    assert [case.status for case in outcome.cases] == ["ok", "empty", "ok"]
    assert names(maps) == [f"{case}_probabilities.nii.gz" for case in IDS[::2]]


def test_a_map_that_cannot_be_written_is_a_warning_beside_the_label_map(
    cases: Path, output: Path, tmp_path: Path, system: System
) -> None:
    nowhere = tmp_path / "nowhere"
    for resume in (False, True):
        outcome, _ = run(cases, output, system, probabilities=nowhere, on_error="empty", resume=resume)
        for case in outcome.cases:
            assert case.status == "ok"
            assert any(warning.startswith("no map of probabilities: ") for warning in case.warnings)
            assert nib.load(output / f"{case.id}.nii.gz").get_fdata().any()


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(5, "Input/output error")])
def test_a_resumed_run_never_puts_an_empty_file_in_the_place_of_a_result(
    cases: Path, output: Path, system: System, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run(cases, output, system)
    before = {path: path.read_bytes() for path in output.iterdir()}

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(results, "read_labels", fail)
    outcome, _ = run(cases, output, system, on_error="empty", resume=True)
    assert [case.status for case in outcome.cases] == ["failed"] * 3
    assert all(str(case.error).endswith("; the label map of an earlier run is kept") for case in outcome.cases)
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_a_resumed_case_is_drawn_where_its_picture_is_missing_or_older(
    cases: Path, output: Path, tmp_path: Path, system: System
) -> None:
    report = tmp_path / "report"
    report.mkdir()
    run(cases, output, system)
    outcome, _ = run(cases, output, system, report=report, resume=True)
    assert [case.resumed for case in outcome.cases] == [True] * 3
    assert names(report) == sorted(f"{case}{suffix}" for case in IDS for suffix in (".case.js", ".png"))
    before = {path: path.stat().st_mtime_ns for path in report.iterdir()}
    os.utime(output / f"{IDS[1]}.nii.gz")
    run(cases, output, system, report=report, resume=True)
    drawn = {path.name.split(".")[0] for path in report.iterdir() if path.stat().st_mtime_ns != before[path]}
    assert drawn == {IDS[1]}


def test_a_result_stands_where_its_scan_can_no_longer_be_read(
    cases: Path, output: Path, tmp_path: Path, system: System
) -> None:
    run(cases, output, system)
    result = (output / f"{IDS[0]}.nii.gz").read_bytes()
    truncate(cases / IDS[0] / f"{IDS[0]}-t1c.nii.gz")
    outcome, _ = run(cases, output, system, report=tmp_path, resume=True, on_error="empty")
    assert outcome.cases[0].status == "failed"
    assert str(outcome.cases[0].error).endswith("; the label map of an earlier run is kept")
    assert (output / f"{IDS[0]}.nii.gz").read_bytes() == result


def test_resuming_makes_anew_what_another_scan_was_put_in_for(cases: Path, output: Path, system: System) -> None:
    run(cases, output, system)
    before = (output / f"{IDS[0]}.nii.gz").read_bytes()
    t1c, t2f = (cases / IDS[0] / f"{IDS[0]}-{sequence}.nii.gz" for sequence in ("t1c", "t2f"))
    moment = t1c.stat().st_mtime
    shutil.copy(t2f, t1c)
    os.utime(t1c, (moment, moment))
    outcome, _ = run(cases, output, system, resume=True)
    assert [case.resumed for case in outcome.cases] == [False, True, True]
    assert (output / f"{IDS[0]}.nii.gz").read_bytes() != before


def test_resuming_tells_again_what_there_is_to_say_about_a_scan(
    cases: Path, output: Path, tmp_path: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cases / IDS[0] / f"{IDS[0]}-t2w.nii.gz"
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[4, 4, 4] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), path)
    first = run(cases, output, system)[0].cases
    assert first[0].status == "repaired"
    monkeypatch.setattr(walk, "predict", raises(AssertionError("predicted again")))
    for report in (None, tmp_path):
        again = run(cases, output, system, resume=True, report=report)[0].cases
        assert [case.resumed for case in again] == [True] * 3
        for field in ("status", "repairs", "warnings", "volumes_ml"):
            assert [getattr(case, field) for case in again] == [getattr(case, field) for case in first]


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def bomb(path: Path) -> None:
    block = gzip.compress(bytes(2**24), 9)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())) + block * 60)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("damage", [fifo, bomb])
def test_resuming_waits_for_no_pipe_and_unpacks_no_bomb(
    cases: Path, output: Path, tmp_path: Path, system: System, damage: Callable[[Path], None]
) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    run(cases, output, system, probabilities=maps)
    damage(maps / f"{IDS[0]}_probabilities.nii.gz")
    tracemalloc.start()
    outcome, _ = run(cases, output, system, resume=True, probabilities=maps, shard=(1, 3))
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()
    assert not outcome.cases[0].resumed
    damage(output / f"{IDS[0]}.nii.gz")
    assert not run(cases, output, system, resume=True, shard=(1, 3))[0].cases[0].resumed
