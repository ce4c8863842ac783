"""The program in a process of its own, over more cases than a test cares to make, and what it may leave behind."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
START = "import sys; from inference.cli import main; sys.exit(main())"


def multiply(originals: Path, folder: Path, count: int) -> list[str]:
    """Cases Q-00000-000 and on in a new folder, made of links to the phantoms in `originals`; their IDs."""
    folder.mkdir()
    sources = sorted(originals.iterdir())
    names = []
    for number in range(count):
        source, name = sources[number % len(sources)], f"Q-{number:05d}-000"
        (folder / name).mkdir()
        for path in source.iterdir():
            (folder / name / path.name.replace(source.name, name)).symlink_to(path)
        names.append(name)
    return names


@dataclass(frozen=True)
class Places:
    """What a run reads, and where it writes: all in one folder that holds nothing else."""

    home: Path
    cases: Path
    bundle: Path
    report: bool = False

    @property
    def output(self) -> Path:
        return self.home / "output"

    @property
    def record(self) -> Path:
        return self.home / "records" / "record.json"

    @property
    def pictures(self) -> Path:
        return self.home / "report"

    def start(self, *words: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """Start the program, its standard error in a pipe; `before` is Python that runs first."""
        places = ["-i", str(self.cases), "-o", str(self.output), "--record", str(self.record)]
        places += ["--report", str(self.pictures)] * self.report
        settings = ["--bundle", str(self.bundle), "--engine", "openvino", "--threads", "1"]
        return subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{START}", *places, *settings, *words],
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, before: str = "", **environment: str) -> tuple[int, str]:
        """Exit status and standard error of the program, which comes to its end."""
        process = self.start(*words, before=before, **environment)
        _, errors = process.communicate(timeout=500)
        assert "Traceback" not in errors, errors
        return process.returncode, errors

    def masks(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.output.iterdir()}

    def statuses(self) -> dict[str, str]:
        return {case["id"]: case["status"] for case in json.loads(self.record.read_bytes())["cases"]}

    def check(self, staged: str | None = None) -> None:
        """Nothing but whole files under their names, anywhere; beside the folders may lie what `staged` matches."""
        names = {path.name for path in self.cases.iterdir()}
        for place in sorted(self.home.iterdir()) if self.home.is_dir() else []:
            if staged and re.fullmatch(staged, place.name):
                continue
            assert place in {self.output, self.record.parent, self.pictures}, place
            for path in sorted(place.iterdir()):
                assert path.is_file(), path
                assert not path.is_symlink(), path
                assert path.stat().st_nlink == 1, path
                self._check_file(path, names)

    def _check_file(self, path: Path, names: set[str]) -> None:
        if path.parent == self.output:
            case = path.name.removesuffix(".nii.gz")
            assert case in names, path
            gzip.decompress(path.read_bytes())
            image, t1n = nib.load(path), nib.load(self.cases / case / f"{case}-t1n.nii.gz")
            assert image.shape == t1n.shape
            assert np.asarray(image.dataobj).max() <= 3
        elif path == self.record:
            assert set(json.loads(path.read_bytes())) == {"run", "cases"}
        elif path.parent == self.pictures and path.suffix == ".png":
            assert path.stem in names
            with Image.open(path) as picture:
                picture.load()
        elif path.parent == self.pictures and path.name.endswith(".case.js"):
            assert path.name.removesuffix(".case.js") in names
            script = path.read_text()
            assert script.startswith("openCase(")
            json.loads("[" + script.removeprefix("openCase(").removesuffix(");\n") + "]")
        else:
            assert path == self.pictures / "index.html", path
            assert path.read_text().rstrip().endswith("</html>")
