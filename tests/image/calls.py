"""Builds images on a Debian made here and runs every calling form in them: `./build.sh image-test` (as root).

On a real scan where there is one, else on a phantom: by default as a user nobody knows, without HOME, on a read-only
root with nothing writable but the output folder, with 64 MB of shared memory, no network, read-only input, and from
another working directory. What differs from that is said in the table of calls.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np

from tests.image.container import STRANGER, Finished, Image, Mount, Rules, buildah, mounted

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "image-test"
BASE = "localhost/debian:bookworm"
TARGETS = ("cpu", "inference", "training")
SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
OLD_NAMES = ("t1", "t1ce", "t2", "flair")
MLCUBE = ["infer", "--data_path=/mlcube_io0", "--output_path=/mlcube_io1", "--parameters_file=/mlcube_io2/x.yaml"]
MLCUBE_APART = [*(part for word in MLCUBE for part in word.split("=")), "--verbose"]
BRATS_2024 = ["infer", "--data_path=/mlcube_io0", "--output_path=/mlcube_io2"]


STRICT = Rules()


@dataclass(frozen=True)
class Call:
    """One way to call the container on one case."""

    caller: str
    words: Sequence[str] = ()
    data: str = "/input"
    """Where the scans are mounted."""
    output: str = "/output"
    """Where the output folder is mounted."""
    layout: str = "brats"
    """How the scans are named, one of LAYOUTS."""
    more: Sequence[str] = ()
    """Further folders that are mounted, writable, writable."""
    data_writable: bool = False
    rules: Rules = STRICT


HOSTILE = Rules(
    environment={"HOME": "/home/someone", "PYTHONPATH": "/home/someone", "PYTHONHOME": "/nowhere", "TMPDIR": "/tmp"},
    working_directory="/home/someone",
    writable_tmp=True,
)
"""Apptainer: WORKDIR dropped, the host's HOME, /tmp and variables handed through; there, modules named like ours."""

CALLS = (
    Call("docker run, no words"),
    Call("docker run -i -o", ["-i", "/data", "-o", "/results"], "/data", "/results"),
    Call("record and report", ["--record", "/made/run.json", "--report", "/made/page"], more=["/made"]),
    Call("BraTS 2025+, Synapse", rules=Rules(shm_mb=4096, working_directory="/")),
    Call("BraTS 2023/24, MLCube", [*MLCUBE, "--checkpoint=/mlcube_io3"], "/mlcube_io0", "/mlcube_io1"),
    Call("MLCube, words apart", MLCUBE_APART, "/mlcube_io0", "/mlcube_io1"),
    Call("brats, entry ≤ 2024", BRATS_2024, "/mlcube_io0", "/mlcube_io2", more=["/mlcube_io1", "/mlcube_io3"],
         data_writable=True, rules=Rules(shm_mb=2048)),
    Call("brats, entry ≥ 2025", data_writable=True, rules=Rules(shm_mb=4096)),
    Call("Apptainer", BRATS_2024, "/mlcube_io0", "/mlcube_io2", more=["/home/someone"], rules=HOSTILE),
    Call("as root", rules=Rules(user="0:0")),
    Call("names of 2021", layout="2021"),
    Call("no folders, strays", layout="flat"),
    Call("nnU-Net's names", layout="nnunet"),
    Call("not compressed", layout="plain"),
)  # fmt: skip


_DESCRIP = slice(148, 228)
"""Place of `descrip` in a NIfTI-1 header, where a label map says which scans it was made from."""


def lay_out(scans: dict[str, Path], case: str, layout: str, into: Path) -> Path:
    """The scans of one case in a folder, named as `layout` says."""
    folder = into if layout in ("flat", "nnunet") else into / case
    folder.mkdir(parents=True, exist_ok=True)
    for index, sequence in enumerate(SEQUENCES):
        ending = {"2021": f"_{OLD_NAMES[index]}.nii.gz", "nnunet": f"_{index:04d}.nii.gz", "plain": f"-{sequence}.nii"}
        target = folder / f"{case}{ending.get(layout, f'-{sequence}.nii.gz')}"
        raw = scans[sequence].read_bytes()
        target.write_bytes(gzip.decompress(raw) if layout == "plain" else raw)
    if layout == "flat":
        for stray in (".DS_Store", "dataset.json", f"{case}-seg.nii.gz"):
            (folder / stray).write_bytes(b"{}")
    return into


def fresh(name: str, owner: int = STRANGER) -> Path:
    """An empty folder that belongs to a user."""
    folder = WORK / "run" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chown(folder, owner, owner)
    return folder


def content(path: Path) -> bytes:
    """A label map, header and all."""
    return gzip.decompress(path.read_bytes())


