"""Cores, limits and libraries of this machine, found out without importing anything that computes."""

from __future__ import annotations

import logging
import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Final, TypeVar

from inference.errors import UsageError

_LIBRARIES = ("numpy", "nibabel", "torch", "openvino", "safetensors", "connected-components-3d")
# Below this a scan of the usual size may not fit.
_LITTLE_MEMORY_GIB: Final = 3.0
_GIB = 2**30
_MIB = 2**20
# Options of `mallopt`, as in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Limit, usage, and the key of file cache in `memory.stat`: cgroup v2, v1.
_MEMORY_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# OpenVINO, numpy and the embedded bundle take 1640 MiB of addresses before the first case, most of them never used.
_LEAST_ADDRESS_SPACE: Final = 1800 * _MIB
# OpenVINO's or torch's threads, and OpenBLAS's.
_THREADS_PER_CORE: Final = 2
# OpenVINO's compilers, reading, its four sequences, finishing: 28 threads were counted in a run on one core.
_OWN_THREADS: Final = 25
# Bytes, so that the threads that are tried take no address space to speak of.
_SMALL_STACK: Final = 2**18
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Machine:
    """Processors, memory, and what is installed."""

    threads: int
    """Processor cores that this process may use: affinity, cgroup quota, `OMP_NUM_THREADS`."""
    cores: int
    """Processor cores of the machine."""
    memory_gib: float | None
    """Memory that this process may use: the machine's or the cgroup's; None if it cannot be told."""
    machine_memory_gib: float | None
    """Memory of the machine; None if it cannot be told."""
    scratch: str | None
    """Folder for temporary files: the first of TMPDIR and the usual ones that can be written to; None without one."""
    engines: tuple[str, ...]
    """Engines that are installed."""
    gpus: tuple[str, ...]
    """NVIDIA GPUs that the driver shows."""
    driver: str | None
    """Version of the NVIDIA driver."""
    libraries: dict[str, str]
    """Versions of what is installed of the libraries that matter."""


def look_around() -> Machine:
    """The facts of this machine, in milliseconds."""
    memory, total = available_memory(), machine_memory()
    return Machine(
        threads=available_threads(),
        cores=os.cpu_count() or 1,
        memory_gib=None if memory is None else round(memory / _GIB, 1),
        machine_memory_gib=None if total is None else round(total / _GIB, 1),
        scratch=scratch_folder(),
        engines=tuple(name for name in ("torch", "openvino") if util.find_spec(name)),
        gpus=_gpus(Path("/proc/driver/nvidia/gpus")),
        driver=_driver(Path("/proc/driver/nvidia/version")),
        libraries=library_versions(),
    )


def describe_machine(
    machine: Machine, device: str, threads: int, places: Mapping[str, Path]
) -> Iterator[tuple[int, str]]:
    """Lines of the log, each with its level, about device, memory, threads, and places that are written to.

    `device` is where the networks run (`cpu`, `cuda:0`), `threads` how many cores they may use, and `places` go by what
    is written there.
    """
    gpus = ", ".join(machine.gpus)
    if device != "cpu":
        yield logging.INFO, f"device: {device} of {gpus or 'the GPUs'}, driver {machine.driver or 'unknown'}"
    elif gpus:
        yield logging.WARNING, f"runs on the CPU although there is a GPU ({gpus}, driver {machine.driver})"
    else:
        yield logging.INFO, "device: the CPU, no GPU is seen"
    memory, total = machine.memory_gib, machine.machine_memory_gib
    whose = f" of the machine's {total}, by the container's limit" if memory and total and memory < total else ""
    if memory is not None and memory < _LITTLE_MEMORY_GIB:
        yield logging.WARNING, f"only {memory} GiB of memory may be used{whose}, which may be too little"
    else:
        yield logging.INFO, "memory: unknown" if memory is None else f"memory: {memory} GiB{whose}"
    if threads > machine.threads:
        waits = f"{threads} threads where {machine.threads} cores may be used: they will wait for each other"
        yield logging.WARNING, waits
    else:
        yield logging.INFO, f"threads: {threads} on {machine.cores} cores"
    yield logging.INFO, "writes: " + ", ".join(f"{what} to {place}" for what, place in places.items())
    if machine.scratch is None:
        nowhere = "no folder for temporary files (TMPDIR, /tmp) can be written to: pictures may be missing"
        yield logging.WARNING, nowhere


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that results may depend on."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def available_threads(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: by its affinity, the quota of its cgroup (v2 or v1), and
    `OMP_NUM_THREADS` where that is a number. Here and below, /proc and /sys are looked for under `root`.
    """
    # Not os.cpu_count(), which in a container is that of the whole machine.
    threads = len(os.sched_getaffinity(0))
    with suppress(ValueError):
        threads = min(threads, int(os.environ.get("OMP_NUM_THREADS", threads)))
    for folder in _cgroup_folders(root, "cpu"):
        quota = _quota(folder)
        if quota is not None:
            threads = min(threads, int(quota))
    return max(1, threads)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may use: the machine's memory, or less where a cgroup (v2 or v1) limits it."""
    limits = [
        limit
        for folder in _cgroup_folders(root, "memory")
        for name, _, _ in _MEMORY_FILES
        if (limit := _read(folder / name, int)) is not None
    ]
    if total := machine_memory(root):
        limits.append(total)
    return min(limits, default=None)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, by the machine, its cgroups (v2 or v1) and `ulimit -v`; None if unknown.

    A cgroup's usage counts files that were read and that the kernel lets go of when it needs room: these are free.
    """
    free, meminfo = [], root / "proc/meminfo"
    for folder in _cgroup_folders(root, "memory"):
        for limit_file, usage_file, files_key in _MEMORY_FILES:
            limit, usage = _read(folder / limit_file, int), _read(folder / usage_file, int)
            if limit is not None and usage is not None:
                files = _read(folder / "memory.stat", partial(_labelled, key=files_key)) or 0
                free.append(limit - usage + files)
    available = _read(meminfo, partial(_labelled, key="MemAvailable:"))
    if available is not None:
        # Swap is slow, but a case that is slow is better than one that fails.
        swap = _read(meminfo, partial(_labelled, key="SwapFree:")) or 0
        free.append((available + swap) * 1024)
    if (address_space := free_address_space()) is not None:
        free.append(address_space)
    return max(0, min(free)) if free else None


def free_address_space() -> int | None:
    """Bytes that `ulimit -v` still grants this process; None without such a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(Path("/proc/self/statm"), lambda text: int(text.split()[0]))
    if limit == resource.RLIM_INFINITY or pages is None:
        return None
    return limit - pages * resource.getpagesize()


