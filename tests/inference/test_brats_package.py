"""The `brats` package drives the entry point: all of its own code runs, but for the container it would start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from inference.cli import main

brats_docker = pytest.importorskip("brats.core.docker")

ROOT = Path(__file__).resolve().parents[2]
IDS = ["P-00001-000", "P-00002-000", "P-00003-000"]
ENTRIES = """
algorithms:
  Glioma24: &entry
    meta: &meta
      {authors: us, paper: N/A, challenge: Africa, challenge_manuscript: N/A, rank: 1st, year: 2024}
    run_args:
      docker_image: glioma-africa:inference
      input_name_schema: BraTS-SSA-{id:05d}-000
      shm_size: 2gb
      parameters_file: true
      cpu_compatible: true
  Glioma25:
    <<: *entry
    meta: {<<: *meta, year: 2025}
"""
COMMANDS = {
    "Glioma24": "infer --data_path=/mlcube_io0 --output_path=/mlcube_io2 --parameters_file=/mlcube_io3/dummy.yml",
    "Glioma25": "",
}
"""What is said to the container of an entry of that year."""


class Container:
    """A process of the entry point in place of a container of the image."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "inference", *words],
            cwd="/",
            env={"PYTHONPATH": str(ROOT), "ON_ERROR": "empty", "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def attach(self, *, stdout: bool, stderr: bool, stream: bool, logs: bool) -> Iterator[bytes]:
        assert all((stdout, stderr, stream, logs))
        assert self._process.stdout
        return iter(self._process.stdout)

    def wait(self) -> dict[str, int]:
        """Like docker's, it does not read what the container says."""
        return {"StatusCode": self._process.wait(timeout=300)}


class Client:
    """The docker client as far as `brats` uses it, mounts by putting the host's folders into the words."""

    def __init__(self, bundle: Path) -> None:
        self.asked: list[dict[str, object]] = []
        self.images = SimpleNamespace(list=lambda name: [name])
        self.containers = SimpleNamespace(run=self._run)
        self._environment = {"GLIOMA_BUNDLE": str(bundle)}

    def _run(
        self, *, image: str, volumes: dict[Path | str, dict[str, str]], command: str = "", **rest: object
    ) -> Container:
        self.asked.append({"image": image, "command": command, **rest})
        # What no words mean, tested in test_cli.py, has to be said where there are no mounts.
        command = command or "--data_path=/input --output_path=/output"
        for host, mount in volumes.items():
            command = command.replace(f"={mount['bind']}", f"={host}")
        return Container(command.split(), self._environment)


@pytest.fixture
def client(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client(tiny_bundle)
    monkeypatch.setattr("brats.core.docker.client", client)
    monkeypatch.setattr("brats.utils.zenodo.ADDITIONAL_FILES_FOLDER", tmp_path / "additional")
    return client


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line gives by itself."""
    output = tmp_path_factory.mktemp("expected")
    assert main(["-i", str(phantom_folder), "-o", str(output), "--bundle", str(tiny_bundle), "--threads", "1"]) == 0
    return output


def segmenter(entry: str, folder: Path) -> object:
    from brats.constants import Algorithms
    from brats.core.segmentation_algorithms import SegmentationAlgorithmWith4Modalities

    (folder / "entries.yml").write_text(ENTRIES)
    ours = Algorithms("Ours", {"Glioma24": "Glioma24", "Glioma25": "Glioma25"})
    return SegmentationAlgorithmWith4Modalities(ours(entry), folder / "entries.yml", force_cpu=True)


def voxels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("entry", COMMANDS)
def test_a_batch_and_a_single_case_come_back(
    entry: str, client: Client, phantom_folder: Path, expected: Path, tmp_path: Path
) -> None:
    ours = segmenter(entry, tmp_path)
    ours.infer_batch(phantom_folder, tmp_path / "batch", log_file=tmp_path / "log")
    assert sorted(path.name for path in (tmp_path / "batch").iterdir()) == [f"{case}.nii.gz" for case in IDS]
    case = IDS[2]
    scans = {name: phantom_folder / case / f"{case}-{name}.nii.gz" for name in ("t1c", "t1n", "t2f", "t2w")}
    ours.infer_single(**scans, output_file=tmp_path / "single" / "mask.nii.gz", log_file=tmp_path / "log")
    for name in IDS:
        assert np.array_equal(voxels(tmp_path / "batch" / f"{name}.nii.gz"), voxels(expected / f"{name}.nii.gz"))
    assert np.array_equal(voxels(tmp_path / "single" / "mask.nii.gz"), voxels(expected / f"{case}.nii.gz"))
    assert voxels(tmp_path / "single" / "mask.nii.gz").any()
    for asked in client.asked:
        assert asked["command"] == COMMANDS[entry]
        assert asked["network_mode"] == "none"
        assert asked["user"] == f"{os.getuid()}:{os.getgid()}"


@pytest.mark.parametrize("entry", COMMANDS)
def test_a_bad_case_does_not_lose_the_batch(
    entry: str, client: Client, phantom_folder: Path, expected: Path, tmp_path: Path
) -> None:
    for case in IDS[:2]:
        (tmp_path / "cases" / case).mkdir(parents=True)
        for scan in (phantom_folder / case).glob("*-t*.nii.gz"):
            (tmp_path / "cases" / case / scan.name).write_bytes(scan.read_bytes())
    broken = tmp_path / "cases" / IDS[0] / f"{IDS[0]}-t1c.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-1000])
    segmenter(entry, tmp_path).infer_batch(tmp_path / "cases", tmp_path / "batch", log_file=tmp_path / "log")
    assert not voxels(tmp_path / "batch" / f"{IDS[0]}.nii.gz").any()
    assert np.array_equal(voxels(tmp_path / "batch" / f"{IDS[1]}.nii.gz"), voxels(expected / f"{IDS[1]}.nii.gz"))


def test_a_container_that_fails_is_told(client: Client, phantom_folder: Path, tmp_path: Path) -> None:
    from brats.utils.exceptions import BraTSContainerException

    client._environment["GLIOMA_BUNDLE"] = str(tmp_path / "nowhere")
    with pytest.raises(BraTSContainerException, match="no bundle here"):
        segmenter("Glioma24", tmp_path).infer_batch(phantom_folder, tmp_path / "batch", log_file=tmp_path / "log")
