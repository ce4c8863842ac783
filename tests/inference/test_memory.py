"""Memory is foreseen: a case that does not fit is failed by name, beside none that does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inference import cohort, machine, memory
from inference.case import System, open_system
from inference.cohort import segment_folder
from inference.intake.cases import Case, find_cases
from inference.intake.scan import read_scan
from inference.machine import free_memory
from inference.results import CohortSettings
from training.data.phantoms import make_phantom, write_phantom

MEMINFO = "MemTotal: 16000 kB\nMemAvailable: 9000 kB\nSwapFree: 1000 kB\n"
KIB = 1024


def made_up(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 10_000),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "1024\n"}, 10_000),
        ("0::/\n", {"memory.max": f"{4000 * KIB}\n", "memory.current": f"{1000 * KIB}\n"}, 3000),
        (
            "0::/job/step\n",
            {
                "job/memory.max": f"{2000 * KIB}\n",
                "job/memory.current": f"{1500 * KIB}\n",
                "job/memory.stat": f"anon 1\nfile 9\ninactive_file {300 * KIB}\n",
                "job/step/memory.max": "max\n",
                "job/step/memory.current": f"{1500 * KIB}\n",
            },
            800,
        ),
        (
            "5:cpu,memory:/box\n",
            {
                "memory/box/memory.limit_in_bytes": f"{3000 * KIB}\n",
                "memory/box/memory.usage_in_bytes": f"{2000 * KIB}\n",
                "memory/box/memory.stat": f"inactive_file 5\ntotal_inactive_file {100 * KIB}\n",
            },
            1100,
        ),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "5000\n"}, 0),
        ("0::/\n", {"memory.max": "nonsense", "memory.current": ""}, 10_000),
    ],
)
def test_what_is_free_in_a_made_up_hierarchy(tmp_path: Path, own: str, files: dict[str, str], expected: int) -> None:
    made_up(tmp_path / "sys/fs/cgroup", files)
    made_up(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": own})
    assert free_memory(tmp_path) == expected * KIB


def test_without_anything_to_read_it_is_unknown(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None


def test_address_space_counts() -> None:
    program = (
        "import resource; from pathlib import Path; from inference.machine import free_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))\n"
        "print(free_memory(Path('/no')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 2**29 < int(done.stdout) < 2**30


@pytest.mark.parametrize("threads", [1, 64])
def test_limits_that_libraries_would_crash_at_are_named_before(
    tmp_path: Path, phantom_folder: Path, threads: int
) -> None:
    words = ["-i", phantom_folder, "-o", tmp_path / "out", "--device", "cpu", "--threads", threads]
    program = f"import sys; from inference.cli import main; sys.exit(main({[str(word) for word in words]!r}))"
    before = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))\n"
    done = subprocess.run([sys.executable, "-c", before + program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "out of memory: ulimit -v leaves" in done.stderr


def test_too_few_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(thread: machine.threading.Thread) -> None:
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)

    monkeypatch.setattr(machine.threading.Thread, "start", start)
    monkeypatch.setattr(machine.threading.Thread, "join", lambda _: None)
    with pytest.raises(machine.UsageError, match="too few processes allowed: 3 further threads"):
        machine.check_limits(2)


@pytest.fixture(scope="module")
def system(tiny_bundle: Path) -> System:
    return open_system(tiny_bundle, engine="torch", device="cpu", threads=1)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small cases, and between them a large one."""
    folder = tmp_path_factory.mktemp("cases")
    small = make_phantom(1, (32, 32, 32))
    for name, phantom in (("A", small), ("M", make_phantom(1, (96, 96, 96))), ("Z", small)):
        write_phantom(folder, name, phantom, "RAS")
    return folder


def test_the_need_grows_with_headers_and_brains(cases: Path, system: System) -> None:
    small, large, _ = find_cases(cases).cases
    assert memory.need_to_read(large) == 27 * memory.need_to_read(small) > 96**3 * 16
    assert memory.need_to_read(Case("none", {})) == 0
    scans = [read_scan(case) for case in (small, large)]
    needs = [memory.need_to_predict(scan, system) for scan in scans]
    assert needs[1] > 8 * needs[0]
    empty = scans[0].data.copy()
    scans[0].data[:] = 0
    assert 0 < memory.need_to_predict(scans[0], system) < needs[0]
    scans[0].data[:] = empty


@pytest.mark.parametrize("step", ["read", "predict"])
def test_a_case_that_does_not_fit_is_failed_by_name_and_the_others_go_on(
    cases: Path, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    least = memory.need_to_read(find_cases(cases).cases[1])
    monkeypatch.setattr(memory, "free_memory", lambda: least - (step == "read"))
    monkeypatch.setattr(cohort, "need_to_predict", lambda scan, _: 2 * least if scan.data.size > 4 * 32**3 else 0)
    outcome = segment_folder(find_cases(cases), system, CohortSettings(tmp_path), lambda _: None)
    assert [case.status for case in outcome.cases] == ["ok", "failed", "ok"]
    assert f"too little memory to {step} it" in str(outcome.cases[1].error)


def test_cases_that_do_not_fit_beside_each_other_follow_each_other(
    cases: Path, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = find_cases(cases).cases[1]
    alone = max(memory.need_to_read(large), memory.need_to_predict(read_scan(large), system))
    monkeypatch.setattr(memory, "free_memory", lambda: alone)
    running: list[str] = []

    def guarded(step: str) -> None:
        real = getattr(cohort, step)

        def one_at_a_time(*given: object, **named: object) -> object:
            running.append(step)
            at_once = list(running)
            result = real(*given, **named)
            running.remove(step)
            sizes = {given[0].data.size for _ in [0] if hasattr(given[0], "data")}
            assert at_once == [step] or 4 * 96**3 not in sizes, at_once
            return result

        monkeypatch.setattr(cohort, step, one_at_a_time)

    for step in ("read_scan", "predict_regions", "label_regions"):
        guarded(step)
    outcome = segment_folder(find_cases(cases), system, CohortSettings(tmp_path), lambda _: None)
    assert [case.error for case in outcome.cases] == [None] * 3


def test_ample_memory_needs_no_header(
    cases: Path, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    monkeypatch.setattr(cohort, "need_to_read", None)
    outcome = segment_folder(find_cases(cases), system, CohortSettings(tmp_path), lambda _: None)
    assert [case.error for case in outcome.cases] == [None] * 3
