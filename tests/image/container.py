"""A built image run under an organiser's rules, without a container engine's daemon: namespaces, mounts and chroot."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STRANGER = 12345
"""A user whom neither the image nor this machine knows."""
_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class Mount:
    """A folder of this machine in the container."""

    host: Path
    inside: str
    writable: bool = False


@dataclass(frozen=True)
class Rules:
    """Limits that a caller sets; the default is the strictest that any of them is."""

    mounts: Sequence[Mount] = ()
    user: str = f"{STRANGER}:{STRANGER}"
    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = "/usr"
    shm_mb: int = 64
    writable_tmp: bool = False


@dataclass(frozen=True)
class Finished:
    """What a container left behind."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    peak_gb: float


@dataclass(frozen=True)
class Image:
    """An image whose root folder is mounted."""

    root: Path
    config: Mapping[str, object]
    health: Sequence[str]
    labels: Mapping[str, str]
    environment: Mapping[str, str]

    @property
    def entrypoint(self) -> list[str]:
        return list(self.config["Entrypoint"])

    def run(self, words: Sequence[str], rules: Rules, *, entrypoint: Sequence[str] | None = None) -> Finished:
        """Run the entry point with these words: no network, a read-only root, and nobody reads what it says."""
        for mount in rules.mounts:
            (self.root / mount.inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
        command = [*(self.entrypoint if entrypoint is None else entrypoint), *words]
        script = "\n".join(self._script(command, rules))
        begin = time.perf_counter()
        process = subprocess.Popen(
            ["timeout", "540", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stdout
        assert process.stderr
        with process.stdout, process.stderr:
            said, complained = process.stdout.read().decode(), process.stderr.read().decode()
        return Finished(process.returncode, said, complained, seconds, usage.ru_maxrss / 1e6)

    def _script(self, command: Sequence[str], rules: Rules) -> Iterator[str]:
        root = shlex.quote(str(self.root))
        yield f"mount --bind {root} {root}; mount -o remount,bind,ro {root}"
        yield f"mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; mount -t tmpfs tmpfs {root}/dev"
        yield f"for d in {' '.join(_DEVICES)}; do touch {root}/dev/$d; mount --bind /dev/$d {root}/dev/$d; done"
        yield f"mkdir {root}/dev/shm; mount -t tmpfs -o size={rules.shm_mb}m,mode=1777 tmpfs {root}/dev/shm"
        if rules.writable_tmp:
            yield f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp"
        for mount in rules.mounts:
            target = f"{root}{shlex.quote(mount.inside)}"
            yield f"mount --bind {shlex.quote(str(mount.host))} {target}"
            if not mount.writable:
                yield f"mount -o remount,bind,ro {target}"
        settings = [f"{name}={value}" for name, value in {**self.environment, **rules.environment}.items()]
        within = ["/usr/bin/env", "-i", "-C", rules.working_directory, *settings, *command]
        yield f"exec chroot --userspec={rules.user} --groups= {root} {shlex.join(within)}"


def buildah(*words: str) -> str:
    """What buildah answers."""
    return subprocess.run(["buildah", *words], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@contextmanager
def mounted(name: str) -> Iterator[Image]:
    """The image of this name, for as long as the block lasts."""
    described = json.loads(buildah("inspect", "--type", "image", name))
    config = described["Docker"]["config"]
    container = buildah("from", name)
    try:
        yield Image(
            Path(buildah("mount", container)),
            config,
            config["Healthcheck"]["Test"],
            config["Labels"],
            dict(setting.split("=", 1) for setting in config["Env"]),
        )
    finally:
        buildah("rm", container)