def check_limits(threads: int) -> None:
    """Refuse to start where libraries would crash for lack of processes or of address space (UsageError).

    Some of them end the process, or send it signals, where they cannot start a thread or map a file.
    """
    space = free_address_space()
    if space is not None and space < _LEAST_ADDRESS_SPACE:
        found, least = space // _MIB, _LEAST_ADDRESS_SPACE // _MIB
        raise UsageError(f"out of memory: ulimit -v leaves {found} MiB of address space, expected at least {least}")
    # Limits are those of a user or container, and count processes of others: only trying tells what is left.
    wanted = _THREADS_PER_CORE * threads + _OWN_THREADS
    release, started = threading.Event(), []
    usual = threading.stack_size(_SMALL_STACK)
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=release.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        few = f"{len(started)} further threads could be started, expected {wanted}"
        limits = "ulimit -u, the container's limit of processes, or --threads"
        raise UsageError(f"too few processes allowed: {few} ({limits})") from error
    finally:
        threading.stack_size(usual)
        release.set()
        for thread in started:
            thread.join()


def give_memory_back() -> None:
    """Have the C library hand arrays of a MiB or more back to the system as soon as they are freed.

    glibc raises that limit to 32 MiB by itself, and what lies between stays with the process, in pieces that nothing
    else fits into. Concerns the whole process, so it is for programs to call, not for libraries. Nothing happens with a
    C library that has no such setting.
    """
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            set_option(option, _MIB)


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory of the machine, whoever may use them; None if it cannot be told."""
    kilobytes = _read(root / "proc/meminfo", partial(_labelled, key="MemTotal:"))
    return None if kilobytes is None else kilobytes * 1024


def scratch_folder(usual: Sequence[str] = ("/tmp", "/var/tmp", "/usr/tmp")) -> str | None:  # noqa: S108 (only looked at)
    """The folder that libraries put temporary files in, found as Python's `tempfile` does but without writing any."""
    wished = [folder for name in ("TMPDIR", "TEMP", "TMP") if (folder := os.environ.get(name))]
    folders = [*wished, *usual]
    return next((folder for folder in folders if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)), None)  # noqa: PTH112 (never raises)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Folders that may hold this process's limits: the roots of v2 and v1, and its own groups below them."""
    top = root / "sys/fs/cgroup"
    folders = [top, top / controller]
    # A line of v1 names its controllers (`4:memory,cpu:/docker/abc`), that of v2 none (`0::/job`). A limit counts for
    # all groups below it, so that those above are asked, too.
    for line in _read(root / "proc/self/cgroup", str.splitlines) or []:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base = top if not controllers else top / controller
        if not controllers or controller in controllers.split(","):
            place = base / path.lstrip("/")
            folders += [place, *(parent for parent in place.parents if parent.is_relative_to(top))]
    return folders


def _labelled(text: str, key: str) -> int:
    """The number after a key, as in `inactive_file 4096` or `MemAvailable: 4 kB`."""
    return int(next(line for line in text.splitlines() if line.startswith(key + " ")).split()[1])


def _quota(folder: Path) -> float | None:
    """Cores that a cgroup grants, None where it sets no limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # cgroup v2, v1
        words = " ".join(_read(folder / name, str) or "" for name in names).split()
        with suppress(ValueError):  # "max", -1 and 0 are no limit
            quota, period = map(float, words)
            if min(quota, period) > 0:
                return quota / period
    return None


def _read(path: Path, parse: Callable[[str], _Parsed]) -> _Parsed | None:
    """Contents of a small system file, None where it is not there or says something else (such as `max`)."""
    try:
        return parse(path.read_text())
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _gpus(folder: Path) -> tuple[str, ...]:
    try:
        files = sorted(folder.glob("*/information"))
        lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model:")]
    except (OSError, ValueError):
        return ()
    return tuple(line.partition(":")[2].strip() for line in lines)


def _driver(file: Path) -> str | None:
    """The version in a line such as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  …`."""
    words = _read(file, str.split) or []
    return next((word for word in words if word[:1].isdigit() and "." in word), None)