def labels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Over the whole tumour."""
    return float(2 * ((first > 0) & (second > 0)).sum() / max(1, (first > 0).sum() + (second > 0).sum()))


class Checks:
    """All that is looked at in one image."""

    def __init__(self, target: str, image: Image, case: str, scans: dict[str, Path]) -> None:
        self.target, self.image, self.case, self.scans = target, image, case, scans
        self.expected: bytes | None = None
        self.rows: list[tuple[str, str, str, str]] = []

    def all(self) -> bool:
        """Whether everything is as it should be."""
        for call in CALLS:
            self._note(call.caller, partial(self._call, call))
        for name, check in (
            ("as a bundle's networks say in PyTorch", self._other_engine),
            ("a bad case beside a good one", self._bad_case),
            ("the brats package, both forms", self._brats),
            ("bundles that are not as they were", self._bundles),
            ("health check, labels, user", self._configuration),
            ("what is not in it", self._absences),
        ):
            if name.endswith("PyTorch") and self.target == "cpu":
                continue
            self._note(name, check)
        return all(verdict == "ok" for *_, verdict in self.rows)

    def _note(self, name: str, check: Callable[[], Finished | None]) -> None:
        begin = time.perf_counter()
        try:
            finished = check()
            verdict = "ok"
        except Exception:
            finished, verdict = None, traceback.format_exc(limit=-1)
        seconds = finished.seconds if finished else time.perf_counter() - begin
        peak = f"{finished.peak_gb:.2f}" if finished else ""
        self.rows.append((name, f"{seconds:.1f}", peak, verdict))
        say(f"| {self.target} | {name} | {seconds:.1f} | {peak} | {verdict} |")

    def _infer(self, words: Sequence[str], rules: Rules, output: Path, *, status: int = 0) -> Finished:
        finished = self.image.run(words, rules)
        assert finished.status == status, finished
        assert finished.stdout == "", finished
        assert "Traceback" not in finished.stderr, finished
        assert len(finished.stderr) < 2000, finished
        owners = {path.stat().st_uid for path in output.iterdir()}
        assert owners <= {int(rules.user.split(":")[0])}, owners
        return finished

    def _call(self, call: Call) -> Finished:
        data = lay_out(self.scans, self.case, call.layout, fresh("input"))
        output = fresh("output", int(call.rules.user.split(":")[0]))
        mounts = [Mount(data, call.data, call.data_writable), Mount(output, call.output, writable=True)]
        for index, inside in enumerate(call.more):
            folder = fresh(f"more{index}")
            if inside == "/home/someone":
                for module in ("inference", "numpy", "json"):
                    (folder / f"{module}.py").write_text("raise SystemExit(3)\n")
            mounts.append(Mount(folder, inside, writable=True))
        finished = self._infer(call.words, replaced(call.rules, mounts), output)
        assert [path.name for path in output.iterdir()] == [f"{self.case}.nii.gz"]
        made = content(output / f"{self.case}.nii.gz")
        if self.expected is None:
            self.expected = made
            assert np.frombuffer(made, np.uint8, offset=352).any(), "an empty label map shows nothing"
            shutil.copy(output / f"{self.case}.nii.gz", WORK / f"{self.target}.nii.gz")
        expected = self.expected
        if call.layout == "plain":  # other files, which the stamp in `descrip` tells, with the same voxels
            assert made[_DESCRIP] != expected[_DESCRIP]
            made, expected = (whole[: _DESCRIP.start] + whole[_DESCRIP.stop :] for whole in (made, expected))
        assert made == expected, "another label map than the first call's"
        if call.caller == "record and report":
            made_here = sorted(path.name for path in (WORK / "run" / "more0").rglob("*") if path.is_file())
            assert made_here == [f"{self.case}.case.js", f"{self.case}.png", "index.html", "run.json"], made_here
        return finished

    def _other_engine(self) -> Finished:
        data = lay_out(self.scans, self.case, "brats", fresh("input"))
        output = fresh("output")
        rules = Rules([Mount(data, "/input"), Mount(output, "/output", writable=True)])
        finished = self._infer(["--engine", "torch", "--profile", "fast"], rules, output)
        agreement = dice(labels(output / f"{self.case}.nii.gz"), labels(WORK / f"{self.target}.nii.gz"))
        assert agreement > 0.995, agreement
        return finished

    def _bad_case(self) -> Finished:
        data = lay_out(self.scans, self.case, "brats", fresh("input"))
        bad = f"{self.case[:-9]}99999-000"
        lay_out(self.scans, bad, "brats", data)
        broken = data / bad / f"{bad}-t2f.nii.gz"
        broken.write_bytes(broken.read_bytes()[:-5000])
        output = fresh("output")
        rules = Rules([Mount(data, "/input"), Mount(output, "/output", writable=True)])
        finished = self._infer([], rules, output)
        assert content(output / f"{self.case}.nii.gz") == self.expected
        assert not labels(output / f"{bad}.nii.gz").any()
        assert f"{bad}: FAILED" in finished.stderr, finished
        output = fresh("output")
        rules = replaced(rules, [Mount(data, "/input"), Mount(output, "/output", writable=True)])
        self._infer(["--on-error", "skip", "--resume"], rules, output, status=1)
        return finished

    def _brats(self) -> None:
        import brats.core.docker
        import brats.utils.zenodo
        from brats.constants import Algorithms
        from brats.core.segmentation_algorithms import SegmentationAlgorithmWith4Modalities

        from tests.inference.test_brats_package import ENTRIES

        brats.core.docker.client = SimpleNamespace(
            images=SimpleNamespace(list=lambda name: [name]), containers=SimpleNamespace(run=self._start)
        )
        folder = fresh("brats")
        brats.utils.zenodo.ADDITIONAL_FILES_FOLDER = folder / "additional"
        (folder / "entries.yml").write_text(ENTRIES)
        data = lay_out(self.scans, self.case, "brats", fresh("input"))
        ours = Algorithms("Ours", {"Glioma24": "Glioma24", "Glioma25": "Glioma25"})
        for entry in ours:
            segmenter = SegmentationAlgorithmWith4Modalities(entry, folder / "entries.yml", force_cpu=True)
            segmenter.infer_batch(data, folder / entry.name, log_file=folder / "log")
            assert content(folder / entry.name / f"{self.case}.nii.gz") == self.expected, entry

    def _start(
        self, *, volumes: dict[Path | str, dict[str, str]], user: str, command: str = "", **_: object
    ) -> SimpleNamespace:
        """All that the docker client's `containers.run` does, on the image that is mounted."""
        mounts = [Mount(Path(host), mount["bind"], mount["mode"] == "rw") for host, mount in volumes.items()]
        finished = self.image.run(command.split(), Rules(mounts, user=user))
        return SimpleNamespace(
            attach=lambda **_: iter(finished.stderr.encode().splitlines(keepends=True)),
            wait=lambda: {"StatusCode": finished.status},
        )

    def _bundles(self) -> None:
        whole = self.image.run(["info", "--json"], Rules())
        assert json.loads(whole.stdout)["bundle"]["name"] == self.image.labels["glioma-africa.bundle.name"]
        for damage, complaint in DAMAGES:
            bundle = damaged(damage)
            output = fresh("output")
            mounts = [Mount(bundle, "/bundle"), Mount(output, "/output", writable=True)]
            rules = Rules([*mounts, Mount(self.scans["t1n"].parent.parent, "/input")])
            refused = self._infer(["infer", "--bundle", "/bundle"], rules, output, status=2)
            assert complaint in refused.stderr, refused
            assert not list(output.iterdir())

    def _configuration(self) -> None:
        assert self.image.health[0] == "CMD"
        healthy = self.image.run([], Rules(), entrypoint=self.image.health[1:])
        assert healthy.status == 0, healthy
        assert healthy.stdout.startswith("ok: bundle"), healthy
        assert self.image.config["User"].split(":")[0] not in ("", "0", "root")
        assert self.image.entrypoint[0].startswith("/")
        assert self.image.environment["ON_ERROR"] == "empty"
        for label in ("title", "version", "revision", "licenses"):
            assert self.image.labels[f"org.opencontainers.image.{label}"], label
        assert not self.image.environment["GLIOMA_BUNDLE"].startswith("/tmp")

    def _absences(self) -> None:
        site = self.image.root / "opt/glioma/venv/lib/python3.11/site-packages"
        assert not list(self.image.root.glob("usr/bin/*gcc*"))
        absent = {"cpu": ("torch", "nnunetv2", "snakemake", "pytest"), "inference": ("nnunetv2", "snakemake", "pytest")}
        assert not [name for name in absent[self.target] if (site / name).exists()]
        assert not (self.image.root / "opt/glioma/app/training").exists()
        assert not list((self.image.root / "run").glob("*certificates*"))
        stale = [
            path for path in (site / "numpy").rglob("*.py") if not list(path.parent.glob(f"__pycache__/{path.stem}.*"))
        ]
        assert not stale, stale[:3]


