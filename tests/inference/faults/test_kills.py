"""Runs that end when they should not: killed, terminated, interrupted."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.inference.faults.program import Places, multiply

NO_UNNAMED_FILES = """
import errno, os
_open = os.open
def _refuse(path, flags, *arguments, **options):
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")
    return _open(path, flags, *arguments, **options)
os.open = _refuse
"""


def places_in(folder: Path, originals: Path, bundle: Path, count: int, *, report: bool = False) -> Places:
    multiply(originals, folder / "cases", count)
    return Places(folder / "home", folder / "cases", bundle, report=report)


def cut_short(process: subprocess.Popen[str], moment: float, number: signal.Signals) -> bool:
    """Send a signal at a moment after the start; False where the program was over by then."""
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        return True
    finally:
        assert process.stderr is not None
        if number == signal.SIGKILL:
            process.wait()
            process.stderr.close()
    return False


def kill_at_random(places: Places, count: int, *, before: str = "", staged: str | None = None) -> None:
    """Kill runs over one output folder at random moments, look after each, then complete the folder."""
    undisturbed = replace(places, home=places.home.with_name("undisturbed"))
    undisturbed.home.mkdir()
    begun = time.monotonic()
    assert undisturbed.run(before=before)[0] == 0
    length = time.monotonic() - begun
    expected = undisturbed.masks()
    places.home.mkdir()
    generator, kills, states = random.Random(20241), 0, set()
    while kills < count:
        if places.output.is_dir() and len(places.masks()) == len(expected) and generator.random() < 0.5:
            for path in places.output.iterdir():
                path.unlink()
        # Without --resume, files are replaced that are there.
        resumed = ["--resume"] if generator.random() < 0.7 else []
        process = places.start(*resumed, before=before)
        kills += cut_short(process, generator.uniform(0, length), signal.SIGKILL)
        places.check(staged)
        states.add(len(list(places.output.iterdir())) if places.output.is_dir() else -1)
    assert len(states) > 1
    assert places.run("--resume", before=before)[0] == 0
    places.check(staged)
    assert places.masks() == expected
    assert set(places.statuses().values()) == {"ok"}


def test_killed_at_random_moments_no_file_is_partial_or_temporary_and_resuming_completes(
    phantom_folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    kill_at_random(places_in(tmp_path, phantom_folder, tiny_bundle, 30), 4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_fifty_random_moments(phantom_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    kill_at_random(places_in(tmp_path, phantom_folder, tiny_bundle, 30), 50)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_with_a_report(phantom_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    kill_at_random(places_in(tmp_path, phantom_folder, tiny_bundle, 8, report=True), 20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_without_unnamed_files(
    phantom_folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    # What a kill may leave there lies beside the output folder, hidden.
    staged = r"\..*\.(nii\.gz|json)\.\d+"
    kill_at_random(places_in(tmp_path, phantom_folder, tiny_bundle, 30), 30, before=NO_UNNAMED_FILES, staged=staged)


def end_at_random(places: Places, number: signal.Signals, count: int) -> None:
    """End runs by a signal at random moments: each ends soon, in its own words, with a record that is true."""
    places.home.mkdir()
    begun = time.monotonic()
    assert places.run()[0] == 0
    length = time.monotonic() - begun
    generator, ends = random.Random(7), 0
    while ends < count:
        for path in places.output.iterdir():
            path.unlink()
        places.record.unlink(missing_ok=True)
        process = places.start()
        sent = cut_short(process, generator.uniform(0.3 * length, length), number)
        ends += sent
        _, errors = process.communicate(timeout=30)
        places.check()
        if process.returncode < 0:
            # Before the program has heard of signals, or after its end.
            assert "before the first case" not in errors
            continue
        assert "Traceback" not in errors, errors
        if sent and process.returncode == 2:
            assert f"error: ended by {number.name} before the first case" in errors
            assert not places.masks()
        elif sent and process.returncode == 1:
            assert f"ended by {number.name}: " in errors
            written = {f"{case}.nii.gz" for case, status in places.statuses().items() if status == "ok"}
            assert written == set(places.masks())
            assert len(places.statuses()) == len(list(places.cases.iterdir()))


def test_sigterm_at_random_moments(phantom_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    end_at_random(places_in(tmp_path, phantom_folder, tiny_bundle, 20), signal.SIGTERM, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_at_thirty_random_moments(
    phantom_folder: Path, tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    end_at_random(places_in(tmp_path, phantom_folder, tiny_bundle, 20), number, 30)
