"""Folders that fill up, turn read-only or vanish while a run writes to them or reads from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.faults.program import Places, multiply

CASES = 12


@pytest.fixture
def places(phantom_folder: Path, tiny_bundle: Path, tmp_path: Path) -> Places:
    multiply(phantom_folder, tmp_path / "cases", CASES)
    (tmp_path / "home").mkdir()
    return Places(tmp_path / "home", tmp_path / "cases", tiny_bundle)


def mount(folder: Path, size: str) -> None:
    """A file system of its own, so that nothing else can fill it or be filled."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here")


@pytest.fixture
def small_output(places: Places) -> Iterator[Places]:
    """16 kB for twelve label maps of some 3 kB each."""
    mount(places.output, "16k")
    yield places
    subprocess.run(["umount", places.output], check=True)


@pytest.fixture
def small_record(places: Places) -> Iterator[Places]:
    mount(places.record.parent, "8k")
    yield places
    subprocess.run(["umount", places.record.parent], check=True)


def wait_for_files(places: Places, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if places.output.is_dir() and len(list(places.output.iterdir())) >= count:
            return
        time.sleep(0.01)
    pytest.fail("the run ended before it could be disturbed")


def test_a_full_disk_fails_cases_by_name_and_resuming_goes_on_where_it_stood(small_output: Places) -> None:
    places = small_output
    status, errors = places.run()
    assert status == 1
    places.check()
    written = set(places.masks())
    assert 0 < len(written) < CASES
    assert errors.count("No space left on device") == CASES - len(written)
    assert {f"{case}.nii.gz" for case, word in places.statuses().items() if word == "ok"} == written
    subprocess.run(["mount", "-o", "remount,size=1m", places.output], check=True)
    assert places.run("--resume")[0] == 0
    places.check()
    assert len(places.masks()) == CASES


@pytest.mark.slow
def test_with_empty_files_wanted_a_full_disk_is_still_a_failure(small_output: Places) -> None:
    status, errors = small_output.run("--on-error", "empty")
    small_output.check()
    missing = CASES - len(small_output.masks())
    assert missing > 0
    assert status == 1
    assert errors.count("and no empty file either") == missing


def test_a_record_that_finds_no_space_is_a_warning(small_record: Places) -> None:
    places = small_record
    status, errors = places.run()
    assert status == 0
    places.check()
    assert len(places.masks()) == CASES
    assert "warning: the record is not up to date" in errors
    assert "No space left on device" in errors


def test_an_output_that_turns_read_only_in_the_middle_of_a_run(places: Places) -> None:
    mount(places.output, "1m")
    try:
        process = places.start()
        wait_for_files(places, process, 2)
        subprocess.run(["mount", "-o", "remount,ro", places.output], check=True)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "Read-only file system" in errors
        assert "Traceback" not in errors
        places.check()
        status, errors = places.run()
        assert status == 2
        assert "error:" in errors
    finally:
        subprocess.run(["umount", places.output], check=True)


def test_an_output_that_vanishes_in_the_middle_of_a_run(places: Places) -> None:
    process = places.start()
    wait_for_files(places, process, 2)
    moved = places.home.with_name("moved")
    places.output.rename(moved)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No such file or directory" in errors
    assert "Traceback" not in errors
    assert not places.output.exists()
    failed = [case for case, status in places.statuses().items() if status == "failed"]
    assert 0 < len(failed) == CASES - len(list(moved.iterdir()))


def test_an_input_that_vanishes_in_the_middle_of_a_run(places: Places) -> None:
    process = places.start()
    wait_for_files(places, process, 2)
    places.cases.rename(places.cases.with_name("moved"))
    _, errors = process.communicate(timeout=120)
    places.cases.with_name("moved").rename(places.cases)
    assert process.returncode == 1
    assert "cannot be read (found No such file or directory" in errors
    assert "Traceback" not in errors
    places.check()
    written = {f"{case}.nii.gz" for case, status in places.statuses().items() if status == "ok"}
    assert 2 <= len(written) < CASES
    assert written == set(places.masks())
    assert places.run("--resume")[0] == 0


@pytest.mark.slow
def test_a_report_that_vanishes_is_a_warning(places: Places) -> None:
    drawn = Places(places.home, places.cases, places.bundle, report=True)
    process = drawn.start("--shard", "1/4")
    wait_for_files(drawn, process, 1)
    shutil.rmtree(drawn.pictures)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "no picture" in errors
    assert "warning: no page" in errors
    assert "Traceback" not in errors
    assert len(drawn.masks()) == 3


SQUEEZE = """
import resource, time
from inference import case, cohort
predicted, attempt, calls, ended = case.predict, cohort._attempt, 0, []
def attempted(step, *given):
    try:
        return attempt(step, *given)
    finally:
        ended.append(step.__name__)
def squeezed(*given, **named):
    global calls
    calls += 1
    if calls != 2:
        return predicted(*given, **named)
    while (ended.count("_read"), ended.count("_finish")) != (3, 1):
        time.sleep(0.01)  # until the case before is written and the next is read
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 8 * 2**20, limits[1]))
    try:
        return predicted(*given, **named)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
case.predict, cohort._attempt = squeezed, attempted
"""


def test_a_case_that_finds_no_memory_says_so_and_the_others_go_on(places: Places, tmp_path: Path) -> None:
    from training.data.phantoms import make_phantom, write_phantom

    large = "Q-00001-000"
    shutil.rmtree(places.cases / large)
    write_phantom(places.cases, large, make_phantom(1, (96, 96, 96)), "RAS")
    status, errors = places.run("--shard", "1/1", before=SQUEEZE)
    assert status == 1
    assert f"{large}: failed: out of memory: close other programs" in errors
    places.check()
    assert len(places.masks()) == CASES - 1, errors
    assert places.run("--resume")[0] == 0
    assert len(places.masks()) == CASES