def replaced(rules: Rules, mounts: Sequence[Mount]) -> Rules:
    """The same rules with these mounts."""
    return Rules(mounts, rules.user, rules.environment, rules.working_directory, rules.shm_mb, rules.writable_tmp)


def tamper(bundle: Path) -> None:
    path = bundle / "nnunet/fold_0.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def truncate(bundle: Path) -> None:
    path = bundle / "mednext/fold_1.safetensors"
    path.write_bytes(path.read_bytes()[:-4096])


def downgrade(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 0', 1))


def foreign(bundle: Path) -> None:
    (bundle / "nnunet/fold_0.pth").write_bytes(b"PK\3\4")


DAMAGES = (
    (tamper, "nnunet/fold_0.safetensors: found SHA-256"),
    (truncate, "mednext/fold_1.safetensors: found"),
    (downgrade, "schema: found 0"),
    (foreign, "nnunet/fold_0.pth: found a file that manifest.json does not list"),
)


def damaged(damage: Callable[[Path], None]) -> Path:
    """The embedded bundle with a damage."""
    folder = WORK / "run" / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "weights" / "embedded", folder)
    damage(folder)
    return folder


def check_training(image: Image) -> bool:
    """Whether the image that trains knows the pipeline and its tools, under the same rules."""
    work = fresh("work")
    rules = Rules([Mount(work, "/work", writable=True)], working_directory="/work", writable_tmp=True)
    listed = image.run(
        ["run", "--config", "/opt/glioma/app/training/configs/smoke.yaml", "--work", "/work", "--dry-run"], rules
    )
    say(f"| training | the graph of smoke.yaml, dry | {listed.seconds:.1f} | {listed.peak_gb:.2f} | {listed.status} |")
    if listed.status or "train" not in listed.stdout + listed.stderr:
        say(listed.stdout + listed.stderr)
        return False
    return True


def refuses_to_build(target: str, options: Sequence[str]) -> bool:
    """Whether no image comes of a bundle that was tampered with."""
    built = subprocess.run(
        [str(ROOT / "build.sh"), "image", *options, "--base", BASE, "--bundle", str(damaged(tamper)),
         "--tag", "glioma-africa:refused"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    refused = built.returncode != 0 and DAMAGES[0][1] in built.stdout + built.stderr
    say(f"| {target} | no image of a tampered bundle | | | {'ok' if refused else built.stderr[-2000:]} |")
    return refused


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def one_case() -> tuple[str, dict[str, Path]]:
    """A real scan, or a phantom where there is none."""
    real = sorted((ROOT.parent / "shared" / "data" / "africa").glob("BraTS-SSA-*"))
    if real:
        folder = real[0]
    else:
        from training.data.phantoms import make_phantom, write_phantom

        folder = write_phantom(fresh("phantom"), "BraTS-SSA-00007-000", make_phantom(7))
    say(f"case: {folder.name}{'' if real else ', a phantom'}")
    return folder.name, {name: folder / f"{folder.name}-{name}.nii.gz" for name in SEQUENCES}


def prepare() -> None:
    """buildah's storage in a folder of its own, and in it a small Debian 12 such as registries have it."""
    WORK.mkdir(parents=True, exist_ok=True)
    storage = WORK / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{WORK}/storage"\nrunroot = "{WORK}/state"\n')
    os.environ |= {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}
    if (
        subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True, check=False).returncode
        == 0
    ):
        return
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], stdout=subprocess.DEVNULL, check=True)
    for cache in (
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ):
        shutil.rmtree(root / cache)
        (root / cache).mkdir()
    buildah("commit", "--quiet", "--format", "docker", "--rm", container, BASE)


def built(target: str) -> Iterator[bool]:
    """Build an image, then look at everything in it."""
    begin = time.perf_counter()
    options = [] if target == "inference" else [f"--{target}"]
    with (WORK / f"{target}.log").open("w") as log:
        command = [str(ROOT / "build.sh"), "image", *options, "--base", BASE]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    name = f"localhost/glioma-africa:{target}"
    size = next(
        line for line in buildah("images", "--format", "{{.Tag}} {{.Size}}").splitlines() if line.split()[0] == target
    )
    say(f"built {target} in {time.perf_counter() - begin:.0f} s, {size.partition(' ')[2]}")
    with mounted(name) as image:
        yield check_training(image) if target == "training" else Checks(target, image, *one_case()).all()
    if target == "cpu":
        yield refuses_to_build(target, options)


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.sh image-test", description=__doc__)
    for target in TARGETS:
        parser.add_argument(f"--{target}", action="store_true", help="only this image and others so named")
    wished = parser.parse_args()
    prepare()
    say("| image | call | s | peak GB | |\n|---|---|---|---|---|")
    targets = [target for target in TARGETS if getattr(wished, target)] or ["cpu", "inference"]
    fine = [verdict for target in targets for verdict in built(target)]
    if {"cpu", "inference"} <= set(targets):
        same = content(WORK / "cpu.nii.gz") == content(WORK / "inference.nii.gz")
        say(f"both images give the same label map: {same}")
        fine.append(same)
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
